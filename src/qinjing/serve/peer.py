"""Another server that is asked over HTTP: who it is, how it is trusted, and when to ask again.

Addresses of DICOMweb hold UIDs of studies: messages name the server alone, and the HTTP library's
own lines, which repeat addresses, are kept out of every log.

Source: RFC 9110; RFC 6750 (bearer tokens); RFC 7617 (basic authentication).
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from qinjing.errors import ConfigError, FormatError, QinjingError
from qinjing.serve.settings import is_loopback

if TYPE_CHECKING:
    from httpx2 import Client, Response

TRIES = 4
_PAUSE_S = 1.0  # before a second try; twice as long before each further one
_LONGEST_PAUSE_S = 60.0
_CONNECT_S, _SILENT_S = 10.0, 60.0
_MOST_JSON = 64 * 1024 * 1024
_LATER = (408, 425, 429, 500, 502, 503, 504)  # what may pass by itself
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750, 2.1: no colon, so it is no user:password
T = TypeVar("T")


@dataclass(frozen=True)
class Peer:
    """Another server.

    Attributes:
        url: its root, of https, or of http on this machine alone.
        login: a file of one line, a bearer token or user:password; None shows nothing. It is read
            before each request, so that a token may be exchanged while we run.
        ca: certificates in PEM that its own must be signed by; None takes those of the system.

    Raises:
        ConfigError: the URL is of another form.
    """

    url: str
    login: Path | None = None
    ca: Path | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            raise ConfigError("URL", "https://HOST[:PORT]/PATH", "another thing") from None
        # What is refused may hold a password, so it is not repeated.
        if parts.username or parts.password:
            raise ConfigError(
                "URL", "without a user", "one with a user", advice="give a file of user:password"
            )
        if parts.scheme not in ("https", "http") or not host or parts.query or parts.fragment:
            raise ConfigError("URL", "https://HOST[:PORT]/PATH", "another thing")
        if parts.scheme == "http" and not is_loopback(host):
            raise ConfigError("URL", "of https, unless it is of this machine", "http", where=host)
        object.__setattr__(self, "url", self.url.rstrip("/"))

    @property
    def name(self) -> str:
        """Host and port, for messages."""
        return urlsplit(self.url).netloc

    def header(self) -> dict[str, str]:
        """Return the header that says who asks, none where there is no `login`.

        Raises:
            ConfigError: the file cannot be read, or holds another thing.
        """
        if self.login is None:
            return {}
        try:
            line = self.login.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            kind = type(error).__name__
            raise ConfigError("login", "a file that can be read", kind, where=self.login) from None
        if ":" in line and line.isprintable():
            from base64 import b64encode

            return {"Authorization": f"Basic {b64encode(line.encode()).decode()}"}
        if not _TOKEN.fullmatch(line):
            raise ConfigError(
                "login", "one line, a bearer token or user:password", "another thing",
                where=self.login,
            )  # fmt: skip
        return {"Authorization": f"Bearer {line}"}


class RefusedError(QinjingError):
    """An answer that is no, and will be no again.

    Args:
        name: of the server.
        status: of HTTP.
        warning: what the header Warning said, which may decide what to do; it is not repeated.
    """

    def __init__(self, name: str, status: int, warning: str = "") -> None:
        words = "does not let us in" if status in (401, 403) else "answered no"
        super().__init__(f"{name} {words}: HTTP {status}")
        self.status, self.warning = status, warning


class PassingError(QinjingError):
    """A failure that may pass by itself.

    Args:
        sentence: what happened.
        after_s: how long the server asks to wait.
        away: whether it is not there, or says that it cannot do anything just now, so that waiting
            is all that helps; an error of its own (500) may be about what it was sent.
    """

    def __init__(self, sentence: str, after_s: float = 0.0, *, away: bool = True) -> None:
        super().__init__(sentence)
        self.after_s, self.away = after_s, away


class Caller:
    """Asks one peer, as a context manager; the same connection is used again.

    Args:
        peer: who is asked.
        wait: sleeps for so many seconds.

    Raises:
        ConfigError: httpx2 is not installed, or the certificates cannot be used.
    """

    def __init__(self, peer: Peer, wait: Callable[[float], object] = time.sleep) -> None:
        self.peer, self._wait = peer, wait
        self._client = _client(peer)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @contextmanager
    def once(
        self, method: str, path: str, *, params: Any = None,
        headers: Mapping[str, str] | None = None, content: Any = None,
    ) -> Iterator[Response]:  # fmt: skip
        """Ask once; the answer's body is read in the block.

        Args:
            method: of HTTP.
            path: below the peer's root, beginning with a slash.
            params: of the query.
            headers: besides who asks.
            content: the body, or what gives it in pieces, anew for each try.

        Raises:
            PassingError: it did not answer, broke off, or asks to come later.
            RefusedError: it answered no.
        """
        import httpx2

        said = {**(headers or {}), **self.peer.header()}
        body = content() if callable(content) else content
        try:
            with self._client.stream(
                method, self.peer.url + path, params=params, headers=said, content=body
            ) as response:
                self._check(response)
                yield response
        except httpx2.HTTPError as error:
            if _is_of_certificate(error):
                raise ConfigError(
                    "certificate", "signed by one that is trusted", "another",
                    where=self.peer.name, advice="give the file of who signed it",
                ) from None  # fmt: skip
            kind = type(error).__name__
            raise PassingError(f"{self.peer.name} does not answer, or broke off: {kind}") from None

    def repeated(self, do: Callable[[], T]) -> T:
        """Do what may be done twice, again and again until it is done or there is no sense in it.

        Raises:
            QinjingError: it failed every time.
        """
        for attempt in range(TRIES):
            try:
                return do()
            except PassingError as error:
                if attempt + 1 == TRIES:
                    raise
                pause = _PAUSE_S * 2**attempt * (1 + secrets.randbelow(500) / 1000)
                self._wait(min(max(pause, error.after_s), _LONGEST_PAUSE_S))
        raise AssertionError

    def json(self, method: str, path: str, *, again: bool = True, **more: Any) -> Any:
        """Ask, again if need be, and return the JSON that was answered; None for an empty body.

        Args:
            method: of HTTP.
            path: below the peer's root.
            again: whether asking twice does no harm.
            more: as `once` has it.

        Raises:
            FormatError: it is no JSON, or a great deal of it.
            QinjingError: there was no answer, or it was no.
        """
        headers = {"Accept": "application/dicom+json", **more.pop("headers", {})}

        def ask() -> bytes:
            with self.once(method, path, headers=headers, **more) as response:
                body = bytearray()
                for chunk in response.iter_raw():
                    body += chunk
                    if len(body) > _MOST_JSON:
                        raise FormatError(
                            "answer", f"of at most {_MOST_JSON} bytes", where=self.peer.name
                        )
                return bytes(body)

        body = self.repeated(ask) if again else ask()
        try:
            return json.loads(body) if body.strip() else None
        except (ValueError, RecursionError):
            raise FormatError("answer", "JSON", "another thing", where=self.peer.name) from None

    def _check(self, response: Response) -> None:
        name, status = self.peer.name, response.status_code
        if status in _LATER:
            after = response.headers.get("retry-after", "")
            seconds = float(after[:6]) if after.isascii() and after.isdigit() else 0.0
            raise PassingError(f"{name} is busy: HTTP {status}", seconds, away=status != 500)
        if not 200 <= status < 300:  # a redirection would carry our login to another place
            raise RefusedError(name, status, response.headers.get("warning", ""))
        if response.headers.get("content-encoding", "identity") != "identity":
            raise FormatError("answer", "as it was asked for, unpacked", "packed", where=name)


def _client(peer: Peer) -> Client:
    try:
        import httpx2
    except ModuleNotFoundError as error:
        raise ConfigError(
            "HTTP", "asked with httpx2", f"no package {error.name}",
            advice="pip install 'qinjing[serve]'",
        ) from None  # fmt: skip
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        context = ssl.create_default_context(cafile=peer.ca)
    except (OSError, ssl.SSLError):
        raise ConfigError("certificates", "a file in PEM", "another", where=peer.ca) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Nothing of the environment: neither somebody's ~/.netrc nor a proxy is asked for.
    return httpx2.Client(
        verify=context, trust_env=False, follow_redirects=False,
        timeout=httpx2.Timeout(_SILENT_S, connect=_CONNECT_S),
        headers={"Accept-Encoding": "identity", "User-Agent": "qinjing"},
    )  # fmt: skip


def _is_of_certificate(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False
