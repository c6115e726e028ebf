"""Volumes, diameters and grey values against geometry, brute force, SimpleITK and scikit-image."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from qinjing.config import write_json
from qinjing.errors import GeometryError, LabelError
from qinjing.report.diameters import largest_diameter, recist_axes
from qinjing.report.measure import lesion_map, measure
from qinjing.volume import Volume

LABELS = {0: "background", 1: "lesion", 2: "left kidney", 3: "right kidney"}


def turned(spacing=(2.0, 0.7, 0.9), shear=0.0) -> np.ndarray:
    """An oblique, anisotropic and, if asked, sheared affine, (d, h, w) → LPS."""
    a, b, c = 0.4, -0.3, 0.2
    about_x = np.array([[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]])
    about_y = np.array([[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]])
    about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    axes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]).T  # D to S, H to P, W to L
    affine[:3, :3] = about_z @ about_y @ about_x @ axes * np.array(spacing)
    affine[:3, 0] += shear * affine[:3, 1]
    affine[:3, 1] += shear * affine[:3, 2]
    affine[:3, 3] = (13.0, -40.0, 7.0)
    return affine


GRIDS = {"straight": np.diag([1.0, 1, 1, 1])[[2, 1, 0, 3]], "turned": turned(),
         "sheared": turned(shear=0.35)}  # fmt: skip


def blob(seed: int, shape=(7, 9, 8)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < (0.03, 0.3, 0.8)[seed % 3]
    mask[seed % shape[0], 4, 4] = True
    return mask


def face_points(mask: np.ndarray) -> np.ndarray:
    """Middles of all faces between a voxel of the mask and one that is not, one by one."""
    padded = np.pad(mask, 1)
    found = []
    for index in np.argwhere(mask):
        for axis in range(mask.ndim):
            for way in (-1, 1):
                there = index.copy()
                there[axis] += way
                if not padded[tuple(there + 1)]:
                    found.append((index + there) / 2)
    return np.array(found)


def farthest(points: np.ndarray) -> float:
    return float(np.sqrt(((points[:, None] - points[None]) ** 2).sum(axis=2)).max())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(6))
def test_diameters_equal_brute_force(seed, grid):
    mask, affine = blob(seed), GRIDS[grid]
    assert largest_diameter(mask, affine) == pytest.approx(
        farthest(face_points(mask) @ affine[:3, :3].T)
    )
    slices = {
        d: np.c_[np.full(len(p), d), p] @ affine[:3, :3].T + affine[:3, 3]
        for d in range(len(mask))
        if len(p := face_points(mask[d])) > 0
    }
    axes = recist_axes(mask, affine)
    assert axes.long_mm == pytest.approx(max(map(farthest, slices.values())))
    assert axes.long_mm == pytest.approx(farthest(slices[axes.slice]))
    assert np.linalg.norm(np.diff(axes.long_ends, axis=0)) == pytest.approx(axes.long_mm)
    assert np.linalg.norm(np.diff(axes.short_ends, axis=0)) == pytest.approx(axes.short_mm)
    along, across = np.diff(axes.long_ends, axis=0)[0], np.diff(axes.short_ends, axis=0)[0]
    assert along @ across == pytest.approx(0, abs=1e-8 * axes.long_mm**2)
    for end in axes.long_ends:  # which lie on the border of the slice, in the patient
        assert np.linalg.norm(slices[axes.slice] - end, axis=1).min() < 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_the_short_axis_equals_a_search_through_the_hull(seed):
    """Every line at a right angle to the long axis, cut through the hull by half-planes."""
    spatial = pytest.importorskip("scipy.spatial")
    affine = GRIDS["straight"]
    axes = recist_axes(blob(seed), affine)
    hull = spatial.ConvexHull(face_points(blob(seed)[axes.slice]))
    ends = axes.long_ends[:, [1, 0]]  # (y, x) in millimetres are (h, w) here
    along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    across = np.array([-along[1], along[0]])
    widest = 0.0
    for part in np.linspace(0, 1, 4001):
        point = ends[0] + part * (ends[1] - ends[0])
        slope, rest = hull.equations[:, :2] @ across, hull.equations[:, :2] @ point
        rest = -(rest + hull.equations[:, 2])
        upper = (rest[slope > 1e-12] / slope[slope > 1e-12]).min()
        lower = (rest[slope < -1e-12] / slope[slope < -1e-12]).max()
        widest = max(widest, upper - lower)
    assert widest <= axes.short_mm + 1e-9 and axes.short_mm == pytest.approx(widest, abs=0.01)


def test_the_border_is_scikit_images_contour():
    measure_ = pytest.importorskip("skimage.measure")
    mask = blob(1)[:1]
    contours = measure_.find_contours(np.pad(mask[0], 1).astype(float), 0.5)
    axes = recist_axes(mask, GRIDS["straight"])
    assert axes.long_mm == pytest.approx(farthest(np.concatenate(contours)))


def ellipsoid(affine, center, axes_mm, shape=(48, 120, 110)):
    """Voxels whose centres lie in an ellipsoid whose axes are the grid's own directions."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    offset = (index - np.array(center)) @ affine[:3, :3].T
    frame = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return ((offset @ frame / np.array(axes_mm)) ** 2).sum(axis=-1) <= 1


