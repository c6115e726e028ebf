"""Write a DICOM series as a scanner would, one file a slice, with whatever fault is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

CT = "1.2.840.10008.5.1.4.1.1.2"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def uid(*words: object) -> str:
    """The same words, the same UID."""
    return str(pydicom.uid.generate_uid(entropy_srcs=[str(word) for word in words]))


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    origin: Sequence[float] = (-20.0, -30.0, 100.0),
    directions: Sequence[Sequence[float]] = AXIAL,
    spacing: tuple[float, float, float] = (2.0, 0.75, 0.5),
    slope: float | None = 1.0,
    intercept: float | None = -1024.0,
    patient: str = "P1",
    names: Callable[[int], str] = "1-{:03d}.dcm".format,
    edit: Callable[[Any, int], Any] = lambda file, d: None,
) -> Path:
    """Write stored values (D, H, W), the first slice lowest along the normal.

    Args:
        spacing: between slices, rows and columns.
        names: of the file of slice d, counted from 0.
        edit: changes slice d before it is written, or returns False to leave it out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row, column = (np.array(v, dtype=float) for v in directions)
    normal = np.cross(row, column)
    for d, pixels in enumerate(stored):
        file = pydicom.Dataset()
        file.SOPClassUID, file.SOPInstanceUID = CT, uid(folder, d)
        file.StudyInstanceUID, file.SeriesInstanceUID = (
            uid(patient, "study"),
            uid(patient, "series"),
        )
        file.FrameOfReferenceUID = uid(patient, "frame")
        file.PatientID, file.Modality = patient, "CT"
        file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        # As on many scanners, numbers run against the positions, and the thickness overlaps.
        file.InstanceNumber, file.SliceThickness = len(stored) - d, 7.0
        place = np.array(origin) + normal * spacing[0] * d
        file.ImagePositionPatient = [f"{value:.6f}" for value in place]
        file.ImageOrientationPatient = [f"{value:.8f}" for value in (*row, *column)]
        file.PixelSpacing = [spacing[1], spacing[2]]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.Rows, file.Columns = pixels.shape
        file.BitsAllocated = file.BitsStored = 8 * stored.dtype.itemsize
        file.HighBit = file.BitsStored - 1
        file.PixelRepresentation = int(stored.dtype.kind == "i")
        if slope is not None:
            file.RescaleSlope, file.RescaleIntercept = slope, intercept
        file.PixelData = np.ascontiguousarray(pixels).tobytes()
        file.file_meta = pydicom.dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        if edit(file, d) is not False:
            file.save_as(folder / names(d), enforce_file_format=True)
    return folder
