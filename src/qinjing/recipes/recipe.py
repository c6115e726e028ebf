"""What a recipe is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from qinjing.tasks.planning import Overrides


@dataclass(frozen=True, kw_only=True)
class Recipe(Overrides):
    """A published set-up: overrides of the plan, with a name and a source.

    Attributes:
        name: its key in `RECIPES`.
        source: where it was published.
    """

    name: str
    source: str

    def overrides(self, **options: Any) -> Overrides:
        """Return what this recipe decides instead of the plan; `options` that are given win.

        Args:
            **options: fields of `Overrides`; None leaves a field to the recipe.
        """
        mine = {field.name: getattr(self, field.name) for field in fields(Overrides)}
        return Overrides(**mine | {k: v for k, v in options.items() if v is not None})
