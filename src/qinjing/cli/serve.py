"""The commands of the service: start it, and say who may come in."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least
from qinjing.cli.beside import destination, make, say, taking_in, until_terminated
from qinjing.errors import ConfigError

if TYPE_CHECKING:
    from qinjing.serve.auth import Tokens
    from qinjing.serve.node import NodeConfig
    from qinjing.serve.oidc import OidcConfig
    from qinjing.serve.settings import ServeConfig

ROLES = ("ethics", "reader", "patient", "annotator", "admin")  # as serve.auth

HOST = argument("--host", metavar="HOST", help="address; others than this want TLS")
PORT = argument(
    "--port", metavar="PORT", parse=at_least(0, "--port"), help="0 for any that is free"
)
TLS_CERT = argument("--tls-cert", metavar="PEM", there=True, help="certificate chain")
TLS_KEY = argument("--tls-key", metavar="PEM", there=True, help="its private key")
_CONSENTS = argument(
    "--consents",
    metavar="STORE",
    help="a file, or a URL of PostgreSQL; else what QINJING_CONSENT names",
)
_FOLDER = argument("-o", "--folder", metavar="FOLDER", help="of studies, for the clinic's pages")
CATALOGUE = argument(
    "--catalogue", metavar="URL", help="PostgreSQL that several machines share; else a file there"
)
MODELS = argument(
    "-m", "--model", metavar="RUN", there=True, help="that were declared (`serve declare`)"
)
TLS_CA = argument("--tls-ca", metavar="PEM", there=True, help="that signed the callers' by DICOM")
CALLERS = argument(
    "--callers", metavar="AET",
    help="who may call; AET@HOST:PORT where reports of storage commitment go",
)  # fmt: skip
SEND_TO = argument(
    "--send-to", metavar="PLACE", help="results too: AET@HOST:PORT, https://… (STOW-RS), a folder"
)
LOGIN = argument(
    "--login", metavar="FILE", there=True,
    help="for https://… a bearer token or user:password, for AET@… our certificate and key in PEM",
)  # fmt: skip
CA = argument("--ca", metavar="PEM", there=True, help="that signed the other's certificate")
PLAIN = argument("--plain", help="send to AET@… on another machine without TLS")
WATCH = argument("--watch", metavar="FOLDER", help="take in DICOM files and zips dropped there")
_TOKENS = argument(
    "--tokens", metavar="FILE", help="of the tokens, instead of the one beside the store"
)


@dataclass(frozen=True)
class Serve(Command):
    """Serve the pages of studies and of consents, with node and worker if asked, until Ctrl-C."""

    consents: str | None = field(default=None, metadata=_CONSENTS)
    folder: Path | None = field(default=None, metadata=_FOLDER)
    catalogue: str | None = field(default=None, metadata=CATALOGUE)
    served: tuple[Path, ...] = field(default=(), metadata=MODELS)
    tokens: Path | None = field(default=None, metadata=_TOKENS)
    host: str = field(
        default="127.0.0.1",
        metadata=HOST,
    )
    port: int = field(
        default=8080,
        metadata=PORT,
    )
    tls_cert: Path | None = field(
        default=None,
        metadata=TLS_CERT,
    )
    tls_key: Path | None = field(
        default=None,
        metadata=TLS_KEY,
    )
    dicom_port: int | None = field(
        default=None,
        metadata=argument(
            "--dicom-port", metavar="PORT", parse=at_least(0, "--dicom-port"),
            help="take studies in by C-STORE as well, and work on them here",
        ),
    )  # fmt: skip
    tls_ca: Path | None = field(default=None, metadata=TLS_CA)
    callers: tuple[str, ...] = field(default=(), metadata=CALLERS)
    watch: Path | None = field(default=None, metadata=WATCH)
    send_to: str | None = field(default=None, metadata=SEND_TO)
    login: Path | None = field(default=None, metadata=LOGIN)
    ca: Path | None = field(default=None, metadata=CA)
    plain: bool = field(default=False, metadata=PLAIN)
    oidc: Path | None = field(
        default=None,
        metadata=argument(
            "--oidc", metavar="FILE", there=True, help="JSON: a provider where people sign in too"
        ),
    )
    models: tuple[Path, ...] = field(
        default=(),
        metadata=argument(
            "--runs", metavar="FOLDER", there=True, help="to look for models that saw a patient"
        ),
    )
    datasets: tuple[Path, ...] = field(
        default=(),
        metadata=argument(
            "--datasets", metavar="DATASET", there=True, help="that tell whose a case is"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Listen until stopped."""
        self._check()
        listen = _listen()
        from qinjing.report.declared import served
        from qinjing.serve.settings import ServeConfig

        config = ServeConfig(
            consents=self.consents,
            folder=self.folder,
            catalogue=self.catalogue,
            served=tuple(served(run) for run in self.served),
            tokens=self.tokens,
            host=self.host,
            port=self.port,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            oidc=_read_oidc(self.oidc) if self.oidc else None,
            models=self.models,
            datasets=self.datasets,
        )
        with until_terminated(), ExitStack() as beside:
            kinds = ("predict",) if config.served else ("show",)
            if self.dicom_port is not None or self.watch is not None or config.served:
                place = destination(self.send_to, self.login, self.ca, self.plain)
                node = _node(config, self.dicom_port, self.callers, self.tls_ca, kinds)
                beside.enter_context(taking_in(config, kinds, node, self.watch, place))
            listen(config, _tell)
        return {"stopped": True}

    def _check(self) -> None:
        """Refuse what would do nothing.

        Raises:
            ConfigError: an option stands without the one that it belongs to, or the folder cannot
                be written.
        """
        works = self.dicom_port is not None or self.watch is not None or bool(self.served)
        for given, name, belongs, there in (
            (self.served, "--model", "--folder", self.folder is not None),
            (self.watch, "--watch", "--folder", self.folder is not None),
            (self.callers, "--callers", "--dicom-port", self.dicom_port is not None),
            (self.tls_ca, "--tls-ca", "--dicom-port", self.dicom_port is not None),
            (self.send_to, "--send-to", "--dicom-port, --watch or --model", works),
            (self.login, "--login", "--send-to", self.send_to is not None),
            (self.ca, "--ca", "--send-to", self.send_to is not None),
            (self.plain, "--plain", "--send-to", self.send_to is not None),
        ):
            if given and not there:
                raise ConfigError(name, f"given together with {belongs}", "alone")
        if self.folder is not None:
            make(self.folder)

    def text(self, result: Mapping[str, Any]) -> str:
        """That it ended."""
        return "stopped"

    def after_stop(self) -> str:
        """How things stand after Ctrl-C."""
        return "every change that was confirmed is kept"


