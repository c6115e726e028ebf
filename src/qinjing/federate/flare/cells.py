"""NVFlare's cells: one for the coordinator, one a site, and nothing that listens but one port."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.federate.flare.papers import COORDINATOR, Invitation, held

if TYPE_CHECKING:
    from nvflare.fuel.f3.cellnet.cell import Cell
    from nvflare.fuel.f3.message import Message

CHANNEL = "qinjing"
_LOG_BYTES, _LOGS = 10 * 2**20, 3
_STOP_S = 5.0


@contextmanager
def opened(name: str, folder: Path, invitation: Invitation) -> Iterator[Cell]:
    """Yield a cell, not yet started; receivers are registered before `cell.start()`.

    Args:
        name: `COORDINATOR`, or a site's.
        folder: with own.pem, own.key and root.pem; NVFlare's log is written there.
        invitation: where the coordinator is.
    """
    from nvflare.fuel.f3.cellnet.cell import Cell
    from nvflare.fuel.f3.cellnet.core_cell import CoreCell
    from nvflare.fuel.utils.config_service import ConfigService

    leads = name == COORDINATOR
    side, paths = ("server" if leads else "client"), held(folder)
    credentials = {
        "ca_cert": paths["root"],
        f"{side}_cert": paths["own"],
        f"{side}_key": paths["key"],
        "connection_security": "mtls",
    }
    # The coordinator listens on all addresses; a site connects by the certificate's name.
    url = f"grpc://{'0' if leads else invitation.host}:{invitation.port}"
    ConfigService.initialize(section_files={}, config_path=[str(folder)])
    with _logged(folder / "log.txt"):
        cell = Cell(fqcn=name, root_url=url, secure=True, credentials=credentials)
        cell.core_cell.add_incoming_filter(channel="*", topic="*", cb=_crooked, own=name)
        try:
            yield cell
        finally:
            stopping = threading.Thread(target=cell.stop, daemon=True)
            stopping.start()
            stopping.join(_STOP_S)  # a peer that is gone can hold it up
            CoreCell.ALL_CELLS.pop(name, None)  # or no other of the name may follow in this process


def asked(cell: Cell, target: str, topic: str, data: bytes, timeout_s: float) -> Message | None:
    """Send and wait; None where no answer comes, or one that is no answer."""
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode
    from nvflare.fuel.f3.message import Message

    try:
        reply = cell.send_request(
            channel=CHANNEL, target=target, topic=topic, request=Message(payload=data),
            timeout=timeout_s, optional=True,
        )  # fmt: skip
    except Exception:  # whatever the transport raises, it is no answer
        return None
    return reply if reply.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.OK else None


def answer(data: bytes = b"", **headers: str) -> Any:
    """Return a reply that `asked` returns at the other side."""
    from nvflare.fuel.f3.cellnet.defs import ReturnCode
    from nvflare.fuel.f3.cellnet.utils import make_reply

    reply = make_reply(ReturnCode.OK, body=data)
    reply.add_headers(headers)
    return reply


def origin(message: Message) -> str:
    """Return the cell that a request came from."""
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey

    return str(message.get_header(MessageHeaderKey.ORIGIN))


def why_not(folder: Path, invitation: Invitation) -> str:
    """Say why a site gets no answer: a handshake by hand, which is told what NVFlare is not."""
    paths = held(folder)
    context = ssl.create_default_context(cafile=paths["root"])
    context.load_cert_chain(paths["own"], paths["key"])
    context.set_alpn_protocols(["h2"])
    place = f"{invitation.host}:{invitation.port}"
    refused = f"{place} turns this site's certificate away"
    try:
        with (
            socket.create_connection((invitation.host, invitation.port), 5) as raw,
            context.wrap_socket(raw, server_hostname=invitation.host) as secure,
        ):
            secure.settimeout(5)
            # In TLS 1.3 only what follows the handshake tells whether it was accepted.
            if not secure.recv(1):
                return refused
    except ssl.SSLCertVerificationError as error:
        return f"{place} is not the coordinator of this federation: {error.verify_message}"
    except ssl.SSLError as error:
        return f"{refused}: {error.reason}"
    except ConnectionResetError:
        return refused
    except OSError as error:
        return f"{place} cannot be reached: {error.strerror or error}"
    return f"{place} is there, and does not answer yet"


def _crooked(message: Message, own: str) -> Message | None:
    """Drop what does not come straight from the neighbour whose certificate the connection proves.

    So no site reaches another, or speaks in another's name. What NVFlare would unpack into objects
    is dropped too: all that we send are bytes.
    """
    from nvflare.fuel.f3.cellnet.defs import Encoding, MessageHeaderKey, MessagePropKey, ReturnCode
    from nvflare.fuel.f3.cellnet.utils import make_reply
    from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey

    neighbour = message.get_prop(MessagePropKey.ENDPOINT).name
    straight = origin(message) == neighbour
    straight &= message.get_header(MessageHeaderKey.DESTINATION) == own
    places = (MessageHeaderKey.PAYLOAD_ENCODING, StreamHeaderKey.PAYLOAD_ENCODING)
    if straight and Encoding.FOBS not in [message.get_header(place) for place in places]:
        return None
    logging.getLogger(__name__).warning("dropped a message from %s", neighbour)
    return make_reply(ReturnCode.AUTHENTICATION_ERROR)


class _Log(RotatingFileHandler):
    """A file that threads which outlive the cell do not open again."""

    ended = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless it is over."""
        if not self.ended:
            super().emit(record)

    def close(self) -> None:
        """End it."""
        with self.lock or nullcontext():
            self.ended = True
            super().close()


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Keep what NVFlare logs in a file, and its warnings off the screen."""
    root = logging.getLogger()
    handler = _Log(path, maxBytes=_LOG_BYTES, backupCount=_LOGS, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()
