"""What a run folder or a metrics.json holds for a report; whatever is missing is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.config import read_json
from qinjing.data.case import Case
from qinjing.data.layouts import open_dataset
from qinjing.data.readers import stem, suffix
from qinjing.errors import FormatError, InputError
from qinjing.report.curves import TrainingLog, read_log


@dataclass(frozen=True)
class Evaluated:
    """One table of metrics with the predictions that it measured.

    Attributes:
        metrics: the content of `metrics.json`.
        predictions: case id → predicted label map, as far as the files are there.
    """

    metrics: Mapping[str, Any]
    predictions: Mapping[str, Path]


@dataclass
class Source:
    """Everything that a report can show.

    Attributes:
        title: the data set's name, or the file's.
        tables: a name ("fold 0") → what was measured there.
        cases: case id → image and truth.
        logs: fold's name → training log.
        documents: "plan", "measured", "fingerprint", "run", "splits" → JSON content.
        run: the run folder, where there is one.
        notes: what is missing, in one sentence each.
    """

    title: str
    tables: dict[str, Evaluated] = field(default_factory=dict)
    cases: dict[str, Case] = field(default_factory=dict)
    logs: dict[str, TrainingLog] = field(default_factory=dict)
    documents: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None
    notes: list[str] = field(default_factory=list)


def read_source(source: Path, run: Path | None = None, dataset: Path | None = None) -> Source:
    """Read a run folder, or a metrics.json and the run that made the model.

    Args:
        source: a run folder, a folder with a metrics.json, or a metrics.json.
        run: the run folder to show the training of, where `source` is none.
        dataset: where images and truth lie, where the run does not say so.

    Raises:
        FormatError: nothing is there, or a metrics.json is not in the form that evaluation writes.
    """
    if not source.exists():
        raise FormatError(
            "report source", "a run folder or a metrics.json", "nothing", where=source
        )
    if source.is_dir() and (source / "metrics.json").is_file() and not _folds(source):
        source = source / "metrics.json"
    if source.is_file():
        found = Source(title=source.parent.name or source.stem)
        found.tables["evaluation"] = read_evaluated(source)
    else:
        run = source
        found = Source(title=source.name)
    if run is not None:
        _read_run(found, run, measured=source.is_dir())
    if not (found.tables or found.logs or found.documents):
        raise FormatError(
            "report source", "a run folder or a metrics.json", "neither of its files", where=source
        )
    _find_cases(found, dataset)
    return found


def read_evaluated(path: Path) -> Evaluated:
    """Read a metrics.json, or the one in a folder, and find the predictions beside it.

    Raises:
        FormatError: it is missing or of another form.
    """
    if path.is_dir():
        path = path / "metrics.json"
    metrics = read_json(path)
    if not isinstance(metrics, dict) or not isinstance(metrics.get("cases"), list):
        raise FormatError("metrics", "an object with a list of cases", where=path)
    for entry in metrics["cases"]:
        if not isinstance(entry, dict) or not {"case_id", "labels"} <= entry.keys():
            raise FormatError("metrics case", "an object with case_id and labels", where=path)
    return Evaluated(metrics, _predictions(path, metrics))


def _predictions(path: Path, metrics: Mapping[str, Any]) -> dict[str, Path]:
    """Find each case's label map: where it was when measured, else beside the table."""
    named = {str(e["case_id"]): Path(str(e.get("prediction", ""))) for e in metrics["cases"]}
    beside: dict[str, Path] = {}
    for place in (path.parent, path.parent / "predictions", path.parent / "validation"):
        if place.is_dir():
            beside |= {stem(file): file for file in sorted(place.iterdir()) if suffix(file)}
    found = {case_id: file if file.is_file() else beside.get(case_id)
             for case_id, file in named.items()}  # fmt: skip
    return {case_id: file for case_id, file in found.items() if file is not None}


def _folds(run: Path) -> list[Path]:
    folds = [p for p in run.glob("fold_*") if p.is_dir()]
    return sorted(folds, key=lambda p: (len(p.name), p.name))


def _read_run(found: Source, run: Path, *, measured: bool) -> None:
    """Add a run's documents and logs; its own metrics only where they are what is reported."""
    found.run = run
    names = {"splits": "splits_final"}
    for name in ("dataset", "fingerprint", "plan", "measured", "run", "splits"):
        path = run / f"{names.get(name, name)}.json"
        try:
            found.documents[name] = read_json(path)
        except FormatError as error:
            if path.exists():
                found.notes.append(str(error))
    for fold in _folds(run):
        title = fold.name.replace("_", " ")
        if (fold / "log.jsonl").is_file():
            found.logs[title] = read_log(fold / "log.jsonl")
        if measured and (fold / "metrics.json").is_file():
            found.tables[title] = read_evaluated(fold / "metrics.json")
    if measured and not found.tables:
        found.notes.append("Nothing was evaluated yet: no fold has a metrics.json.")
    if not found.logs:
        found.notes.append("No learning curves: no fold has a log.jsonl.")


def _find_cases(found: Source, dataset: Path | None) -> None:
    """Find images and truth: the data set given, the run's own, or the one around the references.

    Raises:
        InputError: `dataset` was given and cannot be opened.
    """
    recorded = found.documents.get("dataset")
    recorded = recorded if isinstance(recorded, Mapping) else {}
    if isinstance(recorded.get("name"), str):
        found.title = recorded["name"]
    named = [recorded.get("root"), *(t.metrics.get("references") for t in found.tables.values())]
    around = [place for n in named if isinstance(n, str) for place in (Path(n), Path(n).parent)]
    wanted = {str(e["case_id"]) for t in found.tables.values() for e in t.metrics["cases"]}
    for place in [dataset] if dataset is not None else around:
        try:
            opened = open_dataset(place)
        except InputError:
            if dataset is not None:
                raise
            continue
        labelled = {c.case_id: c for c in opened.cases if c.label is not None and c.images}
        if wanted & labelled.keys():
            found.cases = labelled
            found.title = recorded.get("name") or opened.name or found.title
            return
    if wanted:
        found.notes.append("No pictures: the images of these cases were not found.")
