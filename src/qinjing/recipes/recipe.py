"""What a recipe is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from qinjing.tasks.planning import Overrides


@dataclass(frozen=True)
class Recipe:
    """A published set-up, as overrides of the plan.

    Attributes:
        name: its key in `RECIPES`.
        source: where it was published.
        net: name in `NETS`, or None to leave it to the plan.
        net_options: of its constructor, above what the plan gives it.
        loss: name in `LOSSES`, or None to leave it to the plan.
        loss_options: of its constructor.
        gradient_weighting: strength of `reweight_gradients`.
        spacing_mm: the grid to resample to, (D, H, W), or None to leave it to the plan.
        augmentation: `{"name": …, "options": {…}}` for each transform, in order, as
            `augmentation_from_config` takes them, or None to leave them to the plan.
    """

    name: str
    source: str
    net: str | None = None
    net_options: dict[str, Any] | None = None
    loss: str | None = None
    loss_options: dict[str, Any] | None = None
    gradient_weighting: float | None = None
    spacing_mm: tuple[float, float, float] | None = None
    augmentation: tuple[dict[str, Any], ...] | None = None

    def overrides(self, **options: Any) -> Overrides:
        """Return what this recipe decides instead of the plan; `options` that are given win.

        Args:
            **options: fields of `Overrides`; None leaves a field to the recipe.
        """
        mine = {f.name: getattr(self, f.name, None) for f in fields(Overrides)}
        return Overrides(**mine | {k: v for k, v in options.items() if v is not None})
