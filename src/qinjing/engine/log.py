"""A line of JSON per event, and nothing lost or doubled when a run resumes."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from qinjing.config import atomic_path


class EventLog:
    """Append events to `log.jsonl`; resuming drops those after the checkpoint.

    Args:
        path: the file.
        resume_step: keep events of steps before this one; None starts a new file.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_step is None else _events_before(path, resume_step)
        with atomic_path(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event, for example `write("step", step=3, loss=0.5)`."""
        self._file.write(json.dumps({"kind": kind, **fields}) + "\n")
        self._file.flush()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read the events of a log; a torn last line is left out."""
    events = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue  # a kill may have cut the last line short
    return events


def _events_before(path: Path, step: int) -> list[str]:
    return [json.dumps(event) for event in read_events(path) if event.get("step", 0) < step]
