"""What is decided of a training across sites before it begins."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.errors import ConfigError


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
        seed: decides every draw.
        share: of the sites that are asked in a round.
        least_sites: answers without which a round is asked again.
        deadline_s: wall seconds that sites have for a round.
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
    """

    output: Path
    rounds: int = 30
    steps: int = 10
    strategy: str = "fedavg"
    strategy_options: dict[str, Any] = field(default_factory=dict)
    combine: str = "mean"
    net: str = "residual_unet"
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

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.least_sites, self.measurements) < 1:
            raise ConfigError("rounds, steps, least_sites and measurements", "1 or more", self)
        if not 0 < self.share <= 1:
            raise ConfigError("share of sites", "above 0 and at most 1", self.share)
        if self.noise and self.clip_norm is None:
            raise ConfigError("noise", "given with clip_norm", self.noise)
        if self.identities is not None and self.combine != "mean":
            raise ConfigError(
                "combine", "mean with secure sums, which show no update", self.combine
            )
        if self.keep not in ("last", "best"):
            raise ConfigError("keep", "last or best", self.keep)
