"""The command that gives a model to other programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument
from qinjing.cli.record import files_of, output_argument, record


@dataclass(frozen=True)
class Export(Command):
    """Write a trained model, or a trunk, as a MONAI Bundle."""

    model: Path = field(
        metadata=argument(
            "-m", "--model", metavar="RUN", there=True, help="run, one of its folds, or trunk"
        )
    )
    output: Path = field(metadata=output_argument("FOLDER", "a new folder"))

    def run(self) -> dict[str, Any]:
        """Write it; what lies where, and what it wants installed."""
        from qinjing import evidence
        from qinjing.export.bundle import one_network, write_bundle

        folder = one_network(self.model)
        read = evidence.digested(files_of("model", folder, "*.json", "*.safetensors"))
        result = write_bundle(self.model, self.output)
        record(self, "export", read, [self.output / name for name in result["files"]])
        return result

    def text(self, result: Mapping[str, Any]) -> str:
        """Where it lies and what it wants."""
        return show.pairs({key: result[key] for key in ("net", "needs", "output")})
