"""Rounds of which the coordinator sees nothing but the sum of all sites' updates."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qinjing.config import read_json, write_json
from qinjing.errors import FormatError
from qinjing.evidence import load_private_key
from qinjing.federate import secure_sum
from qinjing.federate.message import Message, Tensors, as_bytes, as_tensor
from qinjing.federate.policy import RefusedError, SiteConfig
from qinjing.federate.secure_sum import Server, Terms, mean, weighted
from qinjing.federate.strategies import State
from qinjing.federate.travel import grouped

Ask = Callable[[str, Mapping[str, Any], Mapping[str, State]], dict[str, Message]]
Learn = Callable[[dict[str, Any], Mapping[str, bytes]], dict[str, Message]]


def identities(path: Path, sites: Sequence[str]) -> dict[str, bytes]:
    """Return the raw Ed25519 public keys of some sites from a file of all, name → base64.

    Raises:
        FormatError: no such file, or a site that it does not name.
    """
    told = read_json(path)
    missing = [site for site in sites if not isinstance(told, dict) or site not in told]
    if missing:
        raise FormatError("identities", f"known of {missing[0]}", "none", where=path)
    try:
        return {site: base64.b64decode(told[site], validate=True) for site in sites}
    except (ValueError, TypeError) as error:
        raise FormatError("identities", "base64 by site", error, where=path) from None


def terms_of(fields: Mapping[str, Any], path: Path) -> Terms:
    """Return a sum's terms from a message's fields, keys from one's own file."""
    sites = [str(site) for site in fields["sum_sites"]]
    return Terms(
        str(fields["sum_round"]), identities(path, sites), int(fields["sum_length"]),
        float(fields["sum_bound"]),
    )  # fmt: skip


def vector_of(sent: Tensors, names: Sequence[str], loss: float, cases: int) -> np.ndarray:
    """Return what goes into the sum: n·update, n·loss, n; float32.

    Args:
        sent: flat.
        names: in which order.
        loss: of the round.
        cases: n.
    """
    parts = [sent[name].detach().float().reshape(-1).numpy() for name in names]
    return weighted(np.concatenate([*parts, np.array([loss], np.float32)]), cases)


class Sums:
    """A site's part in sums; one that is being made is lost with the process, and not missed.

    Args:
        config: the site's.
    """

    def __init__(self, config: SiteConfig) -> None:
        self._config = config
        self._made: dict[str, tuple[Terms, secure_sum.Site]] = {}

    def stage(self, message: Message) -> bytes:
        """Answer one of the small messages around a sum.

        Raises:
            RefusedError: too few sites for this one's policy, no keys, or no such sum.
            SecureSumError: a message that must not be acted on.
        """
        data, least = as_bytes(message.tensors, "sum"), self._config.policy.minimum_sites
        if message.verb == "advertise":
            _enough("sites of a sum", message.fields["sum_sites"], least)
            if not self._config.identity or not self._config.peers:
                raise RefusedError("identity and peers", "given for a secure sum", "none")
            terms = terms_of(message.fields, self._config.peers)
            key = load_private_key(self._config.identity)
            self._made = {terms.round_id: (terms, secure_sum.Site(terms, self._config.name, key))}
            return self.of(message)[1].advertise()
        if message.verb == "agree":
            _enough("sites that stay in a sum", json.loads(data).get("survivors", ()), least)
        verbs = {"share": "share", "agree": "agree", "unmask": "unmask"}
        answer: bytes = getattr(self.of(message)[1], verbs[message.verb])(data)
        return answer

    def of(self, message: Message) -> tuple[Terms, secure_sum.Site]:
        """Return the sum that a message is about.

        Raises:
            RefusedError: this site takes no part in it.
        """
        found = self._made.get(str(message.fields.get("sum_round")))
        if found is None:
            raise RefusedError("sum", "one that this site takes part in", "another")
        return found

    def once(self, message: Message, path: Path) -> None:
        """Let an update into one sum of a training: the difference of two sums would show it.

        A second training of the same weights with other sites makes an update that is much like it:
        against that stand noise, and the site's own eyes.

        Args:
            message: asks for the round's update.
            path: keeps into which it went.

        Raises:
            RefusedError: this round's went into another.
        """
        now = {"round": int(message.fields["round"]), "sum": str(message.fields["sum_round"])}
        before = read_json(path) if path.exists() else None
        if before and before["round"] == now["round"] and before != now:
            raise RefusedError("update of this round", "in one sum only", "a second sum")
        write_json(path, now)


def _enough(name: str, sites: Sequence[str], least: int) -> None:
    if len(set(sites)) < least:
        raise RefusedError(name, f"{least} at least", len(set(sites)))


class SecureRound:
    """One round's sum.

    Args:
        ask: asks sites, as the coordinator does.
        keys: file of the sites' public keys.
        number: of the round.
        shapes: group/name → shape of what each site's update is, in order.
    """

    def __init__(
        self, ask: Ask, keys: Path, number: int, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        self._ask, self._keys, self._number, self._shapes = ask, keys, number, shapes
        self._found: Message | None = None

    def learn(self, sites: Sequence[str], learn: Learn, bound: float) -> dict[str, Message]:
        """Return the answers of the sites whose updates are in the sum, their vectors taken out.

        Raises:
            SecureSumError: too few sites stay for a sum.
        """
        values = sum(int(np.prod(shape)) for shape in self._shapes.values())
        fields = {
            "sum_round": f"{self._number}-{secrets.token_hex(8)}",
            "sum_sites": sorted(sites),
            "sum_length": values + 2,
            "sum_bound": bound,
        }
        server = Server(terms_of(fields, self._keys))

        def stage(verb: str, told: Mapping[str, bytes]) -> dict[str, bytes]:
            states: dict[str, State] = {
                site: {"sum": {"bytes": as_tensor(data)}} for site, data in told.items()
            }
            answers = self._ask(verb, fields, states)
            return {site: as_bytes(answer.tensors, "sum") for site, answer in answers.items()}

        adverts = stage("advertise", dict.fromkeys(sites, b""))
        roster = server.introduce(adverts)
        deliveries = server.deliver(stage("share", dict.fromkeys(adverts, roster)))
        answers = learn(fields, deliveries)
        for site, answer in answers.items():
            server.add(site, as_bytes(answer.tensors, "sum"))
        survivors = server.survivors()
        request = server.request(stage("agree", dict.fromkeys(answers, survivors)))
        total = server.total(stage("unmask", dict.fromkeys(answers, request)))
        self._found = self._as_answer(mean(total), float(total.values()[-1]))
        return {
            site: Message("learn", answer.fields)
            for site, answer in answers.items() if site in total.sites
        }  # fmt: skip

    def answer(self) -> Message:
        """Return the mean of all as one site's answer, that of all cases together."""
        assert self._found is not None
        return self._found

    def _as_answer(self, vector: np.ndarray, cases: float) -> Message:
        tensors: Tensors = {}
        start = 0
        for name, shape in self._shapes.items():
            end = start + int(np.prod(shape))
            tensors[name] = torch.from_numpy(vector[start:end].reshape(tuple(shape)).copy())
            start = end
        fields = {"cases": max(1, round(cases)), "loss": float(vector[start])}
        return Message("learn", fields, grouped(tensors))
