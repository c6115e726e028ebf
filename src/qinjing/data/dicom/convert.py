"""What lies in a place of DICOM files, and its volumes as NIfTI."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.config import write_json
from qinjing.data.dicom.read import Planned, Series, find_series, load
from qinjing.data.dicom.series import Refusal
from qinjing.data.nifti import write_nifti
from qinjing.errors import FormatError, GeometryError


def convert(
    place: str | Path,
    output: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """List the series of a place; with an output, write each volume as NIfTI with a JSON beside it.

    Files are named by SeriesInstanceUID and what tells the volume from the series' others.

    Args:
        place: a folder with all below it, a zip, a DICOMDIR or a file.
        output: folder for the volumes, one in memory at a time.
        progress: called with (files done, files in all).

    Returns:
        "series": [{"series", "study", "modality", "volumes": [{"what", "shape", "spacing_mm",
        "units", "notes", "file"}]}], "refused": [{"series", "file", "reason"}].

    Raises:
        ConfigError: pydicom is not installed, which decodes compressed pixels.
        FormatError: there is no such place.
    """
    found = find_series(place, progress)
    reasons = [_reason(one) for one in found.refused]
    listed = []
    for series in found.series:
        reasons += [_reason(one) for one in series.refused]
        volumes = []
        for number, planned in enumerate(series.volumes):
            row = _described(planned)
            if output is not None:
                try:
                    row["file"] = _write(planned, series, number, output, row)
                except (FormatError, GeometryError) as error:
                    reasons.append({"series": series.uid, "file": "", "reason": str(error)})
            volumes.append(row)
        listed.append({"series": series.uid, "study": series.study, "modality": series.modality,
                       "volumes": volumes})  # fmt: skip
    return {"series": listed, "refused": reasons}


def _reason(refusal: Refusal) -> dict[str, str]:
    return {
        "series": refusal.series_instance_uid, "file": str(refusal.path), "reason": refusal.reason
    }  # fmt: skip


def _described(planned: Planned) -> dict[str, Any]:
    header = planned.header
    spacing_mm = np.linalg.norm(header.affine[:3, :3], axis=0)
    return {
        "what": planned.what,
        "shape": list(header.shape),
        "spacing_mm": [round(float(mm), 6) for mm in spacing_mm],
        "units": planned.units,
        "notes": list(planned.notes),
        "file": None,
    }


def _write(planned: Planned, series: Series, number: int, output: Path, row: dict[str, Any]) -> str:
    """Write one volume; its file's name."""
    volume = load(planned)
    what = re.sub(r"[^A-Za-z0-9.-]+", "_", planned.what).strip("_")
    many = len(series.volumes) > 1
    name = "_".join(filter(None, [series.uid, what or (str(number) if many else "")]))
    write_nifti(output / f"{name}.nii.gz", volume.volume)
    sources = sorted({one.sop_instance_uid for plane in volume.planes for one in plane})
    about = {"series": series.uid, "study": series.study, "modality": series.modality, **row}
    write_json(output / f"{name}.json", {**about, "file": f"{name}.nii.gz", "sources": sources})
    return f"{name}.nii.gz"
