"""The command that puts together what a regulator asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument
from qinjing.cli.record import output_argument


@dataclass(frozen=True)
class Dossier(Command):
    """Write the file of a declared model by its product class, and say what is missing in it."""

    model: Path = field(
        metadata=argument("-m", "--model", metavar="RUN", there=True, help="that was declared")
    )
    output: Path = field(metadata=output_argument("FOLDER", "for dossier.html and dossier.json"))
    metrics: tuple[Path, ...] = field(
        default=(),
        metadata=argument(
            "--metrics", metavar="FILE", there=True, help="of `evaluate`, on cases it never saw"
        ),
    )
    service: Path | None = field(
        default=None,
        metadata=argument(
            "--service", metavar="FOLDER", there=True, help="of studies that it answered"
        ),
    )
    key: Path | None = field(
        default=None,
        metadata=argument("--key", metavar="PEM", there=True, help="that alone may have signed"),
    )

    def run(self) -> dict[str, Any]:
        """Write it."""
        from qinjing.report.dossier import write_dossier

        return write_dossier(
            self.model, self.output, metrics=self.metrics, service=self.service,
            trusted_key=self.key,
        )  # fmt: skip

    def text(self, result: Mapping[str, Any]) -> str:
        """Where it is, and what is missing."""
        lines = [show.pairs({"html": result["html"], "json": result["json"]})]
        lines += [f"missing: {what}" for what in result["missing"]]
        return "\n".join(lines)
