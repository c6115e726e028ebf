"""Show long work: a progress bar with time left, and a line where something happened."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def watch() -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """Yield what `tasks.train` tells its events; all goes to standard error."""
    bar: tqdm | None = None

    def say(text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def tell(kind: str, fields: dict[str, Any]) -> None:
        nonlocal bar
        if kind == "checked":
            say(f"checked: {fields['cases']} cases sound, {len(fields['refused'])} refused")
        elif kind == "warning":
            say(f"warning: {fields['message']}")
        elif kind == "variant":
            say(f"[{fields['number']} of {fields['of']}] {fields['name']}, seed {fields['seed']}")
        elif kind == "plan":
            for line in _plan_lines(fields["plan"]):
                say(line)
        elif kind == "step":
            if bar is None or bar.n > fields["step"]:
                bar = tqdm(total=fields["steps"], unit="step", file=sys.stderr, disable=None,
                           desc=f"fold {fields['fold']}", initial=fields["step"])  # fmt: skip
            bar.total = fields["steps"]
            bar.set_postfix(loss=f"{fields['loss']:.3f}", refresh=False)
            bar.update()
        elif kind == "validation":
            say(_validation_line(fields))
        elif kind == "round":
            say(_round_line(fields))
        elif kind == "refused":
            say(f"{fields['site']} refused: {fields['reason']}")
        elif kind == "measured":
            if bar is not None:
                bar.close()
                bar = None
            say(f"fold {fields['fold']}: Dice {fields['dice']} in {fields['training_s']:.0f} s")

    try:
        yield tell
    finally:
        if bar is not None:
            bar.close()


def _validation_line(fields: dict[str, Any]) -> str:
    """What a validation found; of a pre-training, whether it still learns anything."""
    step = f"step {fields['step'] + 1}"
    if "feature_rank" not in fields:
        return f"{step}: mean Dice {fields['score']:.4f}"
    line = (
        f"{step}: k-NN Dice {fields.get('knn_dice', 'unknown')}, "
        f"rank of features {fields['feature_rank']:.1f}, "
        f"prototypes used {100 * fields['prototypes_used']:.0f} %"
    )
    if fields["collapsed"]:
        line += "; the features have COLLAPSED: stop, leave no part out, or give more scans"
    return line


def _round_line(fields: dict[str, Any]) -> str:
    """What a round of a federation came to."""
    line = f"round {fields['round'] + 1} of {fields['rounds']}: {len(fields['sites'])} sites, "
    loss = (
        f"loss {fields['loss']:.3f}, " if "loss" in fields else ""
    )  # private where there is noise
    line += f"{loss}{fields['seconds']:.1f} s"
    return line + (f", mean Dice {fields['dice']:.4f}" if "dice" in fields else "")


def _plan_lines(plan: Any) -> list[str]:
    """The plan in a few lines, its costs last."""
    how = plan.execution
    form = "channels last" if how.channels_last else "channels first"
    lines = [
        f"plan: {plan.model.net}, patch {plan.patch_size}, batch {plan.batch_size}, "
        f"{plan.fit.steps} steps",
        f"plan: spacing {plan.preprocessing.spacing_mm} mm, {how.device}, {how.precision}, {form}",
    ]
    if plan.predicted:
        seen = plan.predicted
        lines.append(
            f"predicted: training {seen.training_s:.0f} s in {seen.training_memory_gib:.2f} GiB, "
            f"one case {seen.predicting_s:.2f} s in {seen.predicting_memory_gib:.2f} GiB"
        )
    return lines