@dataclass(frozen=True)
class ServeToken(Command):
    """Make a token with which a person or a program comes in, and print it this once."""

    role: str = field(
        metadata=argument(
            "--role", metavar="ROLE", choices=ROLES,
            help=f"{', '.join(ROLES)}; a reader looks, confirms and annotates, an annotator "
            "annotates, an admin may do all",
        )
    )  # fmt: skip
    patient: str | None = field(
        default=None,
        metadata=argument("--patient", metavar="PATIENT", help="whom a patient's token is for"),
    )
    name: str = field(
        default="", metadata=argument("--name", metavar="NAME", help="who holds it, for the record")
    )
    days: int = field(
        default=90,
        metadata=argument(
            "--days", metavar="N", parse=at_least(1, "--days"), help="for how long it holds"
        ),
    )
    consents: str | None = field(default=None, metadata=_CONSENTS)
    folder: Path | None = field(default=None, metadata=_FOLDER)
    tokens: Path | None = field(default=None, metadata=_TOKENS)

    def run(self) -> dict[str, Any]:
        """Make it; the token, and what is kept of it."""
        kept, token = _open(self.consents, self.tokens, self.folder).make(
            self.role, patient_id=self.patient, name=self.name, days=self.days
        )
        if self.patient is not None:
            _warn_of_unknown(self.patient, self.consents)
        return {"token": token, "id": kept.token_id, "role": kept.role, "expires": kept.expires}

    def text(self, result: Mapping[str, Any]) -> str:
        """The token."""
        return show.pairs(result) + "\nkeep it safe: it is shown this once and kept nowhere"


