"""The DICOM node, called by pynetdicom's own client over real sockets."""

from __future__ import annotations

import gc
import hashlib
import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("pydicom")
pytest.importorskip("pynetdicom")

from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from qinjing.data.database import Database
from qinjing.errors import ConfigError, QinjingError
from qinjing.serve.catalogue import Catalogue, study_key
from qinjing.serve.certificates import Certificates
from qinjing.serve.jobs import MOST_ATTEMPTS
from qinjing.serve.node import NodeConfig, described, node
from qinjing.serve.peer import PassingError
from qinjing.serve.send import Destination, send
from qinjing.serve.work import WorkConfig, work
from tests.clinic.orthanc import free_port
from tests.serve.conftest import signed_by_itself
from tests.serve.dicom import content, instance


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# pynetdicom leaves the socket of a refused connection to the garbage collector, which may come
# to it in a later test: so it is called at the end of each of these.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def catalogue(tmp_path: Path, clock: Clock) -> Iterator[Catalogue]:
    database = Database(tmp_path / "catalogue.sqlite", what="catalogue", extra="serve", create=True)
    yield Catalogue(tmp_path / "data", database, clock)
    database.close()


@pytest.fixture
def listening(catalogue: Catalogue) -> Iterator[tuple[str, int]]:
    config = NodeConfig(port=0, quiet_s=3600, kinds=("deidentify",), callers=("SCANNER",))
    with node(config, catalogue) as address:
        yield address


def call(
    address: tuple[str, int], *datasets: Any, called: str = "QINJING", calling: str = "SCANNER"
) -> list[int | None]:
    """Statuses of an echo and of each instance, nothing where no association was made."""
    ae = AE(ae_title=calling)
    ae.add_requested_context(Verification)
    for sop_class in (CTImageStorage, MRImageStorage):
        ae.add_requested_context(sop_class, ExplicitVRLittleEndian)
    association = ae.associate(*address, ae_title=called)
    if not association.is_established:
        return []
    answers = [association.send_c_echo()]
    answers += [association.send_c_store(one) for one in datasets]
    association.release()
    return [answer.get("Status") for answer in answers]


def test_what_was_answered_with_success_is_kept_once_as_it_was_sent(
    listening: tuple[str, int], catalogue: Catalogue
) -> None:
    sent = [instance(1, number) for number in range(3)]
    assert call(listening, *sent, sent[0]) == [0] * 5
    (study,) = catalogue.studies()
    assert study.instances == 3 and study.about["PatientID"] == "MRN000001"
    files = sorted(catalogue.place(study.study_instance_uid).iterdir())
    assert len(files) == 3
    for one in sent:
        file = catalogue.path(one.StudyInstanceUID, one.SOPInstanceUID)
        kept = dcmread(file)
        assert kept == one and kept.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert catalogue.sha256(one.SOPInstanceUID) == digest
        assert file.stat().st_mode & 0o077 == 0


def test_the_first_of_two_instances_of_one_uid_stays(
    listening: tuple[str, int], catalogue: Catalogue
) -> None:
    first, other = instance(1, 0), instance(1, 0, PatientID="another")
    assert call(listening, first, other) == [0, 0, 0]
    assert dcmread(catalogue.path(first.StudyInstanceUID, first.SOPInstanceUID)) == first


