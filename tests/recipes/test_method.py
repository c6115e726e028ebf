"""The method's recipe and its variants: each leaves out one thing and nothing else."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from qinjing.errors import ConfigError
from qinjing.losses import LOSSES
from qinjing.nets import NETS
from qinjing.recipes import ABLATIONS, RECIPES, overrides, variants
from qinjing.registry import build


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_variant_can_be_built(name: str) -> None:
    pytest.importorskip("monai")
    for recipe in ABLATIONS[name]().values():
        options = {"size": "tiny"} if recipe.net == "hybrid" else {}
        if recipe.net in ("swin_unetr", "unetr", "segresnet"):
            options = {"patch_size": (32, 32, 32)} if recipe.net == "unetr" else {}
        build(NETS, "net", recipe.net, **options | (recipe.net_options or {}))
        build(LOSSES, "loss", recipe.loss, **(recipe.loss_options or {}))


def test_the_ablation_of_networks_holds_every_network() -> None:
    made = variants("networks")
    assert {one.net for one in made.values()} == set(NETS)
    assert next(iter(made.values())).net == "unet"
    again = [(name, one.net_options) for name, one in made.items() if one.net_options]
    assert again == [("hybrid without attention", {"attention": "identity"})]
    assert len(made) == len(NETS) + 1
    assert {(one.loss, one.gradient_weighting) for one in made.values()} == {("dice_ce", None)}


@pytest.mark.parametrize(
    ("variant", "field"),
    [
        ("without attention", "net_options"),
        ("without gradient weighting", "gradient_weighting"),
        ("without boundary", "loss_options"),
        ("without topology", "loss_options"),
        ("with lesion weighting", "loss_options"),
    ],
)
def test_a_variant_changes_one_part(variant: str, field: str) -> None:
    made = variants("method")
    whole, less = asdict(made["method"]), asdict(made[variant])
    assert [key for key in whole if whole[key] != less[key]] == [field]


def test_variants_can_be_chosen_and_the_first_always_stays() -> None:
    assert list(variants("method", ["U-Net"])) == ["method", "U-Net"]
    with pytest.raises(ConfigError, match="variant must be one of method"):
        variants("method", ["V-Net"])
    with pytest.raises(ConfigError, match="ablation must be one of"):
        variants("methods")


def test_a_recipe_decides_what_variants_leave_open() -> None:
    plain, on_grid = variants("method"), variants("method", recipe="brats2023")
    spacing = RECIPES["brats2023"]().spacing_mm
    assert spacing is not None and plain["U-Net"].spacing_mm is None
    assert {one.spacing_mm for one in on_grid.values()} == {spacing}
    assert on_grid["U-Net"].net == "unet" and on_grid["method"].loss == "shape"
    with pytest.raises(ConfigError, match="recipe must be one of"):
        variants("method", recipe="brats")


def test_a_net_given_by_hand_drops_the_options_of_the_recipes_net() -> None:
    chosen = overrides("method", net="unet")
    assert (chosen.net, chosen.net_options, chosen.loss) == ("unet", None, "shape")
    assert overrides("method", net="hybrid").net_options == {"attention": "deformable"}
