"""BraTS 2023: a folder a scan, BraTS-GLI-00000-000/BraTS-GLI-00000-000-t1n.nii.gz and so on.

Source: BraTS 2023, synapse.org syn51156910; its glioma scans are those of arXiv:2107.02314.
"""

from __future__ import annotations

import re
from pathlib import Path

from qinjing.data.case import Case, Dataset
from qinjing.errors import LayoutError

SCAN = re.compile(r"(BraTS-([A-Z]+)-\d{5})-\d{3}")  # set, patient, and which scan of the patient
CHANNELS = ("t1n", "t1c", "t2w", "t2f")
# Until 2021 the enhancing tumour was 4. Data of 2024 have a 4 again, the resection cavity: the
# check refuses those scans rather than call a cavity a tumour.
LABELS = {
    0: "background",
    1: "necrotic tumour core",
    2: "surrounding FLAIR hyperintensity",
    3: "enhancing tumour",
}


def recognise(root: Path) -> bool:
    """Whether there are folders named like BraTS-GLI-00000-000, here or one below."""
    return bool(_scans(root))


def open(root: Path) -> Dataset:
    """Open a folder of BraTS 2023, or one that holds its training and validation folders.

    Scans of one patient share the name but for the last number. A scan without ``-seg`` is
    unlabelled, as all of the validation data are.

    Raises:
        LayoutError: one scan lies in two folders.
    """
    cases: dict[str, Case] = {}
    for folder in _scans(root):
        scan = folder.name
        if scan in cases:
            got = f"{cases[scan].images[0].parent} and {folder}"
            raise LayoutError(scan, "in one folder", got, where=root)
        match = SCAN.fullmatch(scan)
        patient, group = (match[1], match[2]) if match else (scan, "")
        images = tuple(_file(folder, channel) for channel in CHANNELS)
        label = _file(folder, "seg")
        cases[scan] = Case(scan, patient, images, label if label.is_file() else None, group)
    return Dataset(
        name=root.resolve().name or "BraTS",
        root=root,
        layout="brats",
        channel_names=CHANNELS,
        labels=LABELS,
        cases=tuple(cases[scan] for scan in sorted(cases)),
    )


def _scans(root: Path) -> list[Path]:
    """The folders of scans, here and one below, sorted."""
    found = [*root.glob("BraTS-*-*-*"), *root.glob("*/BraTS-*-*-*")]
    return sorted(p for p in found if SCAN.fullmatch(p.name) and p.is_dir())


def _file(folder: Path, channel: str) -> Path:
    """A scan's file, packed as it is published, or unpacked."""
    plain = folder / f"{folder.name}-{channel}.nii"
    return plain if plain.is_file() else plain.with_name(f"{plain.name}.gz")
