"""Fenced blocks of the documentation, and how they are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]

# <!-- not run: network -->, on the line before a block: the only reasons not to run it.
REASONS = ("network", "GPU")
# <!-- given: phantom as my_scans -->: what the reader has already, made before the page is run.
GIVEN = ("phantom", "run", "series")

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.M | re.S
)
_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*\Z")
_GIVEN = re.compile(r"<!-- given: (?P<what>\w+) as (?P<name>[\w./-]+) -->")
_SLOW = re.compile(r"<!-- slow: .{10,}? -->")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its code, where it begins, and why it is not run."""

    language: str
    code: str
    line: int
    not_run: str | None


@dataclass(frozen=True)
class Page:
    """One page with its blocks of bash and Python, and what it takes for given."""

    path: Path
    blocks: tuple[Block, ...]
    given: tuple[tuple[str, str], ...]
    slow: bool

    @property
    def name(self) -> str:
        """The path from the project's root."""
        return self.path.relative_to(PROJECT).as_posix()


def read_page(path: Path) -> Page:
    """Find the blocks of a page."""
    text = path.read_text(encoding="utf-8")
    blocks = []
    for match in _FENCE.finditer(text):
        if match["language"] not in ("bash", "python"):
            continue
        before = text[: match.start()]
        why = _NOT_RUN.search(before)
        indent = len(match["indent"])
        code = "".join(line[indent:] for line in match["code"].splitlines(keepends=True))
        blocks.append(
            Block(match["language"], code, before.count("\n") + 1, why["reason"] if why else None)
        )
    given = tuple((match["what"], match["name"]) for match in _GIVEN.finditer(text))
    return Page(path, tuple(blocks), given, bool(_SLOW.search(text)))


def all_pages() -> list[Page]:
    """Every page of the documentation, with those at the project's root."""
    paths = [*sorted((PROJECT / "docs").rglob("*.md")), *sorted(PROJECT.glob("*.md"))]
    return [read_page(path) for path in paths]


def run_block(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one block in a folder as a reader would, with this environment's commands at hand."""
    command = (
        ["bash", "-euo", "pipefail", "-c", block.code]
        if block.language == "bash"
        else [sys.executable, "-c", block.code]
    )
    home = folder / ".home"
    home.mkdir(exist_ok=True)
    kept = {k: v for k, v in os.environ.items() if k.endswith("_NUM_THREADS") or k == "MPLBACKEND"}
    environment = {
        **kept,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
