"""Component clean-up against scipy's labelling of the whole volume and MONAI's transform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from qinjing.data.components import keep_components, largest_piece
from qinjing.errors import ConfigError
from qinjing.volume import Volume

TOUCH = np.ones((3, 3, 3), bool)
SPACING_MM = (5.0, 2.0, 1.0)  # 0.01 ml a voxel


def blobs(seed: int, values: int = 4, shape: tuple[int, int, int] = (14, 17, 19)) -> Volume:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.0)
    edges = np.quantile(noise, np.linspace(0.3, 0.95, values))
    return Volume(np.digitize(noise, edges).astype(np.uint8), np.diag([*SPACING_MM, 1.0]))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("min_volume_ml", [0.0, 0.05, 0.1, 3.0])
@pytest.mark.parametrize("largest", [(), (2,), (1, 2, 3, 4), (9,)])
def test_equals_a_search_component_by_component(
    seed: int, min_volume_ml: float, largest: tuple[int, ...]
) -> None:
    volume = blobs(seed)
    expected = np.zeros_like(volume.voxels)
    for value in range(1, 5):
        components, count = ndimage.label(volume.voxels == value, TOUCH)
        sizes = [int((components == i).sum()) for i in range(1, count + 1)]
        for i, size in enumerate(sizes, 1):
            is_largest = i == 1 + int(np.argmax(sizes))
            if size * 0.01 >= min_volume_ml - 1e-9 and (value not in largest or is_largest):
                expected[components == i] = value
    found = keep_components(volume, min_volume_ml=min_volume_ml, largest=largest)
    np.testing.assert_array_equal(found.voxels, expected)
    np.testing.assert_array_equal(found.affine, volume.affine)
    assert found.voxels.dtype == volume.voxels.dtype


def test_equals_monai_keep_largest() -> None:
    pytest.importorskip("skimage", reason="MONAI labels components with it")
    transforms = pytest.importorskip("monai.transforms")
    for seed in range(4):
        volume = blobs(seed, shape=(10, 12, 11))
        keep = transforms.KeepLargestConnectedComponent(
            applied_labels=[1, 3], independent=True, connectivity=3
        )
        expected = np.asarray(keep(volume.voxels[None].copy()))[0]
        found = keep_components(volume, largest=(1, 3)).voxels
        np.testing.assert_array_equal(found, expected)


def test_corner_neighbours_belong_together_and_the_input_is_untouched() -> None:
    voxels = np.zeros((4, 4, 4), np.int16)
    voxels[0, 0, 0] = voxels[1, 1, 1] = voxels[3, 3, 3] = 7
    volume = Volume(voxels, np.eye(4))
    found = keep_components(volume, largest=[7]).voxels
    assert found[0, 0, 0] == found[1, 1, 1] == 7
    assert found[3, 3, 3] == 0
    assert voxels[3, 3, 3] == 7


def test_a_flipped_view_works_and_no_labels_are_no_fault() -> None:
    volume = blobs(3)
    flipped = Volume(volume.voxels[::-1, :, ::-1], volume.affine)
    found = keep_components(flipped, largest=(1, 2)).voxels
    same = keep_components(volume, largest=(1, 2)).voxels[::-1, :, ::-1]
    assert (found > 0).sum() == (same > 0).sum()
    empty = Volume(np.zeros((3, 3, 3), np.uint8), np.eye(4))
    assert not keep_components(empty, min_volume_ml=1.0, largest=(1,)).voxels.any()


@pytest.mark.parametrize(
    ("voxels", "options"),
    [
        (np.zeros((2, 2, 2), np.float32), {}),
        (np.zeros((1, 2, 2, 2), np.uint8), {}),
        (np.full((2, 2, 2), -1, np.int16), {}),
        (np.full((2, 2, 2), 70000, np.int32), {}),
        (np.zeros((2, 2, 2), np.uint8), {"min_volume_ml": -1.0}),
        (np.zeros((2, 2, 2), np.uint8), {"min_volume_ml": float("nan")}),
    ],
)
def test_what_cannot_be_cleaned_is_refused(voxels: np.ndarray, options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        keep_components(Volume(voxels, np.eye(4)), **options)


def test_the_largest_piece_equals_monais_over_all_labels_together() -> None:
    pytest.importorskip("skimage", reason="MONAI labels components with it")
    transforms = pytest.importorskip("monai.transforms")
    peer = transforms.KeepLargestConnectedComponent(is_onehot=False, independent=False)
    rng = np.random.default_rng(5)
    for density in (0.02, 0.05, 0.1):
        labels = rng.choice(3, (12, 14, 16), p=(1 - 2 * density, density, density)).astype(np.uint8)
        kept, share = largest_piece(labels)
        theirs = np.asarray(peer(labels[None].copy()))[0]  # it writes into its input
        if np.count_nonzero(theirs) == np.count_nonzero(kept):  # at a tie theirs may be another
            assert np.array_equal(kept, theirs)
        assert share == np.count_nonzero(theirs) / np.count_nonzero(labels)
    empty = np.zeros((3, 3, 3), np.uint8)
    assert largest_piece(empty)[1] == 1 and not largest_piece(empty)[0].any()
