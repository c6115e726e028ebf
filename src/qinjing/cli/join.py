"""The commands by which hospitals come together and train: the coordinator's and a site's."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.cli import show
from qinjing.cli.arguments import Command, argument, at_least
from qinjing.cli.federate import FederateSimulate, search_config, searched
from qinjing.cli.record import DATASET, output_argument

_LEAVE_S, _STOPPED = 10.0, 130
_PROVISIONED = argument(
    "-p", "--provisioned", metavar="FOLDER", there=True, help="what `federate provision` made"
)


@dataclass(frozen=True)
class FederateProvision(Command):
    """Make a federation's root certificate, the coordinator's own, and an invitation for sites."""

    output: Path = field(metadata=output_argument("FOLDER", "a new one; keys lie in it"))
    name: str = field(metadata=argument("--name", metavar="NAME", help="of the federation"))
    host: str = field(
        metadata=argument("--host", metavar="HOST", help="under which sites reach this machine")
    )
    port: int = field(
        default=8443,
        metadata=argument("--port", metavar="PORT", help="the one that sites connect to"),
    )

    def run(self) -> dict[str, Any]:
        """Make them; the invitation's place and content."""
        from qinjing.config import plain
        from qinjing.federate.flare.papers import provision

        invitation = provision(self.output, self.name, self.host, self.port)
        return {"invitation": str(self.output / "invitation.json"), **plain(invitation)}

    def text(self, result: Mapping[str, Any]) -> str:
        """What to send, and what to read out."""
        return show.pairs(result) + (
            "\nsend the invitation to the sites; tell them the fingerprint by another way"
        )


@dataclass(frozen=True)
class FederateRequest(Command):
    """Make a site's key, which stays here, and the request to send to the coordinator."""

    invitation: Path = field(
        metadata=argument(metavar="INVITATION", there=True, help="the coordinator's file")
    )
    site: str = field(metadata=argument("--site", metavar="NAME", help="of this site"))
    dataset: Path = field(metadata=DATASET)
    output: Path = field(metadata=output_argument("FOLDER", "the site's own, a new one"))
    policy: Path | None = field(
        default=None,
        metadata=argument(
            "--policy", metavar="FILE", there=True, help="policy.json: what this site allows"
        ),
    )
    splits: Path | None = field(
        default=None,
        metadata=argument(
            "--splits", metavar="FILE", there=True, help="splits_final.json; its first fold"
        ),
    )

    def run(self) -> dict[str, Any]:
        """Make them; the request's place."""
        from qinjing.config import read_config
        from qinjing.federate.flare.papers import Invitation, request

        path = request(
            self.invitation, self.site, self.dataset, self.output, self.policy, self.splits
        )
        told = read_config(self.invitation, Invitation).fingerprint
        return {"request": str(path), "fingerprint": told, "policy": f"{self.output}/policy.json"}

    def text(self, result: Mapping[str, Any]) -> str:
        """What to send, and what to compare."""
        return show.pairs(result) + (
            "\ncompare the fingerprint with the coordinator's, then send the request alone"
        )


@dataclass(frozen=True)
class FederateApprove(Command):
    """Sign what sites ask for, as the coordinator; who they are is for you to know."""

    requests: tuple[Path, ...] = field(
        metadata=argument(metavar="REQUEST", there=True, help="the sites' files")
    )
    provisioned: Path = field(metadata=_PROVISIONED)

    def run(self) -> dict[str, Any]:
        """Sign; site → the file to send back."""
        from qinjing.federate.flare.papers import approve

        made = approve(self.requests, self.provisioned)
        return {site: str(path) for site, path in made.items()}

    def text(self, result: Mapping[str, Any]) -> str:
        """What goes where."""
        return show.pairs(result) + "\nsend each site its file"


@dataclass(frozen=True)
class FederateJoin(Command):
    """Join with the signed file, and take part until stopped by Ctrl-C."""

    signed: Path = field(
        metadata=argument(metavar="SIGNED", there=True, help="what the coordinator sent back")
    )
    output: Path = field(
        metadata=argument(
            "-o", "--output", metavar="FOLDER", there=True, help="that `federate request` made"
        )
    )

    peers: Path | None = field(
        default=None,
        metadata=argument(
            "--peers", metavar="FILE", there=True,
            help="all sites' identities.json, for secure sums; kept in the folder",
        ),
    )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Check the papers, connect, and answer what is asked."""
        from qinjing.federate.flare.member import attend
        from qinjing.federate.flare.papers import accept, keep_peers

        accept(self.signed, self.output)
        if self.peers:
            _say(f"all sites' keys: {keep_peers(self.peers, self.output)}; compare with theirs")
        try:
            attend(self.output, _tell_site)
        except KeyboardInterrupt:
            # Threads of gRPC can outlive the stop by minutes; what is to be kept is on the disk.
            leave = threading.Timer(_LEAVE_S, os._exit, (_STOPPED,))
            leave.daemon = True
            leave.start()
            raise
        return {"site": str(self.output)}

    def text(self, result: Mapping[str, Any]) -> str:
        """Where the site's own results lie."""
        return show.pairs(result)

    def after_stop(self) -> str:
        """How to come back."""
        return f"what is done in {self.output} is kept: give the same command to come back"


