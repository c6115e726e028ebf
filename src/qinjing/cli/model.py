"""The commands that make a model and use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least, fold, seconds
from qinjing.cli.record import DATASET, files_of, output_argument, progress, record, refused


@dataclass(frozen=True)
class Plan(Command):
    """Measure a data set and plan its training: sizes, memory and time, before anything starts."""

    dataset: Path = field(metadata=DATASET)
    output: Path = field(metadata=output_argument("FILE", "plan.json to write"))
    budget_s: float | None = field(
        default=None,
        metadata=argument(
            "--budget", metavar="TIME", parse=seconds, help="90s, 14m or 2h of training"
        ),
    )
    net: str | None = field(
        default=None,
        metadata=argument(
            "--net", metavar="NET", help="a net of `qinjing info` instead of the planned one"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Plan; the plan."""
        from qinjing import evidence
        from qinjing.cli.watch import watch
        from qinjing.config import plain, write_json
        from qinjing.tasks.planning import plan_dataset

        read = evidence.digested({"dataset": self.dataset})
        overrides = _overrides(net=self.net)
        with watch() as tell:
            plan = plan_dataset(
                self.dataset, budget_s=self.budget_s, overrides=overrides, tell=tell
            )
        write_json(self.output, plan)
        record(self, "plan", read, [self.output])
        content: dict[str, Any] = plain(plan)
        return content | {"output": str(self.output)}

    def text(self, result: Mapping[str, Any]) -> str:
        """The plan, one line a field, the expected costs opened."""
        predicted = result.get("predicted") or {}
        return show.pairs({key: one for key, one in result.items() if key != "timings"} | predicted)


