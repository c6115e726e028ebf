"""The commands that ask a PACS and a worklist by the web."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument
from qinjing.cli.node import DO, FOLDER, opened
from qinjing.cli.serve import CA, CATALOGUE, LOGIN, say

_ROOT = "https://HOST/PATH"


@dataclass(frozen=True)
class ServeFetch(Command):
    """Fetch studies from a PACS by DICOMweb, once, and queue them."""

    url: str = field(metadata=argument(metavar=_ROOT, help="the PACS's root of DICOMweb"))
    folder: Path = field(metadata=FOLDER)
    catalogue: str | None = field(default=None, metadata=CATALOGUE)
    modality: str | None = field(
        default=None, metadata=argument("--modality", metavar="MODALITY", help="of one series")
    )
    dates: str | None = field(
        default=None,
        metadata=argument("--dates", metavar="DATES", help="YYYYMMDD, or two with - between"),
    )
    description: str | None = field(
        default=None,
        metadata=argument("--description", metavar="TEXT", help="a part of the study's"),
    )
    work: tuple[str, ...] = field(default=(), metadata=DO)
    login: Path | None = field(default=None, metadata=LOGIN)
    ca: Path | None = field(default=None, metadata=CA)

    def run(self) -> dict[str, Any]:
        """Find, fetch and queue; how much of each, and why not."""
        catalogue = opened(self.folder, self.catalogue)
        from qinjing.serve.dicomweb import find_studies
        from qinjing.serve.fetch import fetch_all
        from qinjing.serve.peer import Caller, Peer

        with Caller(Peer(self.url, self.login, self.ca)) as caller:
            wanted = (self.modality or "", self.dates or "", self.description or "")
            found = find_studies(caller, *wanted)
            return fetch_all(caller, catalogue, found, self.work)

    def text(self, result: Mapping[str, Any]) -> str:
        """How much came."""
        return show.pairs({name: result[name] for name in ("studies", "new", "known", "queued")})

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Why a study did not come, or came in part."""
        return list(result["refused"])


@dataclass(frozen=True)
class ServeWorklist(Command):
    """Predict what a worklist server (UPS-RS) asks for, until Ctrl-C, beside `serve work`."""

    url: str = field(metadata=argument(metavar=_ROOT, help="the worklist's root"))
    folder: Path = field(metadata=FOLDER)
    catalogue: str | None = field(default=None, metadata=CATALOGUE)
    pacs: str | None = field(
        default=None,
        metadata=argument(
            "--pacs", metavar="URL", help="DICOMweb that has the images; else the worklist's root"
        ),
    )
    label: str | None = field(
        default=None,
        metadata=argument("--label", metavar="LABEL", help="of the worklist that is ours"),
    )
    station: str | None = field(
        default=None,
        metadata=argument("--station", metavar="CODE", help="that steps are scheduled for"),
    )
    login: Path | None = field(default=None, metadata=LOGIN)
    ca: Path | None = field(default=None, metadata=CA)

    def run(self) -> dict[str, Any]:
        """Claim, fetch and end steps until stopped."""
        catalogue = opened(self.folder, self.catalogue)
        from qinjing.serve.peer import Peer
        from qinjing.serve.steps import StepsConfig, do_steps
        from qinjing.serve.ups import Wanted

        server, pacs = (Peer(url, self.login, self.ca) for url in (self.url, self.pacs or self.url))
        config = StepsConfig(server, pacs, Wanted(self.label or "", self.station or ""))
        say("looking at the worklist; stop with Ctrl-C")
        do_steps(catalogue, config, threading.Event(), lambda became: say(f"a step: {became}"))
        return {"stopped": True}

    def text(self, result: Mapping[str, Any]) -> str:
        """That it ended."""
        return "stopped"

    def after_stop(self) -> str:
        """How things stand after Ctrl-C."""
        return "steps that were claimed stay ours, and go on with the next start"
