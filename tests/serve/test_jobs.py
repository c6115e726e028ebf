"""The queue of jobs, on SQLite and PostgreSQL: no job is lost, none is in two hands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

pytest.importorskip("sqlalchemy")

from qinjing.data.database import Database
from qinjing.serve.jobs import MOST_ATTEMPTS, Queue
from tests.data.conftest import place, postgresql

__all__ = ["place", "postgresql"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(place: str) -> Iterator[Database]:
    database = Database(place, what="catalogue", extra="serve", create=True)
    yield database
    database.close()


@pytest.fixture
def queue(database: Database, clock: Clock) -> Queue:
    return Queue(database, clock)


def put(queue: Queue, database: Database, study: str, revision: int = 1, kind: str = "x") -> None:
    with database.writing() as connection:
        queue.put(connection, kind, study, revision)


def test_a_job_is_put_in_once_and_done_once(queue: Queue, database: Database) -> None:
    put(queue, database, "1.2")
    put(queue, database, "1.2")
    job = queue.take("a", ["x"])
    assert job is not None and (job.study_instance_uid, job.attempts) == ("1.2", 1)
    assert queue.take("b", ["x"]) is None and queue.take("b", ["y"]) is None
    assert queue.done(job, {"sent": 3})
    assert not queue.done(job, {"sent": 4})
    put(queue, database, "1.2")  # the same revision, once more
    assert queue.take("a", ["x"]) is None
    assert [(one.state, one.result) for one in queue.of("1.2")] == [("done", {"sent": 3})]


def test_a_transaction_that_fails_puts_nothing_in(queue: Queue, database: Database) -> None:
    with pytest.raises(KeyError), database.writing() as connection:
        queue.put(connection, "x", "1.2", 1)
        raise KeyError
    assert queue.of() == []


def test_a_lost_workers_job_goes_to_another(queue: Queue, database: Database, clock: Clock) -> None:
    put(queue, database, "1.2")
    lost = queue.take("a", ["x"], lease_s=60)
    assert lost is not None
    clock.now += 50
    assert queue.hold(lost, 60)
    clock.now += 59
    assert queue.take("b", ["x"]) is None
    clock.now += 2
    again = queue.take("b", ["x"])
    assert again is not None and (again.worker, again.attempts) == ("b", 2)
    assert (
        not queue.hold(lost) and not queue.done(lost, {}) and queue.failed(lost, "late") == "lost"
    )
    assert queue.done(again, {})


def test_a_failed_job_waits_longer_each_time_and_then_no_more(
    queue: Queue, database: Database, clock: Clock
) -> None:
    put(queue, database, "1.2")
    pauses = []
    for _ in range(MOST_ATTEMPTS):
        waited = 0.0
        while (job := queue.take("a", ["x"])) is None:
            clock.now += 1
            waited += 1
        pauses.append(waited)
        assert queue.failed(job, "the disk is full") in ("waiting", "failed")
    assert pauses[0] == 0 and pauses[1:] == [5.0 * 2**k for k in range(MOST_ATTEMPTS - 1)]
    clock.now += 1e6
    assert queue.take("a", ["x"]) is None
    (job,) = queue.of(state="failed")
    assert (job.reason, job.attempts) == ("the disk is full", MOST_ATTEMPTS)
    put(queue, database, "1.3")
    hopeless = queue.take("a", ["x"])
    assert hopeless is not None and queue.failed(hopeless, "no DICOM", again=False) == "failed"
    assert queue.of("1.3")[0].state == "failed"


def test_a_worker_that_is_lost_each_time_ends_the_job(
    queue: Queue, database: Database, clock: Clock
) -> None:
    put(queue, database, "1.2")
    for _ in range(MOST_ATTEMPTS):
        assert queue.take("a", ["x"], lease_s=1) is not None
        clock.now += 2
    assert queue.take("a", ["x"]) is None
    (job,) = queue.of("1.2")
    assert job.state == "failed" and f"lost {MOST_ATTEMPTS} times" in job.reason


def test_a_later_revision_replaces_what_waits_but_not_what_is_at_work(
    queue: Queue, database: Database
) -> None:
    put(queue, database, "1.2", 3)
    put(queue, database, "1.2", 5)
    job = queue.take("a", ["x"])
    assert job is not None and job.revision == 5
    put(queue, database, "1.2", 6)
    assert queue.take("b", ["x"]) is None  # the study is in a worker's hands
    assert queue.done(job, {})
    later = queue.take("b", ["x"])
    assert later is not None and later.revision == 6


def test_two_kinds_of_one_study_are_not_done_at_once(queue: Queue, database: Database) -> None:
    put(queue, database, "1.2", kind="x")
    put(queue, database, "1.2", kind="y")
    first = queue.take("a", ["x", "y"])
    assert first is not None and queue.take("b", ["x", "y"]) is None
    assert queue.done(first, {})
    second = queue.take("b", ["x", "y"])
    assert second is not None and {first.kind, second.kind} == {"x", "y"}


def test_many_workers_take_each_job_once(place: str, database: Database) -> None:
    queue = Queue(database)
    with database.writing() as connection:
        for number in range(40):
            queue.put(connection, "x", f"1.{number}", 1)
    taken: list[str] = []
    faults: list[BaseException] = []

    def run(name: str) -> None:
        own = Database(place, what="catalogue", extra="serve")
        try:
            mine = Queue(own)
            while (job := mine.take(name, ["x"])) is not None:
                taken.append(job.study_instance_uid)
                assert mine.done(job, {})
        except BaseException as error:
            faults.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=run, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert sorted(taken) == sorted(f"1.{number}" for number in range(40))


def test_a_job_says_whose_it_is(queue: Queue, database: Database) -> None:
    put(queue, database, "1.2")
    job = queue.take("a", ["x"])
    assert job is not None
    assert not queue.done(replace(job, worker="b"), {})  # another cannot say that it is done
    assert queue.of(state="taken") == [job]