def _like(name: str) -> Any:
    """A field as `federate simulate` has it."""
    one = FederateSimulate.__dataclass_fields__[name]
    return field(default=one.default, metadata=one.metadata)


@dataclass(frozen=True)
class FederateCoordinate(Command):
    """Train one model with the sites that have joined; what was stopped goes on."""

    provisioned: Path = field(metadata=_PROVISIONED)
    output: Path = field(
        metadata=output_argument("RUN", "the model and its record; what is there goes on")
    )
    sites: int = field(
        default=1,
        metadata=argument(
            "--sites", metavar="N", parse=at_least(1, "--sites"),
            help="wait until so many have joined",
        ),
    )  # fmt: skip
    deadline_s: float = field(
        default=3600.0,
        metadata=argument(
            "--deadline", metavar="S", parse=at_least(1, "--deadline", float),
            help="seconds that sites have for each request; who is late is left out of the round",
        ),
    )  # fmt: skip
    strategy: str = _like("strategy")
    combine: str = _like("combine")
    rounds: int = _like("rounds")
    steps: int = _like("steps")
    net: str = _like("net")
    codec: str = _like("codec")
    secure: bool = _like("secure")
    clip_norm: float | None = _like("clip_norm")
    noise: float = _like("noise")
    secure_bound: float = _like("secure_bound")
    share: float = _like("share")
    seed: int = _like("seed")
    search: bool = _like("search")
    per_site: bool = _like("per_site")

    def run(self) -> dict[str, Any]:
        """Wait for the sites, lead them through the rounds."""
        from qinjing.cli.watch import watch
        from qinjing.federate.coordinator import federate
        from qinjing.federate.federation import FederationConfig
        from qinjing.federate.flare.door import hosted

        config = FederationConfig(
            self.output,
            rounds=self.rounds,
            steps=self.steps,
            strategy=self.strategy,
            combine=self.combine,
            net=self.net,
            codec=self.codec,
            identities=self.provisioned / "identities.json" if self.secure else None,
            seed=self.seed,
            share=self.share,
            clip_norm=self.clip_norm,
            noise=self.noise,
            secure_bound=self.secure_bound,
            deadline_s=self.deadline_s,
            search=search_config(self.search, self.per_site),
        )
        with watch() as tell, hosted(self.provisioned) as door:
            door.wait_for(self.sites, self.deadline_s)
            return federate(config, door, tell)

    def text(self, result: Mapping[str, Any]) -> str:
        """What each site holds out and reaches, and what travelled."""
        rows = []
        for site, told in result["sites"].items():
            dice = told.get("dice", {}).get("mean")
            rows.append((site, told["cases"], "" if dice is None else f"{dice:.4f}"))
        spent = result["bytes"]
        found = [searched(result["search"])] if "search" in result else []
        return "\n".join(
            (
                show.table(("site", "holds out", "Dice"), rows),
                *found,
                f"{result['rounds']} rounds, {spent['sent'] / 1e6:.1f} MB sent to sites, "
                f"{spent['received'] / 1e6:.1f} MB received, {result['seconds']:.0f} s",
                f"written: {result['output']}",
            )
        )

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """Each site that did not take part."""
        return [f"{site}: {reason}" for site, reason in result["refused"].items()]

    def after_stop(self) -> str:
        """How to go on."""
        return f"what is trained in {self.output} is kept: give the same command again"


def _tell_site(kind: str, told: dict[str, Any]) -> None:
    """Say in a line what happened at a site; what a record needs lies in its folder."""
    if kind == "joined":
        line = f"joined {told['host']}; stop with Ctrl-C"
    elif kind == "apart":
        line = f"apart: {told['reason']}; trying again"
    else:
        number = "" if told.get("round") is None else f", round {told['round'] + 1}"
        what = told.get("verb", "") + number
        line = f"{kind} {what}" + (f": {told['reason']}" if told.get("reason") else "")
    _say(line)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
