"""Load a 500-slice CT series with Qinjing and with SimpleITK's series reader.

    .venv/bin/python benchmarks/dicom_read.py [--slices 500] [--rounds 5] [-o FILE]

Makes an uncompressed series of 512×512 int16 slices in a temporary folder, with the header that a
scanner writes, and reads it with both, turn by turn, the first turn not counted (it fills the file
cache). Each reader starts from the folder's name: finding the files, sorting them, geometry and
pixels are all part of it. Prints medians of wall and processor seconds and their ratio, and
whether voxels and affine are the same. Exit code 1 where the bar (twice as fast) is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BAR = 2.0


def write_series(folder: Path, slices: int) -> None:
    """Write a series: smooth anatomy with noise, all elements that a CT of today carries."""
    import pydicom

    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where(x**2 + y**2 < 0.7, 1064, 24)
    series = pydicom.uid.generate_uid()
    frame = pydicom.uid.generate_uid()
    for d in range(slices):
        file = pydicom.Dataset()
        file.SpecificCharacterSet = "ISO_IR 100"
        file.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]
        file.SOPClassUID = pydicom.uid.CTImageStorage
        file.SOPInstanceUID = f"{series}.{d + 1}"
        file.StudyDate = file.SeriesDate = file.AcquisitionDate = file.ContentDate = "20260101"
        file.StudyTime = file.SeriesTime = file.AcquisitionTime = file.ContentTime = "101112.5"
        file.AccessionNumber, file.Modality, file.Manufacturer = "1", "CT", "Qinjing"
        file.StudyDescription, file.SeriesDescription = "Thorax", "Thorax 1.0 B30f"
        file.PatientName, file.PatientID = "Bench^Mark", "1"
        file.BodyPartExamined, file.SliceThickness, file.KVP = "CHEST", 1.0, 120
        file.ExposureTime, file.XRayTubeCurrent, file.Exposure = 500, 200, 100
        file.ConvolutionKernel, file.PatientPosition = "B30f", "HFS"
        file.StudyInstanceUID, file.SeriesInstanceUID = f"{series}.0", series
        file.SeriesNumber, file.AcquisitionNumber, file.InstanceNumber = 2, 1, slices - d
        file.ImagePositionPatient = [-180.0, -180.0, -300.0 + d]
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.FrameOfReferenceUID, file.SliceLocation = frame, -300.0 + d
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.Rows = file.Columns = 512
        file.PixelSpacing = [0.703125, 0.703125]
        file.BitsAllocated = file.BitsStored = 16
        file.HighBit, file.PixelRepresentation = 15, 1
        file.WindowCenter, file.WindowWidth = [50, -600], [350, 1200]
        file.RescaleIntercept, file.RescaleSlope, file.RescaleType = -1024, 1, "HU"
        file.PixelData = (body + rng.integers(-50, 50, body.shape)).astype(np.int16).tobytes()
        file.file_meta = pydicom.dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        file.save_as(folder / f"{(d * 7919) % 100000:05d}.dcm", enforce_file_format=True)


def ours(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine, as Qinjing reads them."""
    from qinjing.data.dicom.read import read_series

    volume = read_series(folder)
    return volume.voxels, volume.affine


def theirs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine, as SimpleITK reads them."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    columns = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, :3], affine[:3, 3] = columns[:, ::-1], image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image), affine


def measure(read: Callable[[Path], Any], folder: Path) -> tuple[float, float, Any]:
    """Wall and processor seconds, and what was read."""
    wall, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    found = read(folder)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return time.perf_counter() - wall, cpu, found


def compare(folder: Path, rounds: int) -> dict[str, Any]:
    """Read in turns; medians, ratios and whether both agree."""
    seconds: dict[str, list[tuple[float, float]]] = {"qinjing": [], "simpleitk": []}
    same = True
    for turn in range(rounds + 1):
        found = {}
        for name, read in (("qinjing", ours), ("simpleitk", theirs)):
            wall, cpu, found[name] = measure(read, folder)
            if turn:
                seconds[name].append((wall, cpu))
        if not turn:
            (voxels, affine), (other, other_affine) = found["qinjing"], found["simpleitk"]
            same = bool(np.array_equal(voxels, other)) and bool(
                np.allclose(affine, other_affine, atol=1e-4)
            )
        found.clear()
    result: dict[str, Any] = {"rounds": rounds, "same_voxels_and_affine": same}
    for name, times in seconds.items():
        result[name] = {
            "wall_s": [round(wall, 3) for wall, _ in times],
            "median_wall_s": round(statistics.median(wall for wall, _ in times), 3),
            "median_cpu_s": round(statistics.median(cpu for _, cpu in times), 3),
        }
    for clock in ("wall", "cpu"):
        medians = [result[name][f"median_{clock}_s"] for name in ("simpleitk", "qinjing")]
        result[f"{clock}_ratio"] = round(medians[0] / medians[1], 2)
    return result


def machine() -> dict[str, Any]:
    """The processor, its cores and the versions that were measured."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    versions = {name: version(name) for name in ("qinjing", "numpy", "SimpleITK")}
    return {"processor": model, "cores": os.cpu_count(), "versions": versions}


def main() -> int:
    """Make the series, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_series(Path(folder), options.slices)
        result = {"slices": options.slices, **compare(Path(folder), options.rounds)}
    result |= {"bar": BAR, **machine()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    met = result["same_voxels_and_affine"] and result["wall_ratio"] >= BAR
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
