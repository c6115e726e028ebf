"""The table of commands, and those that measure, tell and check.

A command is one frozen dataclass; its `run()` is one library call, imported when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least, named_path
from qinjing.cli.consent import (
    ConsentAffected,
    ConsentExport,
    ConsentGrant,
    ConsentImport,
    ConsentShow,
    ConsentVerify,
    ConsentWithdraw,
    Unlearn,
)
from qinjing.cli.data import DataCheck, DataFetch, DataSplit, Phantom
from qinjing.cli.declare import ServeDeclare
from qinjing.cli.deidentify import DataDeidentify
from qinjing.cli.dicom import DataDicom, ExportDicom
from qinjing.cli.dossier import Dossier
from qinjing.cli.federate import FederateSimulate
from qinjing.cli.hand_over import Export
from qinjing.cli.join import (
    FederateApprove,
    FederateCoordinate,
    FederateJoin,
    FederateProvision,
    FederateRequest,
)
from qinjing.cli.judge import Ablate, Compare
from qinjing.cli.learn import LabelCurve, Pretrain, Probe, Select
from qinjing.cli.model import Plan, Predict, Train
from qinjing.cli.network import ServeFetch, ServeWorklist
from qinjing.cli.node import ServeNode, ServeWork
from qinjing.cli.record import files_of, output_argument, progress, record, refused
from qinjing.cli.report_case import ReportCase
from qinjing.cli.serve import Serve, ServeRevoke, ServeToken, ServeTokens


@dataclass(frozen=True)
class Evaluate(Command):
    """Measure predictions against reference labels: overlap, surface, volume, calibration."""

    predictions: Path = field(
        metadata=argument(
            "-i", "--input", metavar="PREDICTIONS", there=True, help="folder of label maps"
        )
    )
    reference: Path = field(
        metadata=argument(
            "-r",
            "--reference",
            metavar="LABELS",
            there=True,
            help="folder of labels, or a data set",
        )
    )
    output: Path = field(metadata=output_argument("FILE", "metrics.json to write"))
    tolerance_mm: float = field(
        default=1.0,
        metadata=argument(
            "--tolerance-mm",
            metavar="MM",
            parse=at_least(0, "--tolerance-mm", float),
            help="surface distance that counts as touching",
        ),
    )

    def run(self) -> dict[str, Any]:
        """Measure; the content of metrics.json."""
        from qinjing import evidence
        from qinjing.tasks.evaluate import evaluate_files
        from qinjing.tasks.nnunet_summary import summary_path

        # Each label map by itself: metrics and reports often lie in the same folder.
        patterns = ("*.nii", "*.nii.gz", "confidence/*")
        inputs = {"reference": self.reference}
        if self.predictions.is_file():
            inputs["predictions"] = self.predictions
        else:
            inputs |= files_of("predictions", self.predictions, *patterns)
        read = evidence.digested(inputs)
        with progress("measuring") as show_progress:
            metrics = evaluate_files(
                self.predictions,
                self.reference,
                self.output,
                tolerance_mm=self.tolerance_mm,
                progress=show_progress,
            )
        record(self, "evaluate", read, [self.output, summary_path(self.output)])
        return metrics

    def text(self, result: Mapping[str, Any]) -> str:
        """Mean and interval of each metric, a line a label."""
        left = result["unpredicted"]
        some = ", ".join(left[:5]) + (", …" if len(left) > 5 else "")
        note = f"\nnot measured, for want of a prediction: {len(left)} ({some})" if left else ""
        return show.metrics(result) + note

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each case that could not be measured."""
        return refused(result)