@pytest.mark.parametrize(("called", "calling"), [("SOMEBODY", "SCANNER"), ("QINJING", "STRANGER")])
def test_strangers_do_not_come_in(listening: tuple[str, int], called: str, calling: str) -> None:
    assert call(listening, instance(1, 0), called=called, calling=calling) == []


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # of the sender's own making
def test_what_is_no_instance_is_refused_and_the_rest_goes_on(
    listening: tuple[str, int], catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = instance(7, 0)
    del nowhere.StudyInstanceUID
    with pytest.warns(UserWarning, match="Invalid value"):
        path = instance(8, 0, StudyInstanceUID="../../etc/passwd")
    caplog.set_level(logging.DEBUG)
    assert call(listening, nowhere, path, instance(1, 0)) == [0, 0xC000, 0xC000, 0]
    assert [study.about["PatientID"] for study in catalogue.studies()] == ["MRN000001"]
    for word in ("Canary", "MRN0", "19500203", "passwd", instance(1, 0).SOPInstanceUID):
        assert word not in caplog.text


def test_a_full_disk_is_said_to_the_sender_and_nothing_is_recorded(
    listening: tuple[str, int], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("qinjing.serve.catalogue.os.fsync", _full)
        assert call(listening, instance(1, 0)) == [0, 0xA700]
    assert catalogue.studies() == []
    assert not [file for file in catalogue.folder.rglob("*") if file.is_file()]
    assert call(listening, instance(1, 0)) == [0, 0]  # once there is room


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_study_is_queued_when_it_is_quiet_and_again_when_more_comes(
    catalogue: Catalogue, clock: Clock
) -> None:
    def receive(number: int) -> None:
        file = content(instance(1, number))
        catalogue.keep(described(file), file)

    receive(0)
    clock.now += 4
    receive(1)
    clock.now += 4
    assert catalogue.queue_quiet(5, ["deidentify"]) == 0
    clock.now += 2
    assert catalogue.queue_quiet(5, ["deidentify"]) == 1
    assert catalogue.queue_quiet(5, ["deidentify"]) == 0
    receive(2)
    receive(2)
    clock.now += 6
    assert catalogue.queue_quiet(5, ["deidentify"]) == 1
    (job,) = catalogue.queue.of()  # what waited for two instances is done with three
    assert job.revision == 3


def test_studies_are_listed_newest_first_in_pages(catalogue: Catalogue, clock: Clock) -> None:
    for study in range(5):
        clock.now += 1
        file = content(instance(study, 0))
        catalogue.keep(described(file), file)
    seen: list[str] = []
    while page := catalogue.studies(after=study_key(seen[-1]) if seen else "", limit=2):
        seen += [study.study_instance_uid for study in page]
    assert seen == [instance(study, 0).StudyInstanceUID for study in (4, 3, 2, 1, 0)]
    assert catalogue.study(seen[0]) is not None and catalogue.study("1.2.3") is None


def test_a_complete_study_is_sent_on_without_its_patient(
    catalogue: Catalogue, clock: Clock
) -> None:
    pytest.importorskip("qinjing.data.dicom.deidentify")
    for number in range(3):
        file = content(instance(1, number))
        catalogue.keep(described(file), file)
    clock.now += 10
    catalogue.queue_quiet(5, ["deidentify"])
    port = free_port()
    with _archive(port) as got:
        destination = Destination.parse(f"ARCHIVE@127.0.0.1:{port}")
        config = WorkConfig(("deidentify",), secret=b"0123456789abcdef", destination=destination)
        ended = threading.Event()
        assert work(catalogue, config, ended, lambda *_: ended.set()) == 1
    (job,) = catalogue.queue.of(state="done")
    assert job.result["written"] == job.result["sent"] == 3
    originals = {instance(1, number).SOPInstanceUID for number in range(3)}
    assert len({one.SOPInstanceUID for one in got} - originals) == 3
    for one in got:
        assert one.PatientIdentityRemoved == "YES"
        for word in ("MRN000001", "Canary", "19500203", "ACC1"):
            assert word not in str(one)


def test_an_archive_may_be_away_for_as_long_as_it_likes(
    catalogue: Catalogue, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qinjing.data.dicom import deidentify_files as module

    file = content(instance(1, 0))
    catalogue.keep(described(file), file)
    clock.now += 10
    catalogue.queue_quiet(5, ["deidentify"])
    port = free_port()
    there = Destination("ARCHIVE", "127.0.0.1", port)
    config = WorkConfig(("deidentify",), secret=b"0123456789abcdef", destination=there)
    made: list[Path] = []
    really = module.deidentify_files

    def counted(place: Path, out: Path, *more: Any, **named: Any) -> Any:
        made.append(out)
        return really(place, out, *more, **named)

    monkeypatch.setattr(module, "deidentify_files", counted)

    def attempt() -> int:
        ended = threading.Event()
        return work(catalogue, config, ended, lambda *_: ended.set())

    for _ in range(MOST_ATTEMPTS + 2):
        assert attempt() == 0
        (job,) = catalogue.queue.of()
        assert job.state == "waiting" and "ARCHIVE does not answer" in job.reason
        clock.now += 61
    with pytest.raises(PassingError, match="does not answer"):
        send([catalogue.path(job.study_instance_uid, instance(1, 0).SOPInstanceUID)], there)
    with _archive(port) as got:
        assert attempt() == 1
    (job,) = catalogue.queue.of(state="done")
    assert job.result["sent"] == len(got) == 1
    assert len(made) == 1  # what waited was not made again
    assert not list(made[0].glob("*.json"))


@contextmanager
def _archive(
    port: int, certificates: Certificates | None = None, name: str = "ARCHIVE"
) -> Iterator[list[Dataset]]:
    """Another node, which keeps what it is sent."""
    got: list[Dataset] = []

    def take(event: evt.Event) -> int:
        got.append(event.dataset)
        return 0

    other = AE(ae_title=name)
    other.require_called_aet = True
    other.add_supported_context(CTImageStorage, ExplicitVRLittleEndian)
    server = other.start_server(
        ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, take)],
        ssl_context=certificates.listening() if certificates else None,
    )  # fmt: skip
    assert server is not None
    try:
        yield got
    finally:
        server.shutdown()


def test_results_go_out_over_tls(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    both = _both(tmp_path / "both.pem", certificate)
    file = tmp_path / "one.dcm"
    file.write_bytes(content(instance(1, 0)))
    port = free_port()
    text = f"ARCHIVE@127.0.0.1:{port}"
    with _archive(port, Certificates(cert, key, cert)) as got:
        place = Destination.parse(text, login=both, ca=cert)
        assert send([file], place) == 1 and len(got) == 1
    for login, ca in ((both, None), (None, cert)):
        with pytest.raises(ConfigError, match="given together"):
            Destination.parse(text, login=login, ca=ca)
    with pytest.raises(ConfigError, match="a key in PEM"):
        Destination.parse(text, login=cert, ca=cert)
    with pytest.raises(ConfigError, match="without --login and --ca"):
        Destination.parse(text, login=both, ca=cert, plain=True)


def test_an_archive_is_believed_by_who_signed_it_and_by_its_address(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "one.dcm"
    file.write_bytes(content(instance(1, 0)))
    other = signed_by_itself(tmp_path, "archive.hospital")
    port = free_port()
    for theirs, believed in ((other, certificate[0]), (other, other[0])):
        ours = _both(tmp_path / "both.pem", certificate)
        with _archive(port, Certificates(*theirs, certificate[0])) as got:
            place = Destination.parse(f"ARCHIVE@127.0.0.1:{port}", login=ours, ca=believed)
            with pytest.raises(QinjingError, match="do not believe each other's certificates"):
                send([file], place)
            assert got == []


def test_who_does_not_want_us_is_not_away(tmp_path: Path) -> None:
    file = tmp_path / "one.dcm"
    file.write_bytes(content(instance(1, 0)))
    port = free_port()
    with _archive(port, name="ANOTHER") as got:
        for title, said in (("ARCHIVE", "does not let QINJING in"), ("ANOTHER", "no such")):
            if title == "ANOTHER":
                file.write_bytes(content(instance(1, 0, SOPClassUID=MRImageStorage)))
            with pytest.raises(QinjingError, match=said) as raised:
                send([file], Destination(title, "127.0.0.1", port))
            assert not isinstance(raised.value, PassingError)
        assert got == []
    with pytest.raises(PassingError, match="is not found"):
        send([file], Destination("ARCHIVE", "nobody.invalid", port))


def test_what_waits_is_made_anew_for_another_profile_or_where_it_is_damaged(
    catalogue: Catalogue, clock: Clock, tmp_path: Path
) -> None:
    file = content(instance(1, 0, StudyDescription="Canary's abdomen"))
    catalogue.keep(described(file), file)
    clock.now += 10
    catalogue.queue_quiet(5, ["deidentify"])
    port = free_port()
    there = Destination("ARCHIVE", "127.0.0.1", port)

    def attempt(**more: Any) -> str:
        became: list[str] = []
        ended = threading.Event()
        config = WorkConfig(("deidentify",), destination=there, **more)
        work(catalogue, config, ended, lambda _, word: (became.append(word), ended.set()))
        clock.now += 61
        return became[0]

    before = {"secret": b"0123456789abcdef", "keep": ("descriptors",)}
    assert attempt(**before) == "waiting"
    (waiting,) = catalogue.folder.rglob("waiting.json")
    assert "abdomen" in str(dcmread(next(waiting.parent.rglob("*.dcm"))))
    for damage in (lambda: waiting.write_bytes(b"{"), next(waiting.parent.rglob("*.dcm")).unlink):
        damage()
        assert attempt(**before) == "waiting"
    after = {"secret": b"fedcba9876543210"}
    with _archive(port) as got:
        assert attempt(**after) == "done"
    assert len(got) == 1 and "abdomen" not in str(got[0])


def test_who_waits_for_an_archive_holds_up_nobody(catalogue: Catalogue, clock: Clock) -> None:
    away = Destination("ARCHIVE", "127.0.0.1", free_port())
    config = WorkConfig(("deidentify",), secret=b"0123456789abcdef", destination=away)
    for study in (1, 2):
        file = content(instance(study, 0))
        catalogue.keep(described(file), file)
    clock.now += 10
    catalogue.queue_quiet(5, ["deidentify"])
    for _ in range(2):
        ended = threading.Event()
        work(catalogue, config, ended, lambda *_: ended.set())  # noqa: B023
    clock.now += 3600  # both are due for long
    file = content(instance(3, 0))
    catalogue.keep(described(file), file)
    clock.now += 10
    catalogue.queue_quiet(5, ["deidentify"])
    job = catalogue.queue.take("somebody", ["deidentify"])
    assert job is not None and job.study_instance_uid == instance(3, 0).StudyInstanceUID


def _both(path: Path, pair: tuple[Path, Path]) -> Path:
    path.write_bytes(b"".join(one.read_bytes() for one in pair))
    return path


def test_no_study_leaves_this_machine_without_tls_unless_one_says_so() -> None:
    with pytest.raises(ConfigError, match="over TLS, unless it is on this machine"):
        Destination.parse("ARCHIVE@pacs.hospital:104")
    found = Destination.parse("ARCHIVE@pacs.hospital:104", plain=True)
    assert found == Destination("ARCHIVE", "pacs.hospital", 104)


def test_over_tls_only_who_shows_a_certificate_comes_in(
    catalogue: Catalogue, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    config = NodeConfig(port=0, tls_cert=cert, tls_key=key, tls_ca=cert)
    with node(config, catalogue) as address:
        assert _associates(address, None) is False
        context = ssl.create_default_context(cafile=cert)
        assert _associates(address, context) is False
        context.load_cert_chain(cert, key)
        assert _associates(address, context) is True
    with (
        pytest.raises(ConfigError, match="certificates and a key in PEM"),
        node(NodeConfig(port=0, tls_cert=key, tls_key=cert, tls_ca=cert), catalogue),
    ):
        pass


def _associates(address: tuple[str, int], context: ssl.SSLContext | None) -> bool:
    """Whether an echo is answered."""
    ae = AE(ae_title="SCANNER")
    ae.add_requested_context(Verification)
    ae.acse_timeout = ae.dimse_timeout = 5
    tls = (context, "127.0.0.1") if context else None
    association = ae.associate(*address, ae_title="QINJING", tls_args=tls)
    if not association.is_established:
        connection = association.dul.socket.socket  # which pynetdicom leaves open
        if connection is not None:
            connection.close()
        return False
    status = association.send_c_echo().get("Status")
    association.release()
    return bool(status == 0)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"host": "0.0.0.0"}, "an address of this machine alone while there is no TLS"),
        ({"ae_title": ""}, "1 to 16 printable ASCII letters"),
        ({"ae_title": "A" * 17}, "1 to 16 printable ASCII letters"),
        ({"tls_cert": Path("x")}, "given together"),
        (
            {"host": "0.0.0.0", "tls_cert": Path("x"), "tls_key": Path("x"), "tls_ca": Path("x")},
            "named where others reach the port",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        NodeConfig(**options)


@pytest.mark.parametrize(
    "text", ["", "ARCHIVE", "ARCHIVE@host", "A" * 17 + "@h:1", "A@h:0", "A@h:70000"]
)
def test_a_destination_is_named_in_one_form(text: str) -> None:
    with pytest.raises(ConfigError, match="AET@HOST:PORT"):
        Destination.parse(text)
