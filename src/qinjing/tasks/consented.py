"""What the gate before the data lets a training use, at its start and from batch to batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qinjing.data.cache import CachedCase
from qinjing.data.case import Case, Dataset
from qinjing.data.consent import Gate, Watch, open_gate
from qinjing.engine import parallel
from qinjing.errors import ConfigError

PURPOSE = "research"


class Keep(Protocol):
    """Picks what may still be used of what a training has."""

    def __call__(
        self, items: Sequence[CachedCase], step: int | None = None
    ) -> Sequence[CachedCase]:
        """Return the items that may be used at this moment, in their order."""


def all_of(items: Sequence[CachedCase], step: int | None = None) -> Sequence[CachedCase]:
    """Return every item: no gate is in force."""
    return items


@dataclass(frozen=True)
class Admitted:
    """A data set behind its gate.

    Attributes:
        dataset: as it was opened, with every case.
        gate: None where none is in force.
    """

    dataset: Dataset
    gate: Gate | None

    @property
    def basis(self) -> str | None:
        """The ground on which the cases are used, for the evidence."""
        return self.gate.basis if self.gate else self.dataset.licence or None

    def parted(self) -> tuple[list[Case], list[dict[str, str]]]:
        """Return the cases that may be used at this moment, and "refused" of the others."""
        if self.gate is None:
            return list(self.dataset.cases), []
        allowed, excluded = self.gate.split(self.dataset.cases)
        return allowed, [{"case_id": e.case_id, "reason": e.reason} for e in excluded]

    def still(self, cases: Sequence[Case]) -> list[Case]:
        """Return those of some cases that may be used at this moment.

        Raises:
            ConfigError: none of them.
        """
        if self.gate is None:
            return list(cases)
        allowed, _ = self.gate.split(cases)
        if cases and not allowed:
            raise _nothing_left()
        return allowed


def keeper(
    parts: Sequence[tuple[Admitted, Sequence[CachedCase]]],
    log: Path,
    tell: Callable[[str, dict[str, Any]], None],
) -> Keep:
    """Return what leaves out, from the next batch on, a case whose consent was withdrawn.

    Args:
        parts: each data set with what was prepared of it; these very objects are asked for.
        log: a `log.jsonl`; each change is a line of it, {"kind": "consent", "step", "dataset",
            "excluded": every case that is left out}.
        tell: told of ("warning", {"message"}) then.
    """
    watches = [_watch(one, log, tell) for one, _ in parts]
    if not any(watches):
        return all_of
    owners = {id(item): watch for watch, (_, items) in zip(watches, parts, strict=True)
              for item in items}  # fmt: skip

    def keep(items: Sequence[CachedCase], step: int | None = None) -> Sequence[CachedCase]:
        out = {id(watch): watch.out(step) for watch in watches if watch}
        if not any(out.values()):
            return items
        kept = [item for item in items if item.case_id not in out.get(id(owners[id(item)]), ())]
        if items and not kept:
            raise _nothing_left()
        return kept

    return keep


def _watch(one: Admitted, log: Path, tell: Callable[[str, dict[str, Any]], None]) -> Watch | None:
    if one.gate is None:
        return None

    def changed(step: int, excluded: list[str]) -> None:
        if not parallel.is_first():
            return
        event = {"kind": "consent", "step": step, "dataset": one.dataset.name, "excluded": excluded}
        # The loop's own log is open for appending and writes line by line, as this does.
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(event) + "\n")
        message = f"cases left out from step {step} on, for want of consent: {len(excluded)}"
        tell("warning", {"message": message})

    return Watch(one.gate, one.dataset.cases, changed)


def _nothing_left() -> ConfigError:
    return ConfigError(
        "cases", f"left that consent to {PURPOSE}", "none",
        advice="what was trained so far is kept; see `qinjing consent show`",
    )  # fmt: skip


def admitted(dataset: Dataset, purpose: str = PURPOSE, required: bool = False) -> Admitted:
    """Open the gate before a data set; see `open_gate`."""
    return Admitted(dataset, open_gate(dataset.root, purpose, required=required))
