"""Published set-ups, each a function that returns overrides of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qinjing import registry
from qinjing.recipes.paper import paper_preprocessing
from qinjing.recipes.recipe import Recipe
from qinjing.tasks.planning import Overrides

RECIPES: Mapping[str, Callable[[], Recipe]] = {"paper": paper_preprocessing}


def overrides(recipe: str | None, **options: Any) -> Overrides:
    """Return what a recipe and single options decide instead of the plan; options win.

    Args:
        recipe: name in `RECIPES`, or None.
        **options: fields of `Overrides`; None leaves a field to the recipe or the plan.

    Raises:
        ConfigError: no such recipe.
    """
    chosen = Overrides()
    if recipe is not None:
        made = registry.build(RECIPES, "recipe", recipe)
        chosen = Overrides(spacing_mm=made.spacing_mm, augmentation=tuple(made.augmentation))
    return replace(chosen, **{key: value for key, value in options.items() if value is not None})


__all__ = ["RECIPES", "Recipe", "overrides", "paper_preprocessing"]
