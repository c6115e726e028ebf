"""Published set-ups, each a function that returns overrides of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qinjing import registry
from qinjing.errors import ConfigError
from qinjing.recipes.method import ABLATIONS, method
from qinjing.recipes.paper import paper_preprocessing
from qinjing.recipes.public_sets import brats2023, lits, msd_pancreas, nih_pancreas
from qinjing.recipes.recipe import Recipe
from qinjing.tasks.planning import Overrides

RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "paper": paper_preprocessing,
    "method": method,
    "brats2023": brats2023,
    "lits": lits,
    "msd_pancreas": msd_pancreas,
    "nih_pancreas": nih_pancreas,
}


def overrides(recipe: str | None, **options: Any) -> Overrides:
    """Return what a recipe and single options decide instead of the plan; options win.

    Args:
        recipe: name in `RECIPES`, or None.
        **options: fields of `Overrides`; None leaves a field to the recipe or the plan.

    Raises:
        ConfigError: no such recipe.
    """
    if recipe is None:
        return Overrides(**options)
    made = registry.build(RECIPES, "recipe", recipe)
    # The recipe's options are those of the recipe's choice.
    if options.get("net") not in (None, made.net):
        made = replace(made, net_options=None)
    if options.get("loss") not in (None, made.loss):
        made = replace(made, loss_options=None)
    return made.overrides(**options)


def variants(
    ablation: str, only: Sequence[str] = (), recipe: str | None = None
) -> dict[str, Overrides]:
    """Return the variants of an ablation, name → what it decides instead of the plan.

    Args:
        ablation: name in `ABLATIONS`.
        only: names of variants to keep; all where empty. The first is always kept.
        recipe: name in `RECIPES` of what decides where a variant does not, such as the grid.

    Raises:
        ConfigError: no such ablation, variant or recipe.
    """
    made = registry.build(ABLATIONS, "ablation", ablation)
    for name in only:
        if name not in made:
            raise ConfigError("variant", f"one of {', '.join(made)}", name, where=ablation)
    first = next(iter(made))
    kept = {name: one for name, one in made.items() if not only or name in (first, *only)}
    return {name: overrides(recipe, **vars(one.overrides())) for name, one in kept.items()}


__all__ = [
    "ABLATIONS",
    "RECIPES",
    "Recipe",
    "brats2023",
    "lits",
    "method",
    "msd_pancreas",
    "nih_pancreas",
    "overrides",
    "paper_preprocessing",
    "variants",
]
