"""Instances of made-up studies, as a scanner sends them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

ROOT = "1.2.826.0.1.3680043.8.498"


def instance(study: int, number: int, size: int = 32, **more: Any) -> Dataset:
    """A CT slice; the same numbers give the same bytes."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = f"{ROOT}.{study}.1.{number}"
    dataset.SeriesInstanceUID = f"{ROOT}.{study}.1"
    dataset.StudyInstanceUID = f"{ROOT}.{study}"
    dataset.FrameOfReferenceUID = f"{ROOT}.{study}.9"
    dataset.PatientID, dataset.PatientName = f"MRN{study:06d}", f"Canary^Kanarie{study}"
    dataset.PatientBirthDate, dataset.PatientSex = "19500203", "F"
    dataset.StudyDate, dataset.StudyTime, dataset.Modality = "20250102", "101112", "CT"
    dataset.StudyDescription, dataset.AccessionNumber = "Abdomen", f"ACC{study}"
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "1", 1, number
    dataset.ReferringPhysicianName = "Doctor^Canary"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.ImagePositionPatient = [0.0, 0.0, 2.5 * number]
    dataset.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.75, 0.75], 2.5
    dataset.Rows = dataset.Columns = size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    pixels = np.random.default_rng((study, number)).integers(0, 2000, (size, size), dtype=np.int16)
    dataset.PixelData = pixels.tobytes()
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def content(dataset: Dataset) -> bytes:
    """The file."""
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
