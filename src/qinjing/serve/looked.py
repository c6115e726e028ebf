"""What is told of a segmentation that somebody looks at: places, figures, a report, DICOM.

Figures follow the product class; whoever asks, by whichever route, comes through `figures_of`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.config import plain
from qinjing.data.dicom.codes import Term, parse_terms
from qinjing.data.dicom.derived import Maker
from qinjing.data.dicom.read import find_series, load
from qinjing.data.dicom.series import Reading
from qinjing.data.nifti import read_nifti
from qinjing.errors import InputError
from qinjing.export.dicom import Placed, write_objects
from qinjing.report.case_report import CaseReport, Finding, write_case_report
from qinjing.report.measure import Measured, measure
from qinjing.report.product_class import allowed
from qinjing.serve.answer import findings, person_name
from qinjing.serve.drawn import Image, Segmentation, image_id_of
from qinjing.serve.images import Images
from qinjing.serve.volumes import about


def places(images: Images, one: Segmentation) -> list[dict[str, Any]]:
    """Return where each label lies: its voxel nearest to its middle.

    Returns:
        label, name, voxel (i, j, k) of the NIfTI file, and world_mm, RAS as NIfTI has it.
    """
    from scipy.ndimage import find_objects

    volume = read_nifti(images.mask(one))
    found = []
    for value, box in enumerate(find_objects(volume.voxels), start=1):
        if box is None or value not in one.labels:
            continue
        inside = np.argwhere(volume.voxels[box] == value)
        nearest = inside[np.argmin(((inside - inside.mean(axis=0)) ** 2).sum(axis=1))]
        index = [int(at) + part.start for at, part in zip(nearest, box, strict=True)]
        lps = volume.affine @ [*index, 1]
        found.append({
            "label": value, "name": one.labels[value], "voxel": index[::-1],
            "world_mm": [round(float(mm), 3) for mm in lps[:3] * (-1, -1, 1)],
        })  # fmt: skip
    return found


def figures(images: Images, one: Segmentation, terms: Mapping[str, Term]) -> dict[str, Any]:
    """Return what a segmentation measures, where its class lets that out.

    Args:
        images: where it lies.
        one: the segmentation.
        terms: its model's own codes of names.

    Raises:
        ConfigError: it does not.
    """
    measured = figures_of(images, one)
    said = _found(images, one, terms)
    return {
        "structures": plain(measured.structures), "uncertainty": measured.uncertainty,
        "findings": plain(said), "confirmed_by": one.confirmed_by or None,
    }  # fmt: skip


def figures_of(images: Images, one: Segmentation) -> Measured:
    """Measure a segmentation, if its class may; the last few are remembered.

    Raises:
        ConfigError: it may not.
    """
    from qinjing.report.product_class import require

    require("measurement", one.product_class)
    image = images.get(one.image_id)
    labels = tuple(sorted(one.labels.items()))
    units = image.units if image else ""
    return _measured(images.mask(one), images.volume(one.image_id), labels, units)


@lru_cache(maxsize=32)  # files of one version never change
def _measured(mask: Path, image: Path, labels: tuple[tuple[int, str], ...], units: str) -> Measured:
    return measure(read_nifti(mask), dict(labels), read_nifti(image), units=units)


def _found(images: Images, one: Segmentation, terms: Mapping[str, Term]) -> list[Finding]:
    labels = read_nifti(images.mask(one))
    return findings(labels, one.product_class, one.labels, terms, one.confidence)


def report(
    images: Images,
    one: Segmentation,
    card: Mapping[str, Any],
    terms: Mapping[str, Term],
    language: str = "en",
) -> dict[str, Path]:
    """Write the report of a segmentation, of what its class lets out; "html" and "pdf" → file.

    Args:
        images: where it lies.
        one: the segmentation.
        card: of the model that made it.
        terms: its own codes of names.
        language: "en" or "zh".
    """
    said = f"{one.version}.{'c' if one.confirmed_by else 'o'}.{language}"
    folder = images.mask(one).with_name(f"{one.segmentation_id}.{said}.report")
    files = {"html": folder / "case.html", "pdf": folder / "case.pdf"}
    if files["html"].is_file():
        return {name: file for name, file in files.items() if file.is_file()}
    measured, seen = None, list[Finding]()
    if allowed("measurement", one.product_class):
        measured = figures_of(images, one)
        seen = _found(images, one, terms)
    said_of = CaseReport(
        read_nifti(images.volume(one.image_id)), read_nifti(images.mask(one)), one.labels,
        one.product_class, card=card, measured=measured, findings=seen,
        confirmed_by=one.confirmed_by, language=language,
    )  # fmt: skip
    # Whole or not at all, and by whoever asks first: another may be at it.
    made = Path(tempfile.mkdtemp(prefix=".report-", dir=folder.parent))
    try:
        write_case_report(said_of, made)
        with suppress(OSError):  # there already
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return {name: file for name, file in files.items() if file.is_file()}


def dicom_seg(images: Images, image: Image, one: Segmentation, study: Path, out: Path) -> Path:
    """Write a segmentation as DICOM SEG beside the series that its image came from.

    Args:
        images: where it lies.
        image: that it was drawn on.
        one: the segmentation.
        study: the folder of the study's instances.
        out: an empty folder.

    Raises:
        InputError: the series is not there, or lies on another grid.
    """
    for series in find_series(study).series:
        for planned in series.volumes:
            if image_id_of(about(planned)) != image.image_id:
                continue
            source = load(planned)
            labels = read_nifti(images.mask(one)).canonical().restore_axes(source.volume)
            names, terms = parse_terms({str(v): name for v, name in one.labels.items()}, "labels")
            maker = Maker(algorithm=one.author, seed=_seed(one))
            if one.kind != "model":
                maker = Maker(creator=person_name(one.author), method="MANUAL", seed=_seed(one))
            placed = Placed(labels, source, names, terms, Reading())
            return write_objects(placed, out, ["seg"], maker=maker)["seg"]
    raise InputError("image", "of a DICOM series that is here", "another")


def _seed(one: Segmentation) -> int:
    return int(one.segmentation_id[:12], 16) + one.version
