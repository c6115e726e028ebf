"""A search in a federation: slices against masks, means against numpy, sizes, kills, choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.federate.test_federation import (  # noqa: F401
    SITES,
    _small,
    config_for,
    dataset,
    sites_of,
    weights,
)

from qinjing import cli, evidence
from qinjing.config import plain, read_config, read_json
from qinjing.engine.checkpoint import ModelCard, load_tensors
from qinjing.engine.device import flops
from qinjing.engine.fit import FitConfig, optimiser_for
from qinjing.engine.log import read_events
from qinjing.engine.optimiser import memory_of, remember
from qinjing.engine.plan import Plan
from qinjing.errors import ConfigError, QinjingError
from qinjing.federate.coordinator import federate
from qinjing.federate.doors import InProcess
from qinjing.federate.federation import SearchConfig
from qinjing.federate.message import Message
from qinjing.federate.policy import Policy, RefusedError
from qinjing.federate.search import Searching, chosen, envelope, space
from qinjing.federate.simulate import SimulationConfig, simulate
from qinjing.federate.site import Site
from qinjing.federate.slices import sliced
from qinjing.federate.supernet import SLICED, Architecture, Supernet

STAGES = {
    "strides": ((1, 1, 1), (2, 2, 2), (1, 2, 2)),
    "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
}
CARDS = {
    "unet": ModelCard("unet", {"widths": (8, 16, 16), **STAGES}),
    "residual_unet": ModelCard("residual_unet", {"size": "small", "in_channels": 2, **STAGES}),
    "subvoxel_unet": ModelCard(
        "subvoxel_unet", {"widths": (8, 16, 24), "blocks": 3, **STAGES,
                          "strides": ((2, 2, 2), (2, 2, 2), (1, 2, 2))},
    ),
}  # fmt: skip
SMALL = {
    "unet": Architecture((4, 8, 12)),
    "residual_unet": Architecture((12, 16, 40)),
    "subvoxel_unet": Architecture((4, 12, 8), (1, 3, 2)),
}


def built(card: ModelCard, seed: int = 0) -> torch.nn.Module:
    """A network none of whose weights, biases among them, is what it begins with."""
    torch.manual_seed(seed)
    net = card.build()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def test_every_net_that_is_sliced_is_tested() -> None:
    assert set(CARDS) == set(SMALL) == set(SLICED)


@pytest.mark.parametrize("name", SLICED)
def test_a_slice_is_the_whole_with_all_else_silent(name: str) -> None:
    """The whole with zeros everywhere else computes what the small network computes.

    A channel whose kernels, norm and bias are zero says nothing, and a block of zeros adds nothing.
    """
    net, one = Supernet(CARDS[name]), SMALL[name]
    whole = built(CARDS[name])
    cut = net.cut(whole.state_dict(), one)
    small = net.card(one).build()
    small.load_state_dict(cut)
    silent = {n: torch.zeros_like(v) for n, v in whole.state_dict().items()}
    whole.load_state_dict({**silent, **net.spread(cut, one)})
    image = torch.randn(2, CARDS[name].options.get("in_channels", 1), 8, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(image), whole.eval()(image), rtol=1e-4, atol=1e-5)
    kept = sum(p.numel() for p in small.parameters())
    assert net.parameters(one) == kept < 0.7 * net.parameters(net.largest)
    # torch's own count of the operations, a multiplication and an addition two.
    assert 2 * net.multiply_adds(one, (8, 12, 12)) == flops(small, image[:1])
    assert net.multiply_adds(one, (8, 12, 12)) < net.multiply_adds(net.largest, (8, 12, 12))


def places(name: str, whole: tuple[int, ...], own: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """The rows of each axis that a slice of the sub-voxel net has, written down by hand."""
    rows = [np.arange(few) for few in own]
    if name.startswith("decoders.") and name.endswith(".0.0.weight") and len(whole) == 5:
        half, few = whole[1] // 2, own[1] // 2
        rows[1] = np.concatenate([np.arange(few), half + np.arange(few)])
    if name == "head.0.0.weight":  # beside the finest stage's 8 channels lie the 8 folded voxels
        rows[1] = np.concatenate([np.arange(own[1] - 8), 8 + np.arange(8)])
    return np.ix_(*rows)


def test_the_mean_is_over_the_sites_that_have_an_entry() -> None:
    card = CARDS["subvoxel_unet"]
    net = Supernet(card)
    of = [
        SMALL["subvoxel_unet"],
        Architecture((8, 8, 24), (3, 1, 1)),
        Architecture((4, 8, 8), (1, 1, 1)),
    ]
    cases = [7, 2, 5]
    rng = torch.Generator().manual_seed(3)
    changes = [
        {n: torch.randn(shape, generator=rng) for n, shape in net.shapes(one).items()} for one in of
    ]
    found = net.mean(of, changes, cases)
    bare = 0
    for name, value in card.build().state_dict().items():
        total, count = np.zeros(value.shape), np.zeros(value.shape)
        for own, n in zip(changes, cases, strict=True):
            if name in own:
                where = places(name, tuple(value.shape), tuple(own[name].shape))
                total[where] += n * own[name].numpy().astype(float)
                count[where] += n
        mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        mean = mean if name in found else np.zeros_like(total)
        bare += int((count == 0).sum())
        got = found[name].numpy() if name in found else np.zeros_like(total)
        assert count.any() or name not in found
        np.testing.assert_allclose(got, mean, rtol=1e-6, atol=1e-7)
    assert bare > 1000  # entries that no site had, and which stay as they were


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_the_optimiser_remembers_what_two_slices_share(optimiser: Any) -> None:
    net, config = Supernet(CARDS["subvoxel_unet"]), FitConfig(10, optimiser=optimiser)
    was, now = Architecture((8, 8, 24), (1, 3, 2)), Architecture((4, 16, 16), (3, 2, 2))
    first, second = (net.card(one).build() for one in (was, now))
    trained = optimiser_for(first, config)
    first(torch.randn(1, 1, 8, 12, 12))[0].square().mean().backward()
    trained.step()
    before = memory_of(trained)
    after = net.memory(before, was, now, config)
    fresh = optimiser_for(second, config)
    remember(fresh, after)
    second(torch.randn(1, 1, 8, 12, 12))[0].square().mean().backward()
    fresh.step()  # it has the keys that the rule of each weight asks for
    name = "encoders.1.1.second.0.weight"
    key = "momentum" if optimiser == "muon" else "exp_avg"
    old, new = (dict(n.named_parameters())[name] for n in (first, second))
    kept = trained.state[old][key]
    moved = next(v for k, v in after.items() if k.endswith(key) and v.shape == new.shape
                 and torch.equal(v[:8, :8], kept))  # fmt: skip
    assert not moved[8:].any() and not moved[:, 8:].any() and kept.any()
    same = net.memory(before, was, was, config)
    assert all(torch.equal(value, before[name]) for name, value in same.items())
    assert same.keys() == before.keys()


def test_no_architecture_but_a_slice_and_none_too_dear() -> None:
    net = Supernet(CARDS["subvoxel_unet"])
    wrong = [((8, 16), (1, 1)), ((8, 16, 28), (1, 1, 1)), ((6, 8, 8), (1, 1, 1)), ((8, 8, 8), ())]
    wrong += [((8, 8, 8), (4, 1, 1)), ((8, 8, 0), (1, 1, 1)), ((8, 8, -4), (1, 1, 1))]
    for widths, blocks in wrong:
        with pytest.raises(ConfigError, match="architecture must be a slice"):
            net.card(Architecture(widths, blocks))
    with pytest.raises(ConfigError, match="net of a search must be one of"):
        Supernet(ModelCard("segresnet", {}))


def test_the_space_and_the_choice() -> None:
    net = Supernet(CARDS["subvoxel_unet"])
    known = space(net, SearchConfig(candidates=20), 1)
    assert len(set(known)) == 20 and known == space(net, SearchConfig(candidates=20), 1)
    assert {net.largest, Architecture((4, 8, 12), (1, 1, 1))} <= set(known)
    for one in known:
        net.card(one)
        assert all(o <= m for o, m in zip(one.widths, net.largest.widths, strict=True))
    assert envelope([Architecture((4, 16), (2, 1)), Architecture((8, 12), (1, 1))]) == Architecture(
        (8, 16), (2, 1)
    )
    rows = [
        {"million_multiply_adds": cost, "dice": dice}
        for cost, dice in [(1.0, 0.70), (2.0, 0.79), (3.0, None), (4.0, 0.80), (5.0, 0.95)]
    ]
    assert chosen(rows, {0, 1, 2, 3}, "dice", 0.01) == 1
    assert chosen(rows, {0, 1, 2, 3}, "dice", 0.0) == 3
    assert chosen(rows, {0, 1, 2, 3, 4}, "dice", 0.01) == 4
    with pytest.raises(QinjingError, match="every site affords"):
        chosen(rows, {2}, "dice", 0.01)


@pytest.mark.parametrize(
    "changes",
    [{"codec": "quantise"}, {"combine": "median"}, {"strategy": "scaffold"},
     {"noise": 1.0, "clip_norm": 1.0}, {"identities": Path("keys.json")}],
)  # fmt: skip
def test_what_a_search_cannot_go_with_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="search"):
        config_for(tmp_path, search=SearchConfig(), **changes)


def listening(
    sites: dict[str, Site], heard: dict[str, list[tuple[Message, int, int]]]
) -> InProcess:
    def ask(name: str, request: bytes) -> bytes:
        answer = sites[name].answer(request)
        heard.setdefault(name, []).append((Message.unpack(request), len(request), len(answer)))
        return answer

    return InProcess({name: partial(ask, name) for name in sites})


def told(folder: Path, dataset: Path, shares: tuple[float, ...]) -> dict[str, Site]:  # noqa: F811
    """Sites that tell of one case, and afford so much."""
    made = sites_of(dataset, folder)
    for name, share in zip(SITES, shares, strict=True):
        policy = Policy(minimum_cases=1, compute=share)
        made[name] = Site(replace(made[name].config, policy=policy))
    return made


SEARCH = SearchConfig(share=0.75, ratios=(0.5, 1.0), candidates=5)
POOR = 0.5


@pytest.fixture(scope="module")
def searched(
    dataset: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, list[tuple[Message, int, int]]]]:
    """A search of three rounds and one of what was chosen; the third site affords half."""
    folder = tmp_path_factory.mktemp("searched")
    heard: dict[str, list[tuple[Message, int, int]]] = {}
    door = listening(told(folder / "sites", dataset, (1.0, 1.0, POOR)), heard)
    federate(config_for(folder / "run", rounds=4, steps=1, search=SEARCH), door)
    return folder, heard


def test_one_architecture_alone_is_the_training_without_a_search(
    dataset: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    search = SearchConfig(ratios=(1.0,), depth=False)
    for name, wanted in (("plain", None), ("searched", search)):
        sites = told(tmp_path / name / "sites", dataset, (1.0, 1.0, 1.0))
        door = InProcess({n: site.answer for n, site in sites.items()})
        federate(config_for(tmp_path / name / "run", search=wanted), door)
    (one,) = read_json(tmp_path / "searched" / "run" / "search.json")["candidates"]
    assert one["dice"] is not None
    plain_ones = weights(tmp_path / "plain" / "run")
    assert plain_ones.keys() == weights(tmp_path / "searched" / "run").keys()
    for name, value in weights(tmp_path / "searched" / "run").items():
        assert torch.equal(value, plain_ones[name])


def test_sites_train_what_they_afford_and_send_no_more(
    searched: tuple[Path, dict[str, list[tuple[Message, int, int]]]],
) -> None:
    folder, heard = searched
    found = read_json(folder / "run" / "search.json")
    numbers = {(*c["widths"], *c["blocks"]): c for c in found["candidates"]}
    most = max(c["million_multiply_adds"] for c in found["candidates"])
    trained: dict[str, list[float]] = {}
    for site, messages in heard.items():
        for message, sent, received in messages:
            if message.verb != "learn":
                continue
            one = message.fields["architecture"]
            row = numbers[(*one["widths"], *one["blocks"])]
            size = 4 * row["parameters"]
            assert size < sent < size + 15_000 and size < received < size + 15_000
            trained.setdefault(site, []).append(row["million_multiply_adds"] / most)
    assert max(trained["west"]) <= POOR and len(trained["west"]) == 4
    for site in ("east", "north"):  # in three rounds the largest, the smallest, and one by chance
        assert max(trained[site][:3]) == 1.0 and min(trained[site][:3]) == min(trained["west"])
    # The poor site is asked to rank what it affords alone, and who affords more ranks all.
    ranks = {site: [m for m, _, _ in all_ if m.verb == "rank"] for site, all_ in heard.items()}
    asked = {site: len(own[0].fields["architectures"]) for site, own in ranks.items()}
    assert asked["east"] == asked["north"] == len(numbers) > asked["west"] > 0


def test_the_result_is_one_that_predicts_trains_and_verifies(
    searched: tuple[Path, dict[str, list[tuple[Message, int, int]]]],
    dataset: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    run = searched[0] / "run"
    result = read_json(run / "result.json")
    found = result["search"]
    one = found["candidates"][found["chosen"]]
    assert one["front"] and one["dice"] is not None and set(found["sites"]) == set(SITES)
    best = max(c["dice"] for c in found["candidates"] if c["dice"] is not None)
    cheaper = [c for c in found["candidates"][: found["chosen"]] if c["dice"] is not None]
    assert one["dice"] >= best - 0.01 and all(c["dice"] < best - 0.01 for c in cheaper)
    assert [c for c in found["candidates"] if c["step_s"]]
    assert 0 < found["bytes"]["sent"] < result["bytes"]["sent"]
    plan = read_config(run / "plan.json", Plan)
    assert plan.model.options["widths"] == one["widths"]
    net = plan.model.build()
    assert sum(p.numel() for p in net.parameters()) == one["parameters"]
    net.load_state_dict(weights(run))
    for name in SITES:  # all have the very model
        own = load_tensors(
            searched[0] / "sites" / name / "model" / "fold_0" / "weights.safetensors"
        )
        assert all(torch.equal(value, own[0][key]) for key, value in weights(run).items())
    rounds = [e for e in read_events(run / "log.jsonl") if e["kind"] == "round"]
    assert ["dice" in e for e in rounds] == [False, False, False, True]
    assert not evidence.verify(run).faults
    words = ["train", "-i", str(dataset), "-o", str(tmp_path / "run"), "--plan"]
    assert cli.main([*words, str(run / "plan.json"), "--steps", "2", "--json"]) == 0
    assert read_json(tmp_path / "run" / "fold_0" / "model.json") == plain(plan.model)


def test_a_killed_search_goes_on_to_the_same_bits(
    searched: tuple[Path, dict[str, list[tuple[Message, int, int]]]],
    dataset: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    sites = told(tmp_path / "sites", dataset, (1.0, 1.0, POOR))
    config = config_for(tmp_path / "run", rounds=4, steps=1, search=SEARCH)

    def dying(verb: str, name: str) -> Callable[[bytes], bytes]:
        def ask(request: bytes) -> bytes:
            message = Message.unpack(request)
            if message.verb == verb and name == "north" and message.fields.get("round", 1) == 1:
                raise KeyboardInterrupt
            return Site(sites[name].config).answer(request)

        return ask

    for verb in ("learn", "rank"):  # in the middle of the second round, and of the ranking
        with pytest.raises(KeyboardInterrupt):
            federate(config, InProcess({name: dying(verb, name) for name in sites}))
    federate(config, InProcess({n: Site(site.config).answer for n, site in sites.items()}))
    undisturbed = searched[0] / "run"
    for name, value in weights(undisturbed).items():
        assert torch.equal(value, weights(tmp_path / "run")[name])
    mine, other = (read_json(run / "search.json") for run in (undisturbed, tmp_path / "run"))
    assert mine["sites"] == other["sites"] and mine["chosen"] == other["chosen"]


def test_each_site_has_its_own(dataset: Path, tmp_path: Path) -> None:  # noqa: F811
    search = replace(SEARCH, share=0.5, per_site=True, tolerance=0.0)
    config = config_for(tmp_path / "run", rounds=2, steps=1, search=search)
    affords = (1.0, 0.5)
    result = simulate(SimulationConfig(dataset, config, 3, beside=False, compute=affords))
    found = result["search"]
    most = max(c["million_multiply_adds"] for c in found["candidates"])
    last = read_events(tmp_path / "run" / "log.jsonl")[-1]["architectures"]
    for number, (site, place) in enumerate(sorted(found["sites"].items())):
        one = found["candidates"][place]
        assert one["million_multiply_adds"] <= affords[number % 2] * most
        scores = [c["site_dice"][site] for c in found["candidates"] if site in c["site_dice"]]
        assert one["site_dice"][site] == max(scores)
        own = read_json(tmp_path / "run" / "sites" / site / "model" / "fold_0" / "model.json")
        assert own["options"]["widths"] == one["widths"] and last[site] == place


def test_a_site_takes_no_more_than_it_affords_and_lies_do_not_count(
    searched: tuple[Path, dict[str, list[tuple[Message, int, int]]]],
    dataset: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    plan = read_config(searched[0] / "run" / "supernet.json", Plan)
    largest = plain(Supernet(plan.model).largest)
    assert sliced(plan, largest, 1.0).model.options["widths"] == largest["widths"]
    with pytest.raises(RefusedError, match=r"0\.4 of the largest network's at most, got 1"):
        sliced(plan, largest, 0.4)
    sites = told(tmp_path / "sites", dataset, (1.0, 1.0, 0.01))

    def lying(request: bytes) -> bytes:
        answer = Message.unpack(sites["north"].answer(request))
        if answer.verb == "rank":
            answer = replace(answer, fields={**answer.fields, "scores": [1.0] * 99})
        return answer.pack()

    answers = {n: site.answer for n, site in sites.items()} | {"north": lying}
    config = config_for(tmp_path / "run", rounds=1, steps=1, search=replace(SEARCH, share=1.0))
    result = federate(config, InProcess(answers))
    assert "scores must be 5 from 0 to 1" in result["refused"]["north"]
    assert "0.01 of the largest network's at most" in result["refused"]["west"]
    assert {s for c in result["search"]["candidates"] for s in c["site_dice"]} == {"east"}


def test_where_no_site_may_tell_the_search_stops_and_says_why(
    dataset: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    sites = sites_of(dataset, tmp_path / "sites")  # each holds out one, and tells of three
    door = InProcess({name: site.answer for name, site in sites.items()})
    config = config_for(tmp_path / "run", rounds=1, steps=1, search=SEARCH)
    with pytest.raises(QinjingError, match="no site has as many as its policy asks for"):
        federate(config, door)


def test_sites_that_share_an_envelope_rank_what_each_affords(
    searched: tuple[Path, Any], tmp_path: Path
) -> None:
    plan = read_config(searched[0] / "run" / "supernet.json", Plan)
    packed: dict[str, dict[str, Any]] = {}

    def ask(verb: str, fields: Any, states: Any, own: Any) -> dict[str, Message]:
        made: dict[int, Any] = {}  # as the coordinator packs: once for one state
        for site, state in states.items():
            packed[site] = made.setdefault(id(state), own[site])
        return {}

    search = Searching(config_for(tmp_path, search=SearchConfig()), plan, ask)
    some = search.space
    k = next(k for k in range(1, len(some)) if envelope(some[:k]) == envelope(some[: k + 1]))
    whole = search.costs[-1]
    search.affords = {"poor": search.costs[k - 1] / whole, "rich": search.costs[k] / whole}
    weights_now = built(search.net.card(search.net.largest)).state_dict()
    search.send("rank", {}, {"weights": weights_now}, 0, ["poor", "rich"])
    assert packed["poor"]["envelope"] == packed["rich"]["envelope"]
    assert [len(packed[site]["architectures"]) for site in ("poor", "rich")] == [k, k + 1]
