"""Opens the service's port and answers until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from qinjing.errors import ConfigError
from qinjing.serve.app import create_app
from qinjing.serve.settings import ServeConfig

if TYPE_CHECKING:
    from fastapi import FastAPI

_CONNECTIONS, _HEADER_BYTES, _KEEP_ALIVE_S, _LEAVE_S = 64, 16 * 1024, 5, 5
_HEADER_S = 10.0


def listen(config: ServeConfig, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or a termination; requests that are on their way are answered first.

    Args:
        config: where and how.
        tell: told the address of the page once it can be opened.

    Raises:
        ConfigError: the port, the certificate or its key cannot be used; or see `create_app`.
    """
    server = server_of(config, create_app(config))
    with _bound(config) as door:
        host = f"[{config.host}]" if ":" in config.host else config.host
        page = "consent" if config.folder is None else ""
        tell(f"http{'s' if config.tls else ''}://{host}:{door.getsockname()[1]}/{page}")
        server.run(sockets=[door])


def server_of(config: ServeConfig, app: FastAPI) -> uvicorn.Server:
    """Return uvicorn over an application, with bounds on what one caller can take.

    Raises:
        ConfigError: the certificate or its key cannot be used.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("uvicorn", "qinjing.serve"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.WARNING)
    options = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # addresses name no patient, but nor is there anything else to learn
        server_header=False,
        proxy_headers=False,  # or a caller could say that he is another
        ws="none",
        http=_Prompt,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LEAVE_S,
        ssl_context_factory=(lambda *_: _context(config)) if config.tls else None,
    )
    options.load()
    return uvicorn.Server(options)


class _Prompt(H11Protocol):
    """Lets go of who opens a connection and does not say soon what he wants.

    Uvicorn waits for ever for the end of a request's headers; a few dozen such callers would keep
    all others out.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(_HEADER_S, self._drop)

    def _drop(self) -> None:
        self._late = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def _context(config: ServeConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_cert or "", config.tls_key, lambda: _no_password(config))
    except (OSError, ssl.SSLError) as error:
        rule = "a certificate and its key in PEM"
        raise ConfigError("--tls-cert and --tls-key", rule, error, where=config.tls_cert) from None
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    return context


def _no_password(config: ServeConfig) -> str:
    """Refuse, where OpenSSL would ask on the terminal, which a service may not have.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(
        "--tls-key", "a key without a password", "one with a password", where=config.tls_key,
        advice="`openssl pkey -in KEY -out PLAIN` takes it off",
    )  # fmt: skip


def _bound(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ConfigError(
            "--host and --port", "an address that is free here", error.strerror,
            where=f"{config.host}:{config.port}",
        ) from None  # fmt: skip
