"""Fingerprint, cache and patches on a real small data set written here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from qinjing.data import cache
from qinjing.data.case import Case
from qinjing.data.fingerprint import fingerprint_dataset, measure_case
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import write_nifti
from qinjing.data.patches import batch_of_patches, cut, draw_cases, draw_corner
from qinjing.data.preprocess import Normalisation, Preprocessing, read_pair
from qinjing.errors import ConfigError, FormatError, GeometryError
from qinjing.volume import Volume

ISOTROPIC = Preprocessing((1.0, 1.0, 1.0), (Normalisation(),))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    rng = np.random.default_rng(0)
    label = np.zeros((8, 10, 12), np.uint8)
    label[2:5, 3:7, 4:9] = 7  # declared values need not be 0, 1, 2
    image = (100 * label + rng.normal(50, 5, label.shape)).astype(np.float32)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]
    write_nifti(tmp_path / "a.nii.gz", Volume(image, affine))
    write_nifti(tmp_path / "a_label.nii.gz", Volume(label, affine))
    return Case("a", "p", (tmp_path / "a.nii.gz",), tmp_path / "a_label.nii.gz")


def test_a_prepared_case_lies_on_the_plans_grid(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache.prepare([case], folder, ISOTROPIC, (0, 7))
    loaded = cache.load(folder, "a")
    assert loaded.image.shape == (1, 15, 10, 12)  # 8 slices of 2 mm, first and last kept
    assert loaded.image.dtype == np.float32
    assert abs(float(loaded.image.mean())) < 1e-5
    assert float(loaded.image.std()) == pytest.approx(1, abs=1e-4)
    assert set(np.unique(loaded.label)) == {0, 1}  # 7 has become class 1
    (places,) = loaded.foreground
    assert all(loaded.label[tuple(place)] == 1 for place in places)


def test_a_case_is_prepared_again_only_when_its_file_has_changed(
    case: Case, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    cache.prepare([case], folder, ISOTROPIC, (0, 7))
    first = (folder / "a" / "image.npy").stat().st_mtime_ns
    cache.prepare([case], folder, ISOTROPIC, (0, 7))
    assert (folder / "a" / "image.npy").stat().st_mtime_ns == first
    os.utime(case.images[0], (1, 1))
    cache.prepare([case], folder, ISOTROPIC, (0, 7))
    assert (folder / "a" / "image.npy").stat().st_mtime_ns != first
    with pytest.raises(FormatError, match="prepared"):
        cache.load(folder, "b")


def test_the_fingerprint_is_what_numpy_measures(case: Case, tmp_path: Path) -> None:
    dataset = open_dataset(tmp_path)
    seen = fingerprint_dataset(dataset, [case], read_pair)
    image, label = read_pair(case)
    assert seen.cases[0].shape == (8, 10, 12)
    assert seen.cases[0].spacing_mm == (2.0, 1.0, 1.0)
    assert seen.cases[0].label_voxels == {0: 900, 7: 60}
    assert seen.cases[0].extent == (3, 4, 5)
    inside = image.voxels[0][label.voxels == 7]
    assert seen.intensities[0].mean == pytest.approx(float(inside.mean()), rel=1e-5)
    assert seen.intensities[0].percentile_99_5 == pytest.approx(
        np.percentile(inside, 99.5), rel=1e-5
    )


@pytest.mark.parametrize("labelled", [0, 1, 20_000, 20_001, 39_999])
def test_no_more_than_twenty_thousand_grey_values_stand_for_a_case(labelled: int) -> None:
    voxels = np.zeros(40_000, np.uint8)
    voxels[:labelled] = 1
    label = Volume(voxels.reshape(20, 40, 50), np.eye(4))
    grey = Volume(np.arange(40_000, dtype=np.float32).reshape(20, 40, 50), np.eye(4))
    _, sample = measure_case("a", grey, label)
    taken = labelled or 40_000
    assert min(taken, 10_000) <= sample.shape[1] <= 20_000
    assert sample.min() == 0 and sample.max() < taken and sample.max() >= taken - 2


def test_label_on_another_grid_is_refused(case: Case, tmp_path: Path) -> None:
    write_nifti(tmp_path / "b.nii.gz", Volume(np.zeros((8, 10, 11), np.uint8), np.eye(4)))
    with pytest.raises(GeometryError, match=r"b\.nii\.gz"):
        read_pair(Case("a", "p", case.images, tmp_path / "b.nii.gz"))


def test_normalisations() -> None:
    ct = Normalisation("ct", low=-100, high=300, mean=50, sd=100)
    channel = torch.tensor([[[-1000.0, 50.0, 3000.0]]])
    ct.apply(channel)
    torch.testing.assert_close(channel, torch.tensor([[[-1.5, 0.0, 2.5]]]))
    flat = torch.full((2, 2, 2), 3.0)
    Normalisation().apply(flat)
    assert torch.isfinite(flat).all()
    with pytest.raises(ConfigError, match="low < high"):
        Normalisation("ct", low=1, high=1)
    with pytest.raises(GeometryError, match="1 channels"):
        ISOTROPIC.normalise(torch.zeros(2, 3, 3, 3))


def test_each_case_comes_once_an_epoch_whatever_the_batch() -> None:
    seen = [pick for step in range(10) for pick in draw_cases(10, 3, step, seed=5)]
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * (epoch + 1)]) == list(range(10))
    assert draw_cases(10, 3, 4, seed=5) == seen[12:15]
    assert seen[:10] != seen[10:20]


def test_patches_inside_outside_and_around_the_label(case: Case, tmp_path: Path) -> None:
    cache.prepare([case], tmp_path / "cache", ISOTROPIC, (0, 7))
    loaded = cache.load(tmp_path / "cache", "a")
    rng = np.random.default_rng(0)
    for _ in range(50):
        corner = draw_corner(rng, loaded, (4, 4, 4), foreground=1.0)
        assert all(0 <= c <= n - 4 for c, n in zip(corner, loaded.label.shape, strict=True))
        assert (cut(loaded.label, corner, (4, 4, 4)) == 1).any()
    assert draw_corner(rng, loaded, (20, 4, 4), 0.0)[0] == -3  # centred where too large
    array = np.arange(27).reshape(3, 3, 3)
    np.testing.assert_array_equal(
        cut(array, (-1, 0, 1), (5, 3, 3)), np.pad(array, ((1, 1), (0, 0), (0, 1)))[:, :, 1:4]
    )
    images, labels = batch_of_patches(rng, [loaded, loaded], (20, 12, 12), 0.5)
    assert images.shape == (2, 1, 20, 12, 12) and labels.shape == (2, 20, 12, 12)
