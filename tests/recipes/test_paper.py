"""The paper's list, transform by transform, against MONAI's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from qinjing.data.transforms import Augmentation, augmentation_from_config
from qinjing.data.transforms.affine import Affine
from qinjing.data.transforms.gamma import Gamma
from qinjing.data.transforms.noise import Noise
from qinjing.recipes import RECIPES, paper_preprocessing

monai = pytest.importorskip("monai.transforms")
DRAWS = 4000


@pytest.fixture
def augmentation() -> Augmentation:
    return augmentation_from_config(RECIPES["paper"]().augmentation)


@pytest.fixture
def scan() -> np.ndarray:
    """A smooth volume in MONAI's axes, (x, y, z)."""
    noise = np.random.default_rng(0).normal(size=(22, 20, 12))
    return ndimage.gaussian_filter(noise, 1.5).astype(np.float32)


def test_says_what_the_paper_says(augmentation: Augmentation) -> None:
    recipe = paper_preprocessing()
    assert recipe.spacing_mm == (5.0, 1.5, 1.5) and recipe.source
    gamma, noise, turn = augmentation.transforms
    assert isinstance(gamma, Gamma) and gamma.gamma == (0.8, 1.2)
    assert isinstance(noise, Noise) and noise.std == (0.0, 0.01)
    assert isinstance(turn, Affine) and turn.rotation_probability == 0.5


def test_contrast(augmentation: Augmentation, scan: np.ndarray) -> None:
    transform = augmentation.transforms[0]
    drawn = transform.draw(np.random.default_rng(0), DRAWS)
    theirs = monai.RandAdjustContrast(gamma=(0.8, 1.2))
    theirs.set_random_state(0)
    gammas = []
    for _ in range(DRAWS):
        theirs.randomize(None)
        if theirs._do_transform:
            gammas.append(theirs.gamma_value)
    assert drawn.applied.mean() == pytest.approx(len(gammas) / DRAWS, abs=0.02)
    assert stats.ks_2samp(drawn.gamma[drawn.applied], gammas).pvalue > 1e-3
    row = int(np.flatnonzero(drawn.applied)[0])
    ours, _ = transform.apply(*as_batch(scan), transform_row(drawn, row))
    expected = monai.AdjustContrast(drawn.gamma[row])(scan[None])[0].numpy()
    np.testing.assert_allclose(ours[0, 0].numpy().T, expected, atol=1e-6)


def test_noise(augmentation: Augmentation, scan: np.ndarray) -> None:
    transform = augmentation.transforms[1]
    theirs = monai.RandGaussianNoise(prob=1.0, std=0.01)
    theirs.set_random_state(0)
    there = [float((theirs(scan[None]) - scan[None]).std()) for _ in range(400)]
    drawn = transform.draw(np.random.default_rng(1), DRAWS)
    assert drawn.applied.mean() == pytest.approx(0.1, abs=0.02)
    here = []
    for row in np.flatnonzero(drawn.applied)[:400]:
        ours, _ = transform.apply(*as_batch(scan), transform_row(drawn, row))
        here.append(float((ours[0, 0].numpy().T - scan).std()))
    assert stats.ks_2samp(here, there).pvalue > 1e-3


def test_rotation(augmentation: Augmentation, scan: np.ndarray) -> None:
    transform = augmentation.transforms[2]
    drawn = transform.draw(np.random.default_rng(2), DRAWS)
    assert drawn.applied.mean() == pytest.approx(0.5, abs=0.03)
    angles = np.arctan2(drawn.matrix[:, 1, 0], drawn.matrix[:, 0, 0])
    limit = np.radians(15.0)
    theirs = monai.RandRotate(range_x=limit, prob=1.0)
    theirs.set_random_state(0)
    turns = []
    for _ in range(DRAWS):
        theirs.randomize()
        turns.append(theirs.x)
    assert stats.ks_2samp(angles[drawn.applied], turns).pvalue > 1e-3
    for row in np.flatnonzero(drawn.applied)[:3]:
        ours, _ = transform.apply(*as_batch(scan), transform_row(drawn, row))
        # Read in the order (z, y, x) a turn about x has the other sign; the range is even.
        turn = monai.Rotate((-angles[row], 0.0, 0.0), padding_mode="border")
        np.testing.assert_allclose(ours[0, 0].numpy().T, turn(scan[None])[0].numpy(), atol=1e-5)


def as_batch(scan: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.from_numpy(scan.T.copy())[None, None]
    return image, torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.uint8)


def transform_row(drawn: Any, row: int) -> Any:
    return type(drawn)(**{name: values[row : row + 1] for name, values in vars(drawn).items()})
