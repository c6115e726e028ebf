"""What a site is and allows: its own file, checked before anything is done for a coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from qinjing.data.consent import PURPOSES
from qinjing.errors import ConfigError


class RefusedError(ConfigError):
    """Why a site turns a request away, in words that may leave it: no path, no case."""


@dataclass(frozen=True)
class Policy:
    """A site's own rules, kept as `policy.json`.

    Attributes:
        purposes: what the site's data may serve.
        minimum_cases: that every number which leaves the site must stand for.
        maximum_epsilon: privacy that trainings may spend in all; None sets no bound.
        code: digests of the program that a coordinator may run; none stands for the site's own.
        delta: δ of what trainings may spend.
        secure_sums: updates leave hidden in a sum only.
        minimum_sites: of which a secure sum must be.
        hours: local time, "HH:MM-HH:MM", in which the site works for others; "" always.
        compute: share of the largest network's multiply-adds that a step here may take, where the
            coordinator searches for an architecture.
    """

    purposes: tuple[str, ...] = ("federated",)
    minimum_cases: int = 3
    maximum_epsilon: float | None = None
    code: tuple[str, ...] = ()
    delta: float = 1e-5
    secure_sums: bool = False
    minimum_sites: int = 3
    hours: str = ""
    compute: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.compute <= 1:
            raise ConfigError("compute", "above 0 and at most 1", self.compute)
        unknown = set(self.purposes) - set(PURPOSES)
        if unknown:
            raise ConfigError("purposes", f"of {', '.join(PURPOSES)}", ", ".join(sorted(unknown)))
        if self.minimum_cases < 1:
            raise ConfigError("minimum_cases", "1 or more", self.minimum_cases)
        if self.minimum_sites < 3:
            raise ConfigError("minimum_sites", "3 or more", self.minimum_sites)
        if self.hours:
            _hours(self.hours)

    def refusal(self, wanted: Mapping[str, Any], own_code: str, now: datetime) -> str | None:
        """Say in one sentence why a request is turned away, or None.

        Args:
            wanted: the request's fields "purpose" and "code".
            own_code: digest of the program that the site runs.
            now: local time.
        """
        purpose = wanted.get("purpose")
        if purpose not in self.purposes:
            return f"purpose must be one of {', '.join(self.purposes)}, got {purpose}"
        code = wanted.get("code")
        allowed = self.code or (own_code,)
        if code not in allowed:
            return (
                f"code must be one that this site allows ({allowed[0][:12]}…), got "
                f"{str(code)[:12]}…; run the same version of qinjing on both sides"
            )
        if self.hours:
            begin, end = _hours(self.hours)
            minute = now.hour * 60 + now.minute
            inside = begin <= minute < end if begin <= end else not end <= minute < begin
            if not inside:
                return f"the hour must be in {self.hours}, it is {now:%H:%M}; ask again then"
        return None


@dataclass(frozen=True)
class SiteConfig:
    """One site.

    Attributes:
        name: as the coordinator knows it.
        dataset: folder in any layout; it stays here.
        folder: the site's own, for copies on the plan's grid, state and results.
        policy: what it allows.
        splits: a `splits_final.json`, its first fold; else the first of five by patient.
        consent_required: no case is used of which nobody says on what ground it may be.
        identity: the site's Ed25519 key in PEM, for secure sums.
        peers: the sites' public keys, name → base64, from provisioning and not from a coordinator.
    """

    name: str
    dataset: Path
    folder: Path
    policy: Policy = field(default_factory=Policy)
    splits: Path | None = None
    consent_required: bool = True
    identity: Path | None = None
    peers: Path | None = None


def _hours(text: str) -> tuple[int, int]:
    try:
        begin, end = text.split("-")
        times = [datetime.strptime(part.strip(), "%H:%M") for part in (begin, end)]
    except ValueError:
        raise ConfigError("hours", "like 18:00-06:00", text) from None
    return times[0].hour * 60 + times[0].minute, times[1].hour * 60 + times[1].minute