@dataclass(frozen=True)
class ServeTokens(Command):
    """List the tokens that were made: who holds them, and until when."""

    consents: str | None = field(default=None, metadata=_CONSENTS)
    folder: Path | None = field(default=None, metadata=_FOLDER)
    tokens: Path | None = field(default=None, metadata=_TOKENS)

    def run(self) -> dict[str, Any]:
        """Look; never a token itself, nor whose a patient's is."""
        known = _open(self.consents, self.tokens, self.folder).all().values()
        return {
            "tokens": [
                {"id": one.token_id, "role": one.role, "name": one.name, "expires": one.expires,
                 "state": "revoked" if one.revoked else "holds" if one.holds else "expired"}
                for one in known
            ]
        }  # fmt: skip

    def text(self, result: Mapping[str, Any]) -> str:
        """A line a token."""
        names = ("id", "role", "name", "expires", "state")
        return show.table(names, [[one[n] for n in names] for one in result["tokens"]])


@dataclass(frozen=True)
class ServeRevoke(Command):
    """Take a token back: it opens nothing from now on, and its sessions end."""

    token_id: str = field(metadata=argument(metavar="ID", help="as `qinjing serve tokens` has it"))
    consents: str | None = field(default=None, metadata=_CONSENTS)
    folder: Path | None = field(default=None, metadata=_FOLDER)
    tokens: Path | None = field(default=None, metadata=_TOKENS)

    def run(self) -> dict[str, Any]:
        """Revoke it; which it was."""
        token = _open(self.consents, self.tokens, self.folder).revoke(self.token_id)
        return {"id": token.token_id, "role": token.role, "name": token.name}

    def text(self, result: Mapping[str, Any]) -> str:
        """Which it was."""
        return f"revoked: {result['id']} ({result['role']})"


def _node(
    config: ServeConfig,
    port: int | None,
    callers: tuple[str, ...],
    tls_ca: Path | None,
    kinds: tuple[str, ...],
) -> NodeConfig | None:
    """The node: on this machine alone it speaks TLS where its callers' certificates are known.

    The page's own certificate is for browsers, which show none.
    """
    if port is None:
        return None
    from qinjing.serve.node import NodeConfig
    from qinjing.serve.settings import is_loopback

    plain = tls_ca is None and is_loopback(config.host)
    return NodeConfig(
        host=config.host, port=port, callers=callers, kinds=kinds, tls_ca=tls_ca,
        tls_cert=None if plain else config.tls_cert, tls_key=None if plain else config.tls_key,
    )  # fmt: skip


def _open(consents: str | None, tokens: Path | None, folder: Path | None) -> Tokens:
    """The tokens of a store or folder, which must be there unless it is said where they lie."""
    from qinjing.data.consent import Store
    from qinjing.serve.auth import Tokens
    from qinjing.serve.settings import tokens_file

    file = tokens_file(consents, tokens, folder)
    if tokens is None and folder is None:
        Store(consents).close()
    elif tokens is None and folder is not None and not folder.is_dir():
        advice = "`qinjing serve -o` makes it"
        raise ConfigError("--folder", "there", "nothing", where=folder, advice=advice)
    return Tokens(file)


def _warn_of_unknown(patient_id: str, consents: str | None) -> None:
    """Say so where a token was made for a patient of whom the store knows nothing: a typo?"""
    from qinjing.data.consent import Store

    try:
        with Store(consents) as store:
            fault = "" if store.current(patient_id=patient_id) else f"got {patient_id}"
    except ConfigError as error:
        fault = f"which could not be looked up: {error}"
    if fault:
        rule = "--patient must be one of whom the store knows something"
        print(f"qinjing: warning: {rule}, {fault}; the token holds", file=sys.stderr, flush=True)


def _listen() -> Any:
    with _packages("FastAPI and uvicorn"):
        from qinjing.serve.listen import listen
    return listen


def _read_oidc(file: Path) -> OidcConfig:
    with _packages("PyJWT and httpx2"):
        from qinjing.serve.oidc import read_oidc
    return read_oidc(file)


@contextmanager
def _packages(names: str) -> Iterator[None]:
    """Say it where a package is missing that the imports in the block need."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "qinjing":
            raise
        raise ConfigError(
            "service", f"run with {names}", f"no package {error.name}",
            advice="pip install 'qinjing[serve]'",
        ) from None  # fmt: skip


def _tell(address: str) -> None:
    say(f"serving {address}; stop with Ctrl-C")
