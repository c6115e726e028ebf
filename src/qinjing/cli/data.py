"""The commands that make or look at data sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least
from qinjing.cli.record import DATASET, output_argument, progress, record


@dataclass(frozen=True)
class DataCheck(Command):
    """Read every file of a data set once and name each fault in its own words."""

    dataset: Path = field(metadata=DATASET)
    splits: Path | None = field(
        default=None,
        metadata=argument(
            "--splits",
            metavar="FILE",
            there=True,
            help="a splits_final.json to check as well; the data set's own is found",
        ),
    )

    def run(self) -> dict[str, Any]:
        """Check; good cases and faults."""
        from qinjing.data.check import check_dataset
        from qinjing.data.layouts import open_dataset
        from qinjing.data.splits import read_splits

        dataset = open_dataset(self.dataset)
        own = dataset.root / "splits_final.json"
        path = self.splits or (own if own.is_file() else None)
        splits = read_splits(path) if path else None
        with progress(f"checking {dataset.name}") as show_progress:
            result = check_dataset(dataset, splits, show_progress)
        return {
            "dataset": dataset.name,
            "layout": dataset.layout,
            "channels": dataset.channel_names,
            "labels": dataset.labels,
            "ignored": dataset.ignored,
            "cases": len(dataset.cases),
            **result.to_json(),
        }

    def text(self, result: Mapping[str, Any]) -> str:
        """Count what is good and list warnings; what is refused follows on standard error."""
        return show.check(result)

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each fault that takes a case out, with its case and file."""
        return [show.fault(one) for one in result["faults"] if one["severity"] == "refused"]


@dataclass(frozen=True)
class DataSplit(Command):
    """Deal the cases to folds by patient and write splits_final.json."""

    dataset: Path = field(metadata=DATASET)
    output: Path = field(metadata=output_argument("FILE", "splits_final.json to write"))
    folds: int = field(
        default=5,
        metadata=argument(
            "--folds", metavar="K", parse=at_least(2, "--folds"), help="how many folds"
        ),
    )
    shards: int | None = field(
        default=None,
        metadata=argument(
            "--shards", metavar="K", parse=at_least(2, "--shards"),
            help="instead: folds that share no case of training, so that `unlearn` costs one of K",
        ),
    )  # fmt: skip
    seed: int = field(
        default=12345,
        metadata=argument(
            "--seed", metavar="S", parse=at_least(0, "--seed"), help="of the shuffle"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Split; the number of cases on each side of each fold."""
        from qinjing import evidence
        from qinjing.data.layouts import open_dataset
        from qinjing.data.splits import make_shards, make_splits, write_splits

        read = evidence.digested({"dataset": self.dataset})
        dataset = open_dataset(self.dataset)
        splits = (
            make_shards(dataset.cases, self.shards, self.seed)
            if self.shards
            else make_splits(dataset.cases, self.folds, self.seed)
        )
        write_splits(self.output, splits)
        record(self, "data split", read, [self.output], dataset.licence)
        counts = [{"train": len(one["train"]), "val": len(one["val"])} for one in splits]
        return {"output": self.output, "folds": counts}

    def text(self, result: Mapping[str, Any]) -> str:
        """One line a fold."""
        rows = [(k, one["train"], one["val"]) for k, one in enumerate(result["folds"])]
        return show.table(("fold", "train", "val"), rows) + f"\nwritten: {result['output']}"


@dataclass(frozen=True)
class DataFetch(Command):
    """Download a public data set from its official place and check it."""

    name: str = field(
        metadata=argument(metavar="NAME", help="Task01_BrainTumour to Task10_Colon of the MSD")
    )
    output: Path = field(metadata=output_argument("FOLDER", "where it goes"))

    def run(self) -> dict[str, Any]:
        """Fetch; where it lies. What lay there already is not recorded as fetched."""
        from qinjing.data.fetch import SOURCES, fetch

        there = (self.output / self.name).exists()
        with progress(f"fetching {self.name}", unit="B") as show_progress:
            place = fetch(self.name, self.output, progress=show_progress)
        if not there:
            record(self, "data fetch", {}, [place], SOURCES[self.name].licence)
        return {"name": self.name, "folder": place, "already_there": there}

    def text(self, result: Mapping[str, Any]) -> str:
        """Where it lies."""
        return f"{result['name']} lies in {result['folder']}"


@dataclass(frozen=True)
class Phantom(Command):
    """Write a data set of generated anatomy whose truth is known."""

    output: Path = field(metadata=output_argument("FOLDER", "where the data set goes"))
    cases: int = field(
        default=24,
        metadata=argument("--cases", metavar="N", parse=at_least(1, "--cases"), help="how many"),
    )
    seed: int = field(
        default=0,
        metadata=argument(
            "--seed", metavar="S", parse=at_least(0, "--seed"), help="of all that is drawn"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Write them; where they lie."""
        from qinjing.physics.phantom import write_dataset

        place = write_dataset(self.output, self.cases, self.seed)
        record(self, "phantom", {}, [self.output], "CC0")
        return {"folder": place, "cases": self.cases, "seed": self.seed}

    def text(self, result: Mapping[str, Any]) -> str:
        """Where they lie."""
        return f"{result['cases']} cases lie in {result['folder']}"
