"""Storage commitment: say to who sent instances which of them are here for good.

Who asks is answered at once that he was heard; the report follows, on an association of its own
where it is known where he takes reports, else on the one on which he asked.

Source: DICOM PS3.4, annex J; PS3.3, C.14 (reasons of failure).
"""

from __future__ import annotations

import io
import logging
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qinjing.errors import ConfigError
from qinjing.serve.catalogue import Catalogue
from qinjing.serve.send import Destination

if TYPE_CHECKING:
    from pydicom import Dataset
    from pynetdicom.association import Association
    from pynetdicom.events import Event

LOG = logging.getLogger("qinjing.serve.commitment")
WELL_KNOWN = "1.2.840.10008.1.20.1.1"  # the instance that requests are about, PS3.4, J.3.5
MODEL = "1.2.840.10008.1.20.1"
_REQUEST, _ALL, _SOME = 1, 1, 2  # action type; event types
_SUCCESS, _PROCESSING, _NO_INSTANCE, _CONFLICT = 0x0000, 0x0110, 0x0112, 0x0119
_BAD_ARGUMENT, _NO_ACTION, _RESOURCES = 0x0115, 0x0123, 0x0213
_WAITING = 1000  # reports, before more requests are put off
_AT_ONCE = 4
_PAUSES_S = (0.0, 5.0, 30.0, 120.0)  # before each try to reach who asked
_SOON_S, _GLANCE_S = 10.0, 0.001


@dataclass(frozen=True)
class Report:
    """What is here of what somebody asked for.

    Attributes:
        transaction: UID of the request.
        kept: SOP class and instance UIDs of what is here.
        failed: the same of what is not, and why.
    """

    transaction: str
    kept: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str, int], ...]

    @property
    def event_type(self) -> int:
        """1 where all is here, else 2."""
        return _SOME if self.failed else _ALL

    def dataset(self) -> Dataset:
        """The event's information: PS3.4, table J.3-2."""
        from pydicom import Dataset

        dataset = Dataset()
        dataset.TransactionUID = self.transaction
        references = [_reference(*one) for one in self.kept]
        if references:
            dataset.ReferencedSOPSequence = references
        if self.failed:
            dataset.FailedSOPSequence = []
            for kind, instance, reason in self.failed:
                reference = _reference(kind, instance)
                reference.FailureReason = reason
                dataset.FailedSOPSequence.append(reference)
        return dataset


def report_on(catalogue: Catalogue, information: Dataset) -> Report:
    """Look for what a request names.

    Args:
        catalogue: where it should be.
        information: the action's: PS3.4, table J.3-1.

    Raises:
        ValueError: it names nothing.
    """
    transaction = str(information.get("TransactionUID") or "")
    named = [(str(one.get("ReferencedSOPClassUID") or ""),
              str(one.get("ReferencedSOPInstanceUID") or ""))
             for one in information.get("ReferencedSOPSequence") or []]  # fmt: skip
    if not transaction or not named or not all(all(one) for one in named):
        raise ValueError("a request names its transaction and instances")
    try:
        here = catalogue.held([instance for _, instance in named])
    except ConfigError as error:
        LOG.error("the catalogue could not be asked: %s", error)
        failed = [(kind, instance, _PROCESSING) for kind, instance in named]
        return Report(transaction, (), tuple(failed))
    kept, missing = [], []
    for kind, instance in named:
        if instance not in here:
            missing.append((kind, instance, _NO_INSTANCE))
        elif here[instance] != kind:
            missing.append((kind, instance, _CONFLICT))
        else:
            kept.append((kind, instance))
    return Report(transaction, tuple(kept), tuple(missing))


