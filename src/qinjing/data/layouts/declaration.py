"""What a data set's JSON declares, with every value checked before it is believed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qinjing.config import read_json
from qinjing.data.readers import stem
from qinjing.errors import LayoutError

MAX_LABEL = 65535  # what uint16 holds; more is a mistake in the file


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object.

    Raises:
        FormatError: not JSON.
        LayoutError: not an object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise LayoutError("content", "a JSON object", type(content).__name__, where=path)
    return content


def as_text(value: Any, name: str, where: Path) -> str:
    """Return a value that must be printable text of at most 1,000 characters.

    Raises:
        LayoutError: it is not.
    """
    if not isinstance(value, str) or not value.strip() or len(value) > 1000:
        raise LayoutError(name, "text of 1 to 1,000 characters", repr(value), where=where)
    if not value.isprintable():
        raise LayoutError(name, "printable text", repr(value), where=where)
    return value


def as_list(value: Any, name: str, where: Path) -> list[Any]:
    """Return a value that must be a list with something in it.

    Raises:
        LayoutError: it is not.
    """
    if not isinstance(value, list) or not value:
        raise LayoutError(name, "a list of at least one entry", repr(value), where=where)
    return value


def path_inside(root: Path, value: Any, name: str, where: Path) -> Path:
    """Return a declared path, which must stay inside the data set's folder.

    Links inside the folder are the user's own affair; words like ``../..`` are not.

    Raises:
        LayoutError: not text, too long for a file system, or outside.
    """
    text = as_text(value, name, where)
    if any(len(part.encode()) > 255 for part in text.split("/")):
        raise LayoutError(name, "a path of at most 255 bytes a part", text, where=where)
    base = Path(os.path.normpath(root.absolute()))
    whole = Path(os.path.normpath(base / text))
    if not whole.is_relative_to(base) or whole == base:
        raise LayoutError(name, "a path inside the data set's folder", text, where=where)
    return root / whole.relative_to(base)


def parse_labels(value: Any, where: Path) -> dict[int, str]:
    """Return value → name from MSD's ``{"1": "liver"}`` or nnU-Net's ``{"liver": 1}``.

    What is called "ignore" is no label: see `parse_ignored`.

    Raises:
        LayoutError: not such an object, a region of several values, a value twice, or none but the
            background.
    """
    labels = {v: name for v, name in _parse(value, where).items() if not _is_ignored(name)}
    if len(labels) < 2:
        raise LayoutError("labels", "more than the background", labels, where=where)
    return labels


def parse_ignored(value: Any, where: Path) -> int | None:
    """Return the value of what nobody labelled, called "ignore"; None where there is none.

    Raises:
        LayoutError: as `parse_labels`, or it is not the highest value, as nnU-Net wants it.
    """
    labels = _parse(value, where)
    ignored = [number for number, name in labels.items() if _is_ignored(name)]
    if not ignored:
        return None
    if ignored != [max(labels)]:
        raise LayoutError("ignore label", f"the highest value, {max(labels)}", ignored, where=where)
    return ignored[0]


def _is_ignored(name: str) -> bool:
    return name.lower() == "ignore"


def _parse(value: Any, where: Path) -> dict[int, str]:
    """Every value and its name, the background and what is ignored included, ascending."""
    if not isinstance(value, dict) or not value:
        raise LayoutError("labels", "an object of at least one label", repr(value), where=where)
    if all(isinstance(name, str) for name in value.values()):
        pairs = [(_as_value(number, where), name) for number, name in value.items()]
    else:
        pairs = [(_as_value(number, where), name) for name, number in value.items()]
    labels: dict[int, str] = {}
    for number, name in pairs:
        as_text(name, f"name of label {number}", where)
        if number in labels:
            raise LayoutError("label value", "declared once", number, where=where)
        labels[number] = name
    labels.setdefault(0, "background")
    return dict(sorted(labels.items()))


def _as_value(value: Any, where: Path) -> int:
    if isinstance(value, list):
        raise LayoutError("label", "one value, not a region of several", value, where=where,
                          advice="declare each value as its own label")  # fmt: skip
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_LABEL:
        raise LayoutError("label value", f"0 to {MAX_LABEL}", repr(value), where=where)
    return value


def parse_channels(value: Any, where: Path) -> tuple[str, ...]:
    """Return channel names from ``{"0": "T1", "1": "T2"}`` or a list.

    Raises:
        LayoutError: not such an object, or the numbers do not run from 0 without a gap.
    """
    if isinstance(value, list):
        value = {str(i): name for i, name in enumerate(value)}
    if not isinstance(value, dict) or not value:
        raise LayoutError("channels", 'an object such as {"0": "T1"}', repr(value), where=where)
    expected = [str(i) for i in range(len(value))]
    if any(number not in value for number in expected):
        raise LayoutError("channel numbers", f"0 to {len(value) - 1}", list(value), where=where)
    return tuple(as_text(value[number], f"name of channel {number}", where) for number in expected)


def name_and_licence(content: Mapping[str, Any], root: Path, where: Path) -> tuple[str, str]:
    """Return the data set's own name, else its folder's, and its licence, else ""."""
    name = content.get("name") or root.resolve().name or "data set"
    licence = content.get("licence") or content.get("license") or ""
    licence = licence if isinstance(licence, str) else ""
    return as_text(name, "name", where), " ".join(licence.split())[:1000]


def unique_ids(files: Iterable[Path], root: Path, where: Path) -> list[str]:
    """Return a case id per file: its stem, or its path within `root` where stems repeat.

    Raises:
        LayoutError: one file is declared twice, or two paths give one id.
    """
    files = list(files)
    ids = [stem(file) for file in files]
    if len(set(ids)) < len(ids):
        ids = ["_".join([*file.relative_to(root).parent.parts, stem(file)]) for file in files]
    seen: set[str] = set()
    for case_id, file in zip(ids, files, strict=True):
        if case_id in seen:
            raise LayoutError("case", "declared once", file.name, where=where)
        if len(case_id.encode()) > 200:
            raise LayoutError("case id", "at most 200 bytes long", case_id, where=where)
        seen.add(case_id)
    return ids
