"""The method of the paper that Qinjing implements, and what is left out of it to see its worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from qinjing.recipes.recipe import Recipe

_SOURCE = "the project's paper, chapters 3 and 4.3.3"


def method() -> Recipe:
    """Return the paper's method: hybrid network, loss with terms of shape, gradients re-weighted.

    The paper gives no α, β, γ and no strength of the re-weighting; where ours come from stands in
    `ShapeLoss` and docs/notes/0009.

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
    """Return every network under the same plain loss, the U-Net first.

    Source: the project's paper, table 2, and its chapter 2.1.1.
    """
    names = {
        "U-Net": "unet",
        "sub-voxel U-Net": "subvoxel_unet",
        "TransUNet": "transunet",
        "hybrid": "hybrid",
        "pyramid": "pyramid",
        "Swin UNETR": "swin_unetr",
        "UNETR": "unetr",
        "SegResNet": "segresnet",
    }
    return {
        title: Recipe(name=title, source="the project's paper, table 2", net=net, loss="dice_ce")
        for title, net in names.items()
    }


ABLATIONS: Mapping[str, Callable[[], dict[str, Recipe]]] = {
    "method": method_ablation,
    "networks": networks,
}
