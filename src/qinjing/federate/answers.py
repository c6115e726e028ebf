"""What a coordinator refuses of a site's answer before it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from qinjing.config import from_json
from qinjing.errors import ConfigError
from qinjing.federate.message import Message, Tensors
from qinjing.federate.pooling import Sketch

_MOST_CASES = 100_000  # a lie about them outweighs every other site
_NUMBERS = (
    ("loss", -1e6, 1e6),
    ("score", 0, 1),
    ("measured", 1, _MOST_CASES),
    ("epsilon", 0, 1e9),
    ("step_s", 0, 1e6),
    ("compute", 0, 1),
)


def check_numbers(answer: Message) -> None:
    """Refuse numbers that are none, or out of any range; only a loss may be withheld as null.

    Raises:
        ConfigError: naming one.
    """
    for name, low, high in _NUMBERS:
        if name not in answer.fields or (name == "loss" and answer.fields[name] is None):
            continue
        value = answer.fields[name]
        if not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"{name} of an answer", f"from {low:g} to {high:g}", value)
    if "score" in answer.fields and "measured" not in answer.fields:
        raise ConfigError("score of an answer", "told with how many cases it is of", "without")


def check_update(answer: Message, tensors: Tensors, sent: Mapping[str, Sequence[int]]) -> None:
    """Refuse an update that is not one of this plan's.

    Args:
        answer: as it came.
        tensors: its update, flat.
        sent: group/name → shape of what the strategy sends.

    Raises:
        ConfigError: missing or other tensors, numbers that are not finite, no cases or too many.
    """
    cases = answer.fields.get("cases")
    if not isinstance(cases, int) or not 1 <= cases <= _MOST_CASES:
        raise ConfigError("cases of an update", f"from 1 to {_MOST_CASES}", cases)
    if tensors.keys() != sent.keys():
        differ = sorted(tensors.keys() ^ sent.keys())[0]
        raise ConfigError("update", "of what the strategy sends", differ)
    for name, value in sorted(tensors.items()):
        if tuple(value.shape) != tuple(sent[name]):
            raise ConfigError(f"shape of {name}", str(tuple(sent[name])), tuple(value.shape))
        if not torch.isfinite(value).all():
            raise ConfigError(f"values of {name}", "finite", "others")


def sketched(answer: Message, site: str) -> Sketch:
    """Return what a site tells of its scans.

    Raises:
        ConfigError: it is no sketch.
    """
    return cast(Sketch, from_json(answer.fields.get("sketch"), Sketch, where=site))
