"""What a site keeps to when consent is withdrawn or given again in the middle of a federation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.test_train import write_case

from qinjing import evidence
from qinjing.config import read_json, write_json
from qinjing.data.consent import Change, Store, affected
from qinjing.data.layouts import open_dataset
from qinjing.data.splits import make_splits, read_splits
from qinjing.engine import plan as planned
from qinjing.errors import QinjingError
from qinjing.federate.coordinator import federate
from qinjing.federate.doors import InProcess
from qinjing.federate.federation import FederationConfig
from qinjing.federate.message import Message
from qinjing.federate.policy import Policy, SiteConfig
from qinjing.federate.site import Site

CASES = 7  # of which a site without splits of its own holds two out, and learns from five

Say = Callable[..., None]
Ask = Callable[[Message], None]


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Plan networks and batches that a test can afford."""
    before = planned._BATCH, planned._WIDTHS
    planned._BATCH, planned._WIDTHS = {"cpu": (2, 2)}, {"cpu": (8, 16, 16)}
    yield
    planned._BATCH, planned._WIDTHS = before


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all") / "scans"
    for number in range(CASES):
        write_case(folder, f"case{number}", number)
    declared = {"basis": "licence", "reference": "CC0", "purposes": ["federated"]}
    write_json(folder / "consent.json", declared)
    return folder


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Record what patients say in a store that is named for this test."""
    place = tmp_path / "consent.sqlite"
    monkeypatch.setenv("QINJING_CONSENT", str(place))
    Store(place, create=True).close()

    def call(decision: Any, *patients: str) -> None:
        with Store(place) as store:
            now = datetime.now(UTC)
            store.append([Change(who, "federated", decision, now) for who in patients])

    return call


def site_of(dataset: Path, folder: Path, **rules: Any) -> Site:
    """A site as it is when its process starts."""
    return Site(SiteConfig("east", dataset, folder, Policy(**{"minimum_cases": 1, **rules})))


def run(site: Site, output: Path, before: Ask | None = None, **changes: Any) -> dict[str, Any]:
    """A federation of this site alone; `before` sees every request first."""

    def answer(request: bytes) -> bytes:
        if before:
            before(Message.unpack(request))
        return site.answer(request)

    base = FederationConfig(output, rounds=2, steps=1, net="subvoxel_unet", measurements=1)
    return federate(replace(base, **changes), InProcess({"east": answer}))


def at_round(number: int, act: Callable[[], None]) -> Ask:
    """Act before a round is learnt."""

    def before(message: Message) -> None:
        if message.verb == "learn" and message.fields["round"] == number:
            act()

    return before


def split_of(folder: Path) -> dict[str, list[str]]:
    (split,) = read_splits(folder / "splits.json")
    return {"train": split["train"], "val": split["val"]}


def test_held_out_cases_stay_held_out_whoever_withdraws(
    dataset: Path, tmp_path: Path, say: Say
) -> None:
    site = tmp_path / "site"
    run(site_of(dataset, site), tmp_path / "first")
    kept = split_of(site)
    cases = open_dataset(dataset).cases

    def dealt_anew(without: str) -> list[str]:
        left = [case for case in cases if case.case_id != without]
        return make_splits(left, folds=5)[0]["val"]

    # One whose leaving would deal the others otherwise, so that the model had learnt from them.
    who = next(i for i in kept["train"] if set(dealt_anew(i)) & set(kept["train"]))
    say("deny", who)
    run(site_of(dataset, site), tmp_path / "second")
    assert split_of(site) == kept
    measured = read_json(site / "model" / "fold_0" / "metrics.json")["cases"]
    assert [one["case_id"] for one in measured] == kept["val"]
    newest = max(site.glob("rounds/*/saw.json"), key=lambda path: path.stat().st_mtime_ns)
    assert read_json(newest) == {dataset.name: [i for i in kept["train"] if i != who]}


def test_a_site_left_with_fewer_cases_than_its_policy_wants_tells_nothing(
    dataset: Path, tmp_path: Path, say: Say
) -> None:
    site = tmp_path / "site"
    run(site_of(dataset, site), tmp_path / "first")
    train = split_of(site)["train"]
    answers: list[tuple[str, Message]] = []
    strict = site_of(dataset, site, minimum_cases=len(train))

    class Kept:
        def answer(self, request: bytes) -> bytes:
            answer = strict.answer(request)
            answers.append((Message.unpack(request).verb, Message.unpack(answer)))
            return answer

    def withdraw() -> None:
        say("deny", train[0])

    with pytest.raises(QinjingError, match="1 sites must answer"):
        run(Kept(), tmp_path / "second", at_round(1, withdraw))  # type: ignore[arg-type]
    first, second = (answer for verb, answer in answers if verb == "learn")
    assert first.verb == "learn" and first.fields["cases"] == len(train)
    assert second.verb == "refused" and not second.tensors
    wanted = f"cases to learn from must be {len(train)} at least, got {len(train) - 1}"
    assert second.fields["reason"] == wanted
    # With the word taken back the same site goes on.
    say("permit", train[0])
    assert run(strict, tmp_path / "second")["rounds"] == 2


def test_models_of_a_federation_that_saw_a_case_are_found(
    dataset: Path, tmp_path: Path, say: Say
) -> None:
    site = tmp_path / "site"
    run(site_of(dataset, site), tmp_path / "run")
    split = split_of(site)
    (rounds,) = (site / "rounds").iterdir()
    for case_id in split["train"]:
        found = {one.folder: one for one in affected(case_id, [tmp_path])}
        assert found.keys() == {(site / "model").resolve(), rounds.resolve()}
        model = found[(site / "model").resolve()]
        assert model.learnt and model.signed and model.dataset == (dataset.name,)
    (one,) = affected(split["val"][0], [tmp_path])
    assert one.folder == (site / "model").resolve() and not one.learnt and one.signed
    assert one.how == ("was measured on it",)
    assert affected("case9", [tmp_path]) == []
    # What the signature does not stand for is listed, and said to be so.
    write_json(site / "model" / "saw.json", {dataset.name: ["case9"]})
    (one,) = affected("case9", [tmp_path])
    assert one.learnt and not one.signed
    assert evidence.verify(site).faults


@pytest.mark.parametrize("way", ["withdrawn", "given"])
def test_who_was_learnt_from_for_a_round_is_still_found(
    way: str, dataset: Path, tmp_path: Path, say: Say
) -> None:
    """Though the coordinator began anew without the case, or the plan came before it."""
    site = tmp_path / "site"
    run(site_of(dataset, site), tmp_path / "before")
    shutil.rmtree(site / "rounds")
    shutil.rmtree(site / "model")
    case_id = split_of(site)["train"][0]

    def stop() -> None:
        raise KeyboardInterrupt

    if way == "withdrawn":
        with pytest.raises(KeyboardInterrupt):
            run(site_of(dataset, site), tmp_path / "run", at_round(1, stop))
        say("deny", case_id)
        run(site_of(dataset, site), tmp_path / "run")
    else:
        say("deny", case_id)
        there = site_of(dataset, site)

        def again() -> None:
            say("permit", case_id)
            there.__dict__ = site_of(dataset, site).__dict__  # the site's process was started anew

        run(there, tmp_path / "run", at_round(1, again))
    found = affected(case_id, [site])
    assert [one.learnt for one in found] == [True, True]  # the model, and its rounds
