"""What stands before every route: limits, the same origin, headers, and silence about failures."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request

from qinjing.serve.settings import ServeConfig, is_loopback

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from qinjing.serve.auth import Right, Token

HEADER = "x-qinjing"  # another site's page cannot send it without asking first
LOG = logging.getLogger("qinjing.serve")

# The clinic's pages live under the same policy as that of consents: web/build.mjs turns NiiVue's
# pictures in data: addresses into files and leaves its WebAssembly out, and nothing is a worker.
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
_HSTS = "max-age=31536000"
_SAFE = ("GET", "HEAD", "OPTIONS")
# Nothing is read of these: MONAI Label's client says of them the length of what it sent before.
_WITHOUT_BODY = (*_SAFE, "DELETE")
# Where an image or labels may come in, from who has one of these rights, which is known before a
# byte is read.
_LONG: tuple[tuple[re.Pattern[str], tuple[Right, ...]], ...] = (
    (re.compile(r"/api/projects/[0-9a-f]{32}/images/[0-9a-f]{32}/(annotation|final)"),
     ("annotate",)),
    (re.compile(r"/monailabel/(infer/[^/]+|datastore/?|datastore/(image|label)|session/?)"),
     ("annotate", "study.read")),
)  # fmt: skip
_LONG_AT_ONCE = 4  # in memory, of all who may
_AGAIN_S = 5
_OPEN = ("/monailabel/auth/token",)  # a password for a token, which no cookie can stand for


class Refusal(Exception):  # noqa: N818 - an answer, not a failure
    """An answer that is no: what a person reads, and a word for programs.

    Args:
        status: of HTTP.
        code: one word, which the page translates.
        sentence: that names no patient.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, sentence: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.code, self.sentence = status, code, sentence
        self.headers = dict(headers or {})

    @property
    def content(self) -> dict[str, str]:
        """The body of the answer."""
        return {"error": self.sentence, "code": self.code}


class Fault(BaseModel):
    """What a refusal says."""

    error: str = Field(description="a sentence that names no patient")
    code: str = Field(description="a word for programs")


# What any route may answer, for the OpenAPI document.
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Fault, "description": said}
    for status, said in {
        400: "the body is not whole, or not as described",
        401: "no token was shown, or none that holds",
        403: "the role has not that right, or another page asked",
        404: "it is not there, or not for these eyes",
        405: "the route knows no such method",
        408: "the body did not come in time",
        409: "it is not in the state that this needs",
        413: "the body is too long",
        421: "the host's name is not this machine's",
        422: "a part of the request is not as described",
        429: "too many tokens were wrong",
        503: "what this needs cannot be reached just now",
    }.items()
}


class Guard:
    """Lets through what may be looked at, and dresses every answer.

    Args:
        app: what is guarded.
        config: its limits, and whether there is TLS.
        admit: returns the token that a request shows, or refuses it, before a long body is read.
    """

    def __init__(
        self, app: ASGIApp, config: ServeConfig, admit: Callable[[Request], Token]
    ) -> None:
        self._app, self._config, self._admit = app, config, admit
        self._room = threading.BoundedSemaphore(_LONG_AT_ONCE)
        self._headers = dict(_HEADERS)
        if config.tls:
            self._headers["Strict-Transport-Security"] = _HSTS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def dressed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)  # a route knows better what it sends
            await send(message)

        try:
            self._check(scope)
            with ExitStack() as held:  # a body's room is let go once it was answered
                body = await self._body(receive, scope, held)
                await self._app(scope, _replay(body, receive), dressed)
        except Refusal as refusal:
            await _answer(dressed, refusal)
        except Exception as error:
            reference = secrets.token_hex(4)
            LOG.error("%s, reference %s", _told(error), reference)
            if begun:  # too late for another answer: the connection must break off
                raise ConnectionAbortedError(reference) from None
            sentence = f"failed, and it is our fault; the log has it as {reference}"
            await _answer(dressed, Refusal(500, "fault", sentence))

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # A name that an outsider points at this machine would make his page one of ours.
        if is_loopback(self._config.host) and not is_loopback(_name_of(host)):
            raise Refusal(421, "host", "host must be this machine's own name")
        if scope["method"] in _SAFE:
            return
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        own = f"{'https' if self._config.tls else 'http'}://{host}"
        if (origin is not None and origin != own) or site not in ("same-origin", "none"):
            raise Refusal(403, "origin", "requests must be of this page's own")
        if scope["path"] in _OPEN:
            return
        if HEADER not in headers and not headers.get("authorization", "").startswith("Bearer "):
            raise Refusal(403, "header", f"header {HEADER} must be there, got none")

    def _may_be_long(self, scope: Scope) -> bool:
        """Whether a long body is expected here, of one who may send it."""
        for place, rights in _LONG:
            if place.fullmatch(scope["path"]):
                who = self._admit(Request(scope))
                if not any(who.may(right) for right in rights):
                    raise Refusal(403, "forbidden", f"role must be one that may: {rights[0]}")
                return True
        return False

    def _make_room(self, held: ExitStack) -> None:
        if not self._room.acquire(blocking=False):
            raise Refusal(
                503, "busy", "others send images just now: try again soon",
                {"Retry-After": str(_AGAIN_S)},
            )  # fmt: skip
        held.callback(self._room.release)

    async def _body(self, receive: Receive, scope: Scope, held: ExitStack) -> bytes:
        """The whole body, which must be short and come soon."""
        headers = Headers(scope=scope)
        if scope["method"] in _WITHOUT_BODY:
            return b""
        config, long = self._config, self._may_be_long(scope)
        most = config.image_bytes if long else config.body_bytes
        most_s = config.image_s if long else config.body_s
        too_long = Refusal(413, "size", f"body must be of {most} bytes or fewer")
        told = headers.get("content-length", "0")
        if not told.isascii() or not told.isdigit() or int(told[:20]) > most:
            raise too_long
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(most_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Refusal(400, "gone", "body must be whole, got a part")
                    parts.append(message.get("body", b""))
                    before, size = size, size + len(parts[-1])
                    if size > most:
                        raise too_long
                    if before <= config.body_bytes < size:
                        self._make_room(held)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            seconds = f"{most_s:g}"
            raise Refusal(408, "slow", f"body must be there within {seconds} s") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """What the application receives: the body that was read, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, refusal: Refusal) -> None:
    body = json.dumps(refusal.content).encode()
    headers = {**refusal.headers, "content-type": "application/json",
               "content-length": str(len(body))}  # fmt: skip
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _name_of(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _told(error: BaseException) -> str:
    """What a log may say of a failure: its kind and place; its message may repeat what was sent."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in frames[-4:]]
    return f"{type(error).__name__} at {' > '.join(places)}"


def fault(error: Exception) -> dict[str, Any]:
    """Log what was wrong with our own files or database; return what a caller is told."""
    LOG.error("%s", _told(error))
    return Refusal(503, "unavailable", "what this needs cannot be reached just now").content
