"""What a model of a federation reaches on scans, measured as after any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qinjing.data.case import Case
from qinjing.tasks.evaluate import evaluate_files
from qinjing.tasks.predict import Segmenter, segment_cases


def dice_on(run: Path, dataset: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """Segment held-out scans as a user would, and measure; `fold_0/metrics.json` has all of it.

    Args:
        run: folder with a model in `fold_0`.
        dataset: that the cases are of, with their labels.
        cases: one at least.

    Returns:
        Mean foreground Dice and its interval, as `evaluate_files` gives it.
    """
    fold = run / "fold_0"
    segment_cases(Segmenter.load(run), cases, fold / "validation")
    ids = [case.case_id for case in cases]
    metrics = evaluate_files(fold / "validation", dataset, fold / "metrics.json", cases=ids)
    found: dict[str, Any] = metrics["mean"]["foreground"]["dice"]
    return found
