"""Surface metrics equal MONAI's on thousands of random masks, and what one can count by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from qinjing.errors import GeometryError, InputError, LabelError
from qinjing.metrics.grid import axis_cosines
from qinjing.metrics.surface import assd_mm, hd95_mm, nsd, surface_distances


def one(prediction, reference, spacing_mm=(1.0, 1.0, 1.0)):
    return surface_distances(prediction, reference, (1,), spacing_mm)[1]


def random_mask(rng, shape):
    """Blobs, thin sheets, single voxels, noise, empty, full; many touch the border."""
    kind = rng.integers(8)
    mask = np.zeros(shape, bool)
    if kind == 0:
        return mask
    if kind == 1:
        return ~mask
    if kind == 2:
        return rng.random(shape) < rng.uniform(0.02, 0.6)
    if kind == 3:
        mask[tuple(rng.integers(0, n) for n in shape)] = True
        return mask
    if kind == 4:  # a sheet through the whole volume
        axis = rng.integers(3)
        sheet = [slice(None)] * 3
        sheet[axis] = rng.integers(0, shape[axis])
        mask[tuple(sheet)] = True
        return mask
    if kind == 5:  # a hollow box
        low = [rng.integers(0, n) for n in shape]
        high = [rng.integers(a + 1, n + 1) for a, n in zip(low, shape, strict=True)]
        mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        mask[tuple(slice(a + 1, b - 1) for a, b in zip(low, high, strict=True))] = False
        return mask
    grid = np.indices(shape)
    for _ in range(rng.integers(1, 4)):
        centre = [rng.uniform(0, n) for n in shape]
        radius = rng.uniform(0.8, 6, 3)
        mask |= sum(((grid[a] - centre[a]) / radius[a]) ** 2 for a in range(3)) <= 1
    return mask


def random_pair(rng):
    shape = tuple(int(n) for n in rng.integers(1, 15, 3))
    if rng.random() < 0.1:
        shape = (1, *shape[1:])
    first = random_mask(rng, shape)
    if rng.random() < 0.3:  # a near copy, as predictions are
        second = np.roll(first, rng.integers(-1, 2, 3), (0, 1, 2)) ^ (rng.random(shape) < 0.01)
    else:
        second = random_mask(rng, shape)
    spacing = rng.choice([rng.uniform(0.3, 6, 3), np.round(rng.uniform(0.5, 3, 3), 1)])
    return first, second, tuple(float(s) for s in spacing)


def classical(first, second, spacing):
    """The definition with scipy's erosion and distance transform, on the axes that there are."""
    ndimage = pytest.importorskip("scipy.ndimage")
    axes = [a for a in range(3) if first.shape[a] > 1] or [0, 1, 2]
    cross = np.zeros((3, 3, 3), bool)
    for axis in axes:
        cross[tuple(slice(None) if a == axis else 1 for a in range(3))] = True
    edges = [mask & ~ndimage.binary_erosion(mask, cross) for mask in (first, second)]
    return [
        ndimage.distance_transform_edt(~there, sampling=spacing)[here]
        for here, there in (edges, edges[::-1])
    ]


def test_equal_to_the_classical_way_on_thousands_of_random_masks():
    rng = np.random.default_rng(7)
    seen = {"finite": 0, "both empty": 0, "one empty": 0, "slice": 0, "touching": 0}
    for number in range(4000):
        first, second, spacing = random_pair(rng)
        tolerance = float(rng.uniform(0, 6))
        ours = one(first, second, spacing)
        seen["slice"] += min(first.shape) == 1
        seen["touching"] += bool(first[0].any() or first[:, -1].any())
        if not first.any() and not second.any():
            seen["both empty"] += 1
            assert math.isnan(hd95_mm(ours)) and math.isnan(nsd(ours, tolerance))
        elif not first.any() or not second.any():
            seen["one empty"] += 1
            assert hd95_mm(ours) == assd_mm(ours) == math.inf and nsd(ours, tolerance) == 0
        else:
            seen["finite"] += 1
            theirs = classical(first, second, spacing)
            both = np.concatenate(theirs)
            hd = max(np.percentile(t, 95) for t in theirs)
            assert hd95_mm(ours) == pytest.approx(hd, abs=1e-9), (number, spacing)
            assert nsd(ours, tolerance) == np.mean(both <= tolerance), (number, spacing)
            assert assd_mm(ours) == pytest.approx(both.mean(), abs=1e-9)
    assert all(count > 50 for count in seen.values()) and seen["finite"] > 2000, seen


