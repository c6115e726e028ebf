"""The command that takes patients out of DICOM files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli.arguments import Command, argument
from qinjing.cli.record import output_argument, progress
from qinjing.errors import ConfigError

KEEP = ("private", "uids", "device", "patient", "dates", "descriptors")


@dataclass(frozen=True)
class DataDeidentify(Command):
    """Take patients out of DICOM files, by the Basic Profile of DICOM PS3.15 Annex E."""

    place: Path = field(
        metadata=argument("-i", "--input", metavar="PLACE", there=True, help="a folder, or a file")
    )
    output: Path = field(metadata=output_argument("FOLDER", "where the new files go"))
    secret: Path = field(
        metadata=argument(
            "--secret", metavar="FILE",
            help="what pseudonyms, UIDs and dates are drawn from; made where there is none",
        )
    )  # fmt: skip
    keep: tuple[str, ...] = field(
        default=(),
        metadata=argument(
            "--keep", metavar="WHAT", choices=KEEP,
            help="options of the profile: safe private elements, UIDs, the device, the patient's "
            "age, sex and size, dates (moved), descriptions (cleaned)",
        ),
    )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Do it; counts, warnings and refusals.

        The record names neither the input nor its digest: it goes along with the new files, and a
        folder's name is often the patient's.
        """
        from qinjing import evidence
        from qinjing.data.dicom.deidentify_files import deidentify_files, read_secret

        if self.secret.resolve().is_relative_to(self.output.resolve()):
            raise ConfigError("--secret", "outside the output, which is given away", self.secret)
        secret, made = read_secret(self.secret)
        with progress("taking patients out", unit="file") as show_progress:
            done = deidentify_files(
                self.place, self.output, self.keep, secret=secret, progress=show_progress
            )
        if done.written:
            folders = [self.output / name for name in done.patients]
            evidence.append(self.output, "data deidentify", {}, folders, {"keep": self.keep})
        return {
            "written": done.written,
            "patients": len(done.patients),
            "left_alone": done.left_alone,
            "secret_made": made,
            "warnings": [
                {"warning": sentence, "files": count, "first": first}
                for sentence, (count, first) in done.warnings.items()
            ],
            "refused": done.refused,
        }

    def text(self, result: Mapping[str, Any]) -> str:
        """Counts, and what a person must still look at."""
        lines = [
            f"{result['written']} files of {result['patients']} patients written to {self.output}; "
            f"{result['left_alone']} that are no DICOM left alone"
        ]
        if result["secret_made"]:
            lines.append(f"secret made: {self.secret}; who has it can tell who is who: keep it")
        lines += [
            f"warning, {one['files']} files: {one['warning']} ({one['first']})"
            for one in result["warnings"]
        ]
        return "\n".join(lines)

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each file that could not be done."""
        return [f"refused {one['file']}: {one['reason']}" for one in result["refused"]]
