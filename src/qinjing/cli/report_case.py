"""The command that reports one case: its measurements, what changed, and key images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument
from qinjing.cli.record import output_argument
from qinjing.errors import ConfigError

CLASSES = ("tool", "analysis", "diagnosis")


def _header(text: str) -> tuple[str, str]:
    """Read NAME=VALUE.

    Raises:
        ConfigError: one of the two is missing.
    """
    name, _, value = text.partition("=")
    if not name or not value:
        raise ConfigError("--header", "NAME=VALUE", text)
    return name, value


@dataclass(frozen=True)
class ReportCase(Command):
    """Report one segmented case as HTML and PDF: volumes, diameters, changes, key images."""

    image: Path = field(
        metadata=argument("-i", "--input", metavar="IMAGE", there=True, help="the scan")
    )
    segmentation: Path = field(
        metadata=argument(
            "-s", "--segmentation", metavar="LABELS", there=True, help="label map on its grid"
        )
    )
    labels: Path = field(
        metadata=argument(
            "--labels", metavar="FILE", there=True,
            help='JSON: {"1": "liver"}, or a dataset.json that has such labels',
        )
    )  # fmt: skip
    output: Path = field(metadata=output_argument("FOLDER", "case.html, case.pdf, case.json"))
    before: Path | None = field(
        default=None,
        metadata=argument(
            "--before", metavar="LABELS", there=True,
            help="label map of an earlier date, in the same frame of reference",
        ),
    )  # fmt: skip
    product_class: str = field(
        default="tool",
        metadata=argument(
            "--class", choices=CLASSES,
            help="what the model is declared for: a tool says no figure, an analysis measures",
        ),
    )  # fmt: skip
    confidence: Path | None = field(
        default=None,
        metadata=argument(
            "--confidence", metavar="FILE", there=True,
            help="the model's confidence map, for the intervals of volumes",
        ),
    )  # fmt: skip
    units: str = field(
        default="", metadata=argument("--units", metavar="TEXT", help="of grey values, such as HU")
    )
    card: Path | None = field(
        default=None,
        metadata=argument(
            "--card", metavar="FILE", there=True,
            help="JSON on the model: name, version, intended_use, limits",
        ),
    )  # fmt: skip
    header: tuple[tuple[str, str], ...] = field(
        default=(),
        metadata=argument(
            "--header", metavar="NAME=VALUE", parse=_header, help="what stands above the report"
        ),
    )
    language: str = field(
        default="en", metadata=argument("--language", choices=("en", "zh"), help="of the page")
    )

    def run(self) -> dict[str, Any]:
        """Measure and write; where the report lies.

        The record names the folder's files and the options, but not the header, which may hold a
        patient's name.
        """
        from qinjing import evidence
        from qinjing.config import read_json
        from qinjing.data.dicom.codes import read_terms
        from qinjing.data.readers import read_volume
        from qinjing.report.case_report import CaseReport, write_case_report
        from qinjing.report.change import find_changes
        from qinjing.report.measure import measure, read_label_map
        from qinjing.report.product_class import allowed

        named = {
            "image": self.image, "segmentation": self.segmentation, "labels": self.labels,
            "before": self.before, "confidence": self.confidence, "card": self.card,
        }  # fmt: skip
        places = {name: path for name, path in named.items() if path is not None}
        read = evidence.digested(places)
        labels, _ = read_terms(self.labels)
        image, segmentation = read_volume(self.image), read_label_map(self.segmentation)
        measured = changes = None
        if allowed("measurement", self.product_class):
            sure = read_volume(self.confidence) if self.confidence else None
            measured = measure(segmentation, labels, image, units=self.units, confidence=sure)
        if self.before:
            earlier = read_label_map(self.before)
            first = earlier, measure(earlier, labels)
            changes = find_changes(first, (segmentation, measure(segmentation, labels)))
        report = CaseReport(
            image, segmentation, labels, self.product_class, header=dict(self.header),
            card=read_json(self.card) if self.card else {}, measured=measured, changes=changes,
            language=self.language,
        )  # fmt: skip
        result = write_case_report(report, self.output)
        made = [result[form] for form in ("html", "json", "pdf") if result[form]]
        evidence.append(self.output, "report-case", read, made, {"class": self.product_class})
        return result

    def text(self, result: Mapping[str, Any]) -> str:
        """Where it lies."""
        return show.pairs(result)
