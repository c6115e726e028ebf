"""The commands beside a PACS: take studies in, and work on them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.cli.arguments import Command, argument, at_least
from qinjing.cli.beside import destination, say, watching
from qinjing.cli.serve import (
    CA,
    CALLERS,
    CATALOGUE,
    HOST,
    LOGIN,
    MODELS,
    PLAIN,
    PORT,
    SEND_TO,
    TLS_CA,
    TLS_CERT,
    TLS_KEY,
    WATCH,
)
from qinjing.errors import ConfigError

if TYPE_CHECKING:
    from qinjing.serve.catalogue import Catalogue
    from qinjing.serve.jobs import Job

KINDS = ("deidentify", "show", "predict", "release")  # as serve.work has them, not light

FOLDER = argument("-o", "--folder", metavar="FOLDER", help="where studies are kept")
DO = argument("--do", metavar="WORK", choices=KINDS, help=f"of {', '.join(KINDS)}")


@dataclass(frozen=True)
class ServeNode(Command):
    """Take studies in by DICOM's C-STORE, until Ctrl-C."""

    folder: Path = field(metadata=FOLDER)
    catalogue: str | None = field(default=None, metadata=CATALOGUE)
    work: tuple[str, ...] = field(default=(), metadata=DO)
    ae_title: str = field(
        default="QINJING", metadata=argument("--ae-title", metavar="AET", help="what it is called")
    )
    host: str = field(
        default="127.0.0.1",
        metadata=HOST,
    )
    port: int = field(
        default=11112,
        metadata=PORT,
    )
    callers: tuple[str, ...] = field(default=(), metadata=CALLERS)
    quiet_s: float = field(
        default=5.0,
        metadata=argument(
            "--quiet", metavar="SECONDS", parse=at_least(0.1, "--quiet", float),
            help="without a new instance, then a study is complete",
        ),
    )  # fmt: skip
    tls_cert: Path | None = field(
        default=None,
        metadata=TLS_CERT,
    )
    tls_key: Path | None = field(
        default=None,
        metadata=TLS_KEY,
    )
    tls_ca: Path | None = field(default=None, metadata=TLS_CA)
    watch: Path | None = field(default=None, metadata=WATCH)

    def run(self) -> dict[str, Any]:
        """Listen until stopped."""
        catalogue = opened(self.folder, self.catalogue)
        from qinjing.serve.node import NodeConfig, node

        config = NodeConfig(
            self.ae_title, self.host, self.port, self.callers, self.tls_cert, self.tls_key,
            self.tls_ca, self.quiet_s, self.work,
        )  # fmt: skip
        with ExitStack() as beside:
            host, port = beside.enter_context(node(config, catalogue))
            if self.watch is not None:
                beside.enter_context(watching(catalogue, self.watch, self.work, self.quiet_s))
            say(f"listening as {self.ae_title} on {host}:{port}; stop with Ctrl-C")
            threading.Event().wait()
        return {"stopped": True}

    def text(self, result: Mapping[str, Any]) -> str:
        """That it ended."""
        return "stopped"

    def after_stop(self) -> str:
        """How things stand after Ctrl-C."""
        return "every instance that was answered with success is kept"


@dataclass(frozen=True)
class ServeWork(Command):
    """Work on complete studies, until Ctrl-C; as many of these as you like."""

    folder: Path = field(metadata=FOLDER)
    work: tuple[str, ...] = field(metadata=DO)
    catalogue: str | None = field(default=None, metadata=CATALOGUE)
    secret: Path | None = field(
        default=None,
        metadata=argument("--secret", metavar="FILE", help="of pseudonyms; made where it is not"),
    )
    keep: tuple[str, ...] = field(
        default=(),
        metadata=argument("--keep", metavar="OPTION", help="as of `data deidentify`"),
    )
    models: tuple[Path, ...] = field(default=(), metadata=MODELS)
    send_to: str | None = field(default=None, metadata=SEND_TO)
    login: Path | None = field(default=None, metadata=LOGIN)
    ca: Path | None = field(default=None, metadata=CA)
    plain: bool = field(default=False, metadata=PLAIN)

    def run(self) -> dict[str, Any]:
        """Work until stopped."""
        catalogue = opened(self.folder, self.catalogue)
        from qinjing.data.dicom.deidentify_files import read_secret
        from qinjing.report.declared import served
        from qinjing.serve.work import WorkConfig, work

        config = WorkConfig(
            self.work,
            read_secret(self.secret)[0] if self.secret else None,
            self.keep,
            tuple(served(run) for run in self.models),
            destination(self.send_to, self.login, self.ca, self.plain),
        )
        say("waiting for complete studies; stop with Ctrl-C")
        work(catalogue, config, threading.Event(), _became)
        return {"stopped": True}

    def text(self, result: Mapping[str, Any]) -> str:
        """That it ended."""
        return "stopped"

    def after_stop(self) -> str:
        """How things stand after Ctrl-C."""
        return "a job that was not finished will be taken up again"


def opened(folder: Path, url: str | None) -> Catalogue:
    """Open the catalogue in a folder.

    Raises:
        ConfigError: it cannot be opened, or a package is missing.
    """
    try:
        from qinjing.serve.catalogue import open_catalogue
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "qinjing":
            raise
        raise ConfigError(
            "service", "run with the packages of its extra", f"no package {error.name}",
            advice="pip install 'qinjing[serve]'",
        ) from None  # fmt: skip
    return open_catalogue(folder, url)


def _became(job: Job, became: str) -> None:
    """A line a job, which names no patient and no study."""
    say(f"job {job.job_id}, {job.kind}: {became}")