@pytest.mark.parametrize("seed, masks", [(1, 200), pytest.param(2, 3000, marks=pytest.mark.slow)])
def test_equal_to_monai_on_random_masks(seed, masks):
    pytest.importorskip("monai")
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    from monai.metrics.utils import get_edge_surface_distance

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # MONAI warns of every empty mask; pytest restores the filters
    rng = np.random.default_rng(seed)
    finite = 0
    for number in range(masks):
        first, second, spacing = random_pair(rng)
        tolerance = float(rng.uniform(0, 6))
        axes = [a for a in range(3) if first.shape[a] > 1]
        if len(axes) < 2:
            continue
        tensors = [torch.from_numpy(m) for m in (first, second)]
        if len(axes) == 2:  # MONAI takes a slice as 2-D
            tensors, spacing = [t.squeeze() for t in tensors], tuple(spacing[a] for a in axes)
        batch = [t[None, None] for t in tensors]
        ours = one(first, second, spacing if len(axes) == 3 else _full(spacing, axes))
        dice = float(compute_surface_dice(*batch, [tolerance], True, spacing=list(spacing)))
        assert nsd(ours, tolerance) == pytest.approx(dice, abs=1e-6, nan_ok=True), number
        if not (first.any() and second.any()):
            continue
        finite += 1
        _, theirs, _ = get_edge_surface_distance(*tensors, spacing=list(spacing), symmetric=True)
        mine = (ours.prediction_to_reference_mm, ours.reference_to_prediction_mm)
        for left, right in zip(mine, theirs, strict=True):  # MONAI rounds to float32
            np.testing.assert_allclose(left, right.double(), atol=1e-6, rtol=1.2e-7)
        exact = max(np.percentile(t.double().numpy(), 95) for t in theirs)
        assert hd95_mm(ours) == pytest.approx(exact, abs=1e-6, rel=1.2e-7), number
        # torch.quantile finds the rank in float32, so that it may itself be off by 1e-4 mm
        hd = compute_hausdorff_distance(*batch, True, percentile=95, spacing=list(spacing))
        assert hd95_mm(ours) == pytest.approx(float(hd), abs=2e-4), number
    assert finite > masks / 2


def _full(spacing, axes):
    """Spacing along three axes, the one that MONAI does not see being any."""
    full = [9.0, 9.0, 9.0]
    for axis, value in zip(axes, spacing, strict=True):
        full[axis] = value
    return tuple(full)


def test_far_surfaces_equal_the_distance_transform():
    """Surfaces far apart leave the neighbourhood search and go to the tree."""
    ndimage = pytest.importorskip("scipy.ndimage")
    spacing = (2.5, 0.7, 0.9)
    first, second = np.zeros((2, 30, 60, 60), bool)
    first[2:6, 3:9, 4:12] = True
    second[3:6, 4:9, 4:13] = True
    second[26, 55, 50:58] = True
    ours = one(first, second, spacing)

    def edge(mask):
        return mask & ~ndimage.binary_erosion(mask)

    for mine, here, there in (
        (ours.prediction_to_reference_mm, first, second),
        (ours.reference_to_prediction_mm, second, first),
    ):
        transform = ndimage.distance_transform_edt(~edge(there), sampling=spacing)
        np.testing.assert_array_equal(mine, transform[edge(here)])
    assert ours.reference_to_prediction_mm.max() > 60


def test_labels_in_one_pass_equal_labels_one_by_one():
    rng = np.random.default_rng(3)
    reference = rng.integers(0, 4, (12, 13, 14)).astype(np.int16)
    reference[reference == 3] = 300  # beyond one byte
    prediction = np.roll(reference, 1, 2)
    together = surface_distances(prediction, reference, (1, 2, 300, 7), (1.0, 2.0, 0.5))
    for label in (1, 2, 300):
        alone = one(prediction == label, reference == label, (1.0, 2.0, 0.5))
        for name in ("prediction_to_reference_mm", "reference_to_prediction_mm"):
            np.testing.assert_array_equal(getattr(together[label], name), getattr(alone, name))
    assert math.isnan(hd95_mm(together[7]))


def test_a_shifted_cube_by_hand():
    first, second = np.zeros((2, 9, 9, 9), bool)
    first[2:5, 2:5, 2:5] = True
    second[2:5, 2:5, 4:7] = True
    ours = one(first, second, (1.0, 1.0, 0.5))
    # 26 surface voxels each: w = 2 is 1.0 mm off (9), w = 3 0.5 mm (8 of 9), w = 4 lies on it but
    # for its centre, which is on both surfaces as well (9 at 0)
    counts = {0.0: 9, 0.5: 8, 1.0: 9}
    for distances in (ours.prediction_to_reference_mm, ours.reference_to_prediction_mm):
        values, sizes = np.unique(distances, return_counts=True)
        assert dict(zip(values.tolist(), sizes.tolist(), strict=True)) == counts
    assert hd95_mm(ours) == 1.0
    assert nsd(ours, 0.5) == 17 / 26
    assert assd_mm(ours) == pytest.approx((8 * 0.5 + 9) / 26)


