"""Train a set of variants with several seeds, each for the same time, to be compared afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qinjing import registry
from qinjing.config import plain, read_json, write_json
from qinjing.errors import ConfigError, FormatError
from qinjing.losses import LOSSES
from qinjing.nets import NETS
from qinjing.tasks.planning import Overrides, Tell, silent
from qinjing.tasks.train import TrainConfig, train


@dataclass(frozen=True)
class AblateConfig:
    """A set of trainings.

    Attributes:
        dataset: folder in any layout.
        output: takes a folder for each variant, with a run for each seed.
        variants: name → what it overrides of the plan; the first is what the others leave out of.
        budget_s: wall seconds for each training.
        seeds: how many trainings of each variant.
        splits: a `splits_final.json` to keep to; else five folds by patient, of which the first.
    """

    dataset: Path
    output: Path
    variants: Mapping[str, Overrides] = field(repr=False)
    budget_s: float | None = None
    seeds: int = 3
    splits: Path | None = None


def ablate(config: AblateConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Train every variant with every seed; what is finished is kept, what was stopped goes on.

    All seeds of a variant follow the plan that its first one made, so that they differ in nothing
    but chance. Seeds stand in the outer loop: a set that was stopped half-way can be compared.

    Args:
        config: what to train.
        tell: told of ("variant", {"name", "seed", "number", "of"}) and of what `train` tells.

    Returns:
        "runs": run folders, the first variant's first; "refused" cases.

    Raises:
        InputError: the data set cannot be used, a variant cannot be built here, there is nothing to
            compare, or the folder holds another set of trainings.
    """
    tell = tell or silent
    if config.seeds < 1:
        raise ConfigError("seeds", "at least 1", config.seeds)
    if config.seeds * len(config.variants) < 2:
        raise ConfigError("trainings", "two at least, to be compared", 1)
    for overrides in config.variants.values():  # before hours are spent
        if overrides.net:
            registry.build(NETS, "net", overrides.net, **overrides.net_options or {})
        if overrides.loss:
            registry.build(LOSSES, "loss", overrides.loss, **overrides.loss_options or {})
    _claim(config)
    refused: dict[str, dict[str, str]] = {}
    number = 0
    for seed in range(config.seeds):
        for name, overrides in config.variants.items():
            number += 1
            of = config.seeds * len(config.variants)
            tell("variant", {"name": name, "seed": seed, "number": number, "of": of})
            output = config.output / folder_of(name) / f"seed_{seed}"
            if (output / "measured.json").is_file():
                continue
            result = train(_training(config, output, overrides, seed), tell)
            refused |= {one["case_id"]: one for one in result["refused"]}
    return {
        "runs": [
            str(config.output / folder_of(name) / f"seed_{seed}")
            for name in config.variants
            for seed in range(config.seeds)
        ],
        "refused": list(refused.values()),
    }


def folder_of(name: str) -> str:
    """Return a variant's folder: its name in letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _training(config: AblateConfig, output: Path, overrides: Overrides, seed: int) -> TrainConfig:
    first = output.with_name("seed_0") / "plan.json"
    training = TrainConfig(
        config.dataset,
        output,
        budget_s=config.budget_s,
        seed=seed,
        resume=True,
        splits=config.splits,
        overrides=overrides,
    )
    if seed and first.is_file():
        return replace(training, plan=first, overrides=Overrides())
    return training


def _claim(config: AblateConfig) -> None:
    """Write down what this set is; variants may join later, and what is there may not change.

    Raises:
        ConfigError: the folder holds another set, or another variant of the same name.
    """
    path = config.output / "ablation.json"
    made = {name: plain(overrides) for name, overrides in config.variants.items()}
    wanted = {
        "dataset": str(config.dataset.resolve()),
        "splits": read_json(config.splits) if config.splits else None,
        "budget_s": config.budget_s,
    }
    before = read_json(path) if path.is_file() else {**wanted, "variants": {}}
    if not isinstance(before, dict) or not isinstance(before.get("variants"), dict):
        raise FormatError("ablation", "an object with variants", where=path)
    known = before["variants"]
    changed = [key for key, value in wanted.items() if before.get(key) != value]
    changed += [name for name, one in made.items() if known.get(name, one) != one]
    if changed:
        raise ConfigError(
            "output", "a new folder, or one of the same set of trainings",
            f"another {', '.join(changed)}", where=config.output,
            advice="repeat the first command, or choose another folder",
        )  # fmt: skip
    write_json(path, {**wanted, "variants": {**known, **made}})
