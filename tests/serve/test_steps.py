"""A worklist's steps, claimed and ended once, whenever we die and whichever line breaks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2")
pytest.importorskip("pydicom")
pytest.importorskip("sqlalchemy")

from pydicom.uid import UID

from qinjing.errors import ConfigError
from qinjing.serve import work as work_of
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.jobs import Job
from qinjing.serve.multipart import joined
from qinjing.serve.peer import Caller, PassingError, Peer
from qinjing.serve.steps import KIND, MOST_TRIES, Steps, StepsConfig, do_steps
from qinjing.serve.ups import Wanted, claim, search
from qinjing.serve.work import WorkConfig, made_at, work
from tests.serve.answering import Answer, Server, answering
from tests.serve.dicom import content, instance
from tests.serve.worklist import Worklist, scheduled, worklist

STUDY = str(instance(1, 0).StudyInstanceUID)
RESULT = instance(1, 900, Modality="SEG", SeriesInstanceUID="1.2.826.0.1.3680043.8.498.1.900")


class Killed(BaseException):
    """What no handler may hold."""


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def listed() -> Iterator[Worklist]:
    with worklist() as made:
        yield made


@pytest.fixture
def pacs() -> Iterator[Server]:
    """A PACS with studies of two slices; study 7 is none of its."""

    def decide(_: str, path: str, __: bytes) -> Answer:
        number = path.removeprefix("/dicom-web/studies/").split("/")[0].rpartition(".")[2]
        if number == "7":
            return 404, {}, b""
        files = [content(instance(int(number), one)) for one in range(2)]
        body = b"".join(joined([[one] for one in files], "edge", "application/dicom"))
        return 200, {"Content-Type": "multipart/related; boundary=edge"}, body

    with answering(decide=decide) as server:
        yield server


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return open_catalogue(tmp_path / "studies")


@pytest.fixture(autouse=True)
def predicting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A model that answers with one instance; what it did is counted."""
    done: list[int] = []

    def predicted(job: Job, catalogue: Catalogue, config: WorkConfig) -> dict[str, Any]:
        done.append(job.job_id)
        out = made_at(catalogue, job.study_instance_uid, job.kind)
        out.mkdir(parents=True, exist_ok=True)
        (out / "seg.dcm").write_bytes(content(RESULT))
        return {"made": ["seg.dcm"], "sent": 1}

    monkeypatch.setitem(work_of.KINDS, KIND, predicted)
    return done


def config(listed: Worklist, pacs: Server, **more: Any) -> StepsConfig:
    assert listed.server
    wanted = more.pop("wanted", Wanted(label="LIVER"))
    return StepsConfig(Peer(listed.server.url), Peer(pacs.url), wanted, **more)


@contextmanager
def stepping(
    catalogue: Catalogue, config: StepsConfig, said: list[str] | None = None, clock: Any = None
) -> Iterator[Steps]:
    told = (said if said is not None else []).append
    made = Steps(catalogue, config, told, clock or Clock(), lambda _: None)
    try:
        yield made
    finally:
        made.close()


def do_jobs(catalogue: Catalogue) -> None:
    """Work until nothing waits."""
    ended = threading.Event()
    model: Any = type("Model", (), {"name": "m"})()
    config = WorkConfig((KIND,), models=(model,), idle_s=0.01)
    while any(job.state == "waiting" for job in catalogue.queue.of()):
        ended.clear()
        work(catalogue, config, ended, lambda *_: ended.set())


