"""What was measured, as a structured report tells it: one finding an organ or lesion."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qinjing.data.dicom.codes import ABNORMAL, Term, find_term
from qinjing.data.dicom.series import DicomVolume
from qinjing.data.dicom.sr import Finding
from qinjing.report.measure import Grey, Measured, Structure, lesion_map
from qinjing.volume import Volume

MOST_LESIONS = 99  # of one label; more are specks, which nobody follows one by one


def apart(
    segmentation: Volume, names: Mapping[int, str], terms: Mapping[str, Term]
) -> tuple[Volume, dict[int, str], dict[str, Term]]:
    """Give each lesion a label of its own, so that what is measured of it is one segment.

    Anatomy stays as it is, whatever pieces it comes in.

    Args:
        segmentation: label map (D, H, W).
        names: label value → name.
        terms: the user's own codes of names.

    Returns:
        The label map, names and terms with "liver tumor 1", "liver tumor 2" and so on, the largest
        first; the first keeps the label's value.

    Raises:
        GeometryError: the segmentation is not 3-D.
        LabelError: no integers, or a value without a name.
    """
    coded = {name: terms.get(name) or find_term(name) for name in names.values()}
    split = {v: name for v, name in names.items() if coded[name].category == ABNORMAL}
    pieces, listed = lesion_map(segmentation, names)
    count = {value: sum(of == value for of, _ in listed) for value in split}
    named, told = dict(names), dict(terms)
    table = np.zeros(len(listed) + 1, dtype=np.int32)
    for k, (value, number) in enumerate(listed, start=1):
        table[k] = value
        if not 1 < count.get(value, 0) <= MOST_LESIONS:
            continue
        if number > 1:
            table[k] = max(named) + 1
        name = f"{names[value]} {number}"
        named[int(table[k])], told[name] = name, coded[names[value]]
    relabelled = pieces.with_voxels(table[pieces.voxels]).restore_axes(segmentation)
    return relabelled, dict(sorted(named.items())), told


def findings_of(measured: Measured, source: DicomVolume) -> list[Finding]:
    """Return what `measure` found as findings of a structured report.

    Diameters are told of what is in one piece; a label that is nowhere has 0 ml.

    Args:
        measured: of a segmentation on the source's grid, lesions `apart`.
        source: the series, for the slice that an axis was measured in.
    """
    return [_finding(one, source) for one in measured.structures]


def _finding(structure: Structure, source: DicomVolume) -> Finding:
    grey: Grey | None = structure.grey
    piece = structure.lesions[0] if structure.count == 1 else None
    return Finding(
        label=structure.name,
        value=structure.label,
        volume_ml=structure.volume.ml,
        volume_bounds_ml=(structure.volume.low_ml, structure.volume.high_ml),
        long_axis_mm=piece.long_axis_mm if piece else None,
        short_axis_mm=piece.short_axis_mm if piece else None,
        plane=_slice_of(piece.long_ends_mm, source) if piece else None,
        diameter_3d_mm=piece.diameter_mm if piece else None,
        mean=grey.mean if grey else None,
        sd=grey.sd if grey else None,
        percentiles=dict(grey.percentiles) if grey else {},
        units=grey.units if grey else "",
    )


def _slice_of(ends_mm: tuple[tuple[float, ...], ...], source: DicomVolume) -> int | None:
    """The slice that both ends lie in, or None where the slices are not axial ones."""
    inverse = np.linalg.inv(source.volume.affine)
    at = [float((inverse @ [*end, 1.0])[0]) for end in ends_mm]
    d = round(sum(at) / len(at))
    inside = 0 <= d < source.volume.shape[0]
    return d if inside and all(abs(one - d) < 0.5 for one in at) else None
