"""Who may come in: tokens with roles, sessions, and a brake on guessing.

A token is 256 random bits, printed once when it is made; the file keeps a salted SHA-256 of it,
which for so many random bits is as hard to invert as any slower hash. Lines are only appended to
the file: a token made, or a token revoked.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any, Literal

from qinjing.config import from_json
from qinjing.errors import ConfigError, FormatError
from qinjing.evidence.envelope import locked

Role = Literal["ethics", "reader", "patient", "annotator", "admin"]
ROLES: tuple[Role, ...] = ("ethics", "reader", "patient", "annotator", "admin")
Right = Literal[
    "consent.read", "consent.change", "study.read", "annotate", "confirm", "train", "admin"
]
# A patient's rights are those over his own consents, and a project's readers see its images.
RIGHTS: Mapping[Role, tuple[Right, ...]] = {
    "ethics": ("consent.read", "consent.change"),
    "reader": ("consent.read", "study.read", "annotate", "confirm", "train"),
    "patient": (),
    "annotator": ("annotate",),
    "admin": (
        "consent.read", "consent.change", "study.read", "annotate", "confirm", "train", "admin",
    ),
}  # fmt: skip
PREFIX = "qj"
_LONGEST_DAYS = 3660
LONGEST_NAME = 64  # of a person in DICOM, PS3.5, 6.2
_NOBODY = "0" * 64  # compared with where there is no such token, so that this takes as long


@dataclass(frozen=True)
class Token:
    """What is kept of a token.

    Attributes:
        token_id: eight hexadecimal digits, which may be shown and logged.
        role: one of `ROLES`.
        name: who holds it; "" where nobody said.
        patient_id: the one patient whom a patient's token sees and changes; else None.
        salt: hexadecimal.
        sha256: of salt and secret, hexadecimal.
        created: UTC, in ISO 8601.
        expires: likewise; from then on it opens nothing.
        revoked: whether it was taken back.
    """

    token_id: str
    role: Role
    name: str
    patient_id: str | None
    salt: str
    sha256: str
    created: str
    expires: str
    revoked: bool = False

    @property
    def holds(self) -> bool:
        """Whether it opens anything at this moment."""
        return not self.revoked and datetime.now(UTC) < datetime.fromisoformat(self.expires)

    def may(self, right: Right) -> bool:
        """Whether its role has a right."""
        return right in RIGHTS[self.role]

    @property
    def person(self) -> str:
        """Whose it is: two tokens of one name are one person's."""
        return self.name or f"token {self.token_id}"

    @property
    def may_change(self) -> bool:
        """Whether it may grant and withdraw."""
        return self.role == "patient" or self.may("consent.change")

    @property
    def may_see_all(self) -> bool:
        """Whether it is bound to no patient."""
        return self.may("consent.read")

    @property
    def who(self) -> str:
        """What the store keeps as the one who recorded a change."""
        known = f"{self.role}, token {self.token_id}"
        return f"{self.name} ({known})" if self.name else known

    def confine(self, patient_id: str | None) -> str | None:
        """Return whom this token may look at for the one that was asked for; None for nobody."""
        if self.may_see_all:
            return patient_id
        return self.patient_id if patient_id in (None, self.patient_id) else None


def person_of(text: str) -> str:
    """Return a person's name in the one form in which names are compared and signed.

    Raises:
        ValueError: it could not be told from another's, or DICOM reads it as something else.
    """
    name = unicodedata.normalize("NFC", text).strip()
    if not name or not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(f"printable text of 1 to {LONGEST_NAME} letters")
    if any(letter in name for letter in "\\^="):
        raise ValueError("without \\, ^ and =, which part names in DICOM")
    if name.lower().startswith("token "):
        raise ValueError("another than what a token without a name is called")
    return name


