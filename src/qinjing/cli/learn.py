"""The commands that learn from few labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least, seconds
from qinjing.cli.record import DATASET, files_of, output_argument, progress, record, refused

WITHOUT = ("momentum", "clustering", "planes", "masking")


@dataclass(frozen=True)
class Pretrain(Command):
    """Learn from scans without labels: a trunk that `train --trunk` starts from."""

    datasets: tuple[Path, ...] = field(
        metadata=argument(
            "-i", "--input", metavar="DATASET", there=True,
            help="folders of scans, labelled or not; the first decides the network's stages",
        )
    )  # fmt: skip
    output: Path = field(metadata=output_argument("TRUNK", "folder for the trunk and its card"))
    budget_s: float | None = field(
        default=None,
        metadata=argument(
            "--budget", metavar="TIME", parse=seconds, help="90s, 14m or 2h; 15m where not given"
        ),
    )
    steps: int | None = field(
        default=None,
        metadata=argument(
            "--steps", metavar="N", parse=at_least(1, "--steps"), help="instead of a budget"
        ),
    )
    net: str = field(
        default="residual_unet",
        metadata=argument("--net", metavar="NET", help="see `qinjing info`"),
    )
    clustering: str = field(
        default="sinkhorn",
        metadata=argument(
            "--clustering", choices=("sinkhorn", "kmeans"), help="how prototypes are assigned"
        ),
    )
    without: tuple[str, ...] = field(
        default=(),
        metadata=argument(
            "--without", metavar="PART", choices=WITHOUT, help=f"leave out: {', '.join(WITHOUT)}"
        ),
    )
    seed: int = field(
        default=0,
        metadata=argument(
            "--seed", metavar="S", parse=at_least(0, "--seed"), help="of all that is drawn"
        ),
    )
    splits: Path | None = field(
        default=None,
        metadata=argument(
            "--splits", metavar="FILE", there=True,
            help="look at the train side of its first fold only, in the first data set",
        ),
    )  # fmt: skip
    resume: bool = field(
        default=False, metadata=argument("--resume", help="go on from the last checkpoint")
    )

    def run(self) -> dict[str, Any]:
        """Pre-train; what was reached. The library leaves the evidence."""
        from qinjing import evidence
        from qinjing.cli.watch import watch
        from qinjing.config import read_json
        from qinjing.data.layouts import open_dataset
        from qinjing.report.features import write_features
        from qinjing.tasks.consented import admitted
        from qinjing.tasks.distil_itself import Objective
        from qinjing.tasks.pretrain import PretrainConfig, pretrain

        objective = Objective(
            momentum="momentum" not in self.without,
            clustering="none" if "clustering" in self.without else self.clustering,
            planes=0.0 if "planes" in self.without else 0.5,
            masking=0.0 if "masking" in self.without else 0.5,
        )
        config = PretrainConfig(
            datasets=self.datasets,
            output=self.output,
            budget_s=self.budget_s,
            steps=self.steps,
            net=self.net,
            objective=objective,
            seed=self.seed,
            splits=self.splits,
            resume=self.resume,
        )
        with watch() as tell:
            result = pretrain(config, tell)
        dataset = open_dataset(self.datasets[0])
        saw = set(read_json(self.output / "trunk.json")["saw"][0]["cases"])
        allowed, _ = admitted(dataset).parted()
        cases = [case for case in allowed if case.case_id in saw]
        pictures = write_features(self.output, cases)
        if pictures:
            read = evidence.digested(files_of("trunk", self.output, "*.json", "*.safetensors"))
            record(self, "draw features", read, pictures)
        return result | {"pictures": [str(path) for path in pictures]}

    def text(self, result: Mapping[str, Any]) -> str:
        """What the features know, and whether they collapsed."""
        measures = {k: v for k, v in result["measures"].items() if k not in ("step", "seconds")}
        lines = [show.pairs({"steps": result["steps"], "seconds": result["seconds"], **measures})]
        return "\n".join([*lines, f"trunk: {result['output']}"])

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each case that could not be read."""
        return refused(result)

    def after_stop(self) -> str:
        """How to go on after Ctrl-C."""
        return f"the checkpoint in {self.output} resumes: give the same command with --resume"


