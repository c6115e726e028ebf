"""What is decided of a training across sites before it begins."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qinjing.config import plain, read_json, write_json
from qinjing.errors import ConfigError
from qinjing.federate.privacy import LEAST_NOISE, MOST_NOISE
from qinjing.federate.slices import MOST
from qinjing.federate.supernet import SLICED

SEARCHING = ("fedavg", "fedprox")  # strategies that keep nothing at a site which has a shape


@dataclass(frozen=True)
class SearchConfig:
    """A search for the architecture, as the first part of a training across sites.

    Attributes:
        share: of the rounds that go into it; the others train what was chosen.
        ratios: of each stage's channels that an architecture may have.
        depth: stages may have fewer blocks too, where the network has blocks.
        candidates: architectures that are known, and ranked; those of one ratio and depth
            throughout are always among them.
        tolerance: Dice below the best that the cheapest may have to be chosen.
        per_site: every site gets its own, by what it holds out and affords.
    """

    share: float = 0.5
    ratios: tuple[float, ...] = (0.5, 0.75, 1.0)
    depth: bool = True
    candidates: int = 12
    tolerance: float = 0.01
    per_site: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError("share of rounds for a search", "above 0 and at most 1", self.share)
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise ConfigError("ratios", "above 0 and at most 1", self.ratios)
        if self.candidates < 1 or self.tolerance < 0:
            given = (self.candidates, self.tolerance)
            raise ConfigError("candidates and tolerance", "1 or more and 0 or more", given)


@dataclass(frozen=True)
class FederationConfig:
    """One training across sites, as `federation.json` keeps it.

    Attributes:
        output: a run folder, which `predict -m` reads as any other.
        rounds: how often weights travel.
        steps: optimiser steps of each site in a round.
        strategy: name in `STRATEGIES`.
        strategy_options: of its constructor.
        combine: name in `AGGREGATORS`, how the sites' changes become one.
        net: name in `NETS`.
        net_options: of its constructor, above what the plan gives it.
        seed: decides every draw.
        share: of the sites that are asked in a round.
        least_sites: answers without which a round is asked again.
        deadline_s: wall seconds that sites have for an answer.
        measurements: how many times sites measure on what they hold out, evenly spread, before the
            end.
        codec: name in `CODECS`, for both ways; "" sends every number as it is.
        clip_norm: C, the length to which each site's update is clipped; None sends it as it is.
        noise: σ, the noise on a sum of clipped updates as a multiple of C; every site's alone where
            sums are not secure. Sites then have the same weight each.
        identities: file of the sites' public keys, name → base64: the coordinator then sees sums of
            updates alone, which travel as 32-bit integers whatever the codec.
        secure_bound: the largest n·change or n that a sum has room for.
        keep: "last", or "best" of the measured rounds by the sites' own word.
        purpose: that consents and policies are asked for.
        name: of the data of all sites together.
        search: for the architecture, among slices of the network; None trains the whole.
    """

    output: Path
    rounds: int = 30
    steps: int = 10
    strategy: str = "fedavg"
    strategy_options: dict[str, Any] = field(default_factory=dict)
    combine: str = "mean"
    net: str = "residual_unet"
    net_options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    share: float = 1.0
    least_sites: int = 1
    deadline_s: float = 3600.0
    measurements: int = 3
    codec: str = ""
    clip_norm: float | None = None
    noise: float = 0.0
    identities: Path | None = None
    secure_bound: float = 1000.0
    keep: str = "last"
    purpose: str = "federated"
    name: str = "federation"
    search: SearchConfig | None = None

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.least_sites, self.measurements) < 1:
            raise ConfigError("rounds, steps, least_sites and measurements", "1 or more", self)
        if not 0 < self.share <= 1:
            raise ConfigError("share of sites", "above 0 and at most 1", self.share)
        if self.noise and self.clip_norm is None:
            raise ConfigError("noise", "given with clip_norm", self.noise)
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError("clip_norm", "above 0", self.clip_norm)
        if self.noise and not LEAST_NOISE <= self.noise <= MOST_NOISE:
            raise ConfigError("noise", f"0, or {LEAST_NOISE} to {MOST_NOISE:g}", self.noise)
        if self.search and self.net not in SLICED:
            raise ConfigError("net of a search", f"one of {', '.join(SLICED)}", self.net)
        if self.search and self.search.candidates > MOST:
            raise ConfigError("candidates", f"{MOST} at most", self.search.candidates)
        if self.identities is not None and self.combine != "mean":
            raise ConfigError(
                "combine", "mean with secure sums, which show no update", self.combine
            )
        if self.keep not in ("last", "best"):
            raise ConfigError("keep", "last or best", self.keep)
        if self.search and (self.codec or self.noise or self.identities or self.combine != "mean"):
            # Sums, codecs' memories and rules against liars are over updates of one shape.
            given = (self.codec, self.noise, self.identities, self.combine)
            raise ConfigError(
                "codec, noise, secure sums and combine", "left out of a search", given
            )
        if self.search and self.strategy not in SEARCHING:
            raise ConfigError(
                "strategy of a search", f"one of {', '.join(SEARCHING)}", self.strategy
            )

    @property
    def searching(self) -> int:
        """Rounds that go into the search."""
        return max(1, round(self.search.share * self.rounds)) if self.search else 0

    def is_due(self, number: int) -> bool:
        """Whether sites measure in a round; while they search, their networks are not one."""
        done = [(number + ahead) * self.measurements // self.rounds for ahead in (0, 1)]
        return number >= self.searching and done[1] > done[0]


def claimed(config: FederationConfig) -> str:
    """Return the name under which sites keep what they learn in this training; the folder says it.

    Raises:
        ConfigError: the folder holds another federation.
    """
    path = config.output / "federation.json"
    wanted = plain(replace(config, output=Path()))
    if path.exists() and read_json(path) != wanted:
        raise ConfigError(
            "output", "a new folder, or one of the same federation", "another",
            where=config.output, advice="repeat the first command, or choose another",
        )  # fmt: skip
    write_json(path, wanted)
    name = config.output / "training.json"
    if not name.exists():
        write_json(name, {"training": secrets.token_hex(8)})
    return str(read_json(name)["training"])
