"""A coordinator and its sites in one process: kills, repeats, liars, refusals, a simulation."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from tests.tasks.test_train import write_case

from qinjing import evidence
from qinjing.config import read_json, write_json
from qinjing.data.consent import Change, Store
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import read_nifti
from qinjing.data.splits import write_splits
from qinjing.engine import plan as planned
from qinjing.engine.checkpoint import load_tensors
from qinjing.engine.log import read_events
from qinjing.errors import ConfigError, QinjingError
from qinjing.federate import simulate as simulate_room
from qinjing.federate.coordinator import federate
from qinjing.federate.doors import InProcess
from qinjing.federate.federation import FederationConfig
from qinjing.federate.guarded import Sums
from qinjing.federate.message import Message, as_tensor
from qinjing.federate.policy import Policy, RefusedError
from qinjing.federate.simulate import SimulationConfig, dealt, simulate
from qinjing.federate.site import Site, SiteConfig
from qinjing.federate.strategies.strategy import Strategy
from qinjing.tasks import segment
from qinjing.tasks.predict import predict_folder

SITES = ("east", "north", "west")
Answer = Callable[[bytes], bytes]


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Plan networks and batches that a test can afford."""
    before = planned._BATCH, planned._WIDTHS
    planned._BATCH, planned._WIDTHS = {"cpu": (2, 2)}, {"cpu": (8, 16, 16)}
    yield
    planned._BATCH, planned._WIDTHS = before


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all")
    for number in range(12):
        write_case(folder, f"case{number:02d}", number)
    declared = {"basis": "licence", "reference": "CC0", "purposes": ["federated", "research"]}
    write_json(folder / "consent.json", declared)
    return folder


def sites_of(dataset: Path, folder: Path, policy: Policy | None = None) -> dict[str, Site]:
    """Three sites of three cases to learn from and one held out."""
    names = [case.case_id for case in open_dataset(dataset).cases]
    made = {}
    for number, name in enumerate(SITES):
        own = names[4 * number : 4 * number + 4]
        splits = folder / name / "splits.json"
        write_splits(splits, [{"train": own[:3], "val": own[3:]}])
        allowed = policy or Policy()
        made[name] = Site(SiteConfig(name, dataset, folder / name, allowed, splits))
    return made


