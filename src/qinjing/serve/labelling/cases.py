"""Labelled images as a data set to train on, whose cases belong to the patients that consent."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qinjing.config import write_json
from qinjing.data.layouts.patients import find_patient
from qinjing.errors import ConfigError
from qinjing.serve.labelling.files import renumbered

_MOST_LABELS = 255
_BETWEEN = ".image."  # of a patient and his image, in a case's id


@dataclass(frozen=True)
class Labelled:
    """An image with a label to learn from.

    Attributes:
        image_id: what a log may call it.
        image: its NIfTI file.
        mask: of the labels.
        labels: value → name.
        modality: as DICOM has it, "" where nobody knows.
        patient: the one whose consent counts; "" where nobody knows.
    """

    image_id: str
    image: Path
    mask: Path
    labels: Mapping[int, str]
    modality: str
    patient: str


def write_cases(
    cases: Sequence[Labelled],
    order: Sequence[str],
    consented: bool,
    folder: Path,
    tell: Callable[[str], None],
) -> dict[str, str]:
    """Write labelled images as a data set in the layout of the Medical Segmentation Decathlon.

    Labels go by their names, so that each name is one value in every case.

    Args:
        cases: to write; those of the modality that most have.
        order: names of labels that come first.
        consented: a gate will ask for each patient, who must be named as the store names him.
        folder: of the data set.
        tell: told of what is left out.

    Returns:
        Case id → what a log may call it.

    Raises:
        ConfigError: nothing is left, or there are too many labels.
    """
    modality = Counter(one.modality for one in cases).most_common(1)[0][0]
    kept = [one for one in cases if one.modality == modality]
    if len(kept) < len(cases):
        tell(f"left out, of another modality than {modality}: {len(cases) - len(kept)}")
    named = _named(kept, consented)
    if len(named) < len(kept):
        tell(f"left out, of patients whom nobody can ask for consent: {len(kept) - len(named)}")
    names = _label_names([one for _, one in named], order, tell)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, mode=0o700)
    values = {name: value for value, name in enumerate(names, start=1)}
    for case_id, one in named:
        _link(one.image, folder / "imagesTr" / f"{case_id}.nii.gz")
        own = {value: values[name] for value, name in one.labels.items()}
        renumbered(one.mask, own, folder / "labelsTr" / f"{case_id}.nii.gz")
    patients = sorted({case_id.rpartition(_BETWEEN)[0] for case_id, _ in named})
    (folder / "participants.tsv").write_text("\n".join(["participant_id", *patients, ""]))
    files = [f"{case_id}.nii.gz" for case_id, _ in named]
    write_json(folder / "dataset.json", {
        "name": "labelled", "licence": "", "tensorImageSize": "3D",
        "modality": {"0": modality or "image"},
        "labels": {"0": "background", **{str(value): name for name, value in values.items()}},
        "training": [{"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"}
                     for file in files],
        "test": [],
    })  # fmt: skip
    tell(f"cases: {len(named)}, labels: {', '.join(names)}")
    return {case_id: one.image_id for case_id, one in named}


def _named(cases: Sequence[Labelled], consented: bool) -> list[tuple[str, Labelled]]:
    """Case ids that begin with the patient's, for the gate and for splits by patient."""
    numbers = {name: f"p{k:04d}" for k, name in enumerate(sorted({c.patient for c in cases}))}
    found = []
    for one in cases:
        patient = one.patient if consented else numbers[one.patient]
        if not one.patient and not consented:
            patient = one.image_id
        found.append((f"{patient}{_BETWEEN}{one.image_id}", patient, one))
    groups = {patient: "" for _, patient, _ in found if _names_a_file(patient)}
    return [
        (case_id, one)
        for case_id, patient, one in found
        if patient in groups and find_patient(case_id, groups)[0] == patient
    ]


def _names_a_file(patient: str) -> bool:
    """Whether a patient's id can stand at the beginning of a file's name and in a table."""
    whole = patient.isprintable() and patient == patient.strip() and len(patient.encode()) <= 100
    return bool(patient) and whole and not patient.startswith(".") and not set(patient) & set('/"')


def _label_names(
    cases: Sequence[Labelled], order: Sequence[str], tell: Callable[[str], None]
) -> list[str]:
    """Every label's name, and a word on those that not every case has."""
    counts = Counter(name for one in cases for name in set(one.labels.values()))
    names = [name for name in dict.fromkeys(order) if name in counts]
    names += sorted(set(counts) - set(names))
    if not names:
        raise ConfigError("labels", "there, to learn from", "none")
    if len(names) > _MOST_LABELS:
        raise ConfigError("labels", f"{_MOST_LABELS} or fewer", len(names))
    for name in names:
        if counts[name] < len(cases):
            tell(f"{name} is named in {counts[name]} of {len(cases)} cases, and counts as "
                 "background in the others")  # fmt: skip
    return names


def _link(file: Path, to: Path) -> None:
    try:
        os.link(file, to)
    except OSError:  # another disk, or one without links
        shutil.copyfile(file, to)
