"""Low-rank additions to frozen weights, and their merging once they are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK = 4
_LAYERS = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class LowRank(nn.Module):
    """Add a product of two thin matrices to a weight.

    Shapes: (N, M, …) → (N, M, …); the weight counts as a matrix of N rows.

    Args:
        weight: what it is added to.
        rank: r of the product, at most.

    Source: arXiv:2106.09685 (LoRA); one factor starts at 0, so that nothing changes.
    """

    def __init__(self, weight: Tensor, rank: int = RANK) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def add_low_rank(net: nn.Module, heads: frozenset[str], rank: int = RANK) -> nn.Module:
    """Freeze a network but for its heads and normalisations, and add what may learn, in place.

    Args:
        net: with its weights in it.
        heads: names of weights that learn as they are.
        rank: of the additions.

    Source: arXiv:2106.09685 (LoRA).
    """
    for path, layer in list(net.named_modules()):
        name = f"{path}.weight"
        if isinstance(layer, _LAYERS) and name not in heads:
            layer.weight.requires_grad_(False)
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return net


def merged_weights(net: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a trained network's weights with what was added to them merged in.

    Args:
        net: as `add_low_rank` returned it, or one without additions.
        weights: its state, by name; the network keeps its own.

    Source: arXiv:2106.09685 (LoRA).
    """
    if not any(parametrize.is_parametrized(layer) for layer in net.modules()):
        return dict(weights)
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(dict(weights))
    merged = {}
    for path, layer in net.named_modules():
        own = f"{path}." if path else ""
        if "parametrizations" in path.split("."):
            continue
        for name, value in layer.state_dict().items():
            if "." not in name:
                merged[f"{own}{name}"] = value.detach().clone()
        if parametrize.is_parametrized(layer, "weight"):
            merged[f"{own}weight"] = layer.weight.detach().clone()
    net.load_state_dict(kept)
    return merged
