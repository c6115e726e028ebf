"""A site's side: it connects out, says that it is there, and works on what it is asked for."""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.config import read_config
from qinjing.errors import InputError
from qinjing.federate.flare.cells import CHANNEL, answer, asked, opened, origin, why_not
from qinjing.federate.flare.papers import COORDINATOR, Invitation, Membership
from qinjing.federate.message import Message
from qinjing.federate.policy import Policy, SiteConfig
from qinjing.federate.site import Site

if TYPE_CHECKING:
    from nvflare.fuel.f3.cellnet.cell import Cell
    from nvflare.fuel.f3.message import Message as Carried

_BEAT_S = 2.0
_HOLD_S = 5.0  # that a question for an answer is held back while the work goes on
Tell = Callable[[str, dict[str, Any]], None]


def attend(folder: Path, tell: Tell) -> None:
    """Be a site of a federation until stopped; what is done is kept in the folder.

    Args:
        folder: of a site that was accepted. Data set, splits and policy are read from it here and
            nowhere else.
        tell: told of ("joined" | "apart" | "asked" | "answered", fields).

    Raises:
        FormatError: a file of the folder is missing or damaged.
        ConfigError: it has a field that nobody knows.
    """
    member = read_config(folder / "site.json", Membership)
    peers = folder / "peers.json"
    config = SiteConfig(
        member.name,
        Path(member.dataset),
        folder.resolve() / "work",
        read_config(folder / "policy.json", Policy),
        Path(member.splits) if member.splits else None,
        identity=folder / "identity.pem",
        peers=peers if peers.exists() else None,
    )
    invitation = read_config(folder / "invitation.json", Invitation)
    desk = Desk()
    with opened(member.name, folder, invitation) as cell:
        cell.register_request_cb(channel=CHANNEL, topic="ask", cb=desk.take)
        cell.register_request_cb(channel=CHANNEL, topic="fetch", cb=desk.give)
        cell.start()
        why = (folder, invitation)
        threading.Thread(target=_beat, args=(cell, tell, *why), daemon=True).start()
        desk.serve(Site(config), tell)


class Desk:
    """Where requests are laid down and answers fetched, one at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: tuple[str, bytes] | None = None
        self._working = ""
        self._done: tuple[str, bytes] | None = None

    def take(self, message: Carried) -> Any:
        """Lay a request down; a newer one takes the place of one that nobody began."""
        if origin(message) != COORDINATOR:
            return answer(state="refused")
        data = bytes(message.payload)
        number = hashlib.sha256(data).hexdigest()
        with self._changed:
            done = self._done is not None and self._done[0] == number
            if done and self._done and Message.unpack(self._done[1]).verb == "refused":
                done = False  # what stood in the way may be gone
            if not done and number != self._working:
                self._waiting = number, data
                self._changed.notify_all()
        return answer(state="taken")

    def give(self, message: Carried) -> Any:
        """Hand out an answer, or say how things stand."""
        if origin(message) != COORDINATOR:
            return answer(state="refused")
        number = bytes(message.payload).decode("ascii", "replace")
        with self._changed:
            self._changed.wait_for(lambda: not self._is_coming(number), _HOLD_S)
            if self._done is not None and self._done[0] == number:
                return answer(self._done[1], state="done")
            return answer(state="working" if self._is_coming(number) else "unknown")

    def serve(self, site: Site, tell: Tell) -> None:
        """Answer what is laid down, for ever."""
        while True:
            with self._changed:
                while self._waiting is None:
                    self._changed.wait()
                self._working, data = self._waiting
                self._waiting = None
            done = self._working, _answered(site, data, tell)
            with self._changed:
                self._done, self._working = done, ""
                self._changed.notify_all()

    def _is_coming(self, number: str) -> bool:
        waiting = self._waiting is not None and self._waiting[0] == number
        return waiting or self._working == number


def _answered(site: Site, data: bytes, tell: Tell) -> bytes:
    """The site's answer; its failure is an answer as well, which tells of no case."""
    try:
        asked_for = Message.unpack(data)
        about = {"verb": asked_for.verb, "round": asked_for.fields.get("round")}
        tell("asked", about)
        told = site.answer(data)
        reply = Message.unpack(told)
        tell("answered", {**about, "answer": reply.verb, "reason": reply.fields.get("reason")})
        return told
    except InputError as error:
        return Message("refused", {"reason": str(error)}).pack()
    except Exception as error:  # a field of another kind than we send must not end the site
        # Its words may name a file, and a file a patient: they stay on this screen.
        reason = f"the site failed, {type(error).__name__}; its own screen says more"
        tell("answered", {"answer": "failed", "reason": f"{type(error).__name__}: {error}"})
        return Message("refused", {"reason": reason}).pack()


def _beat(cell: Cell, tell: Tell, folder: Path, invitation: Invitation) -> None:
    """Say every few seconds that this site is there, under a number of this process's life."""
    life = json.dumps({"life": uuid.uuid4().hex}).encode()
    wait = threading.Event()
    before: str | None = None
    while True:
        there = asked(cell, COORDINATOR, "here", life, 10.0) is not None
        state = "joined" if there else why_not(folder, invitation)
        if state != before:
            tell("joined" if there else "apart", {"host": invitation.host, "reason": state})
        before = state
        wait.wait(_BEAT_S)