def test_a_step_is_claimed_done_and_completed_with_its_results(
    listed: Worklist, pacs: Server, catalogue: Catalogue
) -> None:
    listed.add(scheduled("1.2.1", STUDY))
    said: list[str] = []
    with stepping(catalogue, config(listed, pacs), said) as steps:
        assert steps.look() == 1
        assert listed.state("1.2.1") == "IN PROGRESS" and said == ["claimed", "queued"]
        assert UID(listed.held["1.2.1"]).is_valid
        assert steps.look() == 1  # nothing is new
        do_jobs(catalogue)
        assert steps.look() == 0
    assert said == ["claimed", "queued", "completed"]
    (done,) = listed.steps["1.2.1"].UnifiedProcedureStepPerformedProcedureSequence
    assert done.PerformedWorkitemCodeSequence[0].CodeValue == "110004"  # as it was scheduled
    assert done.PerformedStationNameCodeSequence[0].CodeValue == "QJ1"
    assert done.PerformedProcedureStepStartDateTime.startswith("20231114221320")
    (output,) = done.OutputInformationSequence
    assert (output.TypeOfInstances, output.StudyInstanceUID) == ("DICOM", STUDY)
    assert output.SeriesInstanceUID == RESULT.SeriesInstanceUID
    (reference,) = output.ReferencedSOPSequence
    assert reference.ReferencedSOPInstanceUID == RESULT.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == RESULT.SOPClassUID
    url = f"{pacs.url}/studies/{STUDY}/series/{RESULT.SeriesInstanceUID}"
    assert output.WADORSRetrievalSequence[0].RetrieveURL == url
    assert listed.history["1.2.1"] == ["SCHEDULED", "IN PROGRESS", "COMPLETED"]


def test_one_series_alone_is_fetched_where_one_is_named(
    listed: Worklist, pacs: Server, catalogue: Catalogue
) -> None:
    listed.add(scheduled("1.2.1", STUDY, "1.2.826.0.1.3680043.8.498.1.1"))
    with stepping(catalogue, config(listed, pacs)) as steps:
        steps.look()
    assert [path for _, path, _, _ in pacs.asked] == [
        f"/dicom-web/studies/{STUDY}/series/1.2.826.0.1.3680043.8.498.1.1"
    ]


@pytest.mark.parametrize(
    ("wanted", "ours"),
    [
        (Wanted(label="LIVER"), {"1.2.1", "1.2.2"}),
        (Wanted(station="QJ1"), {"1.2.1", "1.2.3"}),
        (Wanted(label="LIVER", station="QJ1"), {"1.2.1"}),
        (Wanted(label="LUNG"), set()),
    ],
)
@pytest.mark.parametrize("ignores", [False, True])
def test_steps_of_others_are_left_alone(
    wanted: Wanted, ours: set[str], ignores: bool, listed: Worklist, pacs: Server,
    catalogue: Catalogue,
) -> None:  # fmt: skip
    from tests.serve.worklist import code

    listed.ignores_keys = ignores  # a server may answer more than it was asked for
    listed.add(scheduled("1.2.1", STUDY))
    listed.add(scheduled("1.2.2", STUDY, ScheduledStationNameCodeSequence=[code("OTHER")]))
    listed.add(scheduled("1.2.3", STUDY, WorklistLabel="BRAIN"))
    listed.add(scheduled("1.2.4", STUDY, InputReadinessState="INCOMPLETE"))
    listed.add(scheduled("1.2.5", STUDY, ProcedureStepState="COMPLETED"))
    with stepping(catalogue, config(listed, pacs, wanted=wanted)) as steps:
        steps.look()
    assert set(listed.held) == ours


def test_no_more_are_taken_than_can_be_done(
    listed: Worklist, pacs: Server, catalogue: Catalogue
) -> None:
    for number in range(5):
        listed.add(scheduled(f"1.2.{number}", str(instance(number, 0).StudyInstanceUID)))
    with stepping(catalogue, config(listed, pacs, most=2)) as steps:
        assert steps.look() == 2 and steps.look() == 2
        assert len(listed.held) == 2
        do_jobs(catalogue)
        assert steps.look() == 2 and len(listed.held) == 4
        for _ in range(2):
            do_jobs(catalogue)
            steps.look()
    assert {listed.state(uid) for uid in listed.steps} == {"COMPLETED"}


