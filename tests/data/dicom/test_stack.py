"""Grids of planes: a tilted gantry, uneven gaps, missing slices; against a field that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")

from qinjing.data.dicom.read import find_series, load, read_dicom
from tests.data.dicom.series import AXIAL, write_series

OBLIQUE = ((0.8, 0.48, 0.36), (-0.6, 0.64, 0.48))
SHAPE = (7, 9, 8)
SPACING = (2.0, 0.75, 0.5)


def field(points: np.ndarray) -> np.ndarray:
    """A linear function of the place in the patient, which linear interpolation keeps exactly."""
    return 3.0 * points[..., 0] - 2.0 * points[..., 1] + 1.5 * points[..., 2] + 100


def scan(folder: Path, directions, heights, drift) -> None:
    """Write slices that sample the field where their own positions say that they lie."""
    row, column = (np.array(v, dtype=float) for v in directions)
    normal = np.cross(row, column)
    origin = np.array([-20.0, -30.0, 100.0])
    places = [origin + normal * h + (column * drift[0] + row * drift[1]) * h for h in heights]
    h, w = np.mgrid[: SHAPE[1], : SHAPE[2]]
    across = h[..., None] * column * SPACING[1] + w[..., None] * row * SPACING[2]
    values = np.array([field(place + across) for place in places])
    stored = np.rint((values + 400) * 64).astype(np.uint16)

    def edit(file, d):
        file.ImagePositionPatient = [f"{value:.9f}" for value in places[d]]
        file.RescaleSlope, file.RescaleIntercept = 1 / 64, -400

    write_series(folder, stored, directions=directions, spacing=SPACING, edit=edit)


@pytest.mark.parametrize("directions", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize(
    ("heights", "drift", "notes"),
    [
        (2.0 * np.arange(7), (0.3, 0.0), ("tilted by 16.7 degrees",)),
        (2.0 * np.arange(7), (-0.25, 0.1), ("tilted by 15.1 degrees",)),
        (np.array([0, 2, 4.5, 6, 9, 11.2, 13]), (0.0, 0.0), ("vary from 1.5 to 3 mm",)),
        (np.array([0, 2, 4, 6, 9, 12, 15.0]), (0.3, 0.0), ("tilted by", "vary from 2 to 3 mm")),
    ],
    ids=["down the rows", "up and along", "gaps", "both"],
)
def test_a_linear_field_is_where_it_was(tmp_path, directions, heights, drift, notes):
    scan(tmp_path, directions, heights, drift)
    (one,) = read_dicom(tmp_path).volumes
    assert one.resampled and len(one.notes) == len(notes)
    for note, part in zip(one.notes, notes, strict=True):
        assert part in note
    affine, shape = one.volume.affine, one.volume.shape
    steps = affine[:3, :3]
    assert abs(steps.T @ steps - np.diag(np.diag(steps.T @ steps))).max() < 1e-6  # upright
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    points = index @ steps.T + affine[:3, 3]
    wrong = abs(one.volume.voxels - field(points)) > 0.05
    # Beyond the edges of what was scanned there is nothing right; within them all is.
    normal = steps[:, 0] / np.linalg.norm(steps[:, 0])
    first = np.array([-20.0, -30.0, 100.0])
    row, column = (np.array(v, dtype=float) for v in directions)
    h = (points - first) @ normal
    down = ((points - first) @ column - h * drift[0]) / SPACING[1]
    along = ((points - first) @ row - h * drift[1]) / SPACING[2]
    reach = np.abs(np.diff(heights)).max() * np.abs(drift).max() / min(SPACING[1:]) + 1e-3
    reach = reach if len(notes) == 2 else 1e-3  # between two planes both must be there
    inside = (h > -1e-6) & (h < heights[-1] + 1e-6)
    inside &= (down > reach) & (down < SHAPE[1] - 1 - reach)
    inside &= (along > reach) & (along < SHAPE[2] - 1 - reach)
    assert inside.sum() > 40 and not wrong[inside].any()
    assert len(one.planes) == shape[0] and all(len(some) in (1, 2) for some in one.planes)
    assert any(len(some) == 2 for some in one.planes) == ("vary" in one.notes[-1])


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ([0, 2, 4, 8, 10, 12, 14], r"missing are 1 between 1-002\.dcm and 1-003\.dcm"),
        ([0, 2, 8, 10, 12, 14, 16], r"missing are 2 between 1-001\.dcm and 1-002\.dcm"),
    ],
)
def test_a_missing_slice_is_not_made_up(tmp_path, heights, message):
    scan(tmp_path, OBLIQUE, heights, (0.0, 0.0))
    reading = read_dicom(tmp_path)
    assert not reading.volumes
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(reading.refused[0].reason)


def test_of_three_slices_one_may_be_missing_too(tmp_path):
    write_series(tmp_path, np.zeros((4, 3, 3), np.int16), edit=lambda _, d: d != 1)
    (refused,) = read_dicom(tmp_path).refused
    assert "missing are 1 between 1-000.dcm and 1-002.dcm" in refused.reason


def test_blocks_of_other_gaps_are_no_missing_slices(tmp_path):
    """Three of 2 mm, three of 4 mm: a protocol, and no slice lost."""
    scan(tmp_path, AXIAL, [0, 2, 4, 6, 10, 14, 18], (0.0, 0.0))
    (one,) = read_dicom(tmp_path).volumes
    assert one.volume.spacing_mm[0] == pytest.approx(2) and one.volume.shape[0] == 10


def test_slices_a_mile_apart_are_refused_before_anything_is_allocated(tmp_path):
    scan(tmp_path, AXIAL, [0, 2, 4, 6.5, 9, 11, 5e5], (0.0, 0.0))
    (refused,) = read_dicom(tmp_path).refused
    assert "near enough" in refused.reason


@pytest.mark.data
def test_a_real_tilt_keeps_each_slice_it_measured(data_root):
    """GE, 18.5 degrees, gaps of 4, 1.08 and 7 mm: slices that lie on the grid are only moved."""
    archive = data_root / "dicom/ct_ge_gantrytilt_variable_spacing.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    place = find_series(archive)
    (planned,) = place.series[0].volumes
    one = load(planned)
    pydicom = pytest.importorskip("pydicom")
    for d in (0, 5, 13):
        (source,) = one.planes[d]
        file = pydicom.dcmread(source.path)
        for i, j in ((200, 250), (300, 260)):  # column, row
            place_mm = np.array(file.ImagePositionPatient, float)
            x, y = (np.array(file.ImageOrientationPatient[k : k + 3], float) for k in (0, 3))
            place_mm += x * file.PixelSpacing[1] * i + y * file.PixelSpacing[0] * j
            index = (np.linalg.inv(one.volume.affine) @ [*place_mm, 1])[:3]
            assert index[0] == pytest.approx(d, abs=1e-3)
            h = int(np.floor(index[1]))
            part = index[1] - h
            voxels = one.volume.voxels[d, h : h + 2, round(index[2])]
            found = voxels[0] * (1 - part) + voxels[1] * part
            near = file.pixel_array[j - 2 : j + 3, i].astype(float)
            assert near.min() - 1 <= found <= near.max() + 1
