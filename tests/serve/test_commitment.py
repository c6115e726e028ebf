"""Storage commitment, asked for by pynetdicom's own client; tests/clinic has Orthanc."""

from __future__ import annotations

import logging
import queue
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

from pydicom import Dataset
from pydicom.uid import MRImageStorage, generate_uid
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel

from qinjing.errors import ConfigError
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.commitment import MODEL, WELL_KNOWN, Commitment, Report, _same, report_on
from qinjing.serve.node import NodeConfig, described, node
from qinjing.serve.send import Destination
from tests.serve.dicom import ROOT, content, instance


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    made = open_catalogue(tmp_path / "studies")
    for number in range(3):
        file = content(instance(1, number))
        made.keep(described(file), file)
    return made


class Asker:
    """Who asks for storage commitment, and what he is told."""

    def __init__(self) -> None:
        self.told: queue.Queue[tuple[int, Dataset]] = queue.Queue()
        self.ae = AE(ae_title="SCANNER")
        self.ae.add_requested_context(StorageCommitmentPushModel)
        self.handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, self._tell)]

    def _tell(self, event: Any) -> tuple[int, None]:
        assert event.request.AffectedSOPInstanceUID == WELL_KNOWN
        self.told.put((event.request.EventTypeID, event.event_information))
        return 0, None

    @contextmanager
    def listening(self, context: ssl.SSLContext | None = None) -> Iterator[Destination]:
        """Take reports on an association that the provider begins: PS3.4, J.3.3."""
        ae = AE(ae_title="SCANNER")
        ae.add_supported_context(StorageCommitmentPushModel, scu_role=False, scp_role=True)
        server = ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=self.handlers, ssl_context=context
        )
        assert server is not None
        try:
            yield Destination("SCANNER", "127.0.0.1", server.server_address[1])
        finally:
            server.shutdown()

    def ask(
        self, address: tuple[str, int], *named: Dataset, action: int = 1, about: str = WELL_KNOWN,
        wait: bool = False, transaction: str | None = None, tls: Any = None,
    ) -> int | None:  # fmt: skip
        """The status of the answer; `wait` keeps the association until a report has come."""
        association = self.ae.associate(
            *address, ae_title="QINJING", evt_handlers=self.handlers, tls_args=tls
        )
        assert association.is_established
        request = Dataset()
        if transaction != "":
            request.TransactionUID = transaction or generate_uid()
        request.ReferencedSOPSequence = [*map(reference, named)]
        status, _ = association.send_n_action(request, action, StorageCommitmentPushModel, about)
        if wait:
            told = self.told.get(timeout=30)
            self.told.put(told)
        association.release()
        return status.get("Status")


def reference(dataset: Dataset) -> Dataset:
    one = Dataset()
    one.ReferencedSOPClassUID = dataset.SOPClassUID
    one.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    return one


def names(sequence: Any) -> list[str]:
    return [str(one.ReferencedSOPInstanceUID) for one in sequence]


def test_what_is_here_is_committed_to_on_the_association_of_the_request(
    catalogue: Catalogue,
) -> None:
    asker, sent = Asker(), [instance(1, number) for number in range(3)]
    with node(NodeConfig(port=0), catalogue) as address:
        assert asker.ask(address, *sent, wait=True, transaction="2.25.7") == 0
    kind, told = asker.told.get_nowait()
    assert kind == 1 and told.TransactionUID == "2.25.7" and "FailedSOPSequence" not in told
    assert names(told.ReferencedSOPSequence) == [one.SOPInstanceUID for one in sent]
    assert {one.ReferencedSOPClassUID for one in told.ReferencedSOPSequence} == {
        sent[0].SOPClassUID
    }


def test_what_is_not_here_is_named_with_the_reason(catalogue: Catalogue) -> None:
    asker = Asker()
    never, lost, cut, other = (instance(2, 0), *(instance(1, number) for number in range(3)))
    catalogue.path(lost.StudyInstanceUID, lost.SOPInstanceUID).unlink()
    path = catalogue.path(cut.StudyInstanceUID, cut.SOPInstanceUID)
    path.write_bytes(path.read_bytes()[:-1])
    other.SOPClassUID = MRImageStorage  # another than it was sent as
    with node(NodeConfig(port=0), catalogue) as address:
        assert asker.ask(address, never, lost, cut, other, wait=True) == 0
    kind, told = asker.told.get_nowait()
    assert kind == 2 and "ReferencedSOPSequence" not in told
    assert [one.FailureReason for one in told.FailedSOPSequence] == [0x112, 0x112, 0x112, 0x119]
    assert names(told.FailedSOPSequence)[0] == never.SOPInstanceUID


def test_who_takes_reports_elsewhere_gets_them_there(catalogue: Catalogue) -> None:
    asker = Asker()
    with asker.listening() as place:
        config = NodeConfig(port=0, callers=(f"SCANNER@127.0.0.1:{place.port}", "OTHER"))
        with node(config, catalogue) as address:
            assert asker.ask(address, instance(1, 0), instance(2, 0)) == 0
            kind, told = asker.told.get(timeout=30)
    assert kind == 2
    assert names(told.ReferencedSOPSequence) == [instance(1, 0).SOPInstanceUID]
    assert names(told.FailedSOPSequence) == [instance(2, 0).SOPInstanceUID]