@pytest.mark.parametrize("axes_mm", [(20, 12, 30), (25, 25, 25)])
def test_an_ellipsoid_on_an_oblique_grid(axes_mm):
    affine = turned()
    mask = ellipsoid(affine, (24, 60, 55), axes_mm)
    (lesion,) = measure(Volume(mask.astype(np.uint8), affine), LABELS).structures[0].lesions
    true_ml = 4 / 3 * math.pi * math.prod(axes_mm) / 1000
    assert lesion.volume.ml == pytest.approx(true_ml, rel=0.01)
    assert lesion.volume.low_ml < true_ml < lesion.volume.high_ml
    assert lesion.diameter_mm == pytest.approx(2 * max(axes_mm), abs=2.0)  # a slice
    assert lesion.long_axis_mm == pytest.approx(2 * max(axes_mm[1:]), abs=0.9)
    assert lesion.short_axis_mm == pytest.approx(2 * min(axes_mm[1:]), abs=0.9)
    place = affine @ [24, 60, 55, 1]
    assert lesion.centroid_mm == pytest.approx(place[:3], abs=0.05)


def test_a_ball_on_a_sheared_grid():
    affine = turned(shear=0.35)
    shape = (40, 100, 90)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    offset = (index - np.array([20, 50, 45])) @ affine[:3, :3].T
    mask = (offset**2).sum(axis=-1) <= 15.0**2
    (lesion,) = measure(Volume(mask.astype(np.uint8), affine), LABELS).structures[0].lesions
    assert lesion.volume.ml == pytest.approx(4 / 3 * math.pi * 3.375, rel=0.02)
    assert lesion.diameter_mm == pytest.approx(30, abs=2.0)
    assert lesion.long_axis_mm == pytest.approx(30, abs=1.0)
    assert lesion.short_axis_mm == pytest.approx(30, abs=1.0)


