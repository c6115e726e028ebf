"""Pancreas-CT of the NIH: a DICOM series a patient, and label maps in NIfTI beside them.

The retriever of TCIA writes Pancreas-CT/PANCREAS_0001/<study>/<series>/*.dcm, where study and
series are dates and descriptions or UIDs; tools without the patient in the path write
<series UID>/*.dcm. The labels are TCIA_pancreas_labels-02-05-2017/label0001.nii.gz.

A label map's voxels run as those of its series do: columns to the left, rows to the back, slices
from the feet up. Converters to NIfTI turn the rows about (dcm2niix does), so that labels look
flipped beside a converted scan. Nothing is flipped here: a label lies where its own affine says,
and the check refuses one that does not lie on its series' grid.

Source: doi:10.7937/K9/TCIA.2016.tNB1kqBU.
"""

from __future__ import annotations

import re
from pathlib import Path

from qinjing.data.case import Case, Dataset
from qinjing.data.dicom.read import read_patient_id
from qinjing.errors import LayoutError

PATIENT = re.compile(r"PANCREAS_(\d{4})")
LABEL = re.compile(r"label(\d{4})\.nii(?:\.gz)?")
UID = re.compile(r"\d+(?:\.\d+)+")
SCANS = ("", "Pancreas-CT", "manifest-*/Pancreas-CT", "DOI", "Pancreas-CT/DOI")
LABELS_FOLDER = "TCIA_pancreas_labels*"
# Taken out of the set in 2020, for both are scan 2 in another crop; their labels stayed.
SAME_AS_2 = ("0025", "0070")


def recognise(root: Path) -> bool:
    """Whether there is a folder PANCREAS_0001, or that of the labels, where TCIA puts them."""
    if not root.is_dir():
        return False
    return bool(_patient_folders(root)) or any(p.is_dir() for p in root.glob(LABELS_FOLDER))


def open(root: Path) -> Dataset:
    """Open the folder that holds the scans, and the labels if they are there.

    Labels of the two scans that TCIA took out are passed over; in older copies, which have them,
    they count as scans of patient 2.

    Raises:
        ConfigError: folders named by UID alone, and pydicom is not installed to read whose.
        FormatError: the first file of such a folder is damaged.
        LayoutError: two series of one patient.
    """
    series = _series(root)
    labels = _labels(root)
    cases = []
    for number in sorted({*series, *labels}):
        if number in SAME_AS_2 and number not in series:
            continue
        name = f"PANCREAS_{number}"
        # A label without its scan is declared, for the check to name.
        image = series.get(number, root / "Pancreas-CT" / name)
        patient = "PANCREAS_0002" if number in SAME_AS_2 else name
        cases.append(Case(name, patient, (image,), labels.get(number)))
    return Dataset(
        name="Pancreas-CT",
        root=root,
        layout="nih_pancreas",
        channel_names=("CT",),
        labels={0: "background", 1: "pancreas"},
        cases=tuple(cases),
    )


def _patient_folders(root: Path) -> list[tuple[str, Path]]:
    """(number, folder) of each PANCREAS_0001."""
    places = [
        place for pattern in SCANS for place in ([root] if not pattern else root.glob(pattern))
    ]
    found = [p for place in places for p in sorted(place.glob("PANCREAS_*")) if p.is_dir()]
    matches = [(PATIENT.fullmatch(folder.name), folder) for folder in found]
    return [(match[1], folder) for match, folder in matches if match]


def _series(root: Path) -> dict[str, Path]:
    """Patient number → folder of the slices."""
    found: dict[str, Path] = {}

    def add(number: str, folder: Path) -> None:
        if number in found:
            got = f"{found[number]} and {folder}"
            raise LayoutError(f"PANCREAS_{number}", "one series", got, where=root,
                              advice="take all but one away")  # fmt: skip
        found[number] = folder

    for number, patient in _patient_folders(root):
        for folder in (patient, *sorted(patient.glob("*/")), *sorted(patient.glob("*/*/"))):
            if _holds_slices(folder):
                add(number, folder)
    for pattern in SCANS:
        for folder in sorted(root.glob(f"{pattern}/*" if pattern else "*")):
            if UID.fullmatch(folder.name) and _holds_slices(folder):
                match = PATIENT.fullmatch(read_patient_id(folder))
                if match:
                    add(match[1], folder)
    return found


def _holds_slices(folder: Path) -> bool:
    return any(p.suffix.lower() == ".dcm" for p in folder.iterdir()) if folder.is_dir() else False


def _labels(root: Path) -> dict[str, Path]:
    """Patient number → label map; the archive may have been unpacked into a folder of its name."""
    found: dict[str, Path] = {}
    for pattern in (LABELS_FOLDER, f"{LABELS_FOLDER}/{LABELS_FOLDER}"):
        for folder in sorted(root.glob(pattern)):
            for file in sorted(folder.glob("label*.nii*")):
                match = LABEL.fullmatch(file.name)
                if match and match[1] in found:
                    got = f"{found[match[1]]} and {file}"
                    raise LayoutError(f"label{match[1]}", "one file", got, where=root)
                if match:
                    found[match[1]] = file
    return found
