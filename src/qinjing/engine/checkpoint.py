"""Weights and training state as safetensors: one file, whole or not at all, never pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qinjing import registry
from qinjing.config import atomic_path, read_config, write_json
from qinjing.errors import FormatError
from qinjing.nets import NETS


@dataclass(frozen=True)
class ModelCard:
    """What is needed to build a network again; saved as `model.json` beside its weights.

    Attributes:
        net: name in `NETS`.
        options: plain arguments of the constructor.
    """

    net: str
    options: dict[str, Any]

    def build(self) -> nn.Module:
        """Build the network with fresh weights."""
        return registry.build(NETS, "net", self.net, **self.options)


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write tensors with JSON metadata to one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={"qinjing": json.dumps(metadata)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        FormatError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("qinjing", "{}"))
        return load_file(path), metadata
    except (OSError, SafetensorError, ValueError) as error:
        raise FormatError("weights", "a whole safetensors file", error, where=path) from None


def save_model(folder: Path, card: ModelCard, weights: dict[str, Tensor]) -> None:
    """Write `model.json` and `weights.safetensors`."""
    save_tensors(folder / "weights.safetensors", weights, {"net": card.net})
    write_json(folder / "model.json", card)


def load_model(folder: Path) -> nn.Module:
    """Build the network of a model folder, with its weights, in evaluation mode.

    Raises:
        FormatError: a file is missing or damaged, or the weights are another network's.
    """
    net = read_config(folder / "model.json", ModelCard).build()
    weights, _ = load_tensors(folder / "weights.safetensors")
    load_weights(net, weights, folder / "weights.safetensors")
    return net.eval()


def load_weights(net: nn.Module, weights: dict[str, Tensor], where: Path) -> None:
    """Copy weights into a network.

    Raises:
        FormatError: names or shapes differ.
    """
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise FormatError(
            "weights", "those of the network in model.json", error, where=where
        ) from None