@dataclass(frozen=True)
class Probe(Command):
    """Measure what a trunk knows of a labelled data set, without training it."""

    dataset: Path = field(metadata=DATASET)
    trunk: Path = field(
        metadata=argument("--trunk", metavar="TRUNK", there=True, help="what `pretrain -o` made")
    )
    output: Path = field(metadata=output_argument("FILE", "JSON with what was found"))

    def run(self) -> dict[str, Any]:
        """Measure; what was found, beside fresh weights and grey values."""
        from qinjing import evidence
        from qinjing.cli.watch import watch
        from qinjing.config import write_json
        from qinjing.tasks.judge_trunk import JudgeConfig, judge_trunk

        read = evidence.digested({"dataset": self.dataset, "trunk": self.trunk})
        with watch() as tell:
            result = judge_trunk(JudgeConfig(self.dataset, self.trunk), tell)
        write_json(self.output, result)
        record(self, "probe", read, [self.output])
        return result

    def text(self, result: Mapping[str, Any]) -> str:
        """A line for the trunk and for each thing that it should be better than."""
        rows = [("trunk", result["trunk"])]
        rows += [(f"fresh weights, seed {k}", one) for k, one in enumerate(result["fresh"])]
        rows += [("grey values", result["grey"])]
        lines = [show.table(
            ("features", "k-NN Dice", "linear Dice"),
            [(name, one.get("knn_dice"), one.get("linear_dice")) for name, one in rows],
        )]  # fmt: skip
        if result["seen"]:
            lines.append(f"note: the trunk saw {result['seen']} of these cases in pre-training")
        return "\n".join(lines)

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each case that could not be used."""
        return refused(result)


@dataclass(frozen=True)
class Select(Command):
    """Choose which cases to label next: unlike what is labelled, or what a model is unsure of."""

    dataset: Path = field(metadata=DATASET)
    output: Path = field(metadata=output_argument("FILE", "JSON list of the chosen, best first"))
    count: int = field(
        metadata=argument(
            "-n", "--count", metavar="N", parse=at_least(1, "--count"), help="how many to choose"
        )
    )
    trunk: Path | None = field(
        default=None,
        metadata=argument(
            "--trunk", metavar="TRUNK", there=True, help="choose what is unlike the rest (core-set)"
        ),
    )
    model: Path | None = field(
        default=None,
        metadata=argument(
            "-m", "--model", metavar="RUN", there=True, help="choose what this run is unsure of"
        ),
    )
    labelled: tuple[str, ...] = field(
        default=(),
        metadata=argument("--labelled", metavar="CASE", help="case ids that have labels already"),
    )

    def run(self) -> dict[str, Any]:
        """Choose; the case ids, the most wanted first."""
        from qinjing import evidence
        from qinjing.config import write_json
        from qinjing.tasks.select import SelectConfig, select

        config = SelectConfig(
            self.dataset, self.count, trunk=self.trunk, model=self.model, labelled=self.labelled
        )
        inputs = {"dataset": self.dataset, "trunk": self.trunk, "model": self.model}
        read = evidence.digested({role: path for role, path in inputs.items() if path})
        with progress("reading") as show_progress:
            result = select(config, show_progress)
        write_json(self.output, result)
        record(self, "select", read, [self.output])
        return result

    def text(self, result: Mapping[str, Any]) -> str:
        """The chosen, in order."""
        rows = [(one["case_id"], one["score"]) for one in result["chosen"]]
        kind = "distance" if result["by"] == "coreset" else "entropy"
        return show.table(("label next", kind), rows)

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each case that could not be read."""
        return refused(result)


@dataclass(frozen=True)
class LabelCurve(Command):
    """Measure how good a model gets from how many labelled patients, by several methods."""

    dataset: Path = field(metadata=DATASET)
    output: Path = field(
        metadata=output_argument("FOLDER", "runs, table and curve; what is finished there is kept")
    )
    trunk: Path | None = field(
        default=None,
        metadata=argument("--trunk", metavar="TRUNK", there=True, help="what `pretrain -o` made"),
    )
    counts: tuple[int, ...] = field(
        default=(1, 2, 5, 10, 20, 0),
        metadata=argument(
            "--labelled", metavar="N", parse=at_least(0, "--labelled"),
            help="labelled patients, 0 for all",
        ),
    )  # fmt: skip
    seeds: int = field(
        default=3,
        metadata=argument(
            "--seeds", metavar="N", parse=at_least(1, "--seeds"), help="trainings of each"
        ),
    )
    steps: int = field(
        default=600,
        metadata=argument(
            "--steps", metavar="N", parse=at_least(1, "--steps"), help="of each training"
        ),
    )
    methods: tuple[str, ...] = field(
        default=("random", "pretrained", "mean_teacher", "both"),
        metadata=argument(
            "--methods", metavar="NAME", help="of random, pretrained, mean_teacher, both"
        ),
    )
    choices: tuple[str, ...] = field(
        default=("random",),
        metadata=argument(
            "--choose", metavar="HOW",
            help="who gets labels: by random, coreset (unlike the rest), uncertainty of the model",
        ),
    )  # fmt: skip
    splits: Path | None = field(
        default=None,
        metadata=argument(
            "--splits", metavar="FILE", there=True, help="its first fold's val side is measured on"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Train what is not trained yet, then draw the curve."""
        from qinjing import evidence
        from qinjing.cli.watch import watch
        from qinjing.report.label_curve import write_label_curve
        from qinjing.tasks.label_curve import LabelCurveConfig, label_curve

        config = LabelCurveConfig(
            dataset=self.dataset,
            output=self.output,
            trunk=self.trunk,
            counts=self.counts,
            seeds=self.seeds,
            steps=self.steps,
            methods=self.methods,
            choices=self.choices,
            splits=self.splits,
        )
        with watch() as tell:
            result = label_curve(config, tell)
        runs = [Path(point["run"]) for point in result["points"]]
        read = evidence.digested({f"run {run.relative_to(self.output)}": run for run in runs})
        table = write_label_curve(result, self.output)
        record(self, "label-curve", read, sorted(self.output.glob("label_curve*")))
        return result | table

    def text(self, result: Mapping[str, Any]) -> str:
        """The table; the curve lies in the folder."""
        from qinjing.report.label_curve import title

        rows = [
            (row["count"], title(row), row["mean"], row["low"], row["high"], row["seeds"])
            for row in sorted(result["rows"], key=lambda row: row["count"])
        ]
        head = ("labelled", "method", "mean Dice", "lowest", "highest", "seeds")
        return f"{show.table(head, rows)}\nwritten: {self.output / 'label_curve.png'}"

    def after_stop(self) -> str:
        """How to go on after Ctrl-C."""
        return f"what is trained in {self.output} is kept: give the same command again"
