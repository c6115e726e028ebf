"""A series as a `DicomVolume`, and what dciodvfy says of a file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest

from qinjing.data.dicom.read import read_series
from qinjing.data.dicom.series import DicomVolume, Source
from qinjing.volume import Volume


def plain_volume(folder: Path) -> DicomVolume:
    """One plain series, its files in the order of their slices."""
    volume = read_series(folder)
    headers = sorted(
        ((pydicom.dcmread(file, stop_before_pixels=True), file) for file in folder.glob("*.dcm")),
        key=lambda pair: float(volume.affine[:3, 0] @ np.array(pair[0].ImagePositionPatient)),
    )
    planes = tuple((source_of(header, file),) for header, file in headers)
    return described(volume, headers[0][0], planes)


def source_of(header: pydicom.Dataset, file: Path, frame: int | None = None) -> Source:
    return Source(file, str(header.SOPClassUID), str(header.SOPInstanceUID), frame)


def described(
    volume: Volume,
    header: pydicom.Dataset,
    planes: tuple[tuple[Source, ...], ...],
    resampled: bool = False,
) -> DicomVolume:
    uids = (str(header.StudyInstanceUID), str(header.SeriesInstanceUID))
    return DicomVolume(volume, *uids, str(header.Modality), planes, resampled, "", "HU", ())


def errors_of(file: Path) -> list[str]:
    """The errors that dciodvfy finds; the test is skipped where there is none."""
    if not shutil.which("dciodvfy"):
        pytest.skip("no dciodvfy (Debian: dicom3tools)")
    words = ["dciodvfy", "-new", str(file)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=60)
    return [line for line in (run.stdout + run.stderr).splitlines() if "Error" in line]
