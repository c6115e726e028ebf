"""The command that declares what a model is for, before a service may answer with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least

CLASSES = ("tool", "analysis", "diagnosis")  # as report.product_class has them, not light


@dataclass(frozen=True)
class ServeDeclare(Command):
    """Declare for which scans a model is, and what it may put out: its product class."""

    model: Path = field(
        metadata=argument("-m", "--model", metavar="RUN", there=True, help="a finished run")
    )
    modality: str = field(
        metadata=argument("--modality", metavar="MODALITY", help="of its series: CT, MR, PT")
    )
    product_class: str = field(
        metadata=argument(
            "--class", choices=CLASSES,
            help="tool: segmentations; analysis: measurements too; diagnosis: findings too, each "
            "after a named reader confirmed it",
        )
    )  # fmt: skip
    name: str = field(
        default="", metadata=argument("--name", metavar="NAME", help="else the data set's")
    )
    intended_use: str = field(
        default="", metadata=argument("--use", metavar="TEXT", help="for whom and what it is")
    )
    limits: tuple[str, ...] = field(
        default=(), metadata=argument("--limits", metavar="TEXT", help="what it was not made for")
    )
    least_slices: int = field(
        default=8,
        metadata=argument(
            "--slices", metavar="N", parse=at_least(1, "--slices"), help="that a series must have"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Write it beside the weights, signed."""
        from qinjing.config import read_json
        from qinjing.report.declared import Declaration, declare

        name = self.name or str(read_json(self.model / "dataset.json").get("name", ""))
        said = Declaration(
            name, self.modality, self.product_class, self.intended_use, self.limits,
            self.least_slices,
        )  # fmt: skip
        path = declare(self.model, said)
        return {"declared": str(path), "name": name, "class": self.product_class}

    def text(self, result: Mapping[str, Any]) -> str:
        """What was written."""
        return show.pairs(result)
