"""What a service is told when it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from qinjing.data.consent import VARIABLE
from qinjing.errors import ConfigError


@dataclass(frozen=True)
class ServeConfig:
    """Where things lie, and who may come.

    Attributes:
        consents: the store, a file or a URL; None takes `QINJING_CONSENT`.
        tokens: the file of tokens; None is beside a store that is a file.
        host: address to listen on.
        port: to listen on; 0 takes any that is free.
        tls_cert: certificate chain in PEM; None serves without TLS, on this machine alone.
        tls_key: its private key in PEM.
        models: folders below which runs and trunks lie, to tell which of them saw a patient.
        datasets: data sets that tell which cases are a patient's; without one a case's own id is
            taken for the patient's.
        idle_s: seconds after which a session without a request ends.
        longest_s: seconds after which any session ends.
        body_bytes: the longest body of a request that is taken.
        body_s: seconds in which it must have come.

    Raises:
        ConfigError: they do not fit together.
    """

    consents: str | None = None
    tokens: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None
    models: tuple[Path, ...] = ()
    datasets: tuple[Path, ...] = ()
    idle_s: float = 900.0
    longest_s: float = 8 * 3600.0
    body_bytes: int = 64 * 1024
    body_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError("--port", "a number from 0 to 65535", self.port)
        if (self.tls_cert is None) != (self.tls_key is None):
            given = "--tls-cert" if self.tls_cert else "--tls-key"
            raise ConfigError("--tls-cert and --tls-key", "given together", f"{given} alone")
        if not self.tls and not is_loopback(self.host):
            raise ConfigError(
                "--host", "an address of this machine alone while there is no TLS", self.host,
                advice="give --tls-cert and --tls-key",
            )  # fmt: skip
        for name in ("idle_s", "longest_s", "body_bytes", "body_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, "greater than 0", getattr(self, name))

    @property
    def tls(self) -> bool:
        """Whether it speaks TLS."""
        return self.tls_cert is not None


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tokens_file(consents: str | None, tokens: Path | None) -> Path:
    """Return where the tokens of a store lie.

    Args:
        consents: the store; None takes `QINJING_CONSENT`.
        tokens: where the caller says; None is beside a store that is a file.

    Raises:
        ConfigError: no store is named, or it is no file and the caller does not say.
    """
    if tokens is not None:
        return tokens
    place = consents or os.environ.get(VARIABLE)
    if not place:
        raise ConfigError(
            "consent store", "named", "none", advice=f"give --consents, or set {VARIABLE}"
        )
    if "://" in place:  # a password may stand in it, so it is not repeated
        raise ConfigError("--tokens", "a file, where the store is a URL", "none")
    return Path(f"{place}.tokens.jsonl")