@dataclass(frozen=True)
class Report(Command):
    """Write one self-contained HTML page about a run or a metrics.json."""

    source: Path = field(
        metadata=argument(metavar="RUN_OR_METRICS", there=True, help="run folder or metrics.json")
    )
    output: Path = field(metadata=output_argument("FILE", "report.html to write"))
    baselines: tuple[tuple[str, Path], ...] = field(
        default=(),
        metadata=argument(
            "--baseline",
            metavar="NAME=METRICS",
            parse=named_path,
            help="metrics.json of other methods on the same cases, to be shown beside",
        ),
    )
    run_folder: Path | None = field(
        default=None,
        metadata=argument("--run", metavar="RUN", there=True, help="the run behind a metrics.json"),
    )
    dataset: Path | None = field(
        default=None,
        metadata=argument(
            "--dataset", metavar="DATASET", there=True, help="images and truth for the pictures"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Write the page; where it lies."""
        from qinjing import evidence
        from qinjing.report.html import write_report

        inputs = {f"baseline {name}": path for name, path in self.baselines}
        patterns = ("*.json", "fold_*/*.json", "fold_*/log.jsonl")
        for role, place in (("source", self.source), ("run", self.run_folder)):
            if place is not None:
                inputs |= {role: place} if place.is_file() else files_of(role, place, *patterns)
        read = evidence.digested(inputs)
        baselines = dict(self.baselines)
        result = write_report(
            self.source, self.output, baselines, run=self.run_folder, dataset=self.dataset
        )
        record(self, "report", read, [self.output])
        return result

    def text(self, result: Mapping[str, Any]) -> str:
        """Where it lies."""
        return show.pairs(result)


@dataclass(frozen=True)
class Verify(Command):
    """Walk the evidence in a folder and name every byte's file that is not as it was signed."""

    folder: Path = field(
        metadata=argument(metavar="FOLDER", there=True, help="a folder with evidence.jsonl")
    )
    sources: tuple[Path, ...] = field(
        default=(),
        metadata=argument(
            "-i",
            "--input",
            metavar="SOURCE",
            there=True,
            help="inputs kept elsewhere, to be checked as well",
        ),
    )
    trusted_key: Path | None = field(
        default=None,
        metadata=argument(
            "--key", metavar="PEM", there=True, help="the only key that may have signed"
        ),
    )
    strict: bool = field(
        default=False,
        metadata=argument("--strict", help="a file that no statement names is a fault"),
    )

    def run(self) -> dict[str, Any]:
        """Verify; statements, faults and warnings."""
        from qinjing import evidence

        result = evidence.verify(
            self.folder, trusted_key=self.trusted_key, sources=self.sources, strict=self.strict
        )
        return {
            "verified": not result.faults,
            "statements": len(result.statements),
            "outputs": sum(len(statement.outputs) for statement in result.statements),
            "keys": result.key_ids,
            "faults": [
                {"file": f.where, "line": f.line, "message": f.message} for f in result.faults
            ],
            "unchecked": result.unchecked,
            "unclaimed": result.unclaimed,
            "notes": result.notes,
        }

    def text(self, result: Mapping[str, Any]) -> str:
        """The verdict, then warnings; the faults follow on standard error."""
        return show.verified(result)

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each fault."""
        places = [f" line {f['line']}" if f["line"] else "" for f in result["faults"]]
        faults = zip(result["faults"], places, strict=True)
        return [f"{fault['file']}{place} {fault['message']}" for fault, place in faults]


@dataclass(frozen=True)
class Info(Command):
    """List nets with parameter counts, losses, layouts, and what runs here."""

    def run(self) -> dict[str, Any]:
        """Look at the tables and at this machine."""
        from qinjing.cli.info import describe

        return describe()

    def text(self, result: Mapping[str, Any]) -> str:
        """The tables."""
        return show.info(result)


@dataclass(frozen=True)
class Demo(Command):
    """Train, predict, compare and report on generated anatomy, or on your data, in minutes."""

    dataset: Path | None = field(
        default=None,
        metadata=argument(
            "-i", "--input", metavar="DATASET", there=True, help="instead of phantoms"
        ),
    )
    output: Path = field(
        default=Path("demo"),
        metadata=argument("-o", "--output", metavar="FOLDER", help="where all of it goes"),
    )

    def run(self) -> dict[str, Any]:
        """Run it; where the report is."""
        from qinjing import evidence
        from qinjing.demo import run_demo

        inputs = {"dataset": self.dataset} if self.dataset else {}
        read = evidence.digested(inputs, without=self.output)
        result = run_demo(self.dataset, self.output)
        record(self, "demo", read, [self.output])
        return result

    def text(self, result: Mapping[str, Any]) -> str:
        """What was reached, and where the report is."""
        return show.pairs(result)

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each case that was refused."""
        return refused(result)


COMMANDS: dict[str, type[Command]] = {
    "data check": DataCheck,
    "data split": DataSplit,
    "data fetch": DataFetch,
    "data dicom": DataDicom,
    "data deidentify": DataDeidentify,
    "plan": Plan,
    "pretrain": Pretrain,
    "probe": Probe,
    "train": Train,
    "predict": Predict,
    "evaluate": Evaluate,
    "compare": Compare,
    "ablate": Ablate,
    "label-curve": LabelCurve,
    "select": Select,
    "report": Report,
    "report-case": ReportCase,
    "dossier": Dossier,
    "export": Export,
    "export dicom": ExportDicom,
    "federate simulate": FederateSimulate,
    "federate provision": FederateProvision,
    "federate request": FederateRequest,
    "federate approve": FederateApprove,
    "federate join": FederateJoin,
    "federate coordinate": FederateCoordinate,
    "consent import": ConsentImport,
    "consent export": ConsentExport,
    "consent grant": ConsentGrant,
    "consent withdraw": ConsentWithdraw,
    "consent show": ConsentShow,
    "consent verify": ConsentVerify,
    "consent affected": ConsentAffected,
    "unlearn": Unlearn,
    "serve": Serve,
    "serve declare": ServeDeclare,
    "serve node": ServeNode,
    "serve work": ServeWork,
    "serve fetch": ServeFetch,
    "serve worklist": ServeWorklist,
    "serve token": ServeToken,
    "serve tokens": ServeTokens,
    "serve revoke": ServeRevoke,
    "verify": Verify,
    "info": Info,
    "phantom": Phantom,
    "demo": Demo,
}
