"""What travels, what a site allows, and what planning together tells."""

from __future__ import annotations

import contextlib
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qinjing.data.fingerprint import CaseFingerprint, ChannelIntensity, Fingerprint
from qinjing.data.layouts import open_dataset
from qinjing.data.splits import make_splits
from qinjing.engine.plan import make_plan
from qinjing.errors import ConfigError, FormatError
from qinjing.federate.message import Message
from qinjing.federate.policy import Policy
from qinjing.federate.pooling import grouped, pooled, quantiles, sketch
from qinjing.nets.blocks import total_stride
from qinjing.tasks.planning import measure

NOON = datetime(2026, 5, 4, 12, 0)


def test_a_message_comes_back_as_it_went() -> None:
    tensors = {"change": {"a.weight": torch.randn(3, 2), "n": torch.tensor(3)}, "more": {}}
    message = Message("learn", {"cases": 4, "loss": 0.5}, tensors)
    back = Message.unpack(message.pack())
    assert (back.verb, back.fields) == ("learn", {"cases": 4, "loss": 0.5})
    assert set(back.tensors) == {"change"}  # a group of nothing is nothing
    for name, value in tensors["change"].items():
        assert torch.equal(back.tensors["change"][name], value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_messages_are_refused(data: st.DataObject) -> None:
    whole = Message("learn", {"cases": 4}, {"change": {"w": torch.ones(5)}}).pack()
    place = data.draw(st.integers(0, len(whole) - 1))
    torn = data.draw(st.sampled_from([whole[:place], b"", b"\x80\x04\x95" + whole, whole + b"0"]))
    with pytest.raises(FormatError, match="message must be one of ours"):
        Message.unpack(torn)
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FormatError):
        Message.unpack(bytes(changed))  # a changed number is a number


@pytest.mark.parametrize(
    ("policy", "fields", "reason"),
    [
        (Policy(), {"purpose": "federated", "code": "own"}, None),
        (Policy(), {"purpose": "commercial", "code": "own"}, "purpose must be one of federated"),
        (Policy(), {"purpose": "federated", "code": "old"}, "code must be one"),
        (Policy(code=("old",)), {"purpose": "federated", "code": "old"}, None),
        (Policy(hours="11:00-13:00"), {"purpose": "federated", "code": "own"}, None),
        (Policy(hours="18:00-06:00"), {"purpose": "federated", "code": "own"}, "it is 12:00"),
        (Policy(hours="18:00-12:01"), {"purpose": "federated", "code": "own"}, None),
    ],
)
def test_a_policy_turns_away_with_a_reason(
    policy: Policy, fields: dict[str, object], reason: str | None
) -> None:
    found = policy.refusal(fields, "own", NOON)
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize(
    "options", [{"purposes": ("fun",)}, {"hours": "25:00-26:00"}, {"minimum_cases": 0}]
)
def test_a_policy_that_says_nothing_sensible_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Policy(**options)  # type: ignore[arg-type]


def made(count: int, seed: int, spacing: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Fingerprint:
    rng = np.random.default_rng(seed)
    cases = tuple(
        CaseFingerprint(
            f"c{i}",
            tuple(int(n) for n in rng.integers(30, 60, 3)),  # type: ignore[arg-type]
            tuple(float(s * rng.uniform(0.9, 1.1)) for s in spacing),  # type: ignore[arg-type]
            {0: 900, 1: 100 + i},
            (20, 20, 20),
            1.0,
        )
        for i in range(count)
    )
    grey = (ChannelIntensity(float(seed), 2.0, -1.0, 5.0),)
    return Fingerprint(f"s{seed}", ("MR",), {0: "background", 1: "organ"}, cases, grey)


def test_nothing_told_stands_for_fewer_cases_than_the_site_allows() -> None:
    told = sketch(made(11, 0), least=4)
    for groups in told.quantities.values():
        assert sum(n for n, _ in groups) == 11
        assert min(n for n, _ in groups) >= 4
    values = {v for groups in told.quantities.values() for _, v in groups}
    lone = {s for case in made(11, 0).cases for s in case.spacing_mm}
    assert not values & lone
    with pytest.raises(ConfigError, match="3 at least"):
        sketch(made(2, 0))


def test_equal_values_stay_as_they_are() -> None:
    assert grouped([1.0] * 7, 3) == ((4, 1.0), (3, 1.0))


def test_quantiles_against_numpy() -> None:
    values = np.sort(np.random.default_rng(0).normal(size=640))
    groups = [(1, float(v)) for v in values]
    found = quantiles(groups, 64)
    np.testing.assert_allclose(found, np.quantile(values, (np.arange(64) + 0.5) / 64,
                                                  method="inverted_cdf"))  # fmt: skip


def test_greys_pool_as_those_of_all_cases() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.normal(3, 1, 500), rng.normal(8, 2, 1500)]
    told = {}
    for number, values in enumerate(parts):
        base = sketch(made(5 * (1 + 2 * number), number))
        grey = ChannelIntensity(float(values.mean()), float(values.std()), 0.0, 1.0)
        told[f"s{number}"] = type(base)(**{**base.__dict__, "greys": (grey,)})
    found = pooled("all", told).intensities[0]
    whole = np.concatenate(parts)
    assert (found.mean, found.sd) == (pytest.approx(whole.mean()), pytest.approx(whole.std()))


def test_sites_that_name_labels_otherwise_are_refused() -> None:
    one, other = sketch(made(5, 0)), sketch(made(5, 1))
    other = type(other)(**{**other.__dict__, "labels": {0: "background", 1: "tumour"}})
    with pytest.raises(ConfigError, match="as at north"):
        pooled("all", {"north": one, "south": other})


@pytest.mark.data
@pytest.mark.parametrize("name", ["Task04_Hippocampus", "Dataset027_ACDC"])
def test_sites_plan_as_all_cases_pooled_would(name: str, data_root: Path) -> None:
    dataset = open_dataset(data_root / name)
    cases = dataset.cases[:50]
    parts = [fold["val"] for fold in make_splits(cases, 5)]
    own = {case.case_id: case for case in cases}
    told = {
        f"site{k}": sketch(measure(dataset, [own[i] for i in part])) for k, part in enumerate(parts)
    }
    options = {"device": "cpu", "threads": 1, "net": "residual_unet"}
    ours = make_plan(pooled(name, told), **options)  # type: ignore[arg-type]
    theirs = make_plan(measure(dataset, cases), **options)  # type: ignore[arg-type]
    assert ours.model == theirs.model
    assert ours.preprocessing == theirs.preprocessing
    assert ours.one_piece == theirs.one_piece
    # Groups of three leave medians of sizes to a voxel, which may round to the next multiple.
    steps = np.subtract(ours.patch_size, theirs.patch_size)
    assert np.all(np.abs(steps) <= total_stride(ours.model.options["strides"]))