@dataclass(frozen=True)
class Train(Command):
    """Train a model on a data set, within a time budget if one is given."""

    dataset: Path = field(metadata=DATASET)
    output: Path = field(metadata=output_argument("RUN", "folder for the model and its records"))
    budget_s: float | None = field(
        default=None,
        metadata=argument(
            "--budget", metavar="TIME", parse=seconds, help="90s, 14m or 2h, all folds"
        ),
    )
    fold: int | str = field(
        default=0,
        metadata=argument("--fold", metavar="K", parse=fold, help="fold to validate on, or all"),
    )
    net: str | None = field(
        default=None, metadata=argument("--net", metavar="NET", help="see `qinjing info`")
    )
    loss: str | None = field(
        default=None, metadata=argument("--loss", metavar="LOSS", help="see `qinjing info`")
    )
    seed: int = field(
        default=0,
        metadata=argument(
            "--seed", metavar="S", parse=at_least(0, "--seed"), help="of all that is drawn"
        ),
    )
    resume: bool = field(
        default=False, metadata=argument("--resume", help="go on from the last checkpoint")
    )
    recipe: str | None = field(
        default=None, metadata=argument("--recipe", metavar="NAME", help="a published set-up")
    )
    splits: Path | None = field(
        default=None,
        metadata=argument(
            "--splits", metavar="FILE", there=True, help="a splits_final.json to keep to"
        ),
    )

    plan: Path | None = field(
        default=None,
        metadata=argument("--plan", metavar="FILE", there=True, help="a plan.json to keep to"),
    )
    steps: int | None = field(
        default=None,
        metadata=argument(
            "--steps", metavar="N", parse=at_least(1, "--steps"), help="instead of a budget"
        ),
    )
    trunk: Path | None = field(
        default=None,
        metadata=argument(
            "--trunk",
            metavar="TRUNK",
            there=True,
            help="start from what `pretrain -o` made",
        ),
    )
    tune: str | None = field(
        default=None,
        metadata=argument(
            "--tune", choices=("full", "frozen", "lora"), help="what of the trunk learns"
        ),
    )
    layer_decay: float | None = field(
        default=None,
        metadata=argument(
            "--layer-decay",
            metavar="SHARE",
            help="of its learning rate that a layer passes to the one below it",
        ),
    )
    unlabelled_weight: float | None = field(
        default=None,
        metadata=argument(
            "--unlabelled-weight",
            metavar="W",
            parse=at_least(0.0, "--unlabelled-weight", float),
            help="learn from the cases that the splits call unlabelled: 1 is usual",
        ),
    )
    track: tuple[str, ...] = field(
        default=(),
        metadata=argument("--track", metavar="NAME", help="tensorboard, mlflow or both, offline"),
    )

    def run(self) -> dict[str, Any]:
        """Train; what was reached. The library leaves the evidence."""
        from qinjing.cli.watch import watch
        from qinjing.tasks.track import track
        from qinjing.tasks.train import TrainConfig, train

        config = TrainConfig(
            dataset=self.dataset,
            output=self.output,
            budget_s=self.budget_s,
            fold="all" if self.fold == "all" else int(self.fold),
            seed=self.seed,
            resume=self.resume,
            splits=self.splits,
            plan=self.plan,
            overrides=_overrides(
                self.recipe,
                net=self.net,
                loss=self.loss,
                steps=self.steps,
                trunk=str(self.trunk) if self.trunk else None,
                tune=self.tune,
                layer_decay=self.layer_decay,
                unlabelled_weight=self.unlabelled_weight,
            ),
        )
        with watch() as show_it, track(self.track, self.output) as log_it:

            def tell(kind: str, fields: dict[str, Any]) -> None:
                show_it(kind, fields)
                log_it(kind, fields)

            return train(config, tell)

    def text(self, result: Mapping[str, Any]) -> str:
        """What each fold reached."""
        rows = [
            (one["fold"], one["steps"], f"{one['training_s']:.0f} s", one["dice"])
            for one in result["folds"]
        ]
        lines = [show.table(("fold", "steps", "time", "mean foreground Dice"), rows)]
        lines.append(f"mean foreground Dice over all held-out cases: {result['dice']}")
        return "\n".join([*lines, f"{result['seconds']:.0f} s in all; model: {result['output']}"])

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each case that could not be trained on."""
        return refused(result)

    def after_stop(self) -> str:
        """How to go on after Ctrl-C."""
        return f"the checkpoint in {self.output} resumes: give the same command with --resume"


@dataclass(frozen=True)
class Predict(Command):
    """Segment one file or a folder; each output has its input's stem and grid."""

    model: tuple[Path, ...] = field(
        metadata=argument(
            "-m",
            "--model",
            metavar="RUN",
            there=True,
            help="what `train -o` made; several: averaged",
        )
    )
    source: Path = field(
        metadata=argument(
            "-i", "--input", metavar="FILE_OR_FOLDER", there=True, help="scans to segment"
        )
    )
    output: Path = field(metadata=output_argument("FOLDER", "where the label maps go"))
    flips: bool = field(
        default=False, metadata=argument("--flips", help="average over mirrored copies: slower")
    )
    confidence: bool = field(
        default=False, metadata=argument("--confidence", help="write confidence maps as well")
    )
    largest: bool = field(
        default=False,
        metadata=argument("--largest", help="keep only the largest component of each label"),
    )
    min_volume_ml: float = field(
        default=0.0,
        metadata=argument(
            "--min-volume-ml",
            metavar="ML",
            parse=at_least(0.0, "--min-volume-ml", float),
            help="drop components below this volume",
        ),
    )

    def run(self) -> dict[str, Any]:
        """Predict; outputs and refusals."""
        from qinjing import evidence
        from qinjing.data.layouts import list_images
        from qinjing.tasks.predict import predict_folder

        inputs: dict[str, Path] = {}
        for number, model in enumerate(self.model):
            inputs |= _model_files(model, f"model {number}" if len(self.model) > 1 else "model")
        for case_id, images in list_images(self.source):
            # By case and channel: files of two patients may bear one name.
            named = {f"images/{case_id}_{k:04d}": path for k, path in enumerate(images)}
            inputs |= {role: path for role, path in named.items() if path.is_file()}
        read = evidence.digested(inputs)
        with progress("segmenting") as show_progress:
            result = predict_folder(
                self.model,
                self.source,
                self.output,
                flips=self.flips,
                confidence=self.confidence,
                largest=self.largest,
                min_volume_ml=self.min_volume_ml,
                progress=show_progress,
            )
        if result["outputs"]:
            outputs = [Path(path) for path in result["outputs"]]
            record(self, "predict", read, outputs)
        return result

    def text(self, result: Mapping[str, Any]) -> str:
        """How many were written where."""
        done = len(result["outputs"]) // (2 if self.confidence else 1)
        return f"{done} segmented into {self.output} in {result['seconds']:.1f} s"

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each file that could not be segmented."""
        return refused(result)


def _model_files(model: Path, role: str) -> dict[str, Path]:
    """What predicting reads of a run, or of one fold of a run."""
    model = model.resolve()
    one = (model / "weights.safetensors").is_file()
    root, folds = (model.parent, model.name) if one else (model, "fold_*")
    read = ("plan.json", f"{folds}/model.json", f"{folds}/weights.safetensors")
    return files_of(role, root, *read)


def _overrides(recipe: str | None = None, **options: Any) -> Any:
    """Turn names into what the plan is overridden by.

    Raises:
        ConfigError: a name that no table holds, said before the data set is read.
    """
    from qinjing.losses import LOSSES
    from qinjing.nets import NETS
    from qinjing.recipes import overrides
    from qinjing.registry import build

    for kind, table in (("net", NETS), ("loss", LOSSES)):
        if options.get(kind) is not None:
            build(table, kind, options[kind])
    return overrides(recipe, **options)
