"""A segmentation as DICOM objects beside the series that it was made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.config import read_json
from qinjing.data.dicom.codes import Term, read_terms
from qinjing.data.dicom.derived import Maker
from qinjing.data.dicom.read import read_dicom
from qinjing.data.dicom.rtstruct import write_rtstruct
from qinjing.data.dicom.seg import write_seg
from qinjing.data.dicom.series import DicomVolume, Reading
from qinjing.data.dicom.sr import Finding, write_sr
from qinjing.data.readers import read_volume
from qinjing.errors import ConfigError, GeometryError, LabelError
from qinjing.volume import Volume

FORMS = ("seg", "rtstruct", "sr")


@dataclass(frozen=True, eq=False)
class Placed:
    """A segmentation on the grid of the series that it belongs to.

    Attributes:
        segmentation: (D, H, W) whole numbers, or (C, D, H, W) probabilities.
        source: the series' volume.
        names: label value → name.
        terms: name → the user's own codes.
    """

    segmentation: Volume
    source: DicomVolume
    names: dict[int, str]
    terms: dict[str, Term]
    # Of a zip: its files are there as long as this is.
    _reading: Reading


def place(
    segmentation: Path,
    source: Path,
    labels: Path | None = None,
    *,
    series: str | None = None,
    model: Path | None = None,
) -> Placed:
    """Read a segmentation and find the series whose grid it lies on.

    Axes that run the other way, as other programs write them, are turned without loss.

    Args:
        segmentation: an image file of labels.
        source: a folder or zip of DICOM files, of any number of series.
        labels: JSON of value and name (`codes.parse_terms`), or a file that holds such as
            "labels"; without one the model's, else "label 1" and so on.
        series: SeriesInstanceUID, where several lie on that grid.
        model: the run that made the segmentation, for the names of its labels.

    Raises:
        ConfigError: the labels cannot be used, or the series must be named.
        FormatError: a file cannot be read.
        GeometryError: the segmentation lies on no series' grid.
        LabelError: its values are no whole numbers, or have no name.
    """
    image = _whole(read_volume(segmentation), segmentation)
    reading = read_dicom(source)
    found = _source(image, reading, source, series)
    turned = image.canonical().restore_axes(found.volume)
    names, terms = _names(turned, labels, model)
    return Placed(turned, found, names, terms, reading)


def write_objects(
    placed: Placed,
    output: Path,
    forms: Sequence[str] = ("seg", "rtstruct"),
    *,
    how: str = "binary",
    maker: Maker | None = None,
    reporter: Maker | None = None,
    findings: Sequence[Finding] = (),
    verified_by: str = "",
) -> dict[str, Path]:
    """Write a segmentation as DICOM SEG, RT structure set and structured report.

    Args:
        placed: the segmentation on its series.
        output: a folder; ``seg.dcm``, ``rtstruct.dcm`` and ``sr.dcm`` go there.
        forms: of "seg", "rtstruct" and "sr".
        how: of the SEG: "binary", "labelmap" or "fractional".
        maker: who makes them.
        reporter: who makes the report, where it is not `maker`.
        findings: what the report tells.
        verified_by: the person who answers for the report.

    Returns:
        form → file.

    Raises:
        ConfigError: an unknown form, a report without findings, or highdicom is not installed.
        GeometryError: the segmentation lies on another grid.
        LabelError: values without a name.
    """
    for form in forms:
        if form not in FORMS:
            raise ConfigError("form", f"one of {', '.join(FORMS)}", form)
    if "sr" in forms and not findings:
        raise ConfigError("findings", "given for a structured report", "none")
    maker = maker or Maker()
    shared: dict[str, Any] = {"terms": placed.terms}
    made: dict[str, Path] = {}
    seg = None
    if "seg" in forms:
        path = output / "seg.dcm"
        seg = write_seg(
            path, placed.segmentation, placed.source, placed.names, how=how, maker=maker, **shared
        )
        made["seg"] = seg.path
    if "rtstruct" in forms:
        numbered = replace(maker, series_number=maker.series_number + 1)
        drawn = write_rtstruct(
            output / "rtstruct.dcm", placed.segmentation, placed.source, placed.names,
            maker=numbered, **shared,
        )  # fmt: skip
        made["rtstruct"] = drawn.path
    if "sr" in forms:
        numbered = replace(reporter or maker, series_number=maker.series_number + 2)
        made["sr"] = write_sr(
            output / "sr.dcm", findings, placed.source, seg=seg, maker=numbered,
            verified_by=verified_by, **shared,
        )  # fmt: skip
    return made


def maker_of(model: Path | None, creator: str = "") -> Maker:
    """Return who made a segmentation: a run by its name and the digest of its weights.

    Args:
        model: a run, or one of its folds.
        creator: the person or program that answers for it; the program, where "".

    Raises:
        FormatError: the run says not what it is.
        ConfigError: it holds no weights.
    """
    maker = Maker(creator=creator) if creator else Maker()
    if model is None:
        return maker
    model = model.resolve()
    weights = sorted(
        [*model.glob("weights.safetensors"), *model.glob("fold_*/weights.safetensors")]
    )
    if not weights:
        raise ConfigError("model", "a run with a finished fold", "none", where=model)
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    name = " ".join(
        str(read_json(file).get(key) or "")
        for file, key in ((_dataset_of(model), "name"), (weights[0].parent / "model.json", "net"))
        if file is not None
    )
    version = f"sha256:{digest.hexdigest()[:16]}"
    return replace(maker, algorithm=f"{maker.algorithm} {name}"[:64].strip(), version=version)


def _dataset_of(model: Path) -> Path | None:
    """The file of a run, or of the run that a fold is of, which says what its labels are."""
    beside = [folder / "dataset.json" for folder in (model.resolve(), model.resolve().parent)]
    return next((path for path in beside if path.is_file()), None)


def _whole(image: Volume, where: Path) -> Volume:
    """Label maps that were stored as floats are whole numbers again; probabilities stay."""
    voxels = image.voxels
    if voxels.ndim == 4 or voxels.dtype.kind in "iub":
        return image
    rounded = np.rint(voxels)
    if not np.isfinite(voxels).all() or (rounded != voxels).any():
        raise LabelError("labels", "whole numbers", "others", where=where)
    return image.with_voxels(rounded.astype(np.int32))


def _source(image: Volume, reading: Reading, place: Path, series: str | None) -> DicomVolume:
    """The volume whose grid the segmentation lies on, whichever way its axes run."""
    volumes = [one for one in reading.volumes if series in (None, one.series_instance_uid)]
    if not volumes:
        reasons = [refusal.reason for refusal in reading.refused[:1]]
        got = reasons[0] if reasons else "no such series" if series else "none"
        raise ConfigError("source", "a series of images that can be read", got, where=place)
    canonical = image.canonical()
    differences = [canonical.grid_difference(one.volume.canonical()) for one in volumes]
    fitting = [one for one, d in zip(volumes, differences, strict=True) if d is None]
    if not fitting:
        raise GeometryError(
            "segmentation", "on the grid of a series of its source", differences[0], where=place,
            advice="segment the series itself, or resample the labels onto it",
        )  # fmt: skip
    if len({one.series_instance_uid for one in fitting}) > 1:
        some = ", ".join(sorted({one.series_instance_uid for one in fitting})[:3])
        raise ConfigError("series", "named, where several lie on one grid", some, where=place,
                          advice="give --series")  # fmt: skip
    return fitting[0]


def _names(
    image: Volume, labels: Path | None, model: Path | None
) -> tuple[dict[int, str], dict[str, Term]]:
    """What the label values are called."""
    file = labels
    if file is None and model is not None:
        file = _dataset_of(model)
    if file is not None:
        return read_terms(file)
    if image.voxels.ndim == 4:
        values: Sequence[int] = range(1, len(image.voxels) + 1)
    else:
        values = [int(value) for value in np.unique(image.voxels) if value]
    if not values:
        raise LabelError("segmentation", "of at least one label", "background alone")
    return {value: f"label {value}" for value in values}, {}
