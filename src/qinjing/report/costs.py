"""What a method reaches and what it costs: one row of the paper's second table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qinjing.config import read_config, read_json
from qinjing.errors import InputError
from qinjing.report.runs import Run

# Entries of measured.json, of the slowest fold; the mean over seeds.
_MEASURED = ("predicting_s", "predicting_memory_gib", "training_s", "training_memory_gib")


def cost(run: Run) -> dict[str, Any]:
    """Return quality and costs of one method, None for what its files do not say.

    Args:
        run: a run folder, or a table of metrics, which knows no costs.

    Returns:
        "name", "seeds", "net", "parameters_million", "giga_flops" of one window; "dice" and
        "hd95_mm" as {"mean", "seed_sd"} of the foreground's mean over cases; "missed", how many
        labels of cases are in one map only and have no HD95; seconds and GiB of
        predicting one case and of training one fold, of the slowest fold, means over the seeds.
    """
    row: dict[str, Any] = {"name": run.name, "seeds": len(run.seeds) or 1}
    seeds = run.seeds or (run,)
    for metric in ("dice", "hd95_mm"):
        row[metric] = _spread([_foreground(seed.path, metric) for seed in seeds])
    row["missed"] = statistics.mean(_missed(seed) for seed in seeds)
    row |= _network(run.path)
    measured = [_read(seed.path / "measured.json") for seed in seeds]
    for name in _MEASURED:
        values = [one.get(name) for one in measured]
        known = [float(v) for v in values if isinstance(v, int | float)]
        row[name] = statistics.mean(known) if len(known) == len(values) else None
    return row


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "seed_sd": None}
    spread = statistics.stdev(known) if len(known) > 1 else None
    return {"mean": statistics.mean(known), "seed_sd": spread}


def _missed(run: Run) -> int:
    """How many labels of cases are in the prediction alone or in the reference alone."""
    return sum(
        entry.get("empty") in ("prediction", "reference")
        for case in run.cases.values()
        for entry in case["labels"].values()
    )


def _foreground(path: Path, metric: str) -> float | None:
    """The table's own mean over cases, as evaluation wrote it."""
    content = _read(path / "metrics.json" if path.is_dir() else path)
    try:
        value = content["mean"]["foreground"][metric]["mean"]
    except (KeyError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def _network(path: Path) -> dict[str, Any]:
    """Name, size and work of the network that a run trained."""
    unknown = {"net": None, "parameters_million": None, "giga_flops": None}
    if not (path / "plan.json").is_file():
        return unknown
    from qinjing.engine.plan import Plan

    try:
        plan = read_config(path / "plan.json", Plan)
        net = plan.model.build().eval()
    except InputError:  # a plan of another version: its table still counts
        return unknown
    known = {
        "net": plan.model.net,
        "parameters_million": sum(p.numel() for p in net.parameters()) / 1e6,
    }
    import torch

    from qinjing.engine.device import flops

    window = torch.zeros(1, len(plan.preprocessing.normalisation), *plan.patch_size)
    try:
        return known | {"giga_flops": flops(net, window) / 1e9}
    except RuntimeError:  # a net for a larger machine than this one
        return unknown | known


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path)
    except InputError:
        return {}
    return content if isinstance(content, dict) else {}
