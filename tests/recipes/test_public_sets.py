"""The recipes of public sets say what was published, and leave the rest to the plan."""

from __future__ import annotations

import numpy as np
import pytest

from qinjing.data.transforms import augmentation_from_config
from qinjing.data.transforms.affine import Affine
from qinjing.recipes import RECIPES, overrides

SETS = ("brats2023", "lits", "msd_pancreas", "nih_pancreas")


@pytest.mark.parametrize("name", SETS)
def test_recipe(name: str) -> None:
    recipe = RECIPES[name]()
    assert recipe.name == name and recipe.source.startswith(("arXiv:", "doi:"))
    decided = overrides(name)
    assert decided.spacing_mm == recipe.spacing_mm
    assert decided.augmentation == recipe.augmentation
    assert decided.net is decided.loss is None
    assert overrides(name, net="unet").net == "unet"


def test_grids_are_the_published_ones() -> None:
    """(D, H, W): slices first. nnU-Net's plans of Task003 and Task007 print the same numbers."""
    grids = {name: RECIPES[name]().spacing_mm for name in SETS}
    assert grids == {
        "brats2023": (1, 1, 1), "lits": (1, 0.76757812, 0.76757812),
        "msd_pancreas": (2.5, 0.80273402, 0.80273402), "nih_pancreas": (1, 1, 1),
    }  # fmt: skip


def test_brats_zooms_in_and_turns_nothing() -> None:
    augmentation = augmentation_from_config(RECIPES["brats2023"]().augmentation)
    zoom = augmentation.transforms[0]
    assert isinstance(zoom, Affine) and augmentation.margin == (0, 0, 0)
    drawn = zoom.draw(np.random.default_rng(0), 4000)
    assert drawn.applied.mean() == pytest.approx(0.15, abs=0.02) and not drawn.deformed.any()
    factors = 1 / drawn.matrix[drawn.applied][:, [0, 1, 2], [0, 1, 2]]
    off = drawn.matrix - drawn.matrix * np.eye(3)
    assert np.abs(off).max() < 1e-12
    assert (
        factors.min() > 1.0
        and factors.max() < 1.4
        and factors.mean() == pytest.approx(1.2, abs=0.02)
    )
    for transform, mean in zip(augmentation.transforms[2:], (0.15,) * 4, strict=True):
        drawn = transform.draw(np.random.default_rng(1), 4000)
        assert drawn.applied.mean() == pytest.approx(mean, abs=0.02)
