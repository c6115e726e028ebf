"""Architecture search in a federation: sites train slices of one network, then one is chosen.

In the first rounds every site trains the largest slice that it can afford, the smallest, or one at
random, by turns; in the middle slices are ranked by what sites hold out; the chosen one goes on
from its share of the weights. Scans and scores of single cases stay where they are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qinjing.config import plain, read_json, write_json
from qinjing.engine.log import read_events
from qinjing.engine.plan import Plan
from qinjing.errors import ConfigError, QinjingError
from qinjing.federate.federation import FederationConfig, SearchConfig
from qinjing.federate.message import Message, Tensors
from qinjing.federate.strategies import State
from qinjing.federate.strategies.strategy import Combine
from qinjing.federate.supernet import Architecture, Supernet

Ask = Callable[..., dict[str, Message]]
Spent = dict[str, Any]
_STEP = 4  # channels


class Searching:
    """What a coordinator does otherwise while it searches.

    Args:
        config: the federation's, with a search.
        plan: of the largest network.
        ask: (verb, fields, states, fields by site) → answers, as the coordinator asks.
    """

    def __init__(self, config: FederationConfig, plan: Plan, ask: Ask) -> None:
        assert config.search
        self.config, self.search, self.plan, self._ask = config, config.search, plan, ask
        self.net = Supernet(plan.model)
        costs = {
            one: self.net.multiply_adds(one, plan.patch_size)
            for one in space(self.net, self.search, config.seed)
        }
        self.space = sorted(costs, key=lambda one: (costs[one], one.widths, one.blocks))
        self.costs = [costs[one] for one in self.space]
        self._whole = self.net.multiply_adds(self.net.largest, plan.patch_size)
        self.affords: dict[str, float] = {}  # share of the largest's multiply-adds, by site
        self.asked: dict[str, Architecture] = {}
        self._path = config.output / "search.json"

    def meet(self, prepared: Mapping[str, Message]) -> None:
        """Keep what sites that have the plan now afford."""
        for site, answer in prepared.items():
            self.affords[site] = float(answer.fields.get("compute", 1.0))

    def send(
        self, verb: str, fields: Mapping[str, Any], state: State, number: int, sites: Sequence[str]
    ) -> dict[str, Message]:
        """Ask sites, each with its own slice of the state."""
        # One object for all who get the same, fields too: it is packed once.
        cut: dict[tuple[Architecture, tuple[int, ...]], State] = {}
        states, told = {}, {}
        for site in sites:
            within = self._within(site) or [0]  # who affords none says so itself
            if verb == "rank":
                some = [self.space[i] for i in within]
                one = envelope(some)
                told[site] = {"architectures": plain(some), "envelope": plain(one)}
            else:
                one = self.asked[site] = self.space[self._for(site, number, within)]
                told[site] = {"architecture": plain(one)}
            key = one, tuple(within) if verb == "rank" else ()
            if key not in cut:
                cut[key] = {group: self.net.cut(own, one) for group, own in state.items()}
            states[site] = cut[key]
        return self._ask(verb, fields, states, told)

    def mean_of(self, sites: Sequence[str]) -> Combine:
        """Return what combines the changes of these sites' slices, in this order."""
        of = [self.asked[site] for site in sites]
        return lambda changes, cases: self.net.mean(of, changes, cases)

    def check(self, site: str, answer: Message) -> None:
        """Refuse scores that are none, or of other architectures.

        Raises:
            ConfigError: saying so.
        """
        if answer.verb != "rank" or "scores" not in answer.fields:
            return
        scores, count = answer.fields["scores"], len(self._within(site))
        if not isinstance(answer.fields.get("measured"), int) or not isinstance(scores, list):
            raise ConfigError("scores", "numbers over measured cases", scores)
        if len(scores) != count or not all(
            isinstance(one, int | float) and 0 <= one <= 1 for one in scores
        ):
            raise ConfigError("scores", f"{count} from 0 to 1", scores)

    def sent(self, site: str) -> dict[str, tuple[int, ...]]:
        """Return group/name → shape of the update that a site was asked for."""
        return {f"change/{n}": shape for n, shape in self.net.shapes(self.asked[site]).items()}

    def told(self, answers: Mapping[str, Message]) -> dict[str, Any]:
        """Return what the log keeps of a round: who trained what, in what time."""
        return {
            "architectures": {site: self.space.index(self.asked[site]) for site in answers},
            "step_s": {s: a.fields["step_s"] for s, a in answers.items() if "step_s" in a.fields},
        }

    def settle(
        self, number: int, rank: Callable[[], dict[str, Message]], spent: Callable[[], Spent]
    ) -> None:
        """Rank the slices and choose, once, when the rounds of the search are over.

        Args:
            number: of the round that begins.
            rank: asks all sites for it.
            spent: tells what it has cost until then, to be kept beside the result.

        Raises:
            QinjingError: too few sites answer, or none may tell how good they are.
        """
        if number < self.config.searching or self._path.exists():
            return
        began = time.monotonic()
        answers = rank()
        ranking = round(time.monotonic() - began, 2)
        if len(answers) < self.config.least_sites:
            raise QinjingError(
                f"{self.config.least_sites} sites must rank the architectures, {len(answers)} do; "
                "see to the sites, then repeat the command: it goes on from here"
            )
        rounds = [e for e in read_events(self.config.output / "log.jsonl") if e["kind"] == "round"]
        rows = self._rows(answers, rounds)
        common = set(range(len(rows)))
        for site in {*answers, *self.affords}:
            common &= set(self._within(site)) or common  # who affords none keeps none from others
        best = chosen(rows, common, "dice", self.search.tolerance)
        sites = dict.fromkeys(answers, best)
        if self.search.per_site:
            for site in {site for row in rows for site in row["site_dice"]}:
                own = [{**row, "own": row["site_dice"].get(site)} for row in rows]
                sites[site] = chosen(own, set(self._within(site)), "own", self.search.tolerance)
        table = [{**row, "front": _undominated(row, rows)} for row in rows]
        seconds = {"rounds": round(sum(e["seconds"] for e in rounds), 2), "ranking": ranking}
        found = {"chosen": best, "sites": sites, "candidates": table, "seconds": seconds}
        write_json(self._path, {**found, **spent()})

    def result(self, weights: Tensors) -> tuple[Plan, Tensors, dict[str, Any]]:
        """Return the plan of the chosen architecture, its weights, and what the search found."""
        found = read_json(self._path)
        one = self.space[found["chosen"]]
        plan = replace(self.plan, model=self.net.card(one))
        return plan, self.net.cut(weights, one), {"search": found}

    def _within(self, site: str) -> list[int]:
        """Places in the space of what a site affords."""
        most = self.affords.get(site, 1.0) * self._whole
        return [i for i, cost in enumerate(self.costs) if cost <= most]

    def _for(self, site: str, number: int, within: list[int]) -> int:
        """What a site trains in a round: what was chosen, or what it is its turn to.

        It hangs on the site's name and the round alone, so that a round that is asked for again
        asks for the same.
        """
        if number >= self.config.searching:
            told = read_json(self._path)
            one = int(told["sites"].get(site, told["chosen"]))
            return one if one in within else within[-1]  # who came late may afford less
        key = int.from_bytes(hashlib.sha256(site.encode()).digest()[:4], "little")
        turn = (number + key) % 3  # the sandwich rule, arXiv:1903.05134
        drawn = np.random.default_rng((self.config.seed, 11, number, key)).choice(within)
        return (within[-1], within[0], int(drawn))[turn]

    def _rows(
        self, answers: Mapping[str, Message], rounds: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The table of candidates: cost, each site's Dice, and the mean where all have one.

        A mean over other sites would be one over other cases, and could not be held beside it.
        """
        times: dict[int, list[float]] = {}
        for event in rounds:
            for site, second in event.get("step_s", {}).items():
                times.setdefault(event["architectures"][site], []).append(second)
        telling = {site: a for site, a in answers.items() if "scores" in a.fields}
        if not telling:
            raise QinjingError(
                "architectures are ranked by cases that sites hold out, and no site has as many as "
                "its policy asks for; hold out more there, or lower minimum_cases"
            )
        rows = []
        for i, one in enumerate(self.space):
            dice = {}
            for site, answer in telling.items():
                if i in self._within(site):
                    dice[site] = float(answer.fields["scores"][self._within(site).index(i)])
            n = [telling[site].fields["measured"] for site in dice]
            mean = round(float(np.average([*dice.values()], weights=n)), 5) if dice else None
            numbers = self.net.parameters(one)
            rows.append(
                {
                    **plain(one),
                    "parameters": numbers,
                    "megabytes": round(4e-6 * numbers, 4),
                    "million_multiply_adds": round(self.costs[i] / 1e6, 3),
                    "step_s": round(float(np.median(times[i])), 4) if i in times else None,
                    "dice": mean if len(dice) == len(telling) else None,
                    "site_dice": dice,
                }
            )
        return rows


def space(net: Supernet, config: SearchConfig, seed: int) -> tuple[Architecture, ...]:
    """Return the architectures that a search knows.

    Those of one ratio and depth throughout are always among them; the others are drawn.

    Args:
        net: the largest.
        config: ratios, depths and how many.
        seed: of the draw.
    """
    most, rng = net.largest, np.random.default_rng((seed, 10))
    deepest = max(most.blocks, default=1) if config.depth else 1

    def one(ratios: Sequence[float], depths: Sequence[int]) -> Architecture:
        widths = tuple(
            min(w, max(_STEP, _STEP * round(r * w / _STEP)))
            for w, r in zip(most.widths, ratios, strict=True)
        )
        fewer = tuple(max(1, b - d) for b, d in zip(most.blocks, depths, strict=False))
        return Architecture(widths, fewer)

    stages = len(most.widths)
    found = dict.fromkeys(
        one([r] * stages, [d] * stages) for r in config.ratios for d in range(deepest)
    )
    for _ in range(20 * config.candidates):
        if len(found) >= config.candidates:
            break
        ratios, depths = rng.choice(config.ratios, stages), rng.integers(0, deepest, stages)
        found[one(ratios.tolist(), depths.tolist())] = None
    return tuple(found)


def envelope(some: Sequence[Architecture]) -> Architecture:
    """Return the smallest architecture that all of these are slices of."""
    widths = zip(*(one.widths for one in some), strict=True)
    return Architecture(
        tuple(map(max, widths)), tuple(map(max, zip(*(one.blocks for one in some), strict=True)))
    )


def chosen(rows: Sequence[Mapping[str, Any]], among: set[int], key: str, tolerance: float) -> int:
    """Return the place of the cheapest whose score is within a tolerance of the best.

    Raises:
        QinjingError: none among them has a score.
    """
    known = [i for i in sorted(among) if rows[i][key] is not None]
    if not known:
        raise QinjingError("no architecture that every site affords could be measured")
    least = max(rows[i][key] for i in known) - tolerance
    good = [i for i in known if rows[i][key] >= least]
    return min(good, key=lambda i: rows[i]["million_multiply_adds"])


def _undominated(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no other is as cheap and as good, and better in one of the two."""

    def place(one: Mapping[str, Any]) -> tuple[float, float]:
        return one["million_multiply_adds"], -one["dice"]

    if row["dice"] is None:
        return False
    cost, loss = place(row)
    others = (place(one) for one in rows if one["dice"] is not None)
    return not any(c <= cost and d <= loss and (c, d) != (cost, loss) for c, d in others)
