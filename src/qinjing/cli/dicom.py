"""The commands that read a hospital's files and give a result back to its systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument
from qinjing.cli.record import files_of, output_argument, progress, record


@dataclass(frozen=True)
class DataDicom(Command):
    """List the series in DICOM files and what was made of them; with -o write them as NIfTI."""

    place: Path = field(
        metadata=argument(
            "-i", "--input", metavar="PLACE", there=True, help="folder, zip, DICOMDIR or file"
        )
    )
    output: Path | None = field(
        default=None,
        metadata=output_argument("FOLDER", "a NIfTI file and a JSON file for each volume"),
    )

    def run(self) -> dict[str, Any]:
        """Read headers, and pixels where they are to be written; series and refusals.

        The record names the folder's files, but not where they came from: a folder's name is often
        the patient's.
        """
        from qinjing import evidence
        from qinjing.data.dicom.convert import convert

        with progress("reading", unit="file") as show_progress:
            found = convert(self.place, self.output, show_progress)
        if self.output is not None:
            names = [row["file"] for one in found["series"] for row in one["volumes"]]
            made = [self.output / name for name in names if name]
            if made:
                evidence.append(self.output, "data dicom", {}, made, {})
        return found

    def text(self, result: Mapping[str, Any]) -> str:
        """A line a volume, then the notes."""
        heads = ("series", "", "kind", "slices", "rows", "columns", "mm", "units")
        rows, notes = [], []
        for one in result["series"]:
            for volume in one["volumes"]:
                d, h, w = volume["shape"]
                mm = " × ".join(f"{value:g}" for value in volume["spacing_mm"])
                rows.append(
                    (one["series"], volume["what"], one["modality"], d, h, w, mm, volume["units"])
                )
                notes += [f"{one['series']} {volume['what']}: {n}" for n in volume["notes"]]
        return "\n".join([show.table(heads, rows), *notes])

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each series, or file of none, that could not be read."""
        return [f"{one['series'] or one['file']}: {one['reason']}" for one in result["refused"]]


@dataclass(frozen=True)
class ExportDicom(Command):
    """Write a segmentation as DICOM SEG, RT structure set or structured report of its series."""

    segmentation: Path = field(
        metadata=argument(
            "-i", "--input", metavar="SEGMENTATION", there=True, help="label map, NIfTI"
        )
    )
    source: Path = field(
        metadata=argument(
            "--source", metavar="SERIES", there=True,
            help="folder or zip of the DICOM series that it was made from",
        )
    )  # fmt: skip
    output: Path = field(metadata=output_argument("FOLDER", "seg.dcm, rtstruct.dcm, sr.dcm"))
    labels: Path | None = field(
        default=None,
        metadata=argument(
            "--labels", metavar="FILE", there=True,
            help='JSON: {"1": "Liver", "2": {"name": …, "code": [value, scheme, meaning]}}',
        ),
    )  # fmt: skip
    forms: tuple[str, ...] = field(
        default=("seg", "rtstruct"),
        metadata=argument(
            "--as", metavar="FORM", choices=("seg", "rtstruct", "sr"),
            help="of seg, rtstruct, sr; sr measures, and makes each lesion a segment",
        ),
    )  # fmt: skip
    kind: str = field(
        default="binary",
        metadata=argument(
            "--kind", choices=("binary", "labelmap", "fractional"),
            help="of the seg: binary opens everywhere, labelmap is smaller",
        ),
    )  # fmt: skip
    model: Path | None = field(
        default=None,
        metadata=argument(
            "-m", "--model", metavar="RUN", there=True, help="what made it: names it and its labels"
        ),
    )
    series: str | None = field(
        default=None,
        metadata=argument("--series", metavar="UID", help="which, where several lie on one grid"),
    )

    def run(self) -> dict[str, Any]:
        """Place it on its series, measure if a report is wanted, and write; what lies where."""
        from dataclasses import replace

        from qinjing import evidence
        from qinjing.export.dicom import maker_of, place, write_objects
        from qinjing.report.declared import declared_of
        from qinjing.report.findings import apart, findings_of
        from qinjing.report.measure import measure
        from qinjing.report.product_class import require

        # The class is asked before anything is read: what it may not say is not measured.
        model = declared_of(self.model) if self.model and "sr" in self.forms else None
        if model is not None:
            require("measurement", model.product_class)
        inputs: dict[str, Path] = {"segmentation": self.segmentation, "source": self.source}
        if self.labels:
            inputs["labels"] = self.labels
        if self.model:
            inputs |= files_of("model", self.model, "*.json", "**/*.safetensors")
        read = evidence.digested(inputs)
        placed = place(
            self.segmentation, self.source, self.labels, series=self.series, model=self.model
        )
        findings = []
        if "sr" in self.forms:
            segmentation, names, terms = apart(placed.segmentation, placed.names, placed.terms)
            placed = replace(placed, segmentation=segmentation, names=names, terms=terms)
            image, units = placed.source.volume, placed.source.units
            found = measure(segmentation, names, image, units=units)
            findings = findings_of(found, placed.source)
        made = write_objects(
            placed, self.output, self.forms, how=self.kind, maker=maker_of(self.model),
            findings=findings,
        )  # fmt: skip
        record(self, "export dicom", read, made.values())
        labels = {str(value): name for value, name in placed.names.items()}
        return {"output": self.output, "files": made, "labels": labels}

    def text(self, result: Mapping[str, Any]) -> str:
        """What lies where."""
        return show.pairs({**result["files"], "labels": ", ".join(result["labels"].values())})