class Tokens:
    """The tokens in a file.

    Args:
        path: JSON lines; need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._known: dict[str, Token] = {}
        self._lent: dict[str, Token] = {}
        self._lending = threading.Lock()

    def make(
        self, role: str, *, patient_id: str | None = None, name: str = "", days: int = 90
    ) -> tuple[Token, str]:
        """Make a token; return what is kept of it, and the token itself, which nothing keeps.

        Args:
            role: one of `ROLES`.
            patient_id: for a patient's token, and for no other.
            name: who holds it; "" where nobody said.
            days: for how long it holds.

        Raises:
            ConfigError: these do not fit together, or the file cannot be written.
        """
        if role not in ROLES:
            raise ConfigError("--role", f"one of {', '.join(ROLES)}", role)
        if (role == "patient") != (patient_id is not None):
            raise ConfigError("--patient", "given for the role patient, and for no other")
        if patient_id is not None and not (patient_id and patient_id.isprintable()):
            raise ConfigError("--patient", "printable text")
        if name:
            try:
                name = person_of(name)
            except ValueError as error:
                raise ConfigError("--name", str(error)) from None
        if not 1 <= days <= _LONGEST_DAYS:
            raise ConfigError("--days", f"a number from 1 to {_LONGEST_DAYS}", days)
        secret, salt, now = secrets.token_urlsafe(32), secrets.token_hex(16), datetime.now(UTC)
        token = Token(
            secrets.token_hex(4), role, name, patient_id, salt, _hash(salt, secret),
            now.isoformat(timespec="seconds"),
            (now + timedelta(days=days)).isoformat(timespec="seconds"),
        )  # fmt: skip
        self._append({"made": asdict(token)})
        return token, f"{PREFIX}_{token.token_id}_{secret}"

    def revoke(self, token_id: str) -> Token:
        """Take a token back; its sessions end with their next request.

        Raises:
            ConfigError: there is no such token, or the file cannot be written.
        """
        token = self.all().get(token_id)
        if token is None:
            raise ConfigError("token", "one that was made here", token_id, where=self.path)
        self._append({"revoked": token_id})
        return replace(token, revoked=True)

    def lend(self, role: Role, name: str, seconds: float) -> Token:
        """Return a token that nobody can show, for a session of a person whom another vouched for.

        It is kept in memory, as sessions are: a restart ends both. Who comes again has the same.

        Args:
            role: one of `ROLES` but patient.
            name: whose it is.
            seconds: for how long it holds, from now.
        """
        now = datetime.now(UTC)
        expires = (now + timedelta(seconds=seconds)).isoformat(timespec="seconds")
        with self._lending:
            self._lent = {key: one for key, one in self._lent.items() if one.holds}
            own = (one for one in self._lent.values() if (one.name, one.role) == (name, role))
            token = Token(
                secrets.token_hex(4), role, name, None, "", _NOBODY,
                now.isoformat(timespec="seconds"), expires,
            )  # fmt: skip
            token = replace(next(own, token), expires=expires)
            self._lent[token.token_id] = token
        return token

    def check(self, text: str) -> Token | None:
        """Return the token that a text is, if it holds now."""
        kind, _, rest = text.partition("_")
        token_id, _, secret = rest.partition("_")
        known = self.all().get(token_id) if kind == PREFIX else None
        wanted = known.sha256 if known else _NOBODY
        same = hmac.compare_digest(_hash(known.salt if known else "", secret), wanted)
        return known if known is not None and same and known.holds else None

    def find(self, token_id: str) -> Token | None:
        """Return a token that holds now, by its id."""
        token = self.all().get(token_id) or self._lent.get(token_id)
        return token if token is not None and token.holds else None

    def all(self) -> dict[str, Token]:
        """Return every token by its id, in the order in which they were made.

        Raises:
            FormatError: a line is not as it was written; then nobody comes in.
        """
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return {}
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._known, self._seen = self._read(), seen
        return self._known

    def _read(self) -> dict[str, Token]:
        known: dict[str, Token] = {}
        for number, line in enumerate(self.path.read_bytes().splitlines(), start=1):
            try:
                said = json.loads(line)
                if "made" in said:
                    token = from_json(said["made"], Token)
                    datetime.fromisoformat(token.expires)
                    known[token.token_id] = token
                else:
                    known[said["revoked"]] = replace(known[said["revoked"]], revoked=True)
            except (ValueError, TypeError, KeyError, ConfigError):
                raise FormatError(
                    f"line {number}", "a token or its revocation", "another thing", where=self.path
                ) from None
        return known

    def _append(self, said: dict[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)  # patients' ids lie in it
        except OSError as error:
            rule = "a file that can be written"
            raise ConfigError("tokens", rule, error.strerror, where=self.path) from None
        line = json.dumps(said).encode() + b"\n"
        with locked(self.path) as file:
            before = os.fstat(file).st_size
            try:
                if os.write(file, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file)
            except OSError as error:
                os.ftruncate(file, before)  # half a line would let nobody in any more
                raise ConfigError(
                    "tokens", "a file that can be written", error.strerror, where=self.path,
                    advice="nothing was changed: make room, then do it again",
                ) from None  # fmt: skip


class Sessions:
    """Who has come in with a token, in memory: a restart ends all of them.

    Args:
        idle_s: seconds after which one without a request ends.
        longest_s: seconds after which any ends.
        most: how many there may be; the one that was silent longest makes room.
        most_each: how many of one token; its own that was silent longest makes room, so that who
            comes in again and again signs nobody else out.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        idle_s: float,
        longest_s: float,
        most: int = 1000,
        most_each: int = 10,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle_s, self._longest_s, self._clock = idle_s, longest_s, clock
        self._most, self._most_each = most, most_each
        self._open: OrderedDict[str, tuple[str, float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, token_id: str) -> str:
        """Open a session for a token; return the secret that a cookie holds."""
        secret, moment = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            own = [key for key, (whose, _, _) in self._open.items() if whose == token_id]
            for key in own[: max(0, len(own) + 1 - self._most_each)]:
                del self._open[key]
            while len(self._open) >= self._most:
                self._open.popitem(last=False)
            self._open[_hash("", secret)] = (token_id, moment, moment)
        return secret

    def token_of(self, secret: str) -> str | None:
        """Return the id of a session's token, and count this as a request of it."""
        key, moment = _hash("", secret), self._clock()
        with self._lock:
            token_id, begun, seen = self._open.pop(key, ("", 0.0, 0.0))
            if not token_id or moment - seen > self._idle_s or moment - begun > self._longest_s:
                return None
            self._open[key] = (token_id, begun, moment)
        return token_id

    def end(self, secret: str) -> None:
        """Close a session."""
        with self._lock:
            self._open.pop(_hash("", secret), None)


class Throttle:
    """Slows down who guesses: so many failures in a while, then none is looked at.

    Args:
        failures: how many an address may have.
        window_s: the while, in seconds.
        most: addresses that are remembered; the one that failed longest ago makes room.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        failures: int = 10,
        window_s: float = 300.0,
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures, self._window_s, self._most, self._clock = failures, window_s, most, clock
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def attempt(self, address: str) -> float:
        """Count an attempt as failed until `succeeded` says otherwise.

        Returns:
            Seconds to wait; 0 where the attempt may go on.
        """
        moment, key = self._clock(), _network(address)
        with self._lock:
            times = self._failed.pop(key, deque())
            while times and moment - times[0] > self._window_s:
                times.popleft()
            wait = self._window_s - (moment - times[0]) if len(times) >= self._failures else 0.0
            if not wait:
                times.append(moment)
            self._failed[key] = times
            while len(self._failed) > self._most:
                self._failed.popitem(last=False)
        return wait

    def succeeded(self, address: str) -> None:
        """Take the last attempt back: it was no failure."""
        with self._lock:
            times = self._failed.get(_network(address))
            if times:
                times.pop()


def _network(address: str) -> str:
    """An IPv4 address, or the /64 that one holder of IPv6 addresses has to choose from."""
    try:
        known = ip_address(address)
    except ValueError:
        return address
    return str(int(known) >> 64) if isinstance(known, IPv6Address) else address


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}:{secret}".encode("utf-8", "surrogatepass")).hexdigest()