def test_a_box_by_hand():
    """3 × 4 × 5 voxels of 1 × 2 × 3 mm: 60 voxels of 6 mm³, 54 at the rim, 94 touch it."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 3], [0, 2, 0], [1, 0, 0]])
    voxels = np.zeros((9, 9, 9), np.uint8)
    voxels[2:5, 2:6, 2:7] = 1
    (lesion,) = measure(Volume(voxels, affine), LABELS).structures[0].lesions
    assert lesion.volume.ml == pytest.approx(0.36)
    assert lesion.volume.low_ml == pytest.approx((60 - 54 / 2) * 0.006)
    assert lesion.volume.high_ml == pytest.approx((60 + 94 / 2) * 0.006)
    # Ends of rows at ±7.5 mm, up to 3 voxels of 2 mm apart: √(15² + 6²).
    assert lesion.long_axis_mm == pytest.approx(math.hypot(15, 6))
    assert lesion.diameter_mm == pytest.approx(math.sqrt(15**2 + 6**2 + 2**2))
    assert lesion.centroid_mm == pytest.approx((12, 7, 3)) and lesion.voxels == 60


def test_one_voxel_and_the_edge_of_the_image():
    voxels = np.zeros((3, 3, 3), np.uint8)
    voxels[0, 0, 0] = 1
    (lesion,) = measure(Volume(voxels, GRIDS["straight"]), LABELS).structures[0].lesions
    assert (lesion.long_axis_mm, lesion.short_axis_mm, lesion.diameter_mm) == (1, 1, 1)
    assert lesion.volume.low_ml == pytest.approx(0.0005)
    assert lesion.volume.high_ml == pytest.approx(0.004)  # six neighbours, half of each


def test_equal_to_simpleitk():
    sitk = pytest.importorskip("SimpleITK")
    rng = np.random.default_rng(3)
    voxels = (rng.random((12, 14, 16)) < 0.12).astype(np.uint8)
    grey = rng.normal(40, 12, voxels.shape).astype(np.float32)
    affine = turned()
    measured = measure(Volume(voxels, affine), LABELS, Volume(grey, affine), units="HU")
    picture, image = sitk.GetImageFromArray(voxels), sitk.GetImageFromArray(grey)
    columns = affine[:3, [2, 1, 0]]
    for one in (picture, image):
        one.SetSpacing(np.linalg.norm(columns, axis=0).tolist())
        one.SetDirection((columns / np.linalg.norm(columns, axis=0)).ravel().tolist())
        one.SetOrigin(affine[:3, 3].tolist())
    pieces = sitk.ConnectedComponent(picture, True)
    shape, intensity = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelStatisticsImageFilter()
    shape.Execute(pieces)
    intensity.Execute(image, pieces)
    theirs = sorted(
        (shape.GetPhysicalSize(k) / 1000, *shape.GetCentroid(k), intensity.GetMean(k),
         intensity.GetMinimum(k), intensity.GetMaximum(k))
        for k in shape.GetLabels()
    )  # fmt: skip
    lesions = measured.structures[0].lesions
    ours = sorted(
        (one.volume.ml, *one.centroid_mm, one.grey.mean, one.grey.low, one.grey.high)
        for one in lesions
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    assert measured.structures[0].count == len(lesions) > 5
    assert [one.voxels for one in lesions] == sorted((o.voxels for o in lesions), reverse=True)
    whole = measured.structures[0].grey
    assert whole.sd == pytest.approx(grey[voxels > 0].std(), rel=1e-5) and whole.units == "HU"
    assert dict(whole.percentiles)[50.0] == pytest.approx(np.median(grey[voxels > 0]))


def test_the_same_on_every_order_of_axes():
    """The grid may run any way: only the patient counts."""
    from itertools import permutations

    voxels = np.zeros((6, 12, 9), np.uint8)
    voxels[1:4, 2:9, 3:5] = 1
    voxels[3, 2, 3:8] = 1
    first = Volume(voxels, turned())
    expected = measure(first, LABELS).structures[0].lesions[0]
    for order in permutations(range(3)):
        affine = first.affine.copy()
        affine[:, :3] = first.affine[:, list(order)]
        moved = voxels.transpose(order)[::-1]
        affine[:3, 3] += affine[:3, 0] * (moved.shape[0] - 1)
        affine[:3, 0] *= -1
        found = measure(Volume(moved, affine), LABELS).structures[0].lesions[0]
        assert found.long_axis_mm == pytest.approx(expected.long_axis_mm)
        assert found.short_axis_mm == pytest.approx(expected.short_axis_mm)
        assert found.centroid_mm == pytest.approx(expected.centroid_mm)


def test_confidence_says_how_sure_a_volume_is():
    voxels = np.zeros((5, 5, 5), np.uint8)
    voxels[2, 2, 1:4] = 1
    sure = np.full(voxels.shape, 255, np.uint8)
    grid = GRIDS["straight"]
    certain = measure(Volume(voxels, grid), LABELS, confidence=Volume(sure, grid))
    interval = certain.structures[0].volume
    assert interval.low_ml == interval.ml == interval.high_ml == pytest.approx(0.003)
    doubt = np.where(voxels, 0.8, 0.9).astype(np.float32)  # 14 voxels touch the three
    unsure = measure(Volume(voxels, grid), LABELS, confidence=Volume(doubt, grid))
    assert unsure.structures[0].volume.low_ml == pytest.approx(0.0024, rel=1e-6)
    assert unsure.structures[0].volume.high_ml == pytest.approx(0.003 + 0.0014, rel=1e-5)
    assert "confidence" in unsure.uncertainty and "half a voxel" not in unsure.uncertainty


def test_sides():
    voxels = np.zeros((3, 3, 30), np.uint8)
    voxels[1, 1, 2], voxels[1, 1, 14], voxels[1, 1, 27] = 1, 1, 1
    voxels[0, 0, 0], voxels[2, 2, 29] = 3, 2
    grid = GRIDS["straight"]  # LPS: x grows to the patient's left
    told = measure(Volume(voxels, grid), LABELS, midline_mm=14.5).structures
    assert sorted((one.centroid_mm[0], one.side) for one in told[0].lesions) == [
        (2, "right"), (14, "middle"), (27, "left"),
    ]  # fmt: skip
    silent = measure(Volume(voxels, grid), LABELS).structures
    assert [one.side for one in silent] == [None, "left", "right"]
    chamber = measure(Volume(voxels, grid), {1: "left ventricle", 2: "Left lateral ventricle",
                                             3: "lung_lower_lobe_right"}).structures  # fmt: skip
    assert [one.side for one in chamber] == [None, "left", "right"]


def test_labels_that_are_absent_and_json(tmp_path):
    empty = Volume(np.zeros((3, 4, 5), np.int16), turned())
    measured = measure(empty, LABELS, empty)
    assert [(s.name, s.count, s.volume.ml, s.grey) for s in measured.structures] == [
        ("lesion", 0, 0, None), ("left kidney", 0, 0, None), ("right kidney", 0, 0, None),
    ]  # fmt: skip
    write_json(tmp_path / "measured.json", measured)
    assert json.loads((tmp_path / "measured.json").read_text())["structures"][0]["lesions"] == []


def test_what_cannot_be_measured():
    voxels = np.zeros((3, 4, 5), np.int16)
    volume = Volume(voxels, turned())
    with pytest.raises(GeometryError, match="image must be on the segmentation's grid"):
        measure(volume, LABELS, Volume(voxels, turned(shear=0.1)))
    with pytest.raises(LabelError, match="named by the labels, got \\[9\\]"):
        measure(Volume(voxels + 9, turned()), LABELS)
    with pytest.raises(LabelError, match="from 0 to 65535, got -1"):
        measure(Volume(voxels - 1, turned()), LABELS)
    with pytest.raises(LabelError, match="of integers"):
        measure(Volume(voxels.astype(float), turned()), LABELS)
    with pytest.raises(GeometryError, match=r"\(D, H, W\)"):
        lesion_map(Volume(voxels[None], turned()), LABELS)
    with pytest.raises(GeometryError, match="from 0 to 1"):
        measure(volume, LABELS, confidence=Volume(voxels + 2.0, turned()))


def test_grey_values_that_are_not_numbers_are_left_out():
    voxels = np.ones((1, 1, 4), np.uint8)
    grey = np.array([[[1.0, np.nan, 3.0, np.inf]]], np.float32)
    lesion = measure(Volume(voxels, turned()), LABELS, Volume(grey, turned())).structures[0]
    assert lesion.grey.mean == 2 and lesion.grey.high == 3
