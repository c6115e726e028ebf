"""A durable queue of work on studies, which outlives every process that puts in or takes out.

A job is a row. A worker takes it for a while, a lease that it renews as it goes on; a worker that
dies loses the lease, and the job goes to another. So a job may be begun twice but is finished once:
what it makes must be the same the second time. One study is never in two workers' hands.

Rows in SQLite serve one machine, in PostgreSQL any number, by the same statements; clocks of the
machines must agree far better than a lease is long.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qinjing.data.database import Database

if TYPE_CHECKING:
    from sqlalchemy import Connection

State = Literal["waiting", "taken", "done", "failed"]
LEASE_S = 60.0
MOST_ATTEMPTS = 10
AWAY_S = 60.0  # between two attempts while somebody is away
_PAUSE_S = 5.0  # before a second attempt; twice as long before each further one
_TABLE_MADE = "SELECT pg_advisory_xact_lock(7161466)"


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        job_id: number of its row.
        kind: what is to be done, one of the worker's.
        study_instance_uid: to what.
        revision: instances of the study when it was put in: more that come later are another job.
        state: waiting, taken, done or failed.
        attempts: how often it was taken.
        worker: who has or had it.
        reason: why it failed last, one sentence that names no patient.
        result: what its worker said.
    """

    job_id: int
    kind: str
    study_instance_uid: str
    revision: int
    state: State
    attempts: int
    worker: str
    reason: str
    result: Mapping[str, Any]


