"""One self-contained HTML page of a run or of a table of metrics.

The page holds its own style and pictures, no scripts, and nothing that it would fetch.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qinjing
from qinjing.config import atomic_path
from qinjing.data.readers import read_volume
from qinjing.errors import ConfigError, EvidenceError, InputError
from qinjing.evidence import verify
from qinjing.report import overlay, tables
from qinjing.report.baselines import against
from qinjing.report.curves import curves_figure
from qinjing.report.page import render
from qinjing.report.source import Evaluated, Source, read_evaluated, read_source
from qinjing.tasks.evaluate import pool_tables
from qinjing.volume import Volume

MAX_ROWS = 500
MAX_PICTURE_BYTES = 6_500_000  # base64 makes it a third more, and the page stays under 10 MB
WORST_CASES = 3
COSTS = {
    "training_s": "Training one fold",
    "step_s": "One training step",
    "training_memory_gib": "Peak memory of training",
    "predicting_s": "Predicting one case",
    "predicting_memory_gib": "Peak memory of predicting",
}


def write_report(
    source: Path,
    output: Path,
    baselines: Mapping[str, Path] | None = None,
    *,
    name: str = "Qinjing",
    run: Path | None = None,
    dataset: Path | None = None,
) -> dict[str, Any]:
    """Write one HTML page of what was measured, with whatever else is known of it.

    Args:
        source: a run folder, or a metrics.json (or its folder).
        output: the page to write.
        baselines: name → metrics.json (or its folder) of other methods on the same cases; their
            label maps are shown where they lie beside it.
        name: what to call the method reported.
        run: the run folder whose training is shown, where `source` is a metrics.json.
        dataset: the data set with images and truth, where the run does not record it.

    Returns:
        {"report", "cases", "mean_dice", "low", "high", "pictures", "bytes", "notes"}.

    Raises:
        ConfigError: `output` is a folder.
        FormatError: `source` or a baseline is not there or of another form.
    """
    if Path(output).is_dir():
        raise ConfigError("output", "a file to write, such as report.html", "a folder",
                          where=output)  # fmt: skip
    found = read_source(Path(source), run, dataset)
    others = {title: read_evaluated(Path(path)) for title, path in (baselines or {}).items()}
    contents = [table.metrics for table in found.tables.values()]
    metrics = pool_tables(contents) if len(contents) > 1 else contents[0] if contents else None
    context: dict[str, Any] = {"title": found.title, "version": qinjing.__version__}
    context |= _results(metrics, found)
    context |= against(metrics, Path(source), dict(baselines or {}), others, name)
    context |= _pictures(metrics, found, others, name)
    context |= _training(found, metrics)
    context["gates"] = _gates(found)
    context |= _documents(found)
    context["evidence"] = _evidence(found)
    context["notes"] = found.notes
    page = render("report.html.j2", context)
    with atomic_path(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    headline = (metrics or {}).get("mean", {}).get("foreground", {}).get("dice", {})
    return {
        "report": str(output),
        "cases": len(metrics["cases"]) if metrics else 0,
        "mean_dice": tables.number(headline.get("mean")),
        "low": tables.number(headline.get("low")),
        "high": tables.number(headline.get("high")),
        "pictures": len(context["overlays"]),
        "bytes": len(page.encode("utf-8")),
        "notes": list(found.notes),
    }


def plan_rows(plan: Mapping[str, Any], measured: Mapping[str, Any]) -> list[dict[str, str]]:
    """Set what the plan predicted beside what was measured, with their ratio."""
    predicted = plan.get("predicted")
    rows: list[dict[str, str]] = []
    if not isinstance(predicted, Mapping):
        return rows
    for key, title in COSTS.items():
        values = [tables.number(source.get(key)) for source in (predicted, measured)]
        if values == [None, None]:
            continue
        shown = ["–" if v is None else cost(v, key) for v in values]
        ratio = values[1] / values[0] if values[0] and values[1] is not None else None
        rows.append({"name": title, "predicted": shown[0], "measured": shown[1],
                     "ratio": "–" if ratio is None else f"{ratio:.2f}"})  # fmt: skip
    return rows


def cost(value: float, key: str) -> str:
    """Print a time or a memory of the plan."""
    if key.endswith("_gib"):
        return f"{value:.2f} GiB"
    return f"{value:.3f} s" if value < 10 else duration(value)


def _results(metrics: Mapping[str, Any] | None, found: Source) -> dict[str, Any]:
    """Headline, summary and per-case tables."""
    if metrics is None:
        empty = ("headline", "conventions", "any_infinite", "n_cases", "how", "rows_left_out",
                 "headline_labels", "summary", "summary_columns", "rows", "row_columns",
                 "label_list", "refused", "unpredicted", "legend", "colors")  # fmt: skip
        return dict.fromkeys(empty)
    labels = tables.label_names(metrics)
    tolerance = metrics.get("tolerance_mm")
    columns, summary = tables.summary_rows(metrics)
    dice = columns.index("dice") if "dice" in columns else None
    headline_labels = [
        (name, value, cells[dice])
        for name, value, cells in summary[:6]
        if value is not None and dice is not None
    ]
    row_columns, rows = tables.case_rows(metrics)
    refused = [
        (str(r.get("case_id")), str(r.get("reason")))
        for r in metrics.get("refused") or []
        if isinstance(r, Mapping)
    ]
    mean = metrics.get("mean", {}).get("foreground", {}).get("dice")
    folds = len(found.tables)
    return {
        "headline": tables.interval(mean, "dice"),
        "headline_labels": headline_labels,
        "summary": summary,
        "summary_columns": [_column(m, tolerance) for m in columns],
        "any_infinite": any(cell.infinite for _, _, cells in summary for cell in cells),
        "conventions": tables.flat(metrics.get("conventions") or {}),
        "n_cases": len(metrics["cases"]),
        "how": f"validation cases of {folds} folds" if folds > 1 else "evaluated",
        "rows": [
            {"case_id": r.case_id, "share": r.share, "dice_text": tables.text(r.mean_dice),
             "dice": r.dice, "others": r.others} for r in rows[:MAX_ROWS]
        ],
        "rows_left_out": max(0, len(rows) - MAX_ROWS),
        "row_columns": [_column(m, tolerance) for m in row_columns],
        "label_list": list(labels.values()),
        "colors": {value: overlay.color(i) for i, value in enumerate(labels)},
        "legend": [(name, value) for value, name in labels.items()],
        "refused": refused,
        "unpredicted": _unpredicted(metrics),
    }  # fmt: skip


def _unpredicted(metrics: Mapping[str, Any]) -> str:
    """Say how many references nobody predicted, so that a subset is not taken for the whole."""
    names = metrics.get("unpredicted")
    if not isinstance(names, list) or not names:
        return ""
    shown = ", ".join(map(str, names[:10])) + (", …" if len(names) > 10 else "")
    what = "reference" if len(names) == 1 else "references"
    return f"{len(names)} {what} had no prediction, and no figure here counts them: {shown}."


def _column(metric: str, tolerance_mm: Any) -> dict[str, str]:
    return {"title": tables.title(metric, tolerance_mm), "arrow": tables.arrow(metric)}


def choose_cases(rows: Sequence[tables.CaseRow]) -> list[tuple[str, tables.CaseRow]]:
    """Choose the cases to show: the worst ones first, then the median and the best."""
    measured = [row for row in rows if row.mean_dice is not None]
    chosen = [(f"Worst {i + 1}" if i else "Worst", r) for i, r in enumerate(measured[:WORST_CASES])]
    if len(measured) > WORST_CASES + 1:
        middle = max(WORST_CASES, (len(measured) - 1) // 2)
        chosen.append(("Median", measured[middle]))
    if len(measured) > WORST_CASES:
        chosen.append(("Best", measured[-1]))
    return chosen


def _pictures(
    metrics: Mapping[str, Any] | None,
    found: Source,
    others: Mapping[str, Evaluated],
    name: str,
) -> dict[str, Any]:
    """Draw the chosen cases, as far as their files are there and the page stays small."""
    pictures: list[dict[str, Any]] = []
    if metrics is None or not found.cases:
        return {"overlays": pictures}
    labels = tables.label_names(metrics)
    ours = {k: v for table in found.tables.values() for k, v in table.predictions.items()}
    total = 0
    _, rows = tables.case_rows(metrics)
    for rank, row in choose_cases(rows):
        case = found.cases.get(row.case_id)
        if case is None or case.label is None or row.case_id not in ours:
            found.notes.append(
                f"No picture of {row.case_id}: image, truth or prediction is not there."
            )
            continue
        files = {name: ours[row.case_id]}
        files |= {n: o.predictions[row.case_id] for n, o in others.items()
                  if row.case_id in o.predictions}  # fmt: skip
        try:
            truth = _labels(case.label)
            layers = {"truth": overlay.declared(truth, labels)}
            layers |= {title: _labels(path) for title, path in files.items()}
            judged = overlay.where_labelled(layers[name], truth, labels)
            center, through = overlay.focus(layers["truth"], judged, labels)
            figure = overlay.overlay_figure(read_volume(case.images[0]), layers, labels, center)
        except InputError as error:
            found.notes.append(f"No picture of {row.case_id}: {error}.")
            continue
        png = overlay.to_png(figure)
        total += len(png)
        if total > MAX_PICTURE_BYTES:
            found.notes.append("Further pictures were left out to keep the page small.")
            break
        dice = ", ".join(f"{n} {d}" for n, d in zip(labels.values(), row.dice, strict=True))
        caption = f"Mean Dice {tables.text(row.mean_dice)} ({dice}). Planes through {through}."
        alt = (
            f"Axial, coronal and sagittal planes of case {row.case_id} through {through}: "
            f"image, {', '.join(layers)}. {caption}"
        )
        pictures.append({"rank": rank, "case_id": row.case_id, "caption": caption, "alt": alt}
                        | _image(png))  # fmt: skip
    return {"overlays": pictures}


def _labels(path: Path) -> Volume:
    """Read a label map as whole numbers, whatever type it was stored as."""
    volume = read_volume(path)
    voxels = volume.voxels[0] if volume.voxels.ndim == 4 else volume.voxels
    return volume.with_voxels(np.rint(voxels).astype(np.int32))


def _image(png: bytes) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24])
    return {"uri": overlay.data_uri(png), "width": width, "height": height}


def _gates(found: Source) -> dict[str, Any] | None:
    """How much each path of the network gives, for networks that can tell."""
    from qinjing.report.gates import gates_figure

    held_out = {str(e["case_id"]) for t in found.tables.values() for e in t.metrics["cases"]}
    cases = [case for name, case in sorted(found.cases.items()) if name in held_out]
    if found.run is None or not cases:
        return None
    try:
        made = gates_figure(found.run, cases)
    except InputError as error:
        found.notes.append(f"No picture of gates: {error}")
        return None
    return {"caption": made[1]} | _image(overlay.to_png(made[0])) if made else None


def _training(found: Source, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    """Learning curves for light and for dark pages, and each fold in figures."""
    logs = {title: log for title, log in found.logs.items() if len(log.steps)}
    if not logs:
        return {"curves": None, "training_facts": []}
    labels = tables.label_names(metrics) if metrics else {}
    light, dark = (
        _image(overlay.to_png(curves_figure(logs, labels, theme))) for theme in ("light", "dark")
    )
    facts = []
    for title, log in logs.items():
        row = {
            "Fold": title,
            "Steps": f"{len(log.steps):d}",
            "Training time": duration(float(np.nanmax(log.steps[:, 3]))),
            "Last loss": tables.text(float(np.mean(log.steps[-20:, 1]))),
        }
        if np.isfinite(log.validations[:, 1]).any():
            best = int(np.nanargmax(log.validations[:, 1]))
            row["Best validation Dice"] = tables.text(float(log.validations[best, 1]))
            row["at step"] = f"{int(log.validations[best, 0]):d}"
        facts.append(row)
    alt = "Curves over training steps: loss, validation Dice, learning rate and seconds a step. "
    alt += "; ".join(", ".join(f"{k} {v}" for k, v in row.items()) for row in facts)
    keys = facts[0].keys()
    facts = [{k: row.get(k, "–") for k in keys} for row in facts]
    curves = {"light": light["uri"], "dark": dark["uri"], "alt": alt,
              "width": light["width"], "height": light["height"]}  # fmt: skip
    return {"curves": curves, "training_facts": facts}


def duration(seconds: float) -> str:
    """Print a time for people: "41 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _documents(found: Source) -> dict[str, Any]:
    """Plan against measurement, splits and environment."""
    documents = {k: v for k, v in found.documents.items() if isinstance(v, Mapping)}
    splits = found.documents.get("splits")
    rows = []
    for fold, split in enumerate(splits if isinstance(splits, Sequence) else []):
        train, val = (list(map(str, split.get(k) or [])) for k in ("train", "val"))
        shown = ", ".join(val[:40]) + (f" and {len(val) - 40} more" if len(val) > 40 else "")
        rows.append({"fold": fold, "train": len(train), "val": len(val), "names": shown})
    return {
        "plan_rows": plan_rows(documents.get("plan", {}), documents.get("measured", {})),
        "plan_facts": tables.flat(documents.get("plan", {})),
        "fingerprint_facts": tables.flat(documents.get("fingerprint", {}), limit=40),
        "splits": rows,
        "environment": [
            (key, value)
            for content in (documents.get("measured", {}).get("environment"), documents.get("run"))
            for key, value in tables.flat(content or {})
            if value != "–"
        ],
    }


def _evidence(found: Source) -> dict[str, Any] | None:
    """Check the run's record and list what it says was done."""
    if found.run is None:
        return None
    try:
        result = verify(found.run)
    except EvidenceError:
        found.notes.append("No evidence: the run folder holds no evidence.jsonl.")
        return None
    count, faults = len(result.statements), len(result.faults)
    state = "all verified" if not faults else f"{faults} {'fault' if faults == 1 else 'faults'}"
    return {
        "verified": not faults and count > 0,
        "summary": f"{count} signed {'statement' if count == 1 else 'statements'}, {state}.",
        "faults": [str(fault) for fault in result.faults[:50]],
        "statements": [
            {"time": s.time[:19].replace("T", " "), "command": s.command, "outputs": len(s.outputs)}
            for s in result.statements
        ],
    }
