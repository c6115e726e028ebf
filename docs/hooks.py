"""Fill the reference pages from the code itself, so that they cannot fall behind it.

`<!-- commands -->` becomes the help of every command, `<!-- table: NETS -->` the names of a
registry with the first sentence of each entry's docstring, `<!-- networks: FILE -->` what
`benchmarks/networks.py` measured.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import mean, stdev
from typing import Any

TABLES = {
    "NETS": "qinjing.nets",
    "LOSSES": "qinjing.losses",
    "LAYOUTS": "qinjing.data.layouts",
    "READERS": "qinjing.data.readers",
    "TRANSFORMS": "qinjing.data.transforms",
    "STRATEGIES": "qinjing.federate.strategies",
    "AGGREGATORS": "qinjing.federate.robust",
    "CODECS": "qinjing.federate.compression",
    "RECIPES": "qinjing.recipes",
}
OPTIMISERS = {"adamw": "AdamW", "muon": "Muon"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put generated text in place of the comments (an event of MkDocs)."""
    markdown = re.sub(r"<!-- table: (\w+) -->", lambda m: table(m[1]), markdown)
    markdown = re.sub(r"<!-- networks: (\w+) -->", lambda m: networks(m[1]), markdown)
    return markdown.replace("<!-- commands -->", commands()) if "<!-- com" in markdown else markdown


def entries(name: str) -> dict[str, Any]:
    """The entries of one registry, by name."""
    found = getattr(import_module(TABLES[name]), name)
    return dict(found) if isinstance(found, Mapping) else {entry.name: entry for entry in found}


def first_sentence(entry: Any) -> str:
    """What an entry is, from its docstring."""
    if hasattr(entry, "suffixes"):
        files = ", ".join(f"`*{suffix}`" for suffix in entry.suffixes)
        return f"a folder with the {files} of one series" if entry.folder else files
    text = inspect.getdoc(entry) or ""
    return " ".join(re.split(r"\n\s*\n", text)[0].split())


def table(name: str) -> str:
    """One registry as a table in Markdown."""
    rows = [f"| `{key}` | {first_sentence(entry)} |" for key, entry in entries(name).items()]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def networks(name: str) -> str:
    """What each network reached in the same time, as a table in Markdown, best first."""
    path = Path(__file__).parents[1] / "benchmarks" / "results" / f"{name}.json"
    measured = json.loads(path.read_text(encoding="utf-8"))
    machine = measured["environment"]
    threads = {1: "one thread"}.get(machine["threads"], f"{machine['threads']} threads")
    where = f"{threads} of {machine['processor']}"
    if machine["accelerator"] != "none":
        where = f"one {machine['accelerator']}"
    rows = [
        f"{measured['dataset']}: {measured['test_cases']} test cases, {where}.",
        "",
        "| network | learns by | parameters, M | steps, seeds | Dice | HD95, mm "
        "| Dice − U-Net's | verdict |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in sorted(measured["rows"], key=lambda row: -mean(row["dice"])):
        seeds = len(row["dice"])
        gap = f"{difference(row['against'], 'dice', 4)} | {verdicts(row['against'], seeds)}"
        rows.append(
            f"| `{row['net']}` | {OPTIMISERS[row['optimiser']]}, {row['precision']} "
            f"| {row['parameters_million']:.2f} | {row['steps']}, {seeds} "
            f"| {spread(row['dice'], 4)} | {spread(row['hd95_mm'], 2)} "
            f"| {gap if row['against'] else 'baseline |'} |"
        )
    rows.append("")
    for pair in measured["contrasts"]:
        found = pair["against"]
        rows.append(
            f"* `{pair['net']}` − `{pair['baseline']}`: Dice {difference(found, 'dice', 4)}, HD95 "
            f"{difference(found, 'hd95_mm', 2)} mm: {verdicts(found, 2)}"
        )
    return "\n".join(rows)


def difference(tests: Mapping[str, Any], metric: str, digits: int) -> str:
    """Mean of the paired differences and its interval."""
    if metric not in tests:
        return ""
    found = tests[metric]["difference"]
    low, high = found["low"], found["high"]
    return f"{found['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def verdicts(tests: Mapping[str, Any], seeds: int) -> str:
    """What the tests of Dice and HD95 say; one seed speaks of one training."""
    said = [
        f"{name}: {tests[metric]['verdict']}"
        for name, metric in (("Dice", "dice"), ("HD95", "hd95_mm"))
        if metric in tests
    ]
    return "; ".join(said) + (" (of one training)" if seeds == 1 else "")


def spread(values: Sequence[float | None], digits: int) -> str:
    """Mean ± standard deviation, or that a seed has no value: it never predicted a label."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return f"none in {len(values) - len(known)} of {len(values)} seeds"
    if len(known) == 1:
        return f"{known[0]:.{digits}f}"
    return f"{mean(known):.{digits}f} ± {stdev(known):.{digits}f}"


def commands() -> str:
    """The help of every command, one section each."""
    from qinjing.cli.arguments import build
    from qinjing.cli.commands import COMMANDS

    parser = build(COMMANDS)
    return "\n\n".join(
        f"## qinjing {words}\n\n```text\n{_help(parser, words.split())}\n```" for words in COMMANDS
    )


def _help(parser: argparse.ArgumentParser, words: list[str]) -> str:
    for word in words:
        (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = action.choices[word]
    # The width of the reader's terminal must not decide what the page looks like.
    parser.formatter_class = _narrow(parser.formatter_class)
    return parser.format_help().strip()


def _narrow(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda prog: kind(prog, width=96)
