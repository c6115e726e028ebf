"""A site: it is asked, does its part on its own scans, and answers with what may leave.

Everything that it needs for the next request lies in its folder, so that a site that is killed at
any moment goes on as if nothing had been, and a request that comes twice gets the same answer.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from qinjing import evidence
from qinjing.config import atomic_path, from_json, plain, read_config, read_json, write_json
from qinjing.data import cache
from qinjing.data.case import Case, Dataset
from qinjing.data.consent import open_gate
from qinjing.data.consent.affected import note_seen
from qinjing.data.fingerprint import Fingerprint
from qinjing.data.layouts import open_dataset
from qinjing.data.splits import Split, read_splits, write_splits
from qinjing.engine.checkpoint import load_tensors, save_model, save_tensors
from qinjing.engine.plan import Plan
from qinjing.engine.rounds import Rounds
from qinjing.errors import ConfigError, InputError
from qinjing.federate.compression import ErrorFeedback
from qinjing.federate.guarded import Sums, vector_of
from qinjing.federate.message import Message, Tensors, as_bytes, as_tensor
from qinjing.federate.outcome import dice_on
from qinjing.federate.policy import RefusedError, SiteConfig
from qinjing.federate.pooling import sketch
from qinjing.federate.privacy import Spending, protected, spend
from qinjing.federate.secure_sum import SecureSumError
from qinjing.federate.slices import ranked, remembered, sliced
from qinjing.federate.strategies import State, Work, read_strategy
from qinjing.federate.travel import (
    flat,
    grouped,
    packed,
    part,
    prefixed,
    received_of,
)
from qinjing.tasks.consented import Admitted, admitted, keeper
from qinjing.tasks.planning import default_splits, measure, silent, sound_cases
from qinjing.tasks.segment import SegmentTask

# In a training: scores of many made-up weights would tell of cases, and a record has one end.
_ONCE = ("rank", "finish")
_SHOWN = ("measured", "score", "epsilon", "delta")  # beside a sum


class Site:
    """Answer a coordinator's requests.

    Args:
        config: which site.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        self._opened: tuple[Dataset, list[Case], Split] | None = None
        self._sums = Sums(config)
        self._training = ""

    def answer(self, request: bytes) -> bytes:
        """Return the answer to a packed message, or a refusal with its reason.

        Raises:
            FormatError: the request is no message.
        """
        message = Message.unpack(request)
        verbs = {
            "describe": self._describe,
            "prepare": self._prepare,
            "learn": self._learn,
            "measure": self._measure,
            "rank": self._rank,
            "finish": self._finish,
            "advertise": self._sum_stage,
            "share": self._sum_stage,
            "agree": self._sum_stage,
            "unmask": self._sum_stage,
        }
        self._training = str(message.fields.get("training"))
        code = evidence.code_digest()
        reason = self.config.policy.refusal(message.fields, code, datetime.now())
        if reason is None and not re.fullmatch("[0-9a-f]{16}", self._training):
            reason = "training must be called by 16 hexadecimal digits"
        if reason is None and message.verb not in verbs:
            reason = f"request must be one of {', '.join(verbs)}, got {message.verb}"
        if reason is None:
            try:
                kept = self._rounds / f"{message.verb}.safetensors"
                if message.verb in _ONCE and kept.exists():
                    return kept.read_bytes()
                reply = verbs[message.verb](message)
                if message.verb in _ONCE and reply.verb == message.verb:
                    with atomic_path(kept) as temporary:
                        temporary.write_bytes(reply.pack())
                return reply.pack()
            except (RefusedError, SecureSumError) as error:
                reason = str(error)
            except InputError as error:  # its words may name a file or a case, which stay here
                self.config.folder.mkdir(parents=True, exist_ok=True)
                with (self.config.folder / "refusals.log").open("a", encoding="utf-8") as log:
                    log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {message.verb}: {error}\n")
                reason = "the site's scans or settings cannot be used; its refusals.log says why"
        return Message("refused", {"reason": reason}).pack()

    def _describe(self, message: Message) -> Message:
        """What may be told of the scans; they are measured once."""
        path = self.config.folder / "fingerprint.json"
        if not path.exists():
            behind, cases, split = self._open(message.fields["purpose"])
            learnt = set(split["train"])
            write_json(path, measure(behind.dataset, [c for c in cases if c.case_id in learnt]))
        told = sketch(read_config(path, Fingerprint), self.config.policy.minimum_cases)
        return Message("describe", {"sketch": plain(told)})

    def _prepare(self, message: Message) -> Message:
        """Keep the plan, and copies of the scans on its grid."""
        plan: Plan = from_json(message.fields["plan"], Plan, where="the coordinator's plan")
        behind, cases, split = self._open(message.fields["purpose"])
        dataset = behind.dataset
        if plan.label_values != tuple(sorted(dataset.labels)):
            raise RefusedError(
                "plan's labels", f"those of the site, {sorted(dataset.labels)}", plan.label_values
            )
        wanted = {*split["train"], *split["val"]}
        own = [case for case in cases if case.case_id in wanted]
        folder = self.config.folder / "cache"
        cache.prepare(own, folder, plan.preprocessing, plan.label_values, dataset.ignored)
        write_json(self._rounds / "plan.json", plan)
        # Before the first batch: `qinjing consent affected` must find what was learnt from.
        note_seen(self._rounds, dataset.name, split["train"])
        told = {"cases": len(split["train"]), "compute": self.config.policy.compute}
        return Message("prepare", told)

    def _learn(self, message: Message) -> Message:
        """Take a round's steps, and send what came of them, hidden in a sum where there is one."""
        if not message.fields.get("sum_round"):
            if self.config.policy.secure_sums:
                raise RefusedError(
                    "update", "asked for as a part of a secure sum", "a plain one",
                    advice="start the coordinator with the sites' identities",
                )  # fmt: skip
            return self._update(message)
        delivery = as_bytes(message.tensors, "sum")
        tensors = {name: own for name, own in message.tensors.items() if name != "sum"}
        told = self._update(replace(message, tensors=tensors))
        if told.verb == "behind":
            return told
        self._sums.once(message, self._rounds / "sum.json")
        names = read_strategy(message.fields["strategy"]).sends(self._plan().model.build())
        cases, loss = int(told.fields["cases"]), float(told.fields["loss"] or 0)
        vector = vector_of(flat(told.tensors), names, loss, cases)
        hidden = self._sums.of(message)[1].mask(delivery, vector)
        shown = {k: v for k, v in told.fields.items() if k in _SHOWN}
        return Message("learn", shown, {"sum": {"bytes": as_tensor(hidden)}})

    def _sum_stage(self, message: Message) -> Message:
        """One of the small messages around a sum."""
        answer = self._sums.stage(message)
        return Message(message.verb, {}, {"sum": {"bytes": as_tensor(answer)}})

    def _update(self, message: Message) -> Message:
        """Take a round's steps; a round that was answered is answered alike."""
        number = int(message.fields["round"])
        kept_answer = self._rounds / f"answer_{number}.safetensors"
        tensors, known = self._state()
        hidden = bool(message.fields.get("sum_round"))
        if known.get("round") == number and kept_answer.exists():
            if known.get("hidden") != hidden:  # its noise is what a sum wants, or what it does not
                raise RefusedError(
                    "update of this round", "asked for as it was before", "otherwise"
                )
            return Message.unpack(kept_answer.read_bytes())
        plan, strategy = self._plan(message), read_strategy(message.fields["strategy"])
        task = self._task(plan, message)
        net = {n: v.detach().clone() for n, v in task.net.state_dict().items()}
        if len(task.train) < (least := self.config.policy.minimum_cases):
            raise RefusedError("cases to learn from", f"{least} at least", len(task.train))
        if self._opened:  # who allowed it again since the plan came is learnt from, too
            note_seen(self._rounds, self._opened[0].name, (c.case_id for c in task.train))
        received = received_of(message, self._rounds, net)
        if received is None:
            return Message("behind", {})
        kept = grouped(part(tensors, "kept/"))
        fields: dict[str, Any] = {"cases": len(task.train)}
        private = bool(message.fields.get("noise"))
        if message.fields.get("measure") and not private and self._may_tell_of(task.validation):
            fields["measured"] = len(task.validation)
            fields["score"] = self._score(task, strategy.serves(received, kept))
        asked = message.fields.get("architecture")
        memory = remembered(self._plan(), tensors, known.get("architecture"), asked)
        rounds = Rounds(task, plan.fit, plan.execution, memory)
        work = Work(rounds, int(message.fields["first"]), int(message.fields["count"]), kept)
        began = time.monotonic()
        sent = strategy.learn(work, received)
        fields["loss"] = work.losses[0]
        if asked:
            fields["step_s"] = round((time.monotonic() - began) / work.count, 5)
        sent, protection = self._protected(sent, message)
        fields |= protection
        lost = ErrorFeedback(part(tensors, "lost/"))
        codec = message.fields.get("codec")
        if codec and not hidden:  # a sum has bits of its own
            sent = packed(flat(sent), codec, lost, seed=number)
        answer = Message("learn", fields, sent)
        with atomic_path(kept_answer) as temporary:
            temporary.write_bytes(answer.pack())
        state = {**rounds.memory(), **prefixed("kept/", flat(work.kept))}
        state |= prefixed("lost/", lost.lost)
        stands = {"round": number, "architecture": asked, "hidden": hidden}
        save_tensors(self._rounds / "state.safetensors", state, stands)
        for old in self._rounds.glob("answer_*.safetensors"):
            if old != kept_answer:
                old.unlink()
        return answer

    def _protected(self, sent: State, message: Message) -> tuple[State, dict[str, Any]]:
        """The update clipped and with noise, where the coordinator asks for it, and what it cost.

        Raises:
            RefusedError: it would spend more than the policy allows, or the policy wants noise.
        """
        clip, noise = message.fields.get("clip_norm"), float(message.fields.get("noise") or 0)
        most = self.config.policy.maximum_epsilon
        if most is not None and not noise:
            raise RefusedError("noise", f"asked for, so that ε stays within {most:g}", "none")
        if noise and not clip:
            raise RefusedError("clip_norm", "above 0 with noise", clip)
        if not clip:
            return sent, {}
        told: dict[str, Any] = {"cases": 1}  # of equal weight: a weight by cases would tell its own
        if noise:
            account = {"unit": "site", "delta": self.config.policy.delta}
            try:
                spending = Spending(self._training, noise, 1.0, 1)
                ledger = spend(self.config.folder / "privacy.json", spending, most, **account)
            except ConfigError as error:
                raise RefusedError("noise", f"within the site's account: {error}") from None
            told |= {"epsilon": round(ledger.epsilon(), 4), "delta": ledger.delta}
            told["loss"] = None  # it was made of the cases, and is in no account
        # That surely stay in the sum, by the terms of the sum that this very update goes into.
        sites = self._sums.of(message)[0].needed if message.fields.get("sum_round") else 1
        return grouped(protected(flat(sent), float(clip), noise, sites)), told

    def _measure(self, message: Message) -> Message:
        """Dice on the cases that this site holds out, of the model that it would predict with."""
        plan, strategy = self._plan(message), read_strategy(message.fields["strategy"])
        task = self._task(plan, message)
        received = received_of(message, self._rounds, task.net.state_dict())
        if received is None:
            return Message("behind", {})
        if not self._may_tell_of(task.validation):
            return Message("measure", {})
        weights = strategy.serves(received, grouped(part(self._state()[0], "kept/")))
        score = self._score(task, weights)
        return Message("measure", {"measured": len(task.validation), "score": score})

    def _rank(self, message: Message) -> Message:
        """Dice on the cases that this site holds out, of each of several slices of a network."""
        held_out = self._open(message.fields["purpose"])[2]["val"]
        if not self._may_tell_of(held_out):
            return Message("rank", {})

        def score(plan: Plan, weights: Tensors) -> float:
            return self._score(self._task(plan, message), weights)

        scores = ranked(self._plan(), message, self.config.policy.compute, score)
        return Message("rank", {"measured": len(held_out), "scores": scores})

    def _score(self, task: SegmentTask, weights: Tensors) -> float:
        """Mean Dice on the cases that this site holds out, before it learns."""
        fresh = {n: v.clone() for n, v in task.net.state_dict().items()}
        task.net.load_state_dict(weights)
        net = task.plan.execution.place(task.net).eval()  # what is placed there can learn after
        with torch.inference_mode():
            score = task.validate(net)["score"]
        task.net.load_state_dict(fresh)
        return score

    def _finish(self, message: Message) -> Message:
        """Keep the model, segment the held-out scans as a user would, measure, leave evidence."""
        plan, strategy = self._plan(message), read_strategy(message.fields["strategy"])
        behind, cases, split = self._open(message.fields["purpose"])
        run = self.config.folder / "model"
        read = evidence.digested({"dataset": self.config.dataset}, without=self.config.folder)
        received = received_of(message, self._rounds, plan.model.build().state_dict())
        if received is None:
            return Message("behind", {})
        weights = strategy.serves(received, grouped(part(self._state()[0], "kept/")))
        write_json(run / "plan.json", plan)
        save_model(run / "fold_0", plan.model, weights)
        write_json(run / "saw.json", read_json(self._rounds / "saw.json"))
        held_out = [case for case in cases if case.case_id in set(split["val"])]
        answer: dict[str, Any] = {"cases": len(held_out)}
        if held_out:
            dice = dice_on(run, self.config.dataset, held_out)
            answer |= {"dice": dice} if self._may_tell_of(held_out) else {}
        made = [path for path in sorted(run.rglob("*")) if path.is_file()]
        told = {name: message.fields[name] for name in ("purpose", "code", "strategy")}
        evidence.append(self.config.folder, "federate", read, made, told, basis=behind.basis)
        record = (self.config.folder / "evidence.jsonl").read_bytes().splitlines()[-1]
        return Message("finish", {**answer, "record": hashlib.sha256(record).hexdigest()})

    def _may_tell_of(self, cases: Sequence[object]) -> bool:
        """Whether a mean over these cases may leave: not of few, nor beside a privacy account."""
        policy = self.config.policy
        return policy.maximum_epsilon is None and len(cases) >= policy.minimum_cases

    @property
    def _rounds(self) -> Path:
        return self.config.folder / "rounds" / self._training

    def _state(self) -> tuple[Tensors, dict[str, Any]]:
        """The optimiser's moments, what the strategy keeps, what a codec lost; of which round."""
        path = self._rounds / "state.safetensors"
        return load_tensors(path) if path.exists() else ({}, {})

    def _plan(self, message: Message | None = None) -> Plan:
        """The plan on this machine, of the slice of its network that a message may be about.

        Raises:
            FormatError: none was sent yet.
        """
        plan = read_config(self._rounds / "plan.json", Plan)
        plan = replace(plan, execution=plan.execution.here(), threads=torch.get_num_threads())
        asked = message.fields.get("architecture") if message else None
        return sliced(plan, asked, self.config.policy.compute)

    def _open(self, purpose: str) -> tuple[Admitted, list[Case], Split]:
        """The site's data set behind its gate, and the cases that may be used at this moment."""
        config = self.config
        root = open_dataset(config.dataset).root
        if config.consent_required and open_gate(root, purpose) is None:
            raise RefusedError(
                "consent", "kept in a store or declared in consent.json", "neither",
                advice="see docs/howto/consent.md",
            )  # fmt: skip
        if self._opened is None:
            given = read_splits(config.splits, measured=False)[0] if config.splits else None
            only = None if given is None else {*given["train"], *given["val"]}
            need = config.consent_required
            dataset, cases, _ = sound_cases(
                config.dataset, silent, only=only, purpose=purpose, required=need,
                least=2 if given is None else 1,
            )  # fmt: skip
            drawn = config.folder / "splits.json"
            if given is None and not drawn.exists():  # once, whoever withdraws later
                write_splits(drawn, default_splits(cases)[:1])
            self._opened = dataset, cases, given or read_splits(drawn)[0]
        dataset, cases, split = self._opened
        behind = admitted(dataset, purpose, config.consent_required)
        cases = behind.still(cases)
        allowed = {case.case_id for case in cases}
        train, val = ([i for i in own if i in allowed] for own in (split["train"], split["val"]))
        return behind, cases, Split(train=train, val=val)

    def _task(self, plan: Plan, message: Message) -> SegmentTask:
        """The network and this site's cases on the plan's grid, to be asked for batch by batch."""
        behind, _, split = self._open(message.fields["purpose"])
        folder = self.config.folder / "cache"
        train, held_out = (
            [cache.load(folder, i) for i in own] for own in (split["train"], split["val"])
        )
        torch.set_num_threads(plan.threads)
        seed = int(message.fields["seed"]) * 1000 + _number(self.config.name)
        task = SegmentTask(plan.model.build(), plan, train, held_out, seed)
        task.keep = keeper(
            [(behind, [*train, *held_out])], self.config.folder / "log.jsonl", silent
        )
        return task


def _number(name: str) -> int:
    """A site's own draws, the same for the same name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "little")
