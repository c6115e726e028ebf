"""What a model says of a study: a segmentation to look at, and DICOM objects that go back.

What may go out hangs on the product class that was declared for the model, and is decided here,
before anything is made: a `tool` gives a segmentation and pictures, and no figure can be asked of
it; a `diagnosis` gives the segmentation, and the rest once a named reader has confirmed it. The
same instances, model and voxels, confirmed by the same, give objects of the same UIDs: a second
attempt after a lost worker is no second answer, and a corrected one is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from qinjing.data.case import Case
from qinjing.data.dicom.codes import ABNORMAL, Term, find_term
from qinjing.data.dicom.derived import Maker, instances
from qinjing.data.dicom.pdf import write_pdf_object
from qinjing.data.dicom.read import Planned, find_series, load
from qinjing.data.dicom.series import DicomVolume, Reading
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.errors import InputError
from qinjing.export.dicom import Placed, maker_of, write_objects
from qinjing.report.case_report import CaseReport, Finding, write_case_report
from qinjing.report.declared import ServedModel
from qinjing.report.findings import apart, findings_of
from qinjing.report.measure import lesion_map, measure
from qinjing.report.product_class import allowed, must_be_confirmed
from qinjing.serve.drawn import About, Image, Segmentation, image_id_of
from qinjing.serve.volumes import about
from qinjing.tasks.predict import Segmenter, segment_cases
from qinjing.volume import Volume


@dataclass(frozen=True)
class Answered:
    """What a model said of one volume of a study.

    Attributes:
        about: the volume.
        image: its NIfTI file.
        segmentation: its labels, likewise.
        confidence: value → how sure a model of class `diagnosis` is of it, 0 to 1.
        files: the DICOM files that go back.
        maker: digest of the model's weights.
    """

    about: About
    image: Path
    segmentation: Path
    confidence: Mapping[int, float]
    files: tuple[Path, ...]
    maker: str


def answer(study: Path, model: ServedModel, out: Path) -> tuple[list[Answered], list[str]]:
    """Segment every fitting volume of a study, and write the DICOM files that answer it.

    Args:
        study: a folder of its instances.
        model: who answers.
        out: an empty folder, for these files and what they were made from.

    Returns:
        What was answered, and why other volumes that fit could not be; nothing of either where
        no volume fits.
    """
    made: list[Answered] = []
    faults: list[str] = []
    for number, planned in enumerate(_fitting(study, model, faults), start=1):
        # A folder each, so that nothing of one that failed stays in the next.
        folder = out / f"{number:03d}"
        try:
            made.append(_one(planned, model, folder))
        except InputError as error:
            faults.append(str(error))
    return made, faults


def confirmed_answer(
    study: Path, model: ServedModel, image: Image, said: Segmentation, labels: Path, out: Path
) -> list[Path]:
    """Write the DICOM files of an answer that a named reader has confirmed.

    Args:
        study: a folder of its instances.
        model: who answered.
        image: the volume.
        said: what was confirmed, and by whom.
        labels: its NIfTI file.
        out: an empty folder.

    Raises:
        InputError: the study holds that volume no more.
    """
    for planned in _fitting(study, model, []):
        if image_id_of(about(planned)) == image.image_id:
            return _documents(load(planned), read_nifti(labels), model, out, said=said)
    raise InputError("study", "with the volume that was confirmed", "none")


def _fitting(study: Path, model: ServedModel, faults: list[str]) -> Iterator[Planned]:
    known = model.declared
    for series in find_series(study).series:
        if series.modality == known.modality:
            faults += [refusal.reason for refusal in series.refused]
            yield from (one for one in series.volumes if one.stack.shape[0] >= known.least_slices)


def _one(planned: Planned, model: ServedModel, folder: Path) -> Answered:
    source = load(planned)
    image = folder / "image.nii.gz"
    write_nifti(image, source.volume)  # the way of `predict`, and so its result
    sure = allowed("finding", model.product_class)
    refused = segment_cases(
        segmenter(model.run), [Case("segmentation", "", (image,))], folder, confidence=sure
    )["refused"]
    if refused:
        raise InputError("series", "one that can be segmented", refused[0]["reason"])
    place = folder / "segmentation.nii.gz"
    labels = read_nifti(place)
    chance = folder / "confidence" / "segmentation.nii.gz"
    confidence = _mean_confidence(labels, read_nifti(chance)) if sure else {}
    files = _documents(source, labels, model, folder, confidence=confidence)
    maker = maker_of(model.run).version
    return Answered(about(planned), image, place, confidence, tuple(files), maker)


def _mean_confidence(labels: Volume, chance: Volume) -> dict[int, float]:
    """Value → the mean probability of its voxels; what is nowhere has none."""
    most = 255.0 if chance.voxels.dtype == np.uint8 else 1.0
    there = [int(value) for value in np.unique(labels.voxels) if value]
    return {
        value: min(1.0, float(chance.voxels[labels.voxels == value].mean()) / most)
        for value in there
    }


def _documents(
    source: DicomVolume,
    segmentation: Volume,
    model: ServedModel,
    folder: Path,
    *,
    confidence: Mapping[int, float] | None = None,
    said: Segmentation | None = None,
) -> list[Path]:
    """What goes back of one volume: all that the class may say, and that is confirmed."""
    reader, confidence = said.confirmed_by if said else "", said.confidence if said else confidence
    labels = segmentation.canonical().restore_axes(source.volume)
    names, terms = model.labels()
    placed = Placed(labels, source, names, terms, Reading())
    maker = _maker(source, model, labels)
    forms, told, measured = ["seg"], [], None
    if allowed("measurement", model.product_class):
        lesions, named, coded = apart(labels, names, terms)
        placed = replace(placed, segmentation=lesions, names=named, terms=coded)
        measured = measure(lesions, named, source.volume, units=source.units)
        told = findings_of(measured, source)
        forms.append("sr")
    if must_be_confirmed(model.product_class) and not reader:
        return [write_objects(placed, folder, ["seg"], maker=maker)["seg"]]
    # What is said of the voxels is another document when it, or who stands for it, changes.
    more = [repr(sorted((confidence or {}).items())), reader, str(said.confirmed if said else 0)]
    spoken = replace(maker, seed=_seed(str(maker.seed), *more))
    objects = write_objects(
        placed, folder, forms, maker=maker, reporter=spoken, findings=told,
        verified_by=person_name(reader),
    )  # fmt: skip
    seen = findings(labels, model.product_class, names, terms, confidence or {})
    report = CaseReport(
        source.volume, placed.segmentation, placed.names, model.product_class, card=model.card,
        measured=measured, findings=seen, confirmed_by=reader,
    )  # fmt: skip
    pdf = write_case_report(report, folder)["pdf"]
    title = f"{maker.algorithm}: {model.product_class}"[:64]
    numbered = replace(spoken, series_number=maker.series_number + 3)
    objects["pdf"] = write_pdf_object(
        folder / "report.dcm", Path(pdf).read_bytes(), source, title=title, maker=numbered
    )
    return list(objects.values())


def findings(
    labels: Volume,
    product_class: str,
    names: Mapping[int, str],
    terms: Mapping[str, Term],
    confidence: Mapping[int, float],
) -> list[Finding]:
    """Return what a `diagnosis` says is there: each kind of lesion, as sure as the model is of it.

    Args:
        labels: label map (D, H, W).
        product_class: other classes find nothing.
        names: label value → name.
        terms: the user's own codes of names.
        confidence: label value → 0 to 1.
    """
    if not allowed("finding", product_class):
        return []
    count = Counter(value for value, _ in lesion_map(labels, names)[1])
    return [
        Finding(f"{name}: {count[value]}", confidence[value])
        for value, name in names.items()
        if (terms.get(name) or find_term(name)).category == ABNORMAL
        and value in confidence
        and count[value]
    ]


def person_name(reader: str) -> str:
    """Return a name as DICOM writes names, family^given; a single word is a family name."""
    given, _, family = reader.rpartition(" ")
    return f"{family}^{given}" if given else family


def _maker(source: DicomVolume, model: ServedModel, labels: Volume) -> Maker:
    """Who makes it; its seed hangs on model, instances and voxels, so that UIDs do."""
    maker = maker_of(model.run)
    parts = [maker.version, model.product_class]
    parts += sorted(one.sop_instance_uid for one in instances(source))
    parts.append(hashlib.sha256(np.ascontiguousarray(labels.voxels).data).hexdigest())
    return replace(maker, seed=_seed(*parts))


def _seed(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big")


def segmenter(run: Path) -> Segmenter:
    """Return a run's networks, as its weights are now; the last two stay in memory."""
    return _loaded(run, maker_of(run).version)


@lru_cache(maxsize=2)
def _loaded(run: Path, _: str) -> Segmenter:
    return Segmenter.load(run)
