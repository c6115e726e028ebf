"""Results as JSON for machines and as short tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qinjing.config import plain

SHOWN = ("hd95_mm", "nsd", "sensitivity", "volume_error_ml", "betti_error")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    cells = [list(header), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
    right = [all(_is_number(row[k]) for row in cells[1:]) for k in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def pairs(result: Mapping[str, Any]) -> str:
    """One line a field; what is long is counted, not printed."""
    rows = [(key, _short(value)) for key, value in plain(result).items()]
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join(f"{key.ljust(width)}  {value}".rstrip() for key, value in rows)


def check(result: Mapping[str, Any]) -> str:
    """A checked data set in a few lines, with its warnings."""
    labels = ", ".join(f"{value} {name}" for value, name in result["labels"].items())
    if result["ignored"] is not None:
        labels += f"; {result['ignored']} says nothing (ignore)"
    warnings = [fault(one) for one in result["faults"] if one["severity"] == "warning"]
    lines = [
        f"{result['dataset']} ({result['layout']}): {result['cases']} cases, "
        f"{len(result['good'])} good, {len(result['faults']) - len(warnings)} refusals, "
        f"{len(warnings)} warnings",
        f"channels: {', '.join(result['channels'])}",
        f"labels: {labels}",
    ]
    return "\n".join([*lines, *(f"warning: {line}" for line in warnings)])


def fault(one: Mapping[str, Any]) -> str:
    """One fault of a data set: the case, the kind, and the sentence."""
    return f"{one['case_id'] or 'data set'} ({one['kind']}): {one['message']}"


def metrics(result: Mapping[str, Any]) -> str:
    """One line a label: means, and the interval of Dice; then the worst cases."""
    names = {**result["labels"], "foreground": "foreground"}
    shown = [name for name in SHOWN if any(name in one for one in result["mean"].values())]
    rows = [
        (
            names.get(label, label),
            measured["dice"].get("n"),
            interval(measured["dice"]),
            *(_fixed(measured.get(name, {}).get("mean")) for name in shown),
        )
        for label, measured in result["mean"].items()
    ]
    worst = [f"{one['case_id']} ({_fixed(one['dice'])})" for one in result.get("worst", ())[:3]]
    lines = [table(("label", "n", "dice, 95 % interval", *shown), rows)]
    return "\n".join([*lines, f"lowest Dice: {', '.join(worst)}"] if worst else lines)


def comparison(result: Mapping[str, Any]) -> str:
    """One line a method and metric over all labels together, against the first table."""
    rows = [
        (
            row["run"],
            row["metric"],
            row["n"],
            _fixed(row["run_mean"]["mean"]),
            interval(row["difference"]),
            _cell(row["wilcoxon_p_holm"]),
            row["verdict"],
        )
        for row in result["rows"]
        if row["label"] == "foreground"
    ]
    header = ("method", "metric", "n", "mean", "difference, 95 % interval", "p", "verdict")
    return f"against {result['baseline']}\n{table(header, rows)}"


def interval(one: Mapping[str, Any]) -> str:
    """A mean with its confidence interval, as far as they are there."""
    low, high = one.get("low"), one.get("high")
    between = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
    return _fixed(one.get("mean")) + between


def _fixed(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def verified(result: Mapping[str, Any]) -> str:
    """The verdict of `qinjing verify` and its warnings."""
    verdict = "verified" if result["verified"] else f"NOT verified: {len(result['faults'])} faults"
    lines = [f"{verdict}; {result['statements']} statements name {result['outputs']} outputs"]
    lines += [f"signed by key {key[:16]}" for key in result["keys"]]
    lines += [f"note: {note}" for note in result["notes"]]
    for word, items in (("not checked", result["unchecked"]), ("unclaimed", result["unclaimed"])):
        lines += [f"{word}: {item}" for item in items[:10]]
        lines += [f"{word}: {len(items) - 10} more"] if len(items) > 10 else []
    return "\n".join(lines)


def info(result: Mapping[str, Any]) -> str:
    """The tables of `qinjing info`."""
    nets = [(one["name"], _count(one["parameters"])) for one in result["nets"]]
    runtimes = [(name, value) for name, value in result["runtimes"].items()]
    return "\n\n".join(
        [
            table(("net", "parameters"), nets),
            f"losses: {', '.join(result['losses'])}",
            f"strategies: {', '.join(result['strategies'])}",
            f"rules against liars: {', '.join(result['rules'])}",
            f"codecs: {', '.join(result['codecs'])}",
            f"layouts: {', '.join(result['layouts'])}",
            table(("runtime", ""), runtimes),
        ]
    )


def _count(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.2f} M"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in ("-", "")


def _short(value: Any) -> str:
    if isinstance(value, list):
        short = all(isinstance(item, int | float | str) or item is None for item in value)
        if short and len(value) <= 8:
            return ", ".join(map(_cell, value))
        return f"{len(value)} entries"
    if isinstance(value, dict):
        flat = all(isinstance(item, int | float | str) or item is None for item in value.values())
        if flat and len(value) <= 8:
            return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
        return f"{len(value)} entries"
    return _cell(value)