def test_two_workers_never_have_one_step(listed: Worklist, pacs: Server, tmp_path: Path) -> None:
    for number in range(6):
        listed.add(scheduled(f"1.2.{number}", str(instance(number, 0).StudyInstanceUID)))
    catalogues = [open_catalogue(tmp_path / name) for name in ("one", "two")]
    counts: list[int] = []

    def run(catalogue: Catalogue) -> None:
        with stepping(catalogue, config(listed, pacs, most=6)) as steps:
            counts.append(steps.look())

    threads = [threading.Thread(target=run, args=(one,)) for one in catalogues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 6 and len(listed.held) == 6


@pytest.mark.parametrize("served", [False, True], ids=["before", "after"])
def test_whenever_we_die_the_step_is_done_once(
    served: bool, listed: Worklist, pacs: Server, tmp_path: Path, predicting: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At each request to a server, before it is sent or before its answer is read."""
    once, left = Caller.once, 0

    @contextmanager
    def dying(self: Caller, *words: Any, **more: Any) -> Iterator[Any]:
        nonlocal left
        left -= 1
        if not left and not served:
            raise Killed
        with once(self, *words, **more) as response:
            if not left:
                raise Killed
            yield response

    monkeypatch.setattr(Caller, "once", dying)
    deaths = 0
    for number in range(1, 40):
        uid = f"1.2.{number}"
        study = 100 + number
        listed.add(scheduled(uid, str(instance(study, 0).StudyInstanceUID)))
        catalogue = open_catalogue(tmp_path / str(number))
        left, died, said = number, False, []
        for _ in range(8):
            with stepping(catalogue, config(listed, pacs), said) as steps:  # a new process
                try:
                    steps.look()
                except Killed:
                    died = True
                    continue
            do_jobs(catalogue)
            if listed.state(uid) == "COMPLETED" and not steps._rows():
                break
        assert listed.history[uid] == ["SCHEDULED", "IN PROGRESS", "COMPLETED"], (number, said)
        assert len(predicting) == number
        if not died:
            break
        deaths += 1
    assert deaths >= 8  # and with the last nobody died any more


def test_a_step_that_another_took_is_let_go(
    listed: Worklist, pacs: Server, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed.add(scheduled("1.2.1", STUDY))
    begin = Steps._begin

    def late(self: Steps, uid: str) -> Any:
        listed.steps[uid].ProcedureStepState = "IN PROGRESS"
        listed.held[uid] = "1.2.3.4.5"
        return begin(self, uid)

    monkeypatch.setattr(Steps, "_begin", late)
    with stepping(catalogue, config(listed, pacs)) as steps:
        assert steps.look() == 0
    assert listed.held["1.2.1"] == "1.2.3.4.5" and pacs.asked == []
    assert listed.steps["1.2.1"].ProcedureStepProgressInformationSequence == []


def test_a_lost_answer_to_a_claim_leaves_the_step_ours(listed: Worklist) -> None:
    listed.add(scheduled("1.2.1", STUDY))
    listed.add(scheduled("1.2.2", STUDY))
    assert listed.server
    with Caller(Peer(listed.server.url), lambda _: None) as caller:
        assert claim(caller, "1.2.1", "2.25.1") and claim(caller, "1.2.1", "2.25.1")
        assert not claim(caller, "1.2.1", "2.25.2")
        assert not claim(caller, "1.2.9", "2.25.2")
        assert search(caller, Wanted(label="LIVER")) == ["1.2.2"]


def test_what_cannot_be_done_is_canceled_with_a_reason(
    listed: Worklist, pacs: Server, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> dict[str, Any]:
        from qinjing.errors import InputError

        raise InputError("study", "of a series of CT", "none")

    monkeypatch.setitem(work_of.KINDS, KIND, failing)
    listed.add(scheduled("1.2.1", STUDY))
    other = scheduled("1.2.2", STUDY)
    other.InputInformationSequence.append(scheduled("1", "1.2.9").InputInformationSequence[0])
    listed.add(other)
    listed.add(scheduled("1.2.3", STUDY, InputInformationSequence=[]))
    said: list[str] = []
    with stepping(catalogue, config(listed, pacs), said) as steps:
        for _ in range(3):
            steps.look()
            do_jobs(catalogue)
    assert said.count("canceled") == 3
    reasons = {}
    for uid, one in listed.steps.items():
        (progress,) = one.ProcedureStepProgressInformationSequence
        assert progress.ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue == "110513"
        reasons[uid] = progress.ReasonForCancellation
        assert listed.history[uid][-1] == "CANCELED"
    assert reasons == {
        "1.2.1": "study must be of a series of CT, got none",
        "1.2.2": "input must be of one study, got of 2",
        "1.2.3": "input must be of one study, got of 0",
    }


def test_input_that_does_not_come_is_tried_then_given_up(
    listed: Worklist, pacs: Server, catalogue: Catalogue
) -> None:
    listed.add(scheduled("1.2.1", str(instance(7, 0).StudyInstanceUID)))
    clock = Clock()
    with stepping(catalogue, config(listed, pacs), clock=clock) as steps:
        for _ in range(MOST_TRIES):
            assert listed.state("1.2.1") != "CANCELED"
            steps.look()
            steps.look()  # not before its time
            clock.now += 1000
        steps.look()
    assert len(pacs.asked) == MOST_TRIES and listed.state("1.2.1") == "CANCELED"


def test_a_server_that_is_away_costs_nothing(
    listed: Worklist, pacs: Server, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed.add(scheduled("1.2.1", STUDY))
    clock, once = Clock(), Caller.once
    away = False

    @contextmanager
    def reached(self: Caller, *words: Any, **more: Any) -> Iterator[Any]:
        if away:
            raise PassingError("away")
        with once(self, *words, **more) as response:
            yield response

    monkeypatch.setattr(Caller, "once", reached)
    with stepping(catalogue, config(listed, pacs), clock=clock) as steps:
        steps.look()
        do_jobs(catalogue)
        away = True
        for _ in range(20):
            assert steps.look() == 1
            clock.now += 1000
        away = False
        assert steps.look() == 0
    assert listed.state("1.2.1") == "COMPLETED"


def test_a_step_that_was_canceled_at_the_server_is_let_go(
    listed: Worklist, pacs: Server, catalogue: Catalogue
) -> None:
    listed.add(scheduled("1.2.1", STUDY))
    said: list[str] = []
    with stepping(catalogue, config(listed, pacs), said) as steps:
        steps.look()
        listed.steps["1.2.1"].ProcedureStepState = "CANCELED"
        do_jobs(catalogue)
        assert steps.look() == 0
    assert said[-1] == "canceled" and listed.history["1.2.1"][-1] == "IN PROGRESS"


def test_no_log_names_a_step_or_its_patient(
    listed: Worklist, pacs: Server, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    listed.add(scheduled("1.2.1234567", STUDY))
    listed.add(scheduled("1.2.7654321", str(instance(7, 0).StudyInstanceUID)))
    with stepping(catalogue, config(listed, pacs)) as steps:
        steps.look()
        do_jobs(catalogue)
        steps.look()
    assert "try 1" in caplog.text
    for word in ("1234567", "7654321", STUDY, "Canary", "MRN", "LIVER"):
        assert word not in caplog.text


def test_the_loop_ends_when_it_is_told(
    listed: Worklist, pacs: Server, catalogue: Catalogue
) -> None:
    listed.add(scheduled("1.2.1", STUDY))
    ended = threading.Event()

    def tell(word: str) -> None:
        if word == "queued":
            ended.set()

    do_steps(catalogue, config(listed, pacs, idle_s=0.01), ended, tell)
    assert listed.state("1.2.1") == "IN PROGRESS"


@pytest.mark.parametrize("options", [{}, {"label": "A*"}, {"station": "x" * 65}, {"label": "a\nb"}])
def test_only_named_steps_may_be_wanted(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="--label"):
        Wanted(**options)
