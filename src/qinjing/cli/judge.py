"""The commands that judge methods against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least, seconds
from qinjing.cli.record import DATASET, output_argument, record, refused


@dataclass(frozen=True)
class Compare(Command):
    """Compare runs or metrics.json files on the cases that they share: quality, cost, tests."""

    metrics: tuple[Path, ...] = field(
        metadata=argument(
            metavar="RUN", there=True, help="run folders or metrics.json; the first is the baseline"
        )
    )
    output: Path = field(metadata=output_argument("FOLDER", "where the tables and pictures go"))
    dataset: Path | None = field(
        default=None,
        metadata=argument(
            "--dataset", metavar="DATASET", there=True, help="images for the pictures, if moved"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Compare; the tables."""
        from qinjing import evidence
        from qinjing.report.compare import compare_files
        from qinjing.report.runs import read_runs

        read_runs(self.metrics)  # a folder that is none is refused before it is digested
        read = evidence.digested({f"metrics {k}": path for k, path in enumerate(self.metrics)})
        result = compare_files(self.metrics, self.output, self.dataset)
        record(self, "compare", read, sorted(self.output.glob("comparison*")))
        return result

    def text(self, result: Mapping[str, Any]) -> str:
        """What differs over the foreground; the rest lies in the folder."""
        return show.comparison(result) + f"\nwritten: {self.output / 'comparison.html'}"

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each table that could not be read."""
        return refused(result)


@dataclass(frozen=True)
class Ablate(Command):
    """Train the variants of an ablation, each for the same time with several seeds, and compare."""

    ablation: str = field(
        metadata=argument(metavar="ABLATION", help="method (what each part is worth) or networks")
    )
    dataset: Path = field(metadata=DATASET)
    output: Path = field(
        metadata=output_argument("FOLDER", "runs and comparison; what is finished there is kept")
    )
    budget_s: float | None = field(
        default=None,
        metadata=argument(
            "--budget", metavar="TIME", parse=seconds, help="90s, 14m or 2h for each training"
        ),
    )
    seeds: int = field(
        default=3,
        metadata=argument(
            "--seeds", metavar="N", parse=at_least(1, "--seeds"), help="trainings of each variant"
        ),
    )
    only: tuple[str, ...] = field(
        default=(),
        metadata=argument("--only", metavar="NAME", help="these variants only, the first included"),
    )
    splits: Path | None = field(
        default=None,
        metadata=argument(
            "--splits", metavar="FILE", there=True, help="a splits_final.json to keep to"
        ),
    )
    recipe: str | None = field(
        default=None,
        metadata=argument(
            "--recipe", metavar="NAME", help="decides what a variant does not, such as the grid"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Train what is not trained yet, then compare with the first variant."""
        from qinjing import evidence
        from qinjing.cli.watch import watch
        from qinjing.recipes import variants
        from qinjing.report.compare import compare_files
        from qinjing.tasks.ablate import AblateConfig, ablate

        chosen = variants(self.ablation, self.only, self.recipe)
        config = AblateConfig(
            self.dataset, self.output, chosen, self.budget_s, self.seeds, self.splits
        )
        with watch() as tell:
            trained = ablate(config, tell)
        runs = [Path(run) for run in trained["runs"]]
        read = evidence.digested({f"run {run.parent.name}/{run.name}": run for run in runs})
        result = compare_files(runs, self.output, self.dataset)
        record(self, "ablate", read, sorted(self.output.glob("comparison*")))
        return result | {"refused": [*trained["refused"], *result["refused"]]}

    def text(self, result: Mapping[str, Any]) -> str:
        """What differs over the foreground; the rest lies in the folder."""
        return show.comparison(result) + f"\nwritten: {self.output / 'comparison.html'}"

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each case that could not be trained on."""
        return refused(result)

    def after_stop(self) -> str:
        """How to go on after Ctrl-C."""
        return f"what is trained in {self.output} is kept: give the same command again"
