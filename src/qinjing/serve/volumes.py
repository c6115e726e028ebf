"""The volumes of a study as images that a page can show, with windows to look at them through."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from qinjing.data.dicom.read import Planned, find_series, load
from qinjing.data.nifti import write_nifti
from qinjing.errors import InputError
from qinjing.serve.drawn import About, Image
from qinjing.serve.images import Images

# Hounsfield units, as radiologists' workstations have them.
_CT_WINDOWS = (
    ("soft tissue", -160.0, 240.0), ("lung", -1350.0, 150.0), ("bone", -450.0, 1050.0),
    ("brain", 0.0, 80.0), ("liver", -45.0, 105.0),
)  # fmt: skip
_MOST_SAMPLED = 1_000_000


def show(study: Path, images: Images) -> tuple[list[Image], list[str]]:
    """Make every volume of a study an image; those that are there already stay.

    Args:
        study: a folder of its instances.
        images: to which they are added.

    Returns:
        The images, and why others of its series cannot be shown.
    """
    shown: list[Image] = []
    faults: list[str] = []
    for series in find_series(study).series:
        faults += [refusal.reason for refusal in series.refused]
        for planned in series.volumes:
            try:
                shown.append(_show(planned, images))
            except InputError as error:
                faults.append(str(error))
    if shown:
        images.keep_alone(shown[0].study, [one.image_id for one in shown])
    return shown, faults


def about(planned: Planned) -> About:
    """Return what is known of a volume by its headers."""
    from pydicom import dcmread

    file = planned.file
    said = dcmread(file.path, stop_before_pixels=True, specific_tags=["SeriesDescription"])
    description = str(said.get("SeriesDescription", "") or "")[:64]
    number = f"series {file.number}" if file.number else "series"
    name = ", ".join(filter(None, [f"{file.modality} {number}", planned.what]))
    windows = _CT_WINDOWS if planned.units == "HU" else ()
    uids = sorted({plane.file.instance for plane in planned.stack.planes})
    instances = hashlib.sha256("\0".join(uids).encode()).hexdigest()
    return About(
        file.study, file.series, planned.what, name, file.modality, description, planned.units,
        instances, windows,
    )  # fmt: skip


def window_of(voxels: np.ndarray) -> tuple[str, float, float]:
    """Return a window that shows nearly all that there is: the 0.5th to the 99.5th percentile."""
    flat = voxels.reshape(-1)
    flat = flat[:: max(1, len(flat) // _MOST_SAMPLED)]
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return ("all", 0.0, 1.0)
    low, high = (float(one) for one in np.percentile(flat, (0.5, 99.5)))
    return ("all", low, high if high > low else low + 1.0)


def _show(planned: Planned, images: Images) -> Image:
    known = about(planned)
    there = images.find(known)
    if there is not None:
        return there
    volume = load(planned).volume
    known = replace(known, window=(*known.window, window_of(volume.voxels)))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.nii.gz"
        write_nifti(file, volume)
        return images.add_image(file, known)
