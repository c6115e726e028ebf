"""What reading DICOM gives: volumes that know the files they came from, and refusals.

`qinjing.data.dicom.read` makes them: `read_dicom` all of a place at once, `each_series` one series
after the other, so that fifty need not lie in memory together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qinjing.volume import Volume


@dataclass(frozen=True)
class Source:
    """One plane that voxels came from.

    Attributes:
        path: the DICOM file. Of a zip it lies in a temporary folder, which is there as long as the
            `Reading` is.
        sop_class_uid: what the file is.
        sop_instance_uid: which it is.
        frame: number of the frame in a multi-frame file, from 1; None in a single-frame one, and
            in a mosaic, whose slices are one image to the standard.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    frame: int | None


@dataclass(frozen=True, eq=False)
class DicomVolume:
    """One volume of a series.

    Attributes:
        volume: (D, H, W), LPS affine, with its frame of reference where one is known.
        study_instance_uid: the study's.
        series_instance_uid: the series'.
        modality: "CT", "MR", "PT" and so on.
        planes: for each d the planes it came from: one where slices are kept as they are, two or
            more where they were resampled.
        resampled: voxels lie on a grid of our own, after a shear or uneven gaps.
        what: what tells it from the series' other volumes ("time 3", "b 1000", "echo 2"), or "".
        units: "HU", "SUVbw" or another unit that the file states, "" where it states none.
        notes: sentences that say what was done to the voxels or the grid.
    """

    volume: Volume
    study_instance_uid: str
    series_instance_uid: str
    modality: str
    planes: tuple[tuple[Source, ...], ...]
    resampled: bool
    what: str
    units: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A series, or a file of none, that could not be read.

    Attributes:
        series_instance_uid: "" where the file does not even say that.
        path: the file that shows why, or the first of the series.
        reason: one sentence.
    """

    series_instance_uid: str
    path: Path
    reason: str


@dataclass(eq=False)
class Reading:
    """What was read of a place, and what was refused.

    Attributes:
        volumes: by series, in the order of their UIDs, then of time, b-value or echo.
        refused: each series or file that could not be read, with its reason.
    """

    volumes: list[DicomVolume] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    # Of an unpacked zip: the folder goes when nobody holds the reading any more.
    _unpacked: object = field(default=None, repr=False)
