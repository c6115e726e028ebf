"""The coordinator: pools what sites tell, plans once, leads the rounds, keeps what came of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch

from qinjing import evidence, registry
from qinjing.config import plain, read_config, read_json, write_json
from qinjing.engine.checkpoint import load_tensors, save_model, save_tensors
from qinjing.engine.log import EventLog
from qinjing.engine.plan import Plan
from qinjing.errors import InputError, QinjingError
from qinjing.federate.answers import check_numbers, check_update, sketched
from qinjing.federate.doors import Door
from qinjing.federate.federation import FederationConfig, claimed
from qinjing.federate.guarded import SecureRound
from qinjing.federate.message import Message, Tensors, as_tensor
from qinjing.federate.pooling import plan_together
from qinjing.federate.robust import AGGREGATORS
from qinjing.federate.search import Searching
from qinjing.federate.strategies import State, Update, read_strategy
from qinjing.federate.travel import FIRST, Outgoing, flat, grouped, names_of, unpacked
from qinjing.tasks.planning import silent

Tell = Callable[[str, dict[str, Any]], None]


@dataclass
class _Standing:
    """Where a federation stands; saved after every round."""

    round: int = 0
    best: float = -1.0
    cases: dict[str, int] = field(default_factory=dict)  # n_k of every site that ever answered
    epsilon: dict[str, float] = field(default_factory=dict)  # by the sites' own accounts
    delta: dict[str, Any] = field(default_factory=dict)
    sent: int = 0  # bytes
    received: int = 0


def federate(config: FederationConfig, door: Door, tell: Tell | None = None) -> dict[str, Any]:
    """Train one model with the sites behind a door; a stopped one goes on where it stood.

    Args:
        config: how.
        door: how sites are reached.
        tell: told of ("plan" | "round" | "refused", fields).

    Returns:
        "output", "rounds", "seconds", "bytes" {"sent", "received"}, "sites": by name "cases" and,
        where enough cases stand for it, "dice" {"mean", "low", "high", "n"}, and with noise
        "epsilon" and "delta"; "refused" by site.

    Raises:
        ConfigError: the folder holds another federation, or sites name labels differently.
        QinjingError: too few sites answer.
    """
    return Coordinator(config, door, tell or silent).run()


class Coordinator:
    """One federation's state and its way through the rounds.

    Args:
        config: how.
        door: how sites are reached.
        tell: as for `federate`.
    """

    def __init__(self, config: FederationConfig, door: Door, tell: Tell) -> None:
        self.config, self.door, self.tell = config, door, tell
        self.strategy = read_strategy(self._strategy())
        self.strategy.combine = registry.constructor(AGGREGATORS, "rule", config.combine)
        self.refused: dict[str, str] = {}
        self.standing = _Standing()
        self.outgoing: Outgoing | None = None
        self._few: State = {}
        self.behind: set[str] = set()
        self.secure: SecureRound | None = None
        self.search: Searching | None = None
        self.prepared: set[str] = set()
        self.holds: dict[str, int] = {}  # the round of which a site has the state
        self.code = evidence.code_digest()
        self._path = config.output / "rounds" / "state.safetensors"
        self._begun = config.output / "rounds" / "begun.json"
        self.training = ""

    def run(self) -> dict[str, Any]:
        """Lead the federation to its end; see `federate`."""
        start = time.monotonic()
        self.training = claimed(self.config)
        done = self.config.output / "result.json"
        if done.exists() and (self.config.output / "evidence.jsonl").exists():
            return {"output": str(self.config.output), **read_json(done)}
        self.plan = self._plan()
        self.tell("plan", {"plan": self.plan})
        if self.config.search:
            self.search = Searching(self.config, self.plan, self._ask)
        state = self._restore()
        first = self.standing.round
        if self._begun.exists() and read_json(self._begun)["round"] == first:
            first += 1  # its updates may be in a sum, and go into no second one
        with EventLog(self.config.output / "log.jsonl", first or None) as log:
            for number in range(first, self.config.rounds):
                state = self._round(number, state, log)
        return self._finish(state, start)

    def _round(self, number: int, state: State, log: EventLog) -> State:
        began = time.monotonic()
        self._settle(number, state)
        fields = {
            "first": number * self.config.steps,
            "count": self.config.steps,
            "round": number,
            "measure": self.config.is_due(number),
            "clip_norm": self.config.clip_norm,
            "noise": self.config.noise,
        }
        chosen = self._chosen(number)
        answers = self._learnt(fields, self.strategy.send(state), number, chosen)
        if len(answers) < self.config.least_sites:
            raise QinjingError(
                f"round {number}: {self.config.least_sites} sites must answer within "
                f"{self.config.deadline_s:.0f} s, {len(answers)} did; see to the sites, then "
                "repeat the command: it goes on from here"
            )
        event: dict[str, Any] = {"round": number, "sites": sorted(answers)}
        event |= self._measured(state, answers)
        if self.search:
            event |= self.search.told(answers)
            self.strategy.combine = self.search.mean_of(list(answers))
        spent = {s: a.fields["epsilon"] for s, a in answers.items() if "epsilon" in a.fields}
        self.standing.epsilon |= spent
        self.standing.delta |= {s: answers[s].fields.get("delta") for s in spent}
        if self.secure:  # whose sites' cases are hidden: each counts alike
            share = len(answers) / len(self.prepared)
            answers = {"sum": self.secure.answer()}
        else:
            self.standing.cases |= {s: int(a.fields["cases"]) for s, a in answers.items()}
            known = self.standing.cases
            share = sum(known[site] for site in answers) / sum(known.values())
        updates = [Update(dict(a.tensors), int(a.fields["cases"])) for a in answers.values()]
        state = self.strategy.merge(state, updates, share)
        losses = [
            (a.fields["loss"], a.fields["cases"])
            for a in answers.values() if a.fields.get("loss") is not None
        ]  # fmt: skip
        loss = _mean(losses) if losses else math.nan
        self.secure = None
        self.standing.round = number + 1
        event |= {"loss": round(loss, 6)} if losses else {}
        event |= {"sent": self.standing.sent}
        event |= {"received": self.standing.received, "seconds": round(time.monotonic() - began, 2)}
        log.write("round", step=number, **event)
        self._save(state)
        self.tell("round", {**event, "rounds": self.config.rounds})
        return state

    def _learnt(
        self, fields: dict[str, Any], state: State, number: int, sites: list[str]
    ) -> dict[str, Message]:
        """The sites' updates, or with secure sums the sites whose updates are in the sum."""
        if self.config.identities is None:
            return self._send("learn", fields, state, number, sites)

        def learn(told: dict[str, Any], deliveries: Mapping[str, bytes]) -> dict[str, Message]:
            both = {**fields, **told}
            return self._send("learn", both, state, number, list(deliveries), deliveries)

        write_json(self._begun, {"round": number})
        self.secure = SecureRound(self._ask, self.config.identities, number, self._sent)
        return self.secure.learn(sites, learn, self.config.secure_bound)

    def _measured(self, state: State, answers: Mapping[str, Message]) -> dict[str, float]:
        """What sites found on the cases that they hold out, of the model that they were sent."""
        told = [a.fields for a in answers.values() if "score" in a.fields]
        if not told:
            return {}
        score = _mean([(one["score"], one["measured"]) for one in told])
        if score > self.standing.best:
            self.standing.best = score
            if self.config.keep == "best":
                save_tensors(self._path.with_name("best.safetensors"), state["weights"], {})
        return {"dice": round(score, 5)}

    def _finish(self, state: State, start: float) -> dict[str, Any]:
        """Let the sites measure the model, write it as any run's, leave evidence."""
        self._settle(self.config.rounds, state)
        output = self.config.output
        best = self._path.with_name("best.safetensors")
        sending = self.strategy.send(state)
        last = self.config.rounds
        if self.config.keep == "best":
            self._measured(state, self._send("measure", {}, sending, last, self.door.sites))
            last += 1
        if best.exists():
            sending = {**sending, "weights": load_tensors(best)[0]}
        answers = self._send("finish", {}, sending, last, self.door.sites)
        weights = grouped(self.outgoing.held)["weights"] if self.outgoing else sending["weights"]
        made = ["plan.json", "fingerprint.json", "federation.json", "log.jsonl", "result.json"]
        plan = self.plan
        found: dict[str, Any] = {}
        if self.search:
            plan, weights, found = self.search.result(weights)
            write_json(output / "plan.json", plan)
            made += ["supernet.json", "search.json"]
        save_model(output / "fold_0", plan.model, weights)
        sites = {site: dict(answer.fields) for site, answer in answers.items()}
        for site, epsilon in self.standing.epsilon.items():
            sites.setdefault(site, {}).update(epsilon=epsilon, delta=self.standing.delta[site])
        spent = {"sent": self.standing.sent, "received": self.standing.received}
        result = {
            "rounds": self.standing.round,
            "seconds": round(time.monotonic() - start, 1),
            "bytes": spent,
            "sites": sites,
            "refused": dict(self.refused),
            **found,
        }
        write_json(output / "result.json", result)
        paths = [output / name for name in (*made, "fold_0")]
        paths = [path for path in paths if path.exists()]  # a given plan has no fingerprint
        evidence.append(output, "federate", {}, paths, asdict(self.config))
        return {"output": str(output), **result}

    def _settle(self, number: int, state: State) -> None:
        """Choose the architecture, where it is searched for and its time has come."""
        if self.search:
            sending = self.strategy.send(state)
            self.search.settle(
                number,
                lambda: self._send("rank", {}, sending, number, self.door.sites),
                lambda: {"bytes": {w: getattr(self.standing, w) for w in ("sent", "received")}},
            )

    def _send(
        self,
        verb: str,
        fields: dict[str, Any],
        state: State,
        number: int,
        sites: Sequence[str],
        told: Mapping[str, bytes] | None = None,
    ) -> dict[str, Message]:
        """Ask sites with a state, in few bytes where there is a codec; all have the plan before."""
        new = [site for site in sites if site not in self.prepared]
        told_of = self._ask("prepare", {"plan": plain(self.plan)}, {site: {} for site in new})
        self.prepared |= told_of.keys()
        ready = [site for site in sites if site in self.prepared]
        if self.search:
            self.search.meet(told_of)
            return self.search.send(verb, fields, state, number, ready)

        def states(some: Sequence[str], state: State) -> dict[str, State]:
            if told is None:
                return dict.fromkeys(some, state)
            return {site: {**state, "sum": {"bytes": as_tensor(told[site])}} for site in some}

        if self.outgoing is None:
            return self._ask(verb, fields, states(ready, state))
        fields = {**fields, "codec": self.config.codec, "number": number}
        if self.outgoing.round < number:
            last = FIRST if verb == "finish" else ""  # the model itself, not one that is nearly so
            self._few = self.outgoing.advance(state, number, last)
        fields["names"] = names_of(self.outgoing.held, self._net)
        base = self.outgoing.base
        follow = [site for site in ready if base < 0 or self.holds.get(site) == base]
        answers = self._ask(verb, {**fields, "base": base}, states(follow, self._few))
        late = [site for site in ready if site not in follow or site in self.behind]
        whole = grouped(self.outgoing.held)
        answers |= self._ask(verb, {**fields, "base": None}, states(late, whole))
        self.holds |= dict.fromkeys(answers, number)
        return dict(sorted(answers.items()))

    def _ask(
        self,
        verb: str,
        fields: Mapping[str, Any],
        states: Mapping[str, State],
        own: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Message]:
        """Ask sites and return the answers that can be used; the others are named, with why.

        Who gets the very same state has the same fields of its `own`.
        """
        common = {
            "purpose": self.config.purpose,
            "code": self.code,
            "seed": self.config.seed,
            "training": self.training,
            "strategy": self._strategy(),
        }
        requests: dict[str, bytes] = {}
        made: dict[int, bytes] = {}  # the same for all who get the same
        for site, state in states.items():
            if id(state) not in made:
                told = {**common, **fields, **(own or {}).get(site, {})}
                made[id(state)] = Message(verb, told, state).pack()
            requests[site] = made[id(state)]
        answers: dict[str, Message] = {}
        self.behind = set()
        for site, data in self.door.ask(requests, self.config.deadline_s) if requests else ():
            self.standing.sent += len(requests[site])
            self.standing.received += len(data)
            try:
                answer = Message.unpack(data)
                if answer.verb == "behind":
                    self.behind.add(site)
                    continue
                if answer.verb == verb:
                    answers[site] = self._sound(site, answer)
                    continue
                reason = str(answer.fields.get("reason", answer.verb))
            except InputError as error:
                reason = str(error)
            if self.refused.get(site) != reason:
                self.tell("refused", {"site": site, "reason": reason})
            self.refused[site] = reason
        return dict(sorted(answers.items()))  # a sum must not hang on who was first

    def _sound(self, site: str, answer: Message) -> Message:
        """Refuse what is not this plan's; return an update as it was before it travelled.

        Raises:
            InputError: saying why.
        """
        check_numbers(answer)
        if answer.verb == "describe":
            sketched(answer, site)
        if self.search:
            self.search.check(site, answer)
        if answer.verb != "learn" or self.secure:
            return answer
        few = self.outgoing is not None
        tensors = unpacked(answer.tensors, self._sent) if few else flat(answer.tensors)
        check_update(answer, tensors, self.search.sent(site) if self.search else self._sent)
        return replace(answer, tensors=grouped(tensors))

    def _chosen(self, number: int) -> list[str]:
        """The sites that are asked in a round, drawn from those that are there."""
        sites = sorted(self.door.sites)
        count = max(min(self.config.least_sites, len(sites)), round(self.config.share * len(sites)))
        order = np.random.default_rng((self.config.seed, 6, number)).permutation(len(sites))
        return [sites[i] for i in order[:count]]

    def _strategy(self) -> dict[str, Any]:
        return {"name": self.config.strategy, "options": self.config.strategy_options}

    def _plan(self) -> Plan:
        """One plan from what all sites tell; made once."""
        path = self.config.output / ("supernet.json" if self.config.search else "plan.json")
        if path.exists():
            return read_config(path, Plan)
        answers = self._ask("describe", {}, {site: {} for site in self.door.sites})
        if len(answers) < self.config.least_sites:
            why = "; ".join(f"{site}: {reason}" for site, reason in self.refused.items())
            raise QinjingError(
                f"{self.config.least_sites} sites must join, {len(answers)} do; {why}"
            )
        told = {site: sketched(answer, site) for site, answer in answers.items()}
        return plan_together(self.config, told, path)

    def _restore(self) -> State:
        torch.manual_seed(self.config.seed)
        net = self.plan.model.build()
        fresh: Tensors = {n: v.clone() for n, v in net.state_dict().items()}
        self._net = fresh
        self._sent = {
            name: tuple(fresh[name.partition("/")[2]].shape) for name in self.strategy.sends(net)
        }
        if self.config.codec:
            self.outgoing = Outgoing(self.config.codec, {}, -1)
        state = self.strategy.open(fresh)
        if not self._path.exists():
            return state
        tensors, saved = load_tensors(self._path)
        self.standing = _Standing(**saved)
        held = {n.removeprefix("held/"): v for n, v in tensors.items() if n.startswith("held/")}
        kept = {name: value for name, value in tensors.items() if not name.startswith("held/")}
        if self.config.codec:
            self.outgoing = Outgoing(self.config.codec, held, self.standing.round - 1)
            self.holds = dict.fromkeys(self.door.sites, self.standing.round - 1)
        return {group: {} for group in state} | grouped(kept)

    def _save(self, state: State) -> None:
        held = self.outgoing.held if self.outgoing else {}
        tensors = flat(state) | {f"held/{name}": value for name, value in held.items()}
        save_tensors(self._path, tensors, asdict(self.standing))


def _mean(values: Sequence[tuple[float, float]]) -> float:
    return sum(v * n for v, n in values) / sum(n for _, n in values)
