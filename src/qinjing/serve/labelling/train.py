"""Training on what was labelled: `qinjing train` as a process of its own, one at a time.

Each training has a folder with its data set, its run, its log and a file that says how it stands.
A service that comes up again finds what was running when it went down, ends it, and says so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qinjing.config import read_json, write_json
from qinjing.data.consent import VARIABLE
from qinjing.errors import ConfigError, InputError
from qinjing.serve.guard import LOG, Refusal

TRAINER = "qinjing"
MINUTES = 15  # of a training whose time nobody says
_LINES = 20  # that a status shows
Prepare = Callable[[Path, Callable[[str], None]], dict[str, str]]


@dataclass(frozen=True)
class Effort:
    """How long a training may take.

    Attributes:
        minutes: of everything; where `steps` is None.
        steps: of training.
    """

    minutes: int = MINUTES
    steps: int | None = None

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Effort:
        """Return what a client's parameters ask for.

        Raises:
            ConfigError: "minutes" or "steps" is no number in range.
        """
        return cls(
            _whole(params, "minutes", 7 * 24 * 60) or MINUTES, _whole(params, "steps", 1_000_000)
        )

    def words(self) -> list[str]:
        """Return the words of the command line."""
        return ["--steps", str(self.steps)] if self.steps else ["--budget", f"{self.minutes}m"]


class Trainings:
    """The trainings of a service, of which one may run.

    Args:
        folder: a folder for each.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._tasks: list[dict[str, Any]] = []
        for file in folder.glob("*/task.json"):
            self._tasks.append(_found(file))
        self._tasks.sort(key=lambda task: str(task["start_ts"]))

    def start(self, prepare: Prepare, effort: Effort, consents: str | None) -> dict[str, Any]:
        """Start a training; how it stands.

        Args:
            prepare: writes a data set into a folder, tells what was left out, and returns what a
                log may call each case.
            effort: how long it may take.
            consents: the store that its gate asks; None for no gate.

        Raises:
            Refusal: 429, one runs already.
        """
        with self._lock:
            if self._running() is not None:
                raise Refusal(429, "running", "training must be over before another begins")
            task: dict[str, Any] = {
                "id": str(uuid.uuid4()), "status": "RUNNING", "model": TRAINER, "start_ts": _now(),
                "request": {"model": TRAINER, **vars(effort)}, "details": [],
            }  # fmt: skip
            self._tasks.append(task)
            self._place(task).mkdir(parents=True, mode=0o700)
            self._tell(task, "training begins")
            work = (task, prepare, effort, consents)
            self._thread = threading.Thread(target=self._run, args=work, daemon=True)
            self._thread.start()
            return _copy(task)

    def stop(self) -> dict[str, Any] | None:
        """End the training that runs, if there is one; how it stood."""
        with self._lock:
            task = self._running()
            if task is None:
                return None
            task |= {"status": "STOPPED", "end_ts": _now()}
            self._tell(task, "stopped")
            process = self._process
        if process is not None:
            _end(process.pid)
        if self._thread is not None:
            self._thread.join(10)
        return _copy(task)

    def latest(self, *, running: bool = False) -> dict[str, Any] | None:
        """Return how the last training stands, or the one that runs; None where there is none."""
        with self._lock:
            task = self._running() if running else next(reversed(self._tasks), None)
            return _copy(task) if task else None

    def all(self) -> list[dict[str, Any]]:
        """Return how every training stands, the last one last."""
        with self._lock:
            return [_copy(task) for task in self._tasks]

    def wait(self, seconds: float) -> None:
        """Wait until nothing runs, or so long."""
        if self._thread is not None:
            self._thread.join(seconds)

    def lines(self, count: int) -> list[str]:
        """Return the last lines of the last training's log, all of them where `count` is 0."""
        with self._lock:
            task = next(reversed(self._tasks), None)
        if task is None:
            return []
        with (self._place(task) / "log.txt").open(encoding="utf-8") as log:
            return [line.rstrip("\n") for line in deque(log, count or None)]

    def stats(self) -> dict[str, Any]:
        """Return how far the last training is, in MONAI Label's words: an epoch is a step here."""
        task = self.latest()
        if task is None:
            return {}
        run = self._place(task) / "run"
        stats: dict[str, Any] = {"start_ts": task["start_ts"]}
        try:
            stats["total_epochs"] = int(read_json(run / "plan.json")["fit"]["steps"])
            events = (run / "fold_0" / "log.jsonl").read_text(encoding="utf-8").splitlines()
            steps = [json.loads(line) for line in events if line.endswith("}")]
            stats["epoch"] = max(one["step"] + 1 for one in steps if one["kind"] == "step")
        except (InputError, OSError, KeyError, ValueError):
            pass  # it has not come so far
        if task["status"] != "RUNNING":
            stats["total_time"] = task.get("end_ts", "")
        if "best_metric" in task.get("result", {}):
            stats["best_metric"] = task["result"]["best_metric"]
        return stats

    def _run(
        self, task: dict[str, Any], prepare: Prepare, effort: Effort, consents: str | None
    ) -> None:
        place = self._place(task)
        code: int | None = None
        try:
            names = prepare(place / "data", lambda line: self._told(task, line))
            code = self._trained(task, effort, consents, names)
        except ConfigError as error:
            self._told(task, str(error))
        except Exception as error:  # whatever it is, the next training must be able to begin
            LOG.error("training %s could not be prepared: %s", task["id"], type(error).__name__)
            self._told(task, "the data set could not be written")
        result = _result(place / "run")
        with self._lock:
            self._process = None
            if task["status"] == "RUNNING":
                task["status"] = "DONE" if code in (0, 2) and result else "ERROR"
                task["end_ts"] = _now()
            task |= {"result": result} if result else {}
            self._tell(task, f"training ends: {task['status']}")

    def _trained(
        self, task: dict[str, Any], effort: Effort, consents: str | None, names: Mapping[str, str]
    ) -> int | None:
        """Run the command line to its end; None where it was stopped before it began."""
        place = self._place(task)
        words = [sys.executable, "-m", "qinjing", "train", "-i", str(place / "data"),
                 "-o", str(place / "run"), *effort.words()]  # fmt: skip
        with self._lock:
            if task["status"] != "RUNNING":
                return None
            process = subprocess.Popen(
                words, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
                env=_environment(consents),
            )  # fmt: skip
            self._process = process
            task["pid"] = process.pid
            self._write(task)
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._told(task, _scrubbed(line.rstrip(), place, names))
        return process.wait()

    def _running(self) -> dict[str, Any] | None:
        return next((task for task in self._tasks if task["status"] == "RUNNING"), None)

    def _place(self, task: Mapping[str, Any]) -> Path:
        return self.folder / str(task["id"])

    def _told(self, task: dict[str, Any], line: str) -> None:
        with self._lock:
            self._tell(task, line)

    def _tell(self, task: dict[str, Any], line: str) -> None:
        """Add a line to the log, and to what a status shows; the lock is held."""
        if not line:
            return
        task["details"] = [*task["details"], line][-_LINES:]
        with (self._place(task) / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{_now()} {line}\n")
        self._write(task)

    def _write(self, task: dict[str, Any]) -> None:
        write_json(self._place(task) / "task.json", task)


def _environment(consents: str | None) -> dict[str, str]:
    known = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return known | {"PYTHONUNBUFFERED": "1"} | ({VARIABLE: consents} if consents else {})


def _scrubbed(line: str, place: Path, names: Mapping[str, str]) -> str:
    """A line as a log may have it: no patient, and no place of this machine."""
    for case_id, name in names.items():
        line = line.replace(case_id, name)
    return line.replace(str(place), "training")


def _result(run: Path) -> dict[str, Any]:
    file = run / "fold_0" / "result.json"
    return {"best_metric": float(read_json(file)["dice"] or 0.0)} if file.is_file() else {}


def _found(file: Path) -> dict[str, Any]:
    """A training of an earlier time; what ran then is ended."""
    task: dict[str, Any] = read_json(file)
    if task["status"] == "RUNNING":
        if _is_ours(int(task.get("pid", 0)), file.parent):
            _end(int(task["pid"]))
        details = [*task["details"], "the service went down meanwhile"]
        task |= {"status": "STOPPED", "end_ts": _now(), "details": details[-_LINES:]}
        write_json(file, task)
    return task


def _is_ours(pid: int, place: Path) -> bool:
    """Whether a process is still the training of a folder, and no later one of that number."""
    try:
        return os.fsencode(place / "run") in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _whole(params: Mapping[str, Any], name: str, most: int) -> int | None:
    """A whole number that a table of 3D Slicer's may send as text; None where it is not given."""
    given = params.get(name)
    if given in (None, "", 0, "0"):
        return None
    text = str(given)
    if isinstance(given, bool) or not text.isdecimal() or not 1 <= int(text[:9]) <= most:
        raise ConfigError(name, f"a whole number from 1 to {most}", "another thing")
    return int(text)


def _copy(task: Mapping[str, Any]) -> dict[str, Any]:
    """How a training stands, without what only this service needs."""
    return {name: value for name, value in task.items() if name != "pid"}


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")
