"""Planning together: what sites tell of their scans, and the one fingerprint it adds up to.

Plans that differ from site to site break the average of weights, so that all sites follow one. What
a site tells are counts and sums over groups of cases, never a value of a single one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.config import write_json
from qinjing.data.fingerprint import CaseFingerprint, ChannelIntensity, Fingerprint
from qinjing.engine.plan import Plan, with_steps
from qinjing.errors import ConfigError
from qinjing.federate.federation import FederationConfig
from qinjing.federate.policy import RefusedError
from qinjing.tasks.planning import Overrides, decide

LEAST = 3  # cases that a number must stand for
_CASES = 64  # that stand for all sites' in the pooled fingerprint
_AXES = "dhw"


@dataclass(frozen=True)
class Sketch:
    """What a site tells of its scans.

    Attributes:
        channel_names: one per input channel.
        labels: value → name, background included.
        cases: how many.
        quantities: name → groups of `LEAST` cases or more, each (cases, their mean), ascending.
        label_voxels: label value → voxels over all cases.
        one_piece: everything labelled hangs together in every case.
        greys: per channel the mean, deviation and two percentiles over all cases' samples.
        ignored: value of voxels that nobody labelled.
    """

    channel_names: tuple[str, ...]
    labels: dict[int, str]
    cases: int
    quantities: dict[str, tuple[tuple[int, float], ...]]
    label_voxels: dict[int, int]
    one_piece: bool
    greys: tuple[ChannelIntensity, ...]
    ignored: int | None = None


def sketch(fingerprint: Fingerprint, least: int = LEAST) -> Sketch:
    """Return what a site may tell of its fingerprint.

    Args:
        fingerprint: of the cases that it would train on.
        least: cases that every number must stand for.

    Raises:
        RefusedError: fewer cases than that.
    """
    cases = fingerprint.cases
    if len(cases) < least:
        raise RefusedError(
            "cases of a site", f"{least} at least to be told of", len(cases),
            advice="join with more, or lower the minimum in the site's policy",
        )  # fmt: skip
    columns: dict[str, list[float]] = {}
    for case in cases:
        for axis, name in enumerate(_AXES):
            columns.setdefault(f"spacing_{name}", []).append(case.spacing_mm[axis])
            columns.setdefault(f"shape_{name}", []).append(case.shape[axis])
            columns.setdefault(f"extent_{name}", []).append(case.extent[axis])
    voxels: dict[int, int] = {}
    for case in cases:
        for value, count in case.label_voxels.items():
            voxels[value] = voxels.get(value, 0) + count
    return Sketch(
        fingerprint.channel_names,
        dict(fingerprint.labels),
        len(cases),
        {name: grouped(values, least) for name, values in columns.items()},
        voxels,
        all(case.largest_piece == 1 for case in cases),
        fingerprint.intensities,
        fingerprint.ignored,
    )


def grouped(values: Sequence[float], least: int) -> tuple[tuple[int, float], ...]:
    """Return values as (count, mean) of groups of `least` neighbours or more, ascending.

    Args:
        values: one per case, `least` at least.
        least: the size of a group; the last takes what is left over.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    parts = np.array_split(ordered, len(ordered) // least)
    return tuple((len(part), float(part.mean())) for part in parts)


def pooled(dataset: str, sketches: Mapping[str, Sketch]) -> Fingerprint:
    """Return the fingerprint that all sites plan by.

    Its cases are made up: each has one quantile of every quantity, so that medians and percentiles
    are those of all sites' cases together, up to the groups' means.

    Args:
        dataset: a name for the whole.
        sketches: by site.

    Raises:
        ConfigError: sites have other channels or labels.
    """
    sites = list(sketches)
    first = sketches[sites[0]]
    for site in sites[1:]:
        for name in ("channel_names", "labels", "ignored"):
            if getattr(sketches[site], name) != getattr(first, name):
                raise ConfigError(
                    name, f"{getattr(first, name)}, as at {sites[0]}",
                    getattr(sketches[site], name), where=site,
                    advice="let every site name its channels and labels alike",
                )  # fmt: skip
    table = {
        name: quantiles([g for one in sketches.values() for g in one.quantities[name]], _CASES)
        for name in first.quantities
    }
    whole = sum(one.cases for one in sketches.values())
    voxels: dict[int, int] = {}
    for one in sketches.values():
        for value, count in one.label_voxels.items():
            voxels[value] = voxels.get(value, 0) + count
    share = {value: max(1, count // whole) for value, count in voxels.items()}
    piece = 1.0 if all(one.one_piece for one in sketches.values()) else 0.0
    return Fingerprint(
        dataset,
        first.channel_names,
        dict(first.labels),
        tuple(_made_up(table, k, share, piece) for k in range(_CASES)),
        tuple(
            _pooled_greys([(one.cases, one.greys[c]) for one in sketches.values()])
            for c in range(len(first.channel_names))
        ),
        first.ignored,
    )


def plan_together(config: FederationConfig, sketches: Mapping[str, Sketch], path: Path) -> Plan:
    """Plan for all sites, and write the plan and what it comes from into the run's folder.

    Args:
        config: names the network, rounds and steps.
        sketches: by site.
        path: of the plan.

    Raises:
        ConfigError: sites have other channels or labels.
    """
    fingerprint = pooled(config.name, sketches)
    plan = decide(fingerprint, Overrides(config.net, config.net_options or None))
    plan = with_steps(plan, config.rounds * config.steps, None, 1)
    write_json(config.output / "fingerprint.json", fingerprint)
    labels = {str(value): name for value, name in fingerprint.labels.items()}
    about = {"name": config.name, "labels": labels, "licence": ""}
    channels = {"channel_names": list(fingerprint.channel_names)}
    write_json(config.output / "dataset.json", {**about, **channels})
    write_json(path, plan)
    return plan


def quantiles(groups: Sequence[tuple[int, float]], count: int) -> np.ndarray:
    """Return `count` evenly spread quantiles of values given as (cases, mean) groups."""
    ordered = sorted(groups, key=lambda group: group[1])
    ends = np.cumsum([cases for cases, _ in ordered])
    asked = (np.arange(count) + 0.5) / count * ends[-1]
    return np.array([ordered[i][1] for i in np.searchsorted(ends, asked)])


def _made_up(
    table: Mapping[str, np.ndarray], k: int, voxels: dict[int, int], piece: float
) -> CaseFingerprint:
    def triple(kind: str) -> list[Any]:
        return [table[f"{kind}_{axis}"][k] for axis in _AXES]

    d, h, w = (round(n) for n in triple("shape"))
    sd, sh, sw = (float(mm) for mm in triple("spacing"))
    ed, eh, ew = (round(n) for n in triple("extent"))
    extent = (min(ed, d), min(eh, h), min(ew, w))
    return CaseFingerprint(f"case_{k:03d}", (d, h, w), (sd, sh, sw), voxels, extent, piece)


def _pooled_greys(sites: Sequence[tuple[int, ChannelIntensity]]) -> ChannelIntensity:
    """Mean and deviation of all sites' cases together; percentiles' weighted means."""
    cases = np.array([n for n, _ in sites], dtype=float)
    share = cases / cases.sum()
    means = np.array([one.mean for _, one in sites])
    spreads = np.array([one.sd for _, one in sites])
    mean = float(share @ means)
    sd = float(np.sqrt(share @ (spreads**2 + (means - mean) ** 2)))
    low, high = (
        float(share @ np.array([getattr(one, name) for _, one in sites]))
        for name in ("percentile_00_5", "percentile_99_5")
    )
    return ChannelIntensity(mean, sd, low, high)