def test_reports_go_over_tls_where_the_node_speaks_it(
    catalogue: Catalogue, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    asker = Asker()
    server, client = (ssl.SSLContext(one) for one in (
        ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT))  # fmt: skip
    for one in (server, client):
        one.load_cert_chain(cert, key)
        one.load_verify_locations(cert)
    server.verify_mode = ssl.CERT_REQUIRED  # it must show a certificate of its own
    with asker.listening(server) as place:
        config = NodeConfig(
            port=0, callers=(f"SCANNER@127.0.0.1:{place.port}",), tls_cert=cert, tls_key=key,
            tls_ca=cert,
        )  # fmt: skip
        with node(config, catalogue) as address:
            assert asker.ask(address, instance(1, 0), tls=(client, "127.0.0.1")) == 0
            assert asker.told.get(timeout=30)[0] == 1


# pynetdicom leaves the socket of a refused connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_who_is_away_is_tried_again(catalogue: Catalogue) -> None:
    """The first tries find nobody; then he is there."""
    asker, tries = Asker(), threading.Semaphore(0)
    with asker.listening() as place:
        pass  # the port is known, and nobody is there
    commitment = Commitment(catalogue, [place], pauses_s=(0, 0.05, 0.05, 0.05))
    request = Dataset()
    request.TransactionUID = "2.25.7"
    request.ReferencedSOPSequence = [reference(instance(1, 0))]
    report = report_on(catalogue, request)
    told: list[bool] = []

    def tell() -> bool:
        tries.release()
        told.append(len(told) == 2)
        return told[-1]

    commitment._waiting = 1
    commitment._deliver(tell, once=False)
    assert told == [False, False, True] and commitment._waiting == 0
    assert commitment._anew(report, place) is False
    commitment.__exit__()


def test_requests_of_another_kind_are_refused(
    catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asker, one = Asker(), instance(1, 0)
    with node(NodeConfig(port=0), catalogue) as address:
        assert asker.ask(address, one, action=2) == 0x0123
        assert asker.ask(address, one, about="1.2.3") == 0x0112
        assert asker.ask(address) == 0x0115
        assert asker.ask(address, one, transaction="") == 0x0115
    assert asker.told.empty()
    for word in (one.SOPInstanceUID, "Canary", "MRN"):
        assert word not in caplog.text


# Who goes before the report is there aborts or releases it: no thread may hang on him.
def test_who_does_not_wait_for_the_report_holds_nobody_up(catalogue: Catalogue) -> None:
    asker = Asker()
    with node(NodeConfig(port=0), catalogue) as address:
        for _ in range(20):
            assert asker.ask(address, instance(1, 0)) == 0
        assert asker.ask(address, instance(1, 0), wait=True) == 0
    left = [one.name for one in threading.enumerate() if one.name.startswith("commitment")]
    assert left == []


def test_what_is_asked_while_a_report_is_on_its_way_is_left_for_its_turn() -> None:
    """An association of our own making: pynetdicom's client takes a report for his answer then."""
    from pynetdicom.dimse import DIMSEServiceProvider
    from pynetdicom.dimse_primitives import N_ACTION, N_EVENT_REPORT
    from pynetdicom.presentation import build_context

    context = build_context(MODEL)
    context.context_id = 1
    request, answer = N_ACTION(), N_EVENT_REPORT()
    request.MessageID, answer.MessageIDBeingRespondedTo, answer.Status = 2, 1, 0

    class Association:
        _reactor_checkpoint, _is_paused, is_established = threading.Event(), True, True
        accepted_contexts, dimse_timeout = (context,), 1

        def is_alive(self) -> bool:
            return True

        class dul:
            @staticmethod
            def peek_next_pdu() -> None: ...

    association: Any = Association()
    association.dimse = DIMSEServiceProvider(association)

    sent: list[Any] = []

    def send(message: Any, _: int) -> None:
        sent.append(message)
        for one in (request, answer):
            association.dimse.msg_queue.put((1, one))

    association.dimse.send_msg = send
    assert _same(Report("2.25.7", (("1.2", "3.4"),), ()), association) is True
    assert sent[0].EventTypeID == 1
    assert association.dimse.msg_queue.get_nowait() == (1, request)
    assert association._reactor_checkpoint.is_set()


def test_no_more_than_so_many_reports_wait(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinjing.serve.commitment._WAITING", 0)
    asker = Asker()
    with node(NodeConfig(port=0), catalogue) as address:
        assert asker.ask(address, instance(1, 0)) == 0x0213


def test_thousands_of_instances_are_looked_up_at_once(catalogue: Catalogue) -> None:
    uids = [f"{ROOT}.1.1.{number}" for number in range(2000)]
    assert sorted(catalogue.held(uids)) == sorted(uids[:3])
    assert str(StorageCommitmentPushModel) == MODEL


@pytest.mark.parametrize("caller", ["A@host", "A@host:0", "@host:1", "A" * 17])
def test_callers_are_named_in_two_forms(caller: str) -> None:
    with pytest.raises(ConfigError, match=r"AET or AET@HOST:PORT|1 to 16"):
        NodeConfig(callers=(caller,))
