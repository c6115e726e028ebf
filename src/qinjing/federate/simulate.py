"""Many sites in one process: what a federation reaches, beside each site alone and all pooled."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qinjing import evidence
from qinjing.config import plain, read_config, read_json, write_json
from qinjing.data.case import Case
from qinjing.data.splits import Split, read_splits, write_splits
from qinjing.engine.plan import Plan
from qinjing.errors import ConfigError
from qinjing.federate.coordinator import Tell, federate
from qinjing.federate.doors import InProcess
from qinjing.federate.federation import FederationConfig
from qinjing.federate.message import Message
from qinjing.federate.outcome import dice_on
from qinjing.federate.policy import Policy, SiteConfig
from qinjing.federate.site import Site
from qinjing.tasks.planning import silent, sound_cases
from qinjing.tasks.train import TrainConfig, train

_SIDES: tuple[Literal["train"], Literal["val"]] = ("train", "val")
_HELD_OUT = 0.2  # of each site's patients
LIES = ("flipped", "huge", "noise")


@dataclass(frozen=True)
class SimulationConfig:
    """A federation on one machine.

    Attributes:
        dataset: folder in any layout, dealt to the sites by patient.
        federation: the training; its output holds all that is made.
        sites: how many; None makes one of each group that the data set names (a hospital's, a
            scanner's), as `participants.tsv` or the layout has it.
        spread: deviation of the logarithm of the sites' sizes; 0 makes them equal.
        failing: share of requests that a site does not answer.
        liars: sites that send back lies of the kinds of `LIES`, by turns.
        secure: sums are secure.
        beside: train each site alone and all pooled as well, with the same plan and steps.
        compute: what sites afford in a search, shares of the largest network's multiply-adds, by
            turns; all of it where there are none.
        splits: file whose first fold says who is held out, in the place of a fifth of each site's
            patients; sites with nobody on its train side take no part.
    """

    dataset: Path
    federation: FederationConfig
    sites: int | None = None
    spread: float = 0.7
    failing: float = 0.0
    liars: int = 0
    secure: bool = False
    beside: bool = True
    compute: tuple[float, ...] = ()
    splits: Path | None = None

    def __post_init__(self) -> None:
        if self.sites is not None and self.sites < 2:
            raise ConfigError("sites", "2 or more", self.sites)
        if not all(0 < share <= 1 for share in self.compute):
            raise ConfigError("compute", "shares above 0 and at most 1", self.compute)
        if self.compute and not self.federation.search:
            raise ConfigError("compute", "left out without a search", self.compute)
        if self.liars and (self.secure or self.federation.codec):
            raise ConfigError("liars", "left out with secure sums or a codec", self.liars)
        if not 0 <= self.failing < 1 or self.liars < 0 or self.spread < 0:
            raise ConfigError(
                "failing, liars and spread", "0 or more, failing below 1",
                (self.failing, self.liars, self.spread),
            )  # fmt: skip


def simulate(config: SimulationConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Train across sites of one data set; what is finished is kept, what was stopped goes on.

    Every model is measured on what all sites hold out together.

    Args:
        config: on what and how.
        tell: told of what `federate` and `train` tell, and of ("variant", {"name", …}).

    Returns:
        What `federate` returns, and "runs": name → run folder of the federation, of all sites
        pooled and of each alone; "sizes": cases that each site learns from and holds out.

    Raises:
        ConfigError: too few patients for so many sites, or the data set names no groups.
        InputError: the data set cannot be used.
    """
    tell = tell or silent
    output = config.federation.output
    read = evidence.digested({"dataset": config.dataset}, without=output)
    purpose = config.federation.purpose
    dataset, cases, refused = sound_cases(config.dataset, tell, purpose=purpose)
    shares = by_group(cases) if config.sites is None else dealt(cases, config)
    splits = _split(shares, config, cases)
    told = replace(
        config, dataset=Path(config.dataset.name), splits=config.splits and Path(config.splits.name)
    )
    write_json(output / "simulation.json", plain(told))
    sites = {}
    for number, (name, split) in enumerate(sorted(splits.items())):
        path = output / "sites" / name / "splits.json"
        write_splits(path, [split])
        affords = config.compute[number % len(config.compute)] if config.compute else 1.0
        policy = Policy(minimum_cases=1, secure_sums=config.secure, compute=affords)
        sites[name] = SiteConfig(
            name, config.dataset, path.parent, policy, path, consent_required=False
        )  # as for `train`: the data are this machine's
    federation = config.federation
    if config.secure:
        keys = _identities(output, sites)
        federation = replace(federation, identities=keys)
    door = InProcess(
        {name: _behaving(config, number, Site(sites[name]))
         for number, name in enumerate(sorted(sites))}
    )  # fmt: skip
    named = replace(federation, name=dataset.name)
    result = federate(named, door, tell)
    every = sorted(i for split in splits.values() for i in split["val"])
    if config.splits:  # those of sites that take no part too
        every = sorted(read_splits(config.splits)[0]["val"])
    _measure(output, config.dataset, [case for case in cases if case.case_id in set(every)])
    runs = {"federated": str(output)}
    if config.beside:
        runs |= _beside(config, splits, every, tell)
    sizes = {n: {"train": len(s["train"]), "val": len(s["val"])} for n, s in splits.items()}
    summary = {**result, "runs": runs, "sizes": sizes, "refused_cases": refused}
    write_json(output / "simulated.json", plain(summary))
    evidence.append(output, "simulate", read, [output / "simulated.json"], config)
    return summary


def by_group(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """Return cases by the group that the data set names.

    Raises:
        ConfigError: fewer than two groups.
    """
    groups: dict[str, list[Case]] = {}
    for case in cases:
        # A group's name becomes a folder's.
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", case.group or "unknown")
        groups.setdefault(f"site-{name}" if name == "pooled" else name, []).append(case)
    if len(groups) < 2:
        raise ConfigError(
            "groups of the data set", "two or more", ", ".join(groups),
            advice="give a number of sites, or name each patient's group in participants.tsv",
        )  # fmt: skip
    return groups


def dealt(cases: Sequence[Case], config: SimulationConfig) -> dict[str, list[Case]]:
    """Deal patients to sites, of log-normal sizes and two patients at least.

    Raises:
        ConfigError: fewer than two patients a site.
    """
    assert config.sites
    patients = sorted({case.patient_id for case in cases})
    if len(patients) < 2 * config.sites:
        raise ConfigError("sites", f"{len(patients) // 2} at most, of two patients", config.sites)
    rng = np.random.default_rng((config.federation.seed, 7))
    sizes = np.exp(config.spread * rng.standard_normal(config.sites))
    free = len(patients) - 2 * config.sites
    ends = np.round(np.cumsum(sizes) / sizes.sum() * free).astype(int)
    counts = 2 + np.diff(ends, prepend=0)
    order = rng.permutation(len(patients))
    width = len(str(config.sites))
    shares: dict[str, list[Case]] = {}
    start = 0
    for number, count in enumerate(counts, start=1):
        own = {patients[i] for i in order[start : start + count]}
        shares[f"site_{number:0{width}d}"] = [c for c in cases if c.patient_id in own]
        start += count
    return shares


def held_apart(cases: Sequence[Case], seed: int) -> Split:
    """Return a fold that holds out a fifth of the patients, one at least."""
    patients = sorted({case.patient_id for case in cases})
    order = np.random.default_rng((seed, 8)).permutation(len(patients))
    kept = {patients[i] for i in order[: max(1, round(_HELD_OUT * len(patients)))]}
    return {
        "train": [case.case_id for case in cases if case.patient_id not in kept],
        "val": [case.case_id for case in cases if case.patient_id in kept],
    }


def _split(
    shares: Mapping[str, Sequence[Case]], config: SimulationConfig, cases: Sequence[Case]
) -> dict[str, Split]:
    """Who learns and who is held out at each site that takes part.

    Raises:
        ConfigError: fewer than two sites have anybody to learn from.
    """
    if config.splits is None:
        return {name: held_apart(own, config.federation.seed) for name, own in shares.items()}
    fold = read_splits(config.splits, cases)[0]
    found = {}
    for name, own in shares.items():
        train, val = ([c.case_id for c in own if c.case_id in fold[side]] for side in _SIDES)
        if train:
            found[name] = Split(train=train, val=val)
    if len(found) < 2:
        raise ConfigError(
            "splits", "a fold with two sites on its train side", len(found), where=config.splits
        )
    return found


def _identities(output: Path, sites: dict[str, SiteConfig]) -> Path:
    """Give each site a key of its own, and all the public ones; the file of these."""
    keys = output / "identities.json"
    public = {}
    for name, site in sites.items():
        identity = site.folder / "identity.pem"
        raw = evidence.load_private_key(identity).public_key().public_bytes_raw()
        public[name] = base64.b64encode(raw).decode()
        sites[name] = replace(site, identity=identity, peers=keys)
    write_json(keys, public)
    return keys


def _behaving(config: SimulationConfig, number: int, site: Site) -> Callable[[bytes], bytes]:
    """A site that fails and lies as the simulation says."""
    seed = config.federation.seed
    lie = LIES[number % len(LIES)] if number < config.liars else None

    def answer(request: bytes) -> bytes:
        message = Message.unpack(request)
        if message.verb != "learn":
            return site.answer(request)
        rng = np.random.default_rng((seed, 9, number, message.fields["round"]))
        if rng.random() < config.failing:
            raise ConnectionError("the site is gone")
        told = Message.unpack(site.answer(request))
        return (told if lie is None or told.verb == "refused" else lied(told, lie, rng)).pack()

    return answer


def lied(message: Message, lie: str, rng: np.random.Generator) -> Message:
    """Return an update as a liar sends it: "flipped" ten times over, "huge", or "noise"."""
    import torch

    change = dict(message.tensors["change"])
    for name, value in change.items():
        if lie == "noise":
            drawn = torch.from_numpy(rng.standard_normal(tuple(value.shape))).to(value.dtype)
            change[name] = drawn * value.std(correction=0).clamp_min(1e-3) * 10
        else:
            change[name] = value * (-10 if lie == "flipped" else 1000)
    return replace(message, tensors={**message.tensors, "change": change})


def _measure(run: Path, dataset: Path, cases: Sequence[Case]) -> None:
    """Segment held-out cases with a run's model and measure them, as `train` does."""
    fold = run / "fold_0"
    if not (fold / "metrics.json").exists():
        dice_on(run, dataset, cases)
    if not (run / "metrics.json").exists():
        write_json(run / "metrics.json", read_json(fold / "metrics.json"))


def _beside(
    config: SimulationConfig, splits: dict[str, Split], every: list[str], tell: Tell
) -> dict[str, str]:
    """Train on all sites' cases pooled and on each site's alone; name → run folder."""
    output = config.federation.output
    plan = read_config(output / "plan.json", Plan)
    pooled = sorted(i for split in splits.values() for i in split["train"])
    wanted = {"pooled": pooled} | {name: split["train"] for name, split in splits.items()}
    runs = {}
    for number, (name, train_ids) in enumerate(wanted.items(), start=1):
        tell("variant", {"name": name, "seed": 0, "number": number, "of": len(wanted)})
        run = output / "beside" / name
        runs[name] = str(run)
        if (run / "measured.json").is_file():
            continue
        path = run.with_name(f"{name}.splits.json")
        write_splits(path, [{"train": train_ids, "val": every}])
        own_plan = run.with_name("plan.json")
        write_json(own_plan, plan)
        seed = config.federation.seed
        train(
            TrainConfig(config.dataset, run, seed=seed, resume=True, splits=path, plan=own_plan),
            tell,
        )
    return runs
