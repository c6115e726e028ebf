"""LiTS: volume-0.nii and segmentation-0.nii, side by side or in folders of their own.

Source: The Liver Tumor Segmentation Benchmark, doi:10.1016/j.media.2022.102680.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from qinjing.data.case import Case, Dataset
from qinjing.data.layouts.files import image_files
from qinjing.data.readers import stem
from qinjing.errors import LayoutError

NAME = re.compile(r"(volume|segmentation|test-volume)-(\d{1,3})")
LABELS = {0: "background", 1: "liver", 2: "tumour"}


def recognise(root: Path) -> bool:
    """Whether a volume-0.nii lies here or one folder below, with a segmentation or test data."""
    kinds = {match[1] for _, match in _files(root)}
    return "test-volume" in kinds or {"volume", "segmentation"} <= kinds


def open(root: Path) -> Dataset:
    """Open LiTS: one folder, the two training batches, or volumes and segmentations apart.

    Each scan is taken for a patient: the set does not say which belong together. Volumes without
    a segmentation, and all test volumes, are unlabelled.

    Raises:
        LayoutError: a file lies in two folders, or with two endings.
    """
    found: dict[str, dict[str, Path]] = {}
    for file, match in _files(root):
        kind, number = match[1], int(match[2])
        case_id = f"test-volume-{number}" if kind == "test-volume" else f"volume-{number}"
        files = found.setdefault(case_id, {})
        part = "label" if kind == "segmentation" else "image"
        if part in files:
            raise LayoutError(stem(file), "one file", f"{files[part]} and {file}", where=root)
        files[part] = file
    cases = [
        # A segmentation without its volume is declared, for the check to name.
        Case(case_id, case_id, (files.get("image", root / f"{case_id}.nii"),), files.get("label"))
        for case_id, files in found.items()
    ]
    return Dataset(
        name=root.resolve().name or "LiTS",
        root=root,
        layout="lits",
        channel_names=("CT",),
        labels=LABELS,
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
    )


def _files(root: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    """The set's files, here and one folder below."""
    if not root.is_dir():
        return
    folders = [root, *sorted(p for p in root.iterdir() if p.is_dir() and p.name[:1] != ".")]
    for folder in folders:
        for file in image_files(folder):
            match = NAME.fullmatch(stem(file))
            if match:
                yield file, match
