"""The coordinator's side: who is there, and how each is asked until it answers or time is over.

A request is handed over once and its answer is fetched; no call lasts long. A site that was killed
comes back under another number, knows of nothing, and is handed the request again.
"""

from __future__ import annotations

import hashlib
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.config import read_config
from qinjing.errors import ConfigError, QinjingError
from qinjing.federate.flare.cells import CHANNEL, answer, asked, opened, origin
from qinjing.federate.flare.papers import COORDINATOR, Invitation

if TYPE_CHECKING:
    from nvflare.fuel.f3.cellnet.cell import Cell
    from nvflare.fuel.f3.message import Message

_GONE_S = 30.0  # since a site was last heard of; it says every two seconds that it is there
_START_S = 60.0
_CALL_S = 20.0  # without progress, a call has failed


@contextmanager
def hosted(provisioned: Path) -> Iterator[Hosted]:
    """Yield a door to the sites that connect, listening while the block lasts.

    Args:
        provisioned: the folder that `papers.provision` made.

    Raises:
        FormatError: it is none.
        ConfigError: the port is taken.
    """
    invitation = read_config(provisioned / "invitation.json", Invitation)
    _claim(invitation.port)
    with opened(COORDINATOR, provisioned / "coordinator", invitation) as cell:
        door = Hosted(cell)
        cell.start()
        _await_listening(invitation.port)  # a cell that is stopped before that hangs
        yield door


class Hosted:
    """A door over NVFlare's cells.

    Args:
        cell: the coordinator's, not yet started.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._there: dict[str, tuple[str, float]] = {}  # name → (number of its life, last heard of)
        self._heard = threading.Condition()
        cell.register_request_cb(channel=CHANNEL, topic="here", cb=self._here)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that were heard of in the last half minute."""
        after = time.monotonic() - _GONE_S
        with self._heard:
            return tuple(sorted(n for n, (_, heard) in self._there.items() if heard > after))

    def wait_for(self, count: int, deadline_s: float) -> None:
        """Wait until so many sites are there.

        Raises:
            QinjingError: they did not come in time.
        """
        over = time.monotonic() + deadline_s
        while len(self.sites) < count:
            with self._heard:
                left = over - time.monotonic()
                if left <= 0:
                    raise QinjingError(
                        f"{count} sites must join within {deadline_s:.0f} s, {len(self.sites)} "
                        "did; see to the sites, then repeat the command"
                    )
                self._heard.wait(min(left, 1.0))

    def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Iterator[tuple[str, bytes]]:
        """Yield (site, answer) as answers come, until all are there or the time is over."""
        over = time.monotonic() + deadline_s
        answers: queue.Queue[tuple[str, bytes]] = queue.Queue()
        for site, request in requests.items():
            work = (site, request, over, answers)
            threading.Thread(target=self._ask_one, args=work, daemon=True).start()
        for _ in requests:
            try:
                yield answers.get(timeout=max(over - time.monotonic(), 0))
            except queue.Empty:
                return

    def _ask_one(
        self, site: str, request: bytes, over: float, answers: queue.Queue[tuple[str, bytes]]
    ) -> None:
        """Hand one site its request, as often as it comes back without it, and fetch the answer."""
        number = hashlib.sha256(request).hexdigest()
        handed = ""
        while (left := over - time.monotonic()) > 0:
            with self._heard:
                life = self._there.get(site, ("", 0.0))[0]
                if not life:
                    self._heard.wait(min(left, 1.0))
                    continue
            patience = min(left, _CALL_S)
            if life != handed:
                taken = asked(self._cell, site, "ask", request, patience)
                handed = life if taken else ""
                reply = None
            else:
                reply = asked(self._cell, site, "fetch", number.encode(), patience)
            state = "" if reply is None else str(reply.get_header("state"))
            if state == "done" and reply is not None:
                answers.put((site, bytes(reply.payload)))
                return
            if state == "unknown":
                handed = ""
            if not handed or (not state and reply is None and life == handed):
                with self._heard:
                    self._heard.wait(min(left, 1.0))

    def _here(self, message: Message) -> Any:
        """A site says that it is there."""
        with self._heard:
            life = json.loads(bytes(message.payload))["life"]
            self._there[origin(message)] = (str(life), time.monotonic())
            self._heard.notify_all()
        return answer()


def _claim(port: int) -> None:
    """Refuse a port that somebody listens on, which NVFlare would not tell."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                "port", "free", f"{port}, {error.strerror}",
                advice="is another coordinator at work on this machine?",
            ) from None  # fmt: skip


def _await_listening(port: int) -> None:
    over = time.monotonic() + _START_S
    while time.monotonic() < over:
        with suppress(OSError), socket.create_connection(("localhost", port), 1.0):
            return
        time.sleep(0.05)
    raise QinjingError(f"nothing listens on port {port} after {_START_S:.0f} s; see log.txt")
