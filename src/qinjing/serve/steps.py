"""Work that a worklist server asks for: claim a step, fetch its input, queue it, end it.

Each step that is ours is a row, written before the server is asked: a process that dies leaves
what the next needs to go on, and a step never hangs on the server for want of its transaction.

Source: DICOM PS3.4, CC.2.1.2, note 1.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from qinjing.errors import ConfigError, InputError, QinjingError
from qinjing.serve import ups
from qinjing.serve.catalogue import Catalogue, Study
from qinjing.serve.fetch import fetch
from qinjing.serve.peer import Caller, Peer, RefusedError
from qinjing.serve.work import made_at

if TYPE_CHECKING:
    pass

LOG = logging.getLogger("qinjing.serve.steps")
KIND = "predict"  # of the job that a step becomes: the one that answers with instances
MOST_TRIES = 5
_PAUSE_S = 10.0  # before a second try; twice as long before each further one
_TABLE_MADE = "SELECT pg_advisory_xact_lock(7161469)"
Phase = Literal["claiming", "claimed", "queued", "done", "failed"]
Became = str  # "claimed", "queued", "completed", "canceled" or "lost"
_Further = dict[str, Any] | None  # what changes in a row; None where it goes no further now


@dataclass(frozen=True)
class StepsConfig:
    """Which steps are done, and where their input is had.

    Attributes:
        server: root of the worklist.
        pacs: root of DICOMweb, which has the input and gets the results.
        wanted: which steps are ours.
        most: how many are ours at once, so that others have some too.
        idle_s: seconds between two looks.
    """

    server: Peer
    pacs: Peer
    wanted: ups.Wanted
    most: int = 4
    idle_s: float = 10.0


@dataclass(frozen=True)
class _Row:
    uid: str
    transaction: str
    phase: Phase
    study: str
    reason: str
    begun: float
    tries: int
    due: float


class Steps:
    """The steps that are ours.

    Args:
        catalogue: where their input goes, and whose queue does the work.
        config: which.
        tell: told what became of a step, which it does not name.
        clock: seconds since 1970.
        wait: sleeps for so many seconds, between two tries.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        config: StepsConfig,
        tell: Callable[[Became], object] = lambda _: None,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._catalogue, self._database, self._config = catalogue, catalogue.database, config
        self._tell, self._clock = tell, clock
        self._server, self._pacs = Caller(config.server, wait), Caller(config.pacs, wait)
        from qinjing.serve.tables import step_table

        self._table = step_table()
        with self._database.writing(_TABLE_MADE) as connection:
            self._table.create(connection, checkfirst=True)

    def close(self) -> None:
        """Let go of the connections."""
        for caller in (self._server, self._pacs):
            caller.__exit__()

    def look(self) -> int:
        """Bring every step of ours on, and claim others; how many are ours now."""
        for row in self._rows():
            if row.due <= self._clock():
                self._guarded(row)
        if len(self._rows()) < self._config.most:
            self._claim_more()
        return len(self._rows())

    def _guarded(self, row: _Row) -> None:
        """Bring a step on as far as it goes now; what fails is tried later, or given up."""
        try:
            while True:
                further = _ON[row.phase](self, row)
                if further is None:
                    return
                self._change(row, **further, tries=0)
                if further["phase"] in ("claimed", "queued"):
                    self._tell(further["phase"])
                row = _Row(**{**vars(row), **further, "tries": 0})
        except (QinjingError, OSError) as error:
            self._failed(row, error)

    def _failed(self, row: _Row, error: Exception) -> None:
        reason = str(error) if isinstance(error, QinjingError) else "the disk takes no more"
        LOG.warning("a step, %s, try %d: %s", row.phase, row.tries + 1, reason)
        hopeless = isinstance(error, InputError) and not isinstance(error, ConfigError)
        last = row.tries + 1 >= MOST_TRIES
        due = self._clock() + _PAUSE_S * 2 ** min(row.tries, MOST_TRIES)
        if row.phase == "claimed" and (hopeless or last):
            self._change(row, phase="failed", reason=reason, tries=0, due=self._clock())
        elif row.phase in ("done", "failed") and last and isinstance(error, RefusedError):
            LOG.error("a step is left as it is on the server, which takes no end of it")
            self._lost(row)
        else:  # a server that is away comes back
            self._change(row, tries=row.tries + 1, due=due)

    def _claim(self, row: _Row) -> _Further:
        if ups.claim(self._server, row.uid, row.transaction):
            return {"phase": "claimed"}
        self._forget(row)  # another was faster
        return None

    def _queue(self, row: _Row) -> _Further:
        """Fetch a step's input, and put the job in."""
        step = ups.step(self._server, row.uid)
        if step.state != "IN PROGRESS":
            self._lost(row)
            return None
        studies = {study for study, _ in step.inputs}
        if len(studies) != 1:
            raise InputError("input", "of one study", f"of {len(studies)}")
        (study,) = studies
        series = {one for _, one in step.inputs}
        for one in [""] if "" in series else sorted(series):
            # From where our configuration says: an address in a step would get our login.
            fetch(self._pacs, self._catalogue, study, one)
        self._catalogue.again(self._known(study), [KIND])
        return {"phase": "queued", "study": study}

    def _follow(self, row: _Row) -> _Further:
        """Look whether a step's job has come to its end."""
        jobs = [job for job in self._catalogue.queue.of(row.study) if job.kind == KIND]
        last = max(jobs, key=lambda job: job.revision, default=None)
        if last is None:
            return {"phase": "failed", "reason": "its job is gone"}
        if last.state == "failed":
            return {"phase": "failed", "reason": last.reason}
        return {"phase": "done"} if last.state == "done" else None

    def _end(self, row: _Row) -> _Further:
        """Complete a step, or cancel it for a reason."""
        step = ups.step(self._server, row.uid)
        if step.state != "IN PROGRESS":  # we died before we could write that it is ended
            self._lost(row, step.state)
            return None
        made, now = made_at(self._catalogue, row.study, KIND), datetime.now(UTC)
        files = sorted(made.rglob("*.dcm")) if row.phase == "done" else []
        if files:
            begun = datetime.fromtimestamp(row.begun, UTC)
            said = ups.performed(step, begun, now, files, self._config.pacs.url)
        else:
            said = ups.discontinued(row.reason or "nothing was made", now)
        ups.update(self._server, row.uid, row.transaction, said)
        state: ups.State = "COMPLETED" if files else "CANCELED"
        ups.change(self._server, row.uid, row.transaction, state)
        self._lost(row, state)
        return None

    def _lost(self, row: _Row, state: str = "") -> None:
        """Let go of a step, which has come to this state."""
        self._forget(row)
        self._tell({"COMPLETED": "completed", "CANCELED": "canceled"}.get(state, "lost"))

    def _known(self, study: str) -> Study:
        known = self._catalogue.study(study)
        if known is None:
            raise InputError("study", "in the catalogue", "none")
        return known

    def _claim_more(self) -> None:
        try:
            found = ups.search(self._server, self._config.wanted)
            for uid in found:
                rows = self._rows()
                if len(rows) >= self._config.most:
                    return
                if uid in {row.uid for row in rows}:
                    continue
                step = ups.step(self._server, uid)
                if step.state == "SCHEDULED" and step.ready and step.is_of(self._config.wanted):
                    self._guarded(self._begin(uid))
        except QinjingError as error:
            LOG.warning("the worklist could not be read: %s", error)

    def _begin(self, uid: str) -> _Row:
        now = self._clock()
        row = _Row(uid, f"2.25.{uuid.uuid4().int}", "claiming", "", "", now, 0, now)
        with self._database.writing() as connection:
            values = {**vars(row), "server": self._config.server.url}
            connection.execute(self._table.insert().values(values))
        return row

    def _rows(self) -> list[_Row]:
        from sqlalchemy import select

        t = self._table
        columns = [t.c[name] for name in _Row.__dataclass_fields__]
        query = select(*columns).where(t.c.server == self._config.server.url)
        with self._database.connected() as connection:
            return [_Row(*row) for row in connection.execute(query.order_by(t.c.begun))]

    def _which(self, row: _Row) -> Any:
        t = self._table
        return (t.c.server == self._config.server.url) & (t.c.uid == row.uid)

    def _change(self, row: _Row, **changes: Any) -> None:
        with self._database.writing() as connection:
            connection.execute(self._table.update().where(self._which(row)).values(**changes))

    def _forget(self, row: _Row) -> None:
        with self._database.writing() as connection:
            connection.execute(self._table.delete().where(self._which(row)))


_ON: dict[Phase, Callable[[Steps, _Row], _Further]] = {
    "claiming": Steps._claim,
    "claimed": Steps._queue,
    "queued": Steps._follow,
    "done": Steps._end,
    "failed": Steps._end,
}


def do_steps(
    catalogue: Catalogue,
    config: StepsConfig,
    ended: threading.Event,
    tell: Callable[[Became], object] = lambda _: None,
) -> None:
    """Do what a worklist asks for until the event is set.

    Args:
        catalogue: where input goes, and whose queue does the work.
        config: which steps.
        ended: set it to stop.
        tell: told what became of a step, which it does not name.
    """
    steps = Steps(catalogue, config, tell, wait=ended.wait)
    try:
        while not ended.is_set():
            try:
                steps.look()
            except ConfigError as error:  # a database that is away comes back
                LOG.error("the steps could not be read: %s", error)
            ended.wait(config.idle_s)
    finally:
        steps.close()
