"""What a recipe is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A published set-up, as overrides of the plan.

    Attributes:
        name: its key in `RECIPES`.
        spacing_mm: the grid to resample to, (D, H, W), or None to leave it to the plan.
        augmentation: `{"name": …, "options": {…}}` for each transform, in order, as
            `augmentation_from_config` takes them.
        source: where it was published.
    """

    name: str
    spacing_mm: tuple[float, float, float] | None
    augmentation: tuple[dict[str, Any], ...]
    source: str
