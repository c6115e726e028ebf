"""What a model says of a study, as DICOM objects that go back to where the study came from.

What may go out hangs on the product class that was declared for the model, and is decided here,
before anything is made: a `tool` gives a segmentation and pictures, and no figure can be asked of
it. The same study, model and instances give objects of the same UIDs, so that a second attempt
after a lost worker is no second answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qinjing.config import read_json
from qinjing.data.case import Case
from qinjing.data.dicom.codes import Term, parse_terms
from qinjing.data.dicom.derived import Maker, instances
from qinjing.data.dicom.pdf import write_pdf_object
from qinjing.data.dicom.read import find_series, load
from qinjing.data.dicom.series import DicomVolume, Reading
from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.errors import ConfigError, InputError
from qinjing.export.dicom import Placed, maker_of, write_objects
from qinjing.report.case_report import CaseReport, write_case_report
from qinjing.report.findings import apart, findings_of
from qinjing.report.measure import measure
from qinjing.report.product_class import CLASSES, allowed
from qinjing.tasks.predict import Segmenter, segment_cases


@dataclass(frozen=True)
class ServedModel:
    """A model that answers studies.

    Attributes:
        run: its folder.
        modality: of the series that it is for, as DICOM has it: "CT", "MR", "PT".
        product_class: "tool", "analysis" or "diagnosis", as it was declared.
        card: JSON with its name, intended use and limits, or None.
        least_slices: series of fewer are left alone: localisers and the like.

    Raises:
        ConfigError: the class is unknown, or the model sees several channels at once.
    """

    run: Path
    modality: str
    product_class: str
    card: Path | None = None
    least_slices: int = 8

    def __post_init__(self) -> None:
        if self.product_class not in CLASSES:
            raise ConfigError("product class", f"one of {', '.join(CLASSES)}", self.product_class)
        channels = read_json(self.run / "dataset.json").get("channel_names", [0])
        if len(channels) != 1:
            raise ConfigError(
                "model", "of one channel, to answer studies by itself", len(channels),
                where=self.run, advice="several series cannot be told apart by their modality",
            )  # fmt: skip

    def labels(self) -> tuple[dict[int, str], dict[str, Term]]:
        """Return what the label values are called, and the user's own codes."""
        place = self.run / "dataset.json"
        return parse_terms(read_json(place)["labels"], str(place))


def answer(study: Path, model: ServedModel, out: Path) -> list[Path]:
    """Segment every fitting series of a study; the DICOM files that answer it.

    Args:
        study: a folder of its instances.
        model: who answers.
        out: an empty folder, for these files and what they were made from.

    Raises:
        InputError: no series fits, or none could be answered.
    """
    made: list[Path] = []
    tried = 0
    faults: list[str] = []
    for series in find_series(study).series:
        if series.modality != model.modality:
            continue
        faults += [refusal.reason for refusal in series.refused]
        for planned in series.volumes:
            if planned.stack.shape[0] < model.least_slices:
                continue
            tried += 1  # a folder each, so that nothing of one that failed stays in the next
            try:
                made += _one(load(planned), model, out / f"{tried:03d}")
            except InputError as error:
                faults.append(str(error))
    if not made:
        got = faults[0] if faults else "none"
        rule = f"of a series of {model.modality} with {model.least_slices} slices or more"
        raise InputError("study", rule, got)
    return made


def _one(source: DicomVolume, model: ServedModel, folder: Path) -> list[Path]:
    """The objects of one volume."""
    image = folder / "image.nii.gz"
    write_nifti(image, source.volume)  # the way of `predict`, and so its result
    case = Case("segmentation", "", (image,))
    said = segment_cases(_segmenter(model.run), [case], folder)
    if said["refused"]:
        raise InputError("series", "one that can be segmented", said["refused"][0]["reason"])
    labels = read_nifti(folder / "segmentation.nii.gz").canonical().restore_axes(source.volume)
    names, terms = model.labels()
    names = {value: name for value, name in names.items() if value}
    placed = Placed(labels, source, names, terms, Reading())
    maker = _maker(source, model)
    forms, findings, measured = ["seg"], [], None
    if allowed("measurement", model.product_class):
        lesions, named, coded = apart(labels, names, terms)
        placed = replace(placed, segmentation=lesions, names=named, terms=coded)
        measured = measure(lesions, named, source.volume, units=source.units)
        findings = findings_of(measured, source)
        forms.append("sr")
    objects = write_objects(placed, folder, forms, maker=maker, findings=findings)
    card: Mapping[str, Any] = read_json(model.card) if model.card else {"name": maker.algorithm}
    report = CaseReport(
        source.volume, placed.segmentation, placed.names, model.product_class, card=card,
        measured=measured,
    )  # fmt: skip
    pdf = write_case_report(report, folder)["pdf"]
    title = f"{maker.algorithm}: {model.product_class}"[:64]
    numbered = replace(maker, series_number=maker.series_number + 3)
    objects["pdf"] = write_pdf_object(
        folder / "report.dcm", Path(pdf).read_bytes(), source, title=title, maker=numbered
    )
    return list(objects.values())


def _maker(source: DicomVolume, model: ServedModel) -> Maker:
    """Who makes it; its seed hangs on the model and on every instance, so that UIDs do."""
    maker = maker_of(model.run)
    parts = [maker.version, model.product_class]
    parts += sorted(one.sop_instance_uid for one in instances(source))
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return replace(maker, seed=int.from_bytes(digest[:8], "big"))


@lru_cache(maxsize=2)
def _segmenter(run: Path) -> Segmenter:
    return Segmenter.load(run)