class Commitment:
    """Answers requests, and reports to who asked, as a context manager.

    Args:
        catalogue: what is here.
        addresses: where callers take reports, by their AE titles.
        context: of TLS, for associations of our own; None makes them without.
        pauses_s: before each try to reach who asked.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        addresses: Sequence[Destination] = (),
        context: ssl.SSLContext | None = None,
        pauses_s: Sequence[float] = _PAUSES_S,
    ) -> None:
        self._catalogue, self._context, self._pauses_s = catalogue, context, pauses_s
        self._addresses = {one.ae_title: one for one in addresses}
        self._ended, self._waiting = threading.Event(), 0
        self._lock, self._threads = threading.Lock(), ThreadPoolExecutor(_AT_ONCE, "commitment")

    def __enter__(self) -> Commitment:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def asked(self, event: Event) -> tuple[int, None]:
        """Hear a request; a status of N-ACTION, and no reply."""
        request: Any = event.request
        if request.ActionTypeID != _REQUEST:
            return _NO_ACTION, None
        if request.RequestedSOPInstanceUID != WELL_KNOWN:
            return _NO_INSTANCE, None
        with self._lock:
            if self._waiting >= _WAITING or self._ended.is_set():
                return _RESOURCES, None
            self._waiting += 1
        try:
            report = report_on(self._catalogue, event.action_information)
        except Exception as error:  # pydicom names no common class of what damaged bytes make of it
            LOG.warning("a request of storage commitment was refused: %s", type(error).__name__)
            self._done()
            return _BAD_ARGUMENT, None
        address = self._addresses.get(str(event.assoc.remote["ae_title"]).strip())
        association = event.assoc
        self._threads.submit(
            self._deliver, (lambda: self._anew(report, address)) if address else
            (lambda: _same(report, association)), once=address is None,
        )  # fmt: skip
        return _SUCCESS, None

    def _deliver(self, tell: Callable[[], bool], once: bool) -> None:
        """Tell of a report, now or later; who is not reached in the end will ask again."""
        try:
            for pause in self._pauses_s[: 1 if once else None]:
                if self._ended.wait(pause):
                    return
                try:
                    if tell():
                        return
                except Exception as error:  # the other side decides what comes
                    LOG.warning("a report could not be given: %s", type(error).__name__)
            LOG.warning("who asked for storage commitment was not reached")
        finally:
            self._done()

    def _done(self) -> None:
        with self._lock:
            self._waiting -= 1

    def _anew(self, report: Report, address: Destination) -> bool:
        """Report on an association of our own, on which we are the provider."""
        from pynetdicom import AE, build_role

        ae = AE(ae_title=address.calling)
        ae.acse_timeout = ae.connection_timeout = ae.dimse_timeout = _SOON_S
        ae.network_timeout = _SOON_S
        ae.add_requested_context(MODEL)
        tls = (self._context, address.host) if self._context else None
        association = ae.associate(
            address.host, address.port, ae_title=address.ae_title, tls_args=tls,
            ext_neg=[build_role(MODEL, scu_role=False, scp_role=True)],
        )  # fmt: skip
        if not association.is_established:
            return False
        try:
            return _told(report, association)
        finally:
            association.release()


def _same(report: Report, association: Association) -> bool:
    """Report on the association of the request, once its answer is sent.

    Not by pynetdicom's own method, which waits for ever for the thread of an association that ends
    just now, and keeps who releases one without waiting for a report from doing so.
    """
    early: list[Any] = []
    association._reactor_checkpoint.clear()
    try:
        while not association._is_paused:
            if not association.is_alive():
                return False
            time.sleep(_GLANCE_S)
        if not association.is_established or _is_released(association):
            return False
        _send(report, association)
        until = time.monotonic() + _SOON_S
        while time.monotonic() < until and association.is_alive():
            number, message = association.dimse.get_msg(block=False)
            if message is not None and getattr(message, "is_valid_response", False):
                return bool(getattr(message, "Status", None) == _SUCCESS)
            if message is not None:  # he asks for more meanwhile
                early.append((number, message))
            if _is_released(association):
                return False
            time.sleep(_GLANCE_S)
        return False
    finally:
        for one in early:
            association.dimse.msg_queue.put(one)
        association._reactor_checkpoint.set()


def _send(report: Report, association: Association) -> None:
    from pynetdicom.dimse_primitives import N_EVENT_REPORT
    from pynetdicom.dsutils import encode

    context = next(one for one in association.accepted_contexts if one.abstract_syntax == MODEL)
    syntax = context.transfer_syntax[0]
    information = encode(
        report.dataset(), syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated
    )
    request = N_EVENT_REPORT()
    request.MessageID = 1
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = MODEL, WELL_KNOWN
    request.EventTypeID = report.event_type
    request.EventInformation = io.BytesIO(information or b"")
    association.dimse.send_msg(request, context.context_id or 0)


def _is_released(association: Association) -> bool:
    """Whether the other side wants to go; its word is left for who answers it."""
    from pynetdicom.pdu_primitives import A_RELEASE

    return isinstance(association.dul.peek_next_pdu(), A_RELEASE)


def _told(report: Report, association: Association) -> bool:
    status, _ = association.send_n_event_report(
        report.dataset(), report.event_type, MODEL, WELL_KNOWN
    )
    return bool(status.get("Status") == _SUCCESS)


def _reference(kind: str, instance: str) -> Dataset:
    from pydicom import Dataset

    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = kind, instance
    return reference
