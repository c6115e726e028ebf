"""The method of the paper that Qinjing implements, and what is left out of it to see its worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from qinjing.nets import NETS
from qinjing.recipes.recipe import Recipe

_SOURCE = "the project's paper, chapters 3 and 4.3.3"
_TABLE = "the project's paper, table 2"
# Of networks whose name in `NETS` is not what a table calls them.
_TITLES = {
    "unet": "U-Net",
    "subvoxel_unet": "sub-voxel U-Net",
    "residual_unet": "residual U-Net",
    "transunet": "TransUNet",
    "swin_unetr": "Swin UNETR",
    "unetr": "UNETR",
    "segresnet": "SegResNet",
}


def method() -> Recipe:
    """Return the paper's method: hybrid network, loss with terms of shape, gradients re-weighted.

    The paper gives no α, β, γ and no strength of the re-weighting. Ours, `ShapeLoss`'s defaults
    and 0.5, were chosen without a measurement of their own (docs/notes/0009).

    Source: the project's paper, chapter 3.
    """
    return Recipe(
        name="method",
        source=_SOURCE,
        net="hybrid",
        net_options={"attention": "deformable"},
        loss="shape",
        loss_options={},
        gradient_weighting=0.5,
    )


def method_ablation() -> dict[str, Recipe]:
    """Return the method, the method without each of its parts, and a plain U-Net.

    "without attention" puts nothing in the place of the transformer blocks: the identity ablation.
    "with lesion weighting" adds what the paper says of small lesions and the method has off.

    Source: the project's paper, section 4.3.3 (figure 3).
    """
    whole = method()
    return {
        "method": whole,
        "without attention": replace(whole, net_options={"attention": "identity"}),
        "without gradient weighting": replace(whole, gradient_weighting=0.0),
        "without boundary": replace(whole, loss_options={"boundary_weight": 0.0}),
        "without topology": replace(whole, loss_options={"topology_weight": 0.0}),
        "with lesion weighting": replace(whole, loss_options={"lesion_weighting": True}),
        "U-Net": Recipe(name="U-Net", source=_SOURCE, net="unet", loss="dice_ce"),
    }


def networks() -> dict[str, Recipe]:
    """Return every network of `NETS` under the same plain loss, the U-Net first.

    Beside the hybrid stands the hybrid without its transformer blocks, the identity ablation.

    Source: the project's paper, table 2, and its chapter 2.1.1.
    """
    made: list[Recipe] = []
    for net in ("unet", *(name for name in NETS if name != "unet")):
        made.append(Recipe(name=_TITLES.get(net, net), source=_TABLE, net=net, loss="dice_ce"))
        if net == "hybrid":
            without = {"attention": "identity"}
            made.append(replace(made[-1], name="hybrid without attention", net_options=without))
    return {one.name: one for one in made}


ABLATIONS: Mapping[str, Callable[[], dict[str, Recipe]]] = {
    "method": method_ablation,
    "networks": networks,
}