class Queue:
    """The jobs in a database.

    Args:
        database: in which their table is made where there is none.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        from qinjing.serve.tables import job_table

        self._database, self._clock, self._table = database, clock, job_table()
        with database.writing(_TABLE_MADE) as connection:
            self._table.create(connection, checkfirst=True)
            for index in self._table.indexes:  # one that came later, in a table that was there
                index.create(connection, checkfirst=True)

    def put(self, connection: Connection, kind: str, study: str, revision: int) -> int:
        """Put a job in, within the transaction of what it follows from; once, however often asked.

        What waits for an earlier revision of the study is done with this one.

        Returns:
            1, or 0 where it was there.
        """
        from sqlalchemy import exists, literal, select

        t = self._table
        same = (t.c.kind == kind) & (t.c.study == study)
        connection.execute(
            t.delete().where(same & (t.c.state == "waiting") & (t.c.revision < revision))
        )
        columns = {
            "kind": kind, "study": study, "revision": revision, "state": "waiting", "attempts": 0,
            "due": self._clock(), "worker": "", "reason": "", "result": "{}",
        }  # fmt: skip
        row = select(*(literal(value).label(name) for name, value in columns.items()))
        row = row.where(~exists().where(same & (t.c.revision >= revision)))
        return connection.execute(t.insert().from_select(list(columns), row)).rowcount

    def put_next(self, connection: Connection, kind: str, study: str) -> None:
        """Put a job in after all of its kind that there were; what waits is done with this one."""
        from sqlalchemy import func, select

        t = self._table
        same = (t.c.kind == kind) & (t.c.study == study)
        latest = connection.scalar(select(func.max(t.c.revision)).where(same))
        self.put(connection, kind, study, (latest or 0) + 1)

    def again(self, connection: Connection, study: str) -> int:
        """Let what failed on a study last be tried anew; how many jobs."""
        from sqlalchemy import select

        t, later = self._table, self._table.alias()
        newer = (later.c.study == t.c.study) & (later.c.kind == t.c.kind)
        newer &= later.c.revision > t.c.revision
        failed = (t.c.study == study) & (t.c.state == "failed")
        failed &= ~select(later.c.id).where(newer).exists()
        anew = {"state": "waiting", "attempts": 0, "due": self._clock()}
        return connection.execute(t.update().where(failed).values(anew)).rowcount

    def worst(self, study: Any, states: Sequence[str]) -> Any:
        """Return SQL for how far the work on a study is: the greatest place in `states`.

        Of each kind the latest job counts, which is about all of the study's instances.

        Args:
            study: a column of StudyInstanceUIDs.
            states: of a study, whose "working" is a job's "taken".
        """
        from sqlalchemy import case, func, select

        t, later = self._table, self._table.alias()
        places = {"taken" if one == "working" else one: k for k, one in enumerate(states)}
        newer = (later.c.study == t.c.study) & (later.c.kind == t.c.kind)
        newer &= later.c.revision > t.c.revision
        query = select(func.max(case(places, value=t.c.state, else_=0)))
        query = query.where((t.c.study == study) & ~select(later.c.id).where(newer).exists())
        return query.scalar_subquery()

    def take(self, worker: str, kinds: Collection[str], lease_s: float = LEASE_S) -> Job | None:
        """Take the job that waits longest, or one whose worker was lost; None where there is none.

        What failed before comes after what was never tried: an archive that is away holds up what
        waits for it, and nothing else.

        Args:
            worker: who takes it: a name that no other worker has.
            kinds: what he can do.
            lease_s: seconds for which it is his without another word.
        """
        from sqlalchemy import select

        t, now = self._table, self._clock()
        other = t.alias()
        free = (t.c.state == "waiting") & (t.c.due <= now) | (t.c.state == "taken") & (
            t.c.due < now
        )
        busy = select(other.c.id).where(
            (other.c.study == t.c.study) & (other.c.state == "taken") & (other.c.due >= now)
        )
        query = (
            select(t)
            .where(free & t.c.kind.in_(list(kinds)) & ~busy.exists())
            .order_by(t.c.reason != "", t.c.due, t.c.id)
            .limit(1)
        )
        with self._database.writing("LOCK TABLE job IN SHARE ROW EXCLUSIVE MODE") as connection:
            found = connection.execute(query).first()
            if found is None:
                return None
            job = _job(found)
            if job.attempts >= MOST_ATTEMPTS:
                lost = f"its worker was lost {job.attempts} times"
                self._change(connection, job, state="failed", reason=job.reason or lost)
                return None
            attempts = job.attempts + 1
            self._change(
                connection, job, state="taken", worker=worker, attempts=attempts, due=now + lease_s
            )
            return Job(**{**vars(job), "state": "taken", "worker": worker, "attempts": attempts})

    def hold(self, job: Job, lease_s: float = LEASE_S) -> bool:
        """Renew a lease; False where the job has gone to another, and must be let go."""
        return self._mine(job, due=self._clock() + lease_s)

    def done(self, job: Job, result: Mapping[str, Any]) -> bool:
        """Say that a job is done; False where it has gone to another."""
        return self._mine(job, state="done", reason="", result=json.dumps(result))

    def failed(
        self, job: Job, reason: str, again: bool = True, *, away_s: float = 0.0
    ) -> Literal["waiting", "failed", "lost"]:
        """Say why a job failed; it is tried again after a while, `MOST_ATTEMPTS` times in all.

        Args:
            job: that was taken.
            reason: one sentence that names no patient.
            again: whether another attempt may help.
            away_s: seconds until the next attempt, where what it wants is away and will be back:
                this one does not count then, so that nothing is lost however long that takes.

        Returns:
            What it is now; "lost" where it has gone to another.
        """
        now = self._clock()
        if away_s > 0:
            changes = {"state": "waiting", "due": now + away_s, "attempts": job.attempts - 1}
        elif again and job.attempts < MOST_ATTEMPTS:
            changes = {"state": "waiting", "due": now + _PAUSE_S * 2 ** (job.attempts - 1)}
        else:
            changes = {"state": "failed"}
        mine = self._mine(job, reason=reason, **changes)
        return ("failed" if changes["state"] == "failed" else "waiting") if mine else "lost"

    def of(self, study: str | None = None, state: State | None = None) -> list[Job]:
        """Return jobs, of one study or in one state, in the order in which they were put in."""
        from sqlalchemy import select

        t = self._table
        query = select(t).order_by(t.c.id)
        if study is not None:
            query = query.where(t.c.study == study)
        if state is not None:
            query = query.where(t.c.state == state)
        with self._database.connected() as connection:
            return [_job(row) for row in connection.execute(query)]

    def _mine(self, job: Job, **changes: Any) -> bool:
        with self._database.writing() as connection:
            return self._change(connection, job, job.worker, **changes)

    def _change(
        self, connection: Connection, job: Job, held_by: str | None = None, /, **changes: Any
    ) -> bool:
        t = self._table
        which = t.c.id == job.job_id
        if held_by is not None:
            taken = (t.c.state == "taken") & (t.c.attempts == job.attempts)
            which &= taken & (t.c.worker == held_by)
        return bool(connection.execute(t.update().where(which).values(**changes)).rowcount)


def _job(row: Any) -> Job:
    return Job(
        row.id, row.kind, row.study, row.revision, row.state, row.attempts, row.worker, row.reason,
        json.loads(row.result),
    )  # fmt: skip
