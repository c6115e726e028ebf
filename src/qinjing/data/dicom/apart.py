"""What tells planes of one place apart (echo, b-value, time), and a series parted by it.

Only where planes lie at the same place is anything asked but geometry: each property in turn, and
the first is taken that parts them into no more parts than lie at one place. An acquisition time
that differs from slice to slice is none such; an echo is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qinjing.data.dicom.elements import Elements

if TYPE_CHECKING:
    from qinjing.data.dicom.header import Plane

_COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real", "I": "imaginary"}
SAME_PLACE_MM = 1e-3
SAME_DIRECTION = 1e-4  # of direction cosines, which are written with six digits or more


@dataclass(frozen=True)
class Apart:
    """The properties of a frame that may tell it from others of its place.

    Attributes:
        component: "magnitude", "phase", "field map" and so on.
        echo_ms: echo time.
        b_value: s/mm².
        direction: of the diffusion gradient.
        index: indices of the file's own dimensions other than the place.
        temporal: TemporalPositionIdentifier or TemporalPositionIndex.
        trigger_ms: time after the heart's trigger.
        reference_ms: PET's frame reference time.
        acquisition: AcquisitionNumber.
        acquired: date and time of the acquisition.
        number: InstanceNumber, which sorts what nothing else does.
    """

    component: str
    echo_ms: float | None
    b_value: float | None
    direction: tuple[float, ...]
    index: tuple[float, ...]
    temporal: float | None
    trigger_ms: float | None
    reference_ms: float | None
    acquisition: float | None
    acquired: str
    number: float


def apart(file: Elements, own: Elements, shared: Elements, pointers: Sequence[int]) -> Apart:
    """Return the properties of one frame.

    Args:
        file: the file's elements.
        own: the frame's functional groups; of a single-frame file the file itself.
        shared: those of all frames; likewise.
        pointers: what the file's dimension indices point to.

    Raises:
        DamagedError: an element that must be a number is none.
    """
    if own is file:
        kind, echo, diffusion, content, timing = (file,) * 5
    else:
        kind = _group(own, shared, 0x00189226)
        echo, diffusion = _group(own, shared, 0x00189114), _group(own, shared, 0x00189117)
        content, timing = _group(own, shared, 0x00209111), _group(own, shared, 0x00189118)
    gradient = (diffusion.items(0x00189076) or [diffusion])[0]
    indices = content.numbers(0x00209157)
    places = (0x00209056, 0x00209057, 0x00200032, 0x00209113)
    index = tuple(n for n, tag in zip(indices, pointers, strict=False) if tag not in places)
    return Apart(
        component=_component(kind),
        echo_ms=echo.number(0x00189082 if 0x00189082 in echo else 0x00180081),
        b_value=_first(diffusion, 0x00189087) if 0x00189087 in diffusion else _private_b(file),
        direction=tuple(gradient.numbers(0x00189089) or _private_direction(file)),
        index=index,
        temporal=_first(content, 0x00209128, 0x00200100),
        trigger_ms=_first(timing, 0x00189153, 0x00181060),
        reference_ms=file.number(0x00541300),
        acquisition=_first(content, 0x00209156) if own is not file else file.number(0x00200012),
        acquired=(content.text(0x00189074) if own is not file else "")
        or file.text(0x0008002A) or file.text(0x00080022) + file.text(0x00080032),
        number=file.number(0x00200013) or 0.0,
    )  # fmt: skip


def _group(own: Elements, shared: Elements, tag: int) -> Elements:
    found = own.items(tag) or shared.items(tag)
    return found[0] if found else Elements(b"", True, True)


def _first(file: Elements, *tags: int) -> float | None:
    return next((found for tag in tags if (found := file.number(tag)) is not None), None)


def _is(file: Elements, tag: int, creator: str) -> bool:
    return file.text(tag).startswith(creator)


def _component(kind: Elements) -> str:
    """Magnitude or phase, and what the image was made to show, in lower case."""
    words = kind.words(0x00089007) or kind.words(0x00080008)
    told = [kind.text(0x00089208), *words[2:]]
    named = (_COMPONENTS.get(word, word).replace("_", "-").lower() for word in told if word)
    return " ".join(dict.fromkeys(named))


def _private_direction(file: Elements) -> list[float]:
    """The direction of a diffusion gradient where its maker writes it."""
    if _is(file, 0x00190010, "SIEMENS MR HEADER"):
        return file.numbers(0x0019100E)
    if _is(file, 0x00650010, "Image Private Header"):
        return file.numbers(0x00651037)
    return []


def _private_b(file: Elements) -> float | None:
    """The b-value where its maker writes it, if the file is of that maker."""
    makers = (
        (0x00190010, "SIEMENS MR HEADER", 0x0019100C),
        (0x00650010, "Image Private Header", 0x0065100A),
        (0x20010010, "Philips Imaging DD 001", 0x20011003),
        (0x00430010, "GEMS_PARM_01", 0x00431039),
    )
    for creator, name, tag in makers:
        if _is(file, creator, name):
            found = file.number(tag)
            # GE adds 10⁹ to say that the number is one.
            return found % 1e9 if found is not None and tag == 0x00431039 else found
    return None


# How each property is called in `what`, and whether parts are numbered or named by their value.
_KEYS: tuple[tuple[str, str], ...] = (
    ("component", ""), ("echo_ms", "echo"), ("b_value", "b"), ("direction", "direction"),
    ("temporal", "time"), ("trigger_ms", "phase"), ("reference_ms", "time"), ("index", "index"),
    ("acquisition", "time"), ("acquired", "time"), ("number", "time"),
)  # fmt: skip


def alike(planes: Sequence[Plane]) -> list[list[Plane]]:
    """Group planes that are parallel, of one size, spacing, type and frame of reference."""
    groups: list[list[Plane]] = []
    known: dict[tuple[object, ...], list[Plane]] = {}
    for plane in planes:
        key = (plane.file.frame_of_reference, plane.shape, plane.stored.dtype,
               plane.directions.tobytes(), plane.spacing_mm.tobytes())  # fmt: skip
        group = known.get(key)
        if group is None:
            group = next((some for some in groups if _fits(plane, some[0])), None)
            if group is None:
                group = []
                groups.append(group)
            known[key] = group
        group.append(plane)
    return groups


def _fits(one: Plane, other: Plane) -> bool:
    return (
        one.file.frame_of_reference == other.file.frame_of_reference
        and one.shape == other.shape
        and one.stored.dtype == other.stored.dtype
        and bool(abs(one.directions - other.directions).max() <= SAME_DIRECTION)
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=1e-5)
    )


def part(planes: Sequence[Plane]) -> list[tuple[str, list[Plane]]]:
    """Part planes that are alike so that no two of a part lie at the same place.

    Returns:
        What tells each part from the others ("echo 2 time 3"), and its planes. Where nothing
        tells them apart they stay together.
    """
    places = [_place(plane) for plane in planes]
    most = _most(places)
    if most == 1:
        return [("", list(planes))]
    for name, word in _KEYS:
        values = [getattr(plane.apart, name) for plane in planes]
        kinds = sorted(set(values), key=_order(name, planes))
        if not 1 < len(kinds) <= most:
            continue
        parts = []
        for rank, kind in enumerate(kinds, 1):
            inside = [plane for plane, value in zip(planes, values, strict=True) if value == kind]
            label = _label(name, word, kinds, rank)
            parts += [(f"{label} {what}".strip(), some) for what, some in part(inside)]
        return parts
    return _by_order(planes, places, most)


def _place(plane: Plane) -> tuple[int, ...]:
    rounded = np.rint(plane.position / SAME_PLACE_MM)
    return tuple(int(n) for n in rounded)


def _most(places: Sequence[tuple[int, ...]]) -> int:
    counts: dict[tuple[int, ...], int] = {}
    for place in places:
        counts[place] = counts.get(place, 0) + 1
    return max(counts.values())


def _order(name: str, planes: Sequence[Plane]) -> Any:
    """Sort values by themselves; directions and components by when they first come."""
    if name in ("direction", "component"):
        first: dict[Any, float] = {}
        for plane in planes:
            value = getattr(plane.apart, name)
            when = plane.apart.number * 1e6 + plane.frame
            first[value] = min(when, first.get(value, when))
        return lambda value: (first[value], str(value))
    return lambda value: (value is not None, value if value is not None else 0)


def _label(name: str, word: str, kinds: Sequence[Any], rank: int) -> str:
    kind = kinds[rank - 1]
    if name == "component":
        shared = set.intersection(*(set(str(one).split()) for one in kinds))
        return " ".join(one for one in str(kind).split() if one not in shared) or f"kind {rank}"
    if name == "b_value":
        return "b 0" if kind is None else f"b {kind:g}"
    return f"{word} {rank}"


def _by_number(one: Plane) -> tuple[float, str, str, int]:
    return one.apart.number, one.apart.acquired, one.file.instance, one.frame


def _by_order(
    planes: Sequence[Plane], places: Sequence[tuple[int, ...]], most: int
) -> list[tuple[str, list[Plane]]]:
    """Part by the order of InstanceNumber at each place, if all places have as many planes."""
    at: dict[tuple[int, ...], list[Plane]] = {}
    for plane, place in zip(planes, places, strict=True):
        at.setdefault(place, []).append(plane)
    if any(len(some) != most for some in at.values()):
        return [("", list(planes))]
    for some in at.values():
        some.sort(key=_by_number)
    numbered = all(len({one.apart.number for one in some}) == most for some in at.values())
    word = "time" if numbered or not planes[0].single else "copy"
    return [(f"{word} {k + 1}", [some[k] for some in at.values()]) for k in range(most)]
