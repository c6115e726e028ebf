"""What the routes of MONAI Label's protocol keep between requests: sessions, turns, trainings."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request

from qinjing.errors import InputError
from qinjing.serve.auth import Token
from qinjing.serve.guard import Refusal
from qinjing.serve.labelling.train import Trainings

SESSION_S = 3600.0
_MOST_SESSIONS = 10  # of one person; the oldest makes room
_WAITING = 4  # requests for a model's answer at once; more are asked to come again
_made = threading.Lock()


@dataclass
class Session:
    """An image that somebody brought to be segmented, and that is not kept.

    Attributes:
        person: who.
        image: its NIfTI file.
        made: seconds since 1970.
        seen: when it was last asked for.
        life_s: seconds after which nobody asked, and it is gone.
    """

    person: str
    image: Path
    made: float
    seen: float
    life_s: float

    def told(self, session_id: str) -> dict[str, Any]:
        """Return what a client knows of it, without a place of this machine."""
        return {
            "name": session_id, "path": "", "image": self.image.name, "meta": {},
            "create_ts": int(self.made), "last_access_ts": int(self.seen),
            "expiry": int(self.life_s),
        }  # fmt: skip


@dataclass
class Desk:
    """What the routes keep between requests.

    Attributes:
        folder: of trainings and sessions.
        trainings: see there.
        handed: (token id, image id) → when that was told as the next one.
        values: (segmentation id, version) → the label values that it holds.
        sessions: id → session.
        lock: held for each look at these.
    """

    folder: Path
    trainings: Trainings
    handed: dict[tuple[str, str], float] = field(default_factory=dict)
    values: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _queue: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_WAITING))

    @contextmanager
    def place_in_line(self) -> Iterator[None]:
        """Be one of the few who may wait for a model.

        Raises:
            Refusal: 503, too many wait already.
        """
        if not self._queue.acquire(blocking=False):
            raise Refusal(503, "busy", "models are busy: ask again soon", {"Retry-After": "30"})
        try:
            yield
        finally:
            self._queue.release()

    @contextmanager
    def turn(self) -> Iterator[Path]:
        """Wait for the models, which answer one at a time; yield an empty folder.

        Raises:
            Refusal: 503, too many wait already.
        """
        fresh = tempfile.TemporaryDirectory(prefix="qinjing-")
        with self.place_in_line(), self._turn, fresh as folder:
            yield Path(folder)

    def keep_session(self, person: str, image: Path, life_s: float) -> str:
        """Keep an image for a while; return the id by which it is asked for."""
        session_id, now = secrets.token_hex(16), time.time()
        folder = self.folder / "sessions"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = folder / f"{session_id}{'.nii.gz' if image.name.endswith('.gz') else '.nii'}"
        shutil.move(image, place)
        with self.lock:
            own = [key for key, one in self.sessions.items() if one.person == person]
            for key in own[: max(0, len(own) + 1 - _MOST_SESSIONS)]:
                self.sessions.pop(key).image.unlink(missing_ok=True)
            life_s = min(life_s, SESSION_S) if life_s > 0 else SESSION_S
            self.sessions[session_id] = Session(person, place, now, now, life_s)
        return session_id

    def session(self, who: Token, session_id: str, *, ends: bool = False) -> Session:
        """Return a person's session.

        Raises:
            Refusal: 404, there is none of that person's.
        """
        now = time.time()
        with self.lock:
            for key, one in list(self.sessions.items()):
                if one.seen + one.life_s < now:
                    self.sessions.pop(key).image.unlink(missing_ok=True)
            found = self.sessions.get(session_id)
            if found is None or found.person != who.person:
                raise Refusal(404, "session", "session must be one that is here")
            found.seen = now
            if ends:
                self.sessions.pop(session_id).image.unlink(missing_ok=True)
        return found


def desk(request: Request) -> Desk:
    """Return what the routes keep between requests, made by the first."""
    state = request.app.state
    with _made:
        if not hasattr(state, "labelling"):
            folder: Path = state.catalogue.folder / "labelling"
            shutil.rmtree(folder / "sessions", ignore_errors=True)  # they end with the service
            state.labelling = Desk(folder, Trainings(folder / "training"))
    known: Desk = state.labelling
    return known


def object_in(text: str) -> dict[str, Any]:
    """What a client says beside a file.

    Raises:
        Refusal: 400, it is no JSON object.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Refusal(400, "params", "params must be a JSON object")
    return said


@contextmanager
def sent() -> Iterator[None]:
    """Answer what is wrong with what a client sent as his fault, without a place of this machine.

    Raises:
        Refusal: 400.
    """
    try:
        yield
    except InputError as error:
        raise Refusal(400, "sent", str(error).replace(f" ({error.where})", "")) from None