def config_for(output: Path, **changes: Any) -> FederationConfig:
    base = FederationConfig(output, rounds=3, steps=2, net="subvoxel_unet", measurements=1)
    return replace(base, **changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_tensors(run / "fold_0" / "weights.safetensors")[0]


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    sites = sites_of(dataset, folder / "sites")
    door = InProcess({name: site.answer for name, site in sites.items()})
    federate(config_for(folder / "run"), door)
    return folder


def test_the_model_is_one_that_predicts_and_the_record_verifies(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    run = undisturbed / "run"
    result = read_json(run / "result.json")
    assert set(result["sites"]) == set(SITES)
    assert result["refused"] == {}
    rounds = [e for e in read_events(run / "log.jsonl") if e["kind"] == "round"]
    assert [e["round"] for e in rounds] == [0, 1, 2]
    assert rounds[-1]["sites"] == list(SITES)
    assert rounds[-1]["loss"] < rounds[0]["loss"]
    size = sum(v.numel() * v.element_size() for v in weights(run).values())
    assert result["bytes"]["received"] > 3 * 3 * size
    made = predict_folder(run, dataset / "images", tmp_path / "out")
    assert len(made["outputs"]) == 12
    for folder in (run, undisturbed / "sites" / "east"):
        assert not evidence.verify(folder).faults
    # One held-out case is fewer than a number that leaves may stand for.
    assert "dice" not in result["sites"]["east"]


def test_no_voxel_and_no_name_leaves_a_site(dataset: Path, tmp_path: Path) -> None:
    """What is planted in every case is in none of the bytes that a site answers with."""
    names = [case.case_id for case in open_dataset(dataset).cases]
    heard: list[bytes] = []

    def listened(site: Site, request: bytes) -> bytes:
        heard.append(site.answer(request))
        return heard[-1]

    sites = sites_of(dataset, tmp_path / "sites")
    door = InProcess({name: partial(listened, site) for name, site in sites.items()})
    federate(config_for(tmp_path / "run"), door)
    needles = [name.encode() for name in names] + [str(dataset).encode(), b"images"]
    for name in names:
        voxels = read_nifti(dataset / "images" / f"{name}.nii.gz").voxels.reshape(-1)[1000:1006]
        needles += [voxels.astype(kind).tobytes() for kind in ("<i2", "<f4", "<f8", ">i2")]
        for site in SITES:
            prepared = tmp_path / "sites" / site / "cache" / name / "image.npy"
            if prepared.exists():
                needles.append(np.load(prepared).reshape(-1)[1000:1006].tobytes())
    assert len(needles) == 2 + 12 + 12 * 4 + 12  # every case was prepared, at one site
    for answer in heard:
        for needle in needles:
            assert needle not in answer
    # And there is no room for more: what came is the weights and a few numbers.
    size = sum(v.numel() * v.element_size() for v in weights(tmp_path / "run").values())
    learnt = [data for data in heard if Message.unpack(data).verb == "learn"]
    assert len(learnt) == 9 and all(size - 5000 < len(data) < size + 20_000 for data in learnt)
    assert sum(map(len, heard)) - sum(map(len, learnt)) < 20_000 * 9


def test_a_killed_coordinator_goes_on_to_the_same_bits(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    sites = sites_of(dataset, tmp_path / "sites")
    asked = 0

    def dying(answer: Answer) -> Answer:
        def ask(request: bytes) -> bytes:
            nonlocal asked
            message = Message.unpack(request)
            asked += message.verb == "learn"
            if asked == 5:  # in the middle of the second round, one site having answered
                asked += 1
                raise KeyboardInterrupt
            return answer(request)

        return ask

    door = InProcess({name: dying(site.answer) for name, site in sites.items()})
    with pytest.raises(KeyboardInterrupt):
        federate(config_for(tmp_path / "run"), door)
    assert not (tmp_path / "run" / "result.json").exists()
    fresh = {name: Site(site.config).answer for name, site in sites.items()}
    federate(config_for(tmp_path / "run"), InProcess(fresh))
    for name, value in weights(undisturbed / "run").items():
        assert torch.equal(value, weights(tmp_path / "run")[name])
    rounds = [e["round"] for e in read_events(tmp_path / "run" / "log.jsonl")]
    assert rounds == [0, 1, 2]


def test_a_coordinator_killed_before_its_record_writes_it_and_sites_write_theirs_once(
    dataset: Path, tmp_path: Path
) -> None:
    config = config_for(tmp_path / "run", rounds=1)
    sites = sites_of(dataset, tmp_path / "sites")
    door = InProcess({name: site.answer for name, site in sites.items()})
    with pytest.MonkeyPatch.context() as patch:

        def killed(folder: Path, *rest: Any, **more: Any) -> Any:
            if folder == config.output:
                raise KeyboardInterrupt
            return append(folder, *rest, **more)

        append = evidence.append
        patch.setattr(evidence, "append", killed)
        with pytest.raises(KeyboardInterrupt):
            federate(config, door)
    federate(config, InProcess({name: Site(site.config).answer for name, site in sites.items()}))
    for folder in (config.output, *(tmp_path / "sites" / name for name in SITES)):
        assert len((folder / "evidence.jsonl").read_bytes().splitlines()) == 1
        assert not evidence.verify(folder).faults


def test_a_request_that_comes_twice_gets_the_same_answer(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    kept: dict[str, list[bytes]] = {}

    def twice(name: str, site: Site) -> Answer:
        def ask(request: bytes) -> bytes:
            first = site.answer(request)
            if Message.unpack(request).verb == "learn":  # a site that was started anew in between
                kept.setdefault(name, []).extend([first, Site(site.config).answer(request)])
            return first

        return ask

    sites = sites_of(dataset, tmp_path / "sites")
    federate(config_for(tmp_path / "run"), InProcess({n: twice(n, s) for n, s in sites.items()}))
    for answers in kept.values():
        for one, other in zip(answers[::2], answers[1::2], strict=True):
            first, again = Message.unpack(one), Message.unpack(other)
            for name, value in first.tensors["change"].items():
                assert torch.equal(value, again.tensors["change"][name])
    for name, value in weights(undisturbed / "run").items():
        assert torch.equal(value, weights(tmp_path / "run")[name])


def test_who_may_not_or_lies_is_named_and_the_rest_goes_on(dataset: Path, tmp_path: Path) -> None:
    sites = sites_of(dataset, tmp_path / "sites")
    strict = Site(replace(sites["east"].config, policy=Policy(purposes=("care",))))

    def broken(request: bytes) -> bytes:
        message = Message.unpack(sites["north"].answer(request))
        if message.verb == "learn":
            change = {n: v * float("nan") for n, v in message.tensors["change"].items()}
            message = replace(message, tensors={"change": change})
        return message.pack()

    door = InProcess({"east": strict.answer, "north": broken, "west": sites["west"].answer})
    told: list[tuple[str, dict[str, Any]]] = []
    result = federate(config_for(tmp_path / "run"), door, lambda k, f: told.append((k, f)))
    assert "purpose must be one of care" in result["refused"]["east"]
    assert "finite" in result["refused"]["north"]
    assert set(result["sites"]) == {"north", "west"}
    assert [f["site"] for k, f in told if k == "refused"] == ["east", "north"]


def test_no_case_without_consent_and_none_after_it_was_withdrawn(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(dataset, bare, ignore=shutil.ignore_patterns("consent.json"))
    sites = sites_of(bare, tmp_path / "refusing")
    door = InProcess({name: site.answer for name, site in sites.items()})
    with pytest.raises(QinjingError, match="consent must be kept in a store or declared"):
        federate(config_for(tmp_path / "none"), door)

    store = Store(tmp_path / "consent.sqlite", create=True)
    monkeypatch.setenv("QINJING_CONSENT", str(tmp_path / "consent.sqlite"))
    drawn: list[str] = []
    cut = segment.batch_of_patches

    def watched(rng: Any, cases: Any, *rest: Any) -> Any:
        drawn.extend(case.case_id for case in cases)
        return cut(rng, cases, *rest)

    monkeypatch.setattr(segment, "batch_of_patches", watched)

    def withdrawing(request: bytes) -> bytes:
        message = Message.unpack(request)
        if message.verb == "learn" and message.fields["round"] == 1:
            store.append([Change("case00", "federated", "deny", datetime.now(UTC))])
            drawn.clear()
        return sites["east"].answer(request)

    sites = sites_of(dataset, tmp_path / "sites", Policy(minimum_cases=2))
    answers: dict[str, Answer] = {name: site.answer for name, site in sites.items()}
    result = federate(
        config_for(tmp_path / "run", steps=4), InProcess({**answers, "east": withdrawing})
    )
    assert "case00" not in drawn and {"case01", "case02"} <= set(drawn)
    assert set(result["sites"]) == set(SITES)
    line = (tmp_path / "sites" / "east" / "evidence.jsonl").read_text().splitlines()[-1]
    statement = json.loads(base64.b64decode(json.loads(line)["payload"]))
    basis = statement["predicate"]["basis"]
    assert "licence: CC0" in basis and "store of 1 rows" in basis


def test_a_fault_at_a_site_stays_there_in_its_words(dataset: Path, tmp_path: Path) -> None:
    sites = sites_of(dataset, tmp_path / "sites")
    config = replace(sites["east"].config, dataset=tmp_path / "gone")
    answers = {n: s.answer for n, s in sites.items()} | {"east": Site(config).answer}
    result = federate(config_for(tmp_path / "run"), InProcess(answers))
    assert result["refused"]["east"].endswith("its refusals.log says why")
    assert "gone" in (tmp_path / "sites" / "east" / "refusals.log").read_text()
    assert str(tmp_path) not in (tmp_path / "run" / "result.json").read_text()


def test_a_site_does_not_do_what_its_account_and_trainings_forbid(
    dataset: Path, tmp_path: Path
) -> None:
    sites = sites_of(dataset, tmp_path / "sites")
    asked: list[Message] = []

    def kept(site: Site, request: bytes) -> bytes:
        asked.append(Message.unpack(request))
        return site.answer(request)

    door = InProcess({name: partial(kept, site) for name, site in sites.items()})
    federate(config_for(tmp_path / "run", rounds=1), door)
    learn = next(message for message in asked if message.verb == "learn")

    def told(**fields: Any) -> Message:
        changed = replace(learn, fields={**learn.fields, "round": 7, **fields})
        return Message.unpack(sites["east"].answer(changed.pack()))

    assert told().verb == "learn"
    noisy = told(noise=2.0, round=8)  # noise without a bound on the update protects nobody
    assert noisy.verb == "refused" and "clip_norm must be above 0" in noisy.fields["reason"]
    # Another training has no plan here, and none of this one's weights or moments.
    assert told(training="f" * 16, round=9).verb == "refused"
    assert "training must be called" in told(training="../x", round=9).fields["reason"]
    # How many sites share the noise is the sum's to say, not a request's.
    many = told(noise=0.5, clip_norm=1.0, round=10, sum_sites=[f"s{i}" for i in range(10**4)])
    change = torch.cat([v.reshape(-1) for v in many.tensors["change"].values()])
    assert float(change.std()) > 0.4


def test_an_update_goes_into_one_sum_of_enough_sites(dataset: Path, tmp_path: Path) -> None:
    config = sites_of(dataset, tmp_path, Policy(minimum_sites=4))["east"].config
    sums = Sums(config)

    def of(number: int, name: str) -> Message:
        return Message("learn", {"round": number, "sum_round": name})

    for number, name in ((3, "a"), (3, "a"), (4, "b")):
        sums.once(of(number, name), tmp_path / "sum.json")
    with pytest.raises(RefusedError, match="in one sum only"):
        Sums(config).once(of(4, "c"), tmp_path / "sum.json")
    told = {"sum_sites": ["a", "b", "c", "c", "c"]}
    with pytest.raises(RefusedError, match="4 at least, got 3"):
        sums.stage(Message("advertise", told, {"sum": {"bytes": as_tensor(b"x")}}))


def test_an_update_with_a_share_of_noise_does_not_leave_in_the_open(
    dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("opacus")
    noisy = config_for(tmp_path / "run", rounds=1, clip_norm=1.0, noise=2.0)
    replayed: dict[str, Message] = {}

    class Replaying(InProcess):
        """Asks for the same round's update once more, as if there were no sums."""

        def ask(self, requests: Any, deadline_s: float) -> Iterator[tuple[str, bytes]]:
            yield from super().ask(requests, deadline_s)
            for site, request in requests.items():
                message = Message.unpack(request)
                if message.verb == "learn":
                    fields = {k: v for k, v in message.fields.items() if not k.startswith("sum_")}
                    tensors = {k: v for k, v in message.tensors.items() if k != "sum"}
                    again = Message("learn", fields, tensors).pack()
                    replayed[site] = Message.unpack(self._answer[site](again))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate_room, "InProcess", Replaying)
        simulate(SimulationConfig(dataset, noisy, 4, secure=False, beside=False))
        assert {m.verb for m in replayed.values()} == {"learn"}  # what was open stays so
        replayed.clear()
        hidden = replace(noisy, output=tmp_path / "hidden")
        config = SimulationConfig(dataset, hidden, 4, secure=True, beside=False)
        # A site that takes part in sums and does not insist on them.
        patch.setattr(simulate_room, "Policy", lambda **r: Policy(**r | {"secure_sums": False}))
        simulate(config)
    assert len(replayed) == 4
    assert all(
        not m.tensors and "as it was before" in m.fields["reason"] for m in replayed.values()
    )


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("prepare", {"compute": None}),
        ("prepare", {"compute": "all"}),
        ("measure", {"score": 0.5}),
        ("learn", {"cases": 3, "step_s": None}),
        ("describe", {}),
        ("describe", {"sketch": [1]}),
    ],
)
def test_a_malformed_answer_is_refused_and_named(
    verb: str, fields: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    sites = sites_of(dataset, tmp_path / "sites")

    def odd(request: bytes) -> bytes:
        mine = Message(verb, fields).pack()
        return mine if Message.unpack(request).verb == verb else sites["east"].answer(request)

    door = InProcess({n: odd if n == "east" else s.answer for n, s in sites.items()})
    config = config_for(tmp_path / "run", rounds=1, keep="best")
    result = federate(config, door)
    assert "must be" in result["refused"]["east"]
    assert "north" in result["sites"]


def test_beside_a_privacy_account_no_score_leaves(dataset: Path, tmp_path: Path) -> None:
    policy = Policy(minimum_cases=1, maximum_epsilon=5.0)
    (site, *_) = sites_of(dataset, tmp_path / "sites", policy).values()
    assert not site._may_tell_of([1, 2, 3])
    assert sites_of(dataset, tmp_path / "open", Policy(minimum_cases=1))["east"]._may_tell_of([1])


@pytest.mark.parametrize(
    "changes",
    [{"clip_norm": 0.0}, {"clip_norm": 1.0, "noise": 0.1}, {"clip_norm": 1.0, "noise": 2e3}],
)
def test_privacy_that_cannot_be_kept_account_of_is_refused_before_anything_starts(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"clip_norm|noise"):
        config_for(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_given_plan_is_kept_to_and_may_lay_channels_last(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    plan = read_json(undisturbed / "run" / "plan.json")
    assert plan["execution"]["channels_last"] is False
    plan["execution"]["channels_last"] = True
    write_json(tmp_path / "run" / "plan.json", plan)
    sites = sites_of(dataset, tmp_path / "sites", Policy(minimum_cases=1))
    door = InProcess({name: site.answer for name, site in sites.items()})
    result = federate(config_for(tmp_path / "run", measurements=3), door)
    assert result["refused"] == {} and "dice" in result["sites"]["east"]
    for name, value in weights(undisturbed / "run").items():  # another order of sums, no other way
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=0, atol=2e-2)


def test_too_few_answers_stop_the_round_and_nothing_is_lost(dataset: Path, tmp_path: Path) -> None:
    sites = sites_of(dataset, tmp_path / "sites")

    def gone(request: bytes) -> bytes:
        if Message.unpack(request).verb == "learn":
            raise ConnectionError
        return sites["east"].answer(request)

    answers: dict[str, Answer] = {name: site.answer for name, site in sites.items()}
    config = config_for(tmp_path / "run", least_sites=3)
    with pytest.raises(QinjingError, match="3 sites must answer"):
        federate(config, InProcess({**answers, "east": gone}))
    assert federate(config, InProcess(answers))["rounds"] == 3
    with pytest.raises(ConfigError, match="a new folder"):
        federate(replace(config, rounds=4), InProcess(answers))


def test_a_simulation_with_failures_and_a_liar(dataset: Path, tmp_path: Path) -> None:
    losses = {}
    for combine in ("mean", "median"):
        federation = config_for(tmp_path / combine, rounds=4, combine=combine)
        config = SimulationConfig(dataset, federation, 4, failing=0.2, liars=1, beside=False)
        result = simulate(config)
        events = read_events(tmp_path / combine / "log.jsonl")
        losses[combine] = events[-1]["loss"]
        assert any(len(event["sites"]) < 4 for event in events)
    assert losses["median"] < 0.5 * losses["mean"]  # the lie moved the mean, not the median
    assert simulate(config)["bytes"] == result["bytes"]  # nothing was done again


def test_a_simulation_with_a_given_split_lets_sites_of_one_scan_learn(
    dataset: Path, tmp_path: Path
) -> None:
    grouped = tmp_path / "grouped"
    shutil.copytree(dataset, grouped)
    names = [case.case_id for case in open_dataset(dataset).cases]
    rows = "".join(f"{name}\t{SITES[number % 3]}\n" for number, name in enumerate(names))
    (grouped / "participants.tsv").write_text(f"participant_id\tgroup\n{rows}")
    splits = tmp_path / "splits.json"
    held_out = names[0::3]  # all of the first site's, which takes no part
    write_splits(splits, [{"train": names[1:3], "val": held_out}])
    federation = config_for(tmp_path / "run", rounds=1)
    result = simulate(SimulationConfig(grouped, federation, beside=False, splits=splits))
    assert result["sizes"] == {name: {"train": 1, "val": 0} for name in SITES[1:]}
    assert sorted(result["sites"]) == sorted(SITES[1:])
    measured = read_json(tmp_path / "run" / "metrics.json")["cases"]
    assert sorted(case["case_id"] for case in measured) == sorted(held_out)
    write_splits(splits, [{"train": names[1:2], "val": held_out}])
    alone = config_for(tmp_path / "alone", rounds=1)
    with pytest.raises(ConfigError, match="two sites on its train side"):
        simulate(SimulationConfig(grouped, alone, beside=False, splits=splits))


@pytest.mark.parametrize("codec", ["float16", "quantise"])
def test_few_bytes_travel_and_a_late_site_catches_up(
    codec: str, undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    sites = sites_of(dataset, tmp_path / "sites", Policy(minimum_cases=1))
    config = config_for(tmp_path / "run", rounds=4, codec=codec, keep="best")

    def sometimes(request: bytes) -> bytes:
        if Message.unpack(request).fields.get("round") in (0, 2):
            raise ConnectionError
        return sites["west"].answer(request)

    answers: dict[str, Answer] = {name: site.answer for name, site in sites.items()}
    result = federate(config, InProcess({**answers, "west": sometimes}))
    assert result["refused"] == {} and set(result["sites"]) == set(SITES)
    # All hold the very weights that the coordinator keeps.
    for name in SITES:
        own = load_tensors(tmp_path / "sites" / name / "model" / "fold_0" / "weights.safetensors")
        for key, value in weights(tmp_path / "run").items():
            assert torch.equal(value, own[0][key])
    # As many updates as without a codec: nine and one round's two fewer.
    whole = read_json(undisturbed / "run" / "result.json")["bytes"]["received"] / 9
    assert result["bytes"]["received"] / 10 < (0.6 if codec == "float16" else 0.4) * whole


def test_a_killed_coordinator_of_few_bytes_goes_on_to_the_same_bits(
    dataset: Path, tmp_path: Path
) -> None:
    results = []
    for name, dies in (("whole", 99), ("killed", 5)):
        sites = sites_of(dataset, tmp_path / name / "sites")
        count = 0

        def ask(request: bytes, site: Site, dies: int = dies) -> bytes:
            nonlocal count
            count += Message.unpack(request).verb == "learn"
            if count == dies:
                raise KeyboardInterrupt
            return site.answer(request)

        config = config_for(tmp_path / name / "run", codec="quantise", strategy="scaffold")
        door = InProcess({n: partial(ask, site=site) for n, site in sites.items()})
        if dies < 99:
            with pytest.raises(KeyboardInterrupt):
                federate(config, door)
        federate(config, InProcess({n: Site(site.config).answer for n, site in sites.items()}))
        results.append(weights(tmp_path / name / "run"))
    for key, value in results[0].items():
        assert torch.equal(value, results[1][key])


def test_of_a_secure_sum_the_coordinator_sees_no_update(
    undisturbed: Path, dataset: Path, tmp_path: Path
) -> None:
    once = config_for(tmp_path / "run", rounds=1)  # later Adam makes much of little
    config = SimulationConfig(dataset, once, 4, secure=True, beside=False)
    plain = replace(config, federation=config_for(tmp_path / "plain", rounds=1), secure=False)
    seen: list[bytes] = []

    class Listening(InProcess):
        def ask(self, requests: Any, deadline_s: float) -> Iterator[tuple[str, bytes]]:
            for site, answer in super().ask(requests, deadline_s):
                seen.append(answer)
                yield site, answer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulate_room, "InProcess", Listening)
        simulate(config)
        hidden = seen.copy()
        seen.clear()
        simulate(plain)
    # The same model but for the rounding of the sum.
    for name, value in weights(tmp_path / "plain").items():
        found = weights(tmp_path / "run")[name]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6)
    # A site's change, whole or weighted, is in none of the bytes that came.
    updates = [m for m in map(Message.unpack, seen) if m.verb == "learn"]
    for update in updates[:4]:
        change = update.tensors["change"]["encoders.0.0.0.weight"].reshape(-1)[:8]
        for form in (change, change * update.fields["cases"]):
            needle = form.numpy().tobytes()
            assert not any(needle in data for data in hidden)
        assert any(change.numpy().tobytes() in data for data in seen)  # the search finds
    learnt = [m for m in map(Message.unpack, hidden) if m.verb == "learn"]
    assert len(learnt) == len(updates)
    assert all(set(m.tensors) == {"sum"} and "loss" not in m.fields for m in learnt)


def test_a_site_that_wants_secure_sums_sends_nothing_else(dataset: Path, tmp_path: Path) -> None:
    sites = sites_of(dataset, tmp_path / "sites", Policy(secure_sums=True))
    door = InProcess({name: site.answer for name, site in sites.items()})
    with pytest.raises(QinjingError, match="1 sites must answer"):
        federate(config_for(tmp_path / "run"), door)


@pytest.mark.parametrize("secure", [False, True])
def test_privacy_is_spent_and_bounded_by_the_site(
    secure: bool, dataset: Path, tmp_path: Path
) -> None:
    pytest.importorskip("opacus")
    noisy = config_for(tmp_path / "run", clip_norm=1.0, noise=2.0)
    result = simulate(SimulationConfig(dataset, noisy, 4, secure=secure, beside=False))
    # Three releases with σ = 2 are one with μ = √3/2, whose exact ε is Balle and Wang's
    # (arXiv:1805.06530); Rényi's account is an upper bound, and not a loose one.
    mu = math.sqrt(3) / 2

    def delta(epsilon: float) -> float:
        high, low = norm.cdf(mu / 2 - epsilon / mu), norm.cdf(-mu / 2 - epsilon / mu)
        return float(high - math.exp(epsilon) * low)

    exact = brentq(lambda epsilon: delta(epsilon) - 1e-5, 0.1, 20)
    for told in result["sites"].values():
        assert exact < told["epsilon"] < 1.15 * exact and told["delta"] == 1e-5
    sites = sites_of(dataset, tmp_path / "sites", Policy(maximum_epsilon=3.0))
    door = InProcess({name: site.answer for name, site in sites.items()})
    with pytest.raises(QinjingError, match="1 sites must answer"):
        federate(replace(noisy, output=tmp_path / "bounded"), door)
    rounds = read_events(tmp_path / "bounded" / "log.jsonl")
    assert 0 < len(rounds) < 3  # until the account was empty


def test_who_drops_out_of_a_sum_is_left_out_of_it(dataset: Path, tmp_path: Path) -> None:
    config = SimulationConfig(
        dataset, config_for(tmp_path / "run"), 5, spread=0.0, failing=0.3, secure=True, beside=False
    )
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        merge = Strategy.merge
        patch.setattr(
            Strategy, "merge",
            lambda self, state, updates, share: shares.append(share)
            or merge(self, state, updates, share),
        )  # fmt: skip
        simulate(config)
    rounds = read_events(tmp_path / "run" / "log.jsonl")
    assert min(len(event["sites"]) for event in rounds) in (3, 4)
    # What SCAFFOLD's c moves by: the part of all sites that is in the sum.
    assert shares == [len(event["sites"]) / 5 for event in rounds]
    assert rounds[-1]["loss"] < rounds[0]["loss"]


@pytest.mark.slow
def test_a_simulation_beside_each_alone_and_all_pooled(dataset: Path, tmp_path: Path) -> None:
    federation = config_for(tmp_path / "run", rounds=4, share=0.9)
    result = simulate(SimulationConfig(dataset, federation, 3))
    assert set(result["runs"]) == {"federated", "pooled", "site_1", "site_2", "site_3"}
    tables = [read_json(Path(run) / "metrics.json") for run in result["runs"].values()]
    measured = [[case["case_id"] for case in table["cases"]] for table in tables]
    assert all(cases == measured[0] for cases in measured)  # all on the same scans
    assert len(measured[0]) == sum(size["val"] for size in result["sizes"].values())
    pooled = Path(result["runs"]["pooled"])
    assert read_json(pooled / "plan.json")["fit"]["steps"] == 8


def test_sizes_are_drawn_and_no_patient_is_parted(dataset: Path, tmp_path: Path) -> None:
    cases = open_dataset(dataset).cases
    even = SimulationConfig(dataset, config_for(tmp_path), 4, spread=0.0)
    assert [len(own) for own in dealt(cases, even).values()] == [3, 3, 3, 3]
    uneven = dealt(cases, replace(even, spread=1.5))
    sizes = [len(own) for own in uneven.values()]
    assert sum(sizes) == 12 and min(sizes) >= 2 and np.ptp(sizes) > 1
    ids = [case.case_id for own in uneven.values() for case in own]
    assert len(set(ids)) == 12
    with pytest.raises(ConfigError, match="6 at most"):
        dealt(cases, replace(even, sites=7))
