"""What a service is told when it starts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from qinjing.data.consent import VARIABLE
from qinjing.errors import ConfigError
from qinjing.report.product_class import CLASSES

if TYPE_CHECKING:
    from qinjing.report.declared import ServedModel
    from qinjing.serve.oidc import OidcConfig


@dataclass(frozen=True)
class ServeConfig:
    """Where things lie, and who may come.

    Attributes:
        consents: the store, a file or a URL; None takes `QINJING_CONSENT`, or serves none where a
            folder of studies is served.
        folder: of studies, for the clinic's pages; None serves consents alone.
        catalogue: PostgreSQL that several machines share; None is a file in that folder.
        served: models that were declared, for requests that ask one directly.
        tokens: the file of tokens; None is beside a store that is a file, or in the folder.
        host: address to listen on.
        port: to listen on; 0 takes any that is free.
        tls_cert: certificate chain in PEM; None serves without TLS, on this machine alone.
        tls_key: its private key in PEM.
        oidc: a provider at which people may sign in as well; None knows tokens alone.
        models: folders below which runs and trunks lie, to tell which of them saw a patient.
        datasets: data sets that tell which cases are a patient's; without one a case's own id is
            taken for the patient's.
        idle_s: seconds after which a session without a request ends.
        longest_s: seconds after which any session ends.
        body_bytes: the longest body of a request that is taken.
        body_s: seconds in which it must have come.
        image_bytes: the same of requests that bring an image or labels.
        image_s: likewise.

    Raises:
        ConfigError: they do not fit together.
    """

    consents: str | None = None
    folder: Path | None = None
    catalogue: str | None = None
    served: tuple[ServedModel, ...] = ()
    tokens: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    tls_cert: Path | None = None
    tls_key: Path | None = None
    oidc: OidcConfig | None = None
    models: tuple[Path, ...] = ()
    datasets: tuple[Path, ...] = ()
    idle_s: float = 900.0
    longest_s: float = 8 * 3600.0
    body_bytes: int = 64 * 1024
    body_s: float = 10.0
    image_bytes: int = 256 * 1024 * 1024
    image_s: float = 120.0

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
        for name in ("idle_s", "longest_s", "body_bytes", "body_s", "image_bytes", "image_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, "greater than 0", getattr(self, name))

    @property
    def product_class(self) -> str:
        """What people's own segmentations may be measured as: what every served model may.

        Without a model the service is a tool.
        """
        return min((one.product_class for one in self.served), key=CLASSES.index, default="tool")

    @property
    def store(self) -> str | None:
        """The store of consents, None where none is served."""
        return self.consents or os.environ.get(VARIABLE) or None

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


def tokens_file(
    consents: str | None, tokens: Path | None = None, folder: Path | None = None
) -> Path:
    """Return where the tokens of a service lie.

    Args:
        consents: the store; None takes `QINJING_CONSENT`.
        tokens: where the caller says; None is beside a store that is a file.
        folder: of studies, in which they lie where there is one.

    Raises:
        ConfigError: no store is named, or it is no file and the caller does not say.
    """
    if tokens is not None:
        return tokens
    if folder is not None:
        return folder / "tokens.jsonl"
    place = consents or os.environ.get(VARIABLE)
    if not place:
        raise ConfigError(
            "consent store", "named", "none", advice=f"give --consents, or set {VARIABLE}"
        )
    if "://" in place:  # a password may stand in it, so it is not repeated
        raise ConfigError("--tokens", "a file, where the store is a URL", "none")
    return Path(f"{place}.tokens.jsonl")