def test_a_distance_equal_to_the_tolerance_counts_in_spite_of_float32():
    first, second = np.zeros((2, 4, 4, 8), bool)
    first[1, 1, 1] = second[1, 1, 2] = True
    spacing = (1.0, 1.0, float(np.float32(0.8)))
    assert spacing[2] > 0.8
    assert nsd(one(first, second, spacing), 0.8) == 1
    assert nsd(one(first, second, spacing), 0.79) == 0


def test_empty_conventions():
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    both = one(empty, empty)
    assert all(math.isnan(v) for v in (hd95_mm(both), nsd(both, 1.0), assd_mm(both)))
    for pair in ((empty, full), (full, empty)):
        distances = one(*pair)
        assert hd95_mm(distances) == assd_mm(distances) == math.inf
        assert nsd(distances, 1e9) == 0
    assert hd95_mm(one(full, full)) == 0 and nsd(one(full, full), 0.0) == 1


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_and_read_only_input_do_not_matter(order):
    rng = np.random.default_rng(0)
    first, second = (rng.random((2, 8, 9, 10)) < 0.3).astype(np.uint8)
    expected = hd95_mm(one(first, second))
    views = [np.array(m, order=order)[::-1, ::-1] for m in (first, second)]
    for view in views:
        view.setflags(write=False)
    assert hd95_mm(one(*views)) == expected


def test_deepminds_definition_differs_as_the_docstring_says():
    """Its NSD weighs areas and is the milder one; its HD95 is the same."""
    theirs = pytest.importorskip("surface_distance")
    grid = np.indices((40, 40, 40))
    first = sum((grid[a] - 20) ** 2 for a in range(3)) <= 12**2
    second = np.roll(first, 2, axis=2)
    ours = one(first, second)
    distances = theirs.compute_surface_distances(first, second, (1.0, 1.0, 1.0))
    assert hd95_mm(ours) == theirs.compute_robust_hausdorff(distances, 95) == 2.0
    for tolerance, here, there in ((1.0, 0.57, 0.77), (1.5, 0.85, 0.92), (2.0, 1.0, 1.0)):
        assert nsd(ours, tolerance) == pytest.approx(here, abs=0.01)
        dice = theirs.compute_surface_dice_at_tolerance(distances, tolerance)
        assert dice == pytest.approx(there, abs=0.01)


def sheared(rng):
    """An affine of no right angle, turned anywhere."""
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    shear = np.eye(3) + np.triu(rng.uniform(-1, 1, (3, 3)), 1)
    affine = np.eye(4)
    affine[:3, :3] = turn @ shear @ np.diag(rng.uniform(0.4, 3, 3))
    return affine


def surface_mm(mask, affine):
    """Its surface voxels' centres in the patient, by scipy's erosion and nibabel's affine."""
    ndimage = pytest.importorskip("scipy.ndimage")
    apply_affine = pytest.importorskip("nibabel.affines").apply_affine
    return apply_affine(affine, np.argwhere(mask & ~ndimage.binary_erosion(mask)))


def test_a_sheared_grid_is_measured_in_the_patients_millimetres():
    cdist = pytest.importorskip("scipy.spatial.distance").cdist
    rng = np.random.default_rng(0)
    for _ in range(150):
        affine = sheared(rng)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        shape = rng.integers(2, 14, 3)
        first, second = random_mask(rng, shape), random_mask(rng, shape)
        if not (first.any() and second.any()):
            continue
        far = cdist(surface_mm(first, affine), surface_mm(second, affine))
        found = surface_distances(first, second, (1,), spacing, axis_cosines(affine))[1]
        np.testing.assert_allclose(found.prediction_to_reference_mm, far.min(axis=1), atol=1e-9)
        np.testing.assert_allclose(found.reference_to_prediction_mm, far.min(axis=0), atol=1e-9)


def test_an_oblique_grid_has_right_angles_and_three_axes_need_three_directions():
    rng = np.random.default_rng(1)
    for _ in range(50):
        affine = np.eye(4)
        affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.3, 5, 3)
        assert axis_cosines(affine.astype(np.float32)) == (0, 0, 0)  # as NIfTI stores it
    mask = np.ones((2, 2, 2), bool)
    with pytest.raises(GeometryError, match="three directions"):
        surface_distances(mask, mask, (1,), (1, 1, 1), (1.0, 0.0, 0.0))


def test_refusals():
    mask = np.zeros((3, 3, 3), np.uint8)
    with pytest.raises(GeometryError, match="one shape"):
        one(mask, mask[1:])
    with pytest.raises(GeometryError, match="spacing_mm must be three positive"):
        one(mask, mask, (1.0, 0.0, 1.0))
    with pytest.raises(LabelError, match="integers"):
        one(mask.astype(float), mask)
    with pytest.raises(LabelError, match="from 0 to 65535"):
        one(mask, np.full((3, 3, 3), -1, np.int16))
    with pytest.raises(InputError, match="tolerance_mm must be 0 or more"):
        nsd(one(mask, mask), float("nan"))
