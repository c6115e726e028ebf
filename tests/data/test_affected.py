"""Which models saw a case: told from files, held against what was done, over drawn histories."""

from __future__ import annotations

import copy
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qinjing import evidence
from qinjing.config import write_json
from qinjing.data.consent import affected
from qinjing.data.consent.affected import note_seen
from qinjing.data.consent.lineage import seen_by
from qinjing.errors import FormatError

CASES = tuple("abcdef")


@dataclass
class Model:
    """What was done, and nothing of the files that tell of it.

    Attributes:
        kind: "run", "trunk", "unfinished" trunk or "site".
        learnt: by fold, which cases; one fold for what has none.
        measured: by fold likewise.
        began: the model and fold that it began from.
        knows: by fold, every case whose traces are in the weights.
        moved: to another place.
        forgot: what its `unlearned.json` tells.
    """

    kind: str
    learnt: list[set[str]]
    measured: list[set[str]]
    began: tuple[int, int] | None = None
    knows: list[set[str]] = field(default_factory=list)
    moved: bool = False
    forgot: list[dict[str, Any]] = field(default_factory=list)


def write(models: list[Model], number: int, folder: Path, places: list[Path]) -> None:
    """Write what a model of that kind leaves behind."""
    model, place = models[number], folder / f"m{number}"
    places.append(place)
    for fold in range(len(model.learnt)):
        write_json(place / f"fold_{fold}" / "model.json", {"of": number, "fold": fold, "at": 0})
    if model.kind == "run":
        write_json(place / "run.json", {})
        write_json(place / "dataset.json", {"name": "set"})
        transfer = None
        if model.began is not None:
            transfer = {"trunk": str(began_from(models, model, places)), "tune": "full"}
        write_json(place / "plan.json", {"transfer": transfer})
        split_sides(model, place)
    elif model.kind == "site":
        note_seen(place, "set", model.learnt[0])
        told = {"cases": [{"case_id": one} for one in sorted(model.measured[0])]}
        write_json(place / "fold_0" / "metrics.json", told)
    else:
        shutil.rmtree(place / "fold_0")
        note_seen(place, "set", model.learnt[0])
        if model.kind == "trunk":
            saw = [{"dataset": "set", "cases": sorted(model.learnt[0])}]
            write_json(place / "trunk.json", {"saw": saw})
    record(models, model, place, places)


def split_sides(model: Model, place: Path) -> None:
    sides = zip(model.learnt, model.measured, strict=True)
    content = [{"train": sorted(train), "val": sorted(val)} for train, val in sides]
    write_json(place / "splits_final.json", content)


def began_from(models: list[Model], model: Model, places: list[Path]) -> Path:
    assert model.began is not None
    before, fold = model.began
    trunk = models[before].kind == "trunk"
    return places[before] if trunk else places[before] / f"fold_{fold}"


def record(models: list[Model], model: Model, place: Path, places: list[Path]) -> None:
    read: dict[str, Any] = {}
    if model.began is not None:
        read = evidence.digested({"trunk": began_from(models, model, places)})
    made = [path for path in sorted(place.rglob("*.json")) if "evidence" not in path.name]
    evidence.append(place, "train", read, made, {})


def forget(model: Model, number: int, place: Path, case_id: str) -> None:
    """Train the folds again that learnt from a case, as `unlearn` does, and say so."""
    if case_id not in set().union(*model.learnt, *model.measured):
        return  # which `unlearn` refuses
    again = [k for k, own in enumerate(model.learnt) if case_id in own]
    measured = [k for k, own in enumerate(model.measured) if case_id in own]
    for fold in again:
        content = {"of": number, "fold": fold, "at": f"without {case_id}"}
        write_json(place / f"fold_{fold}" / "model.json", content)
    for own in (*model.learnt, *model.measured):
        own.discard(case_id)
    for fold in again:
        model.knows[fold].discard(case_id)
    split_sides(model, place)
    model.forgot.append({"case_id": case_id, "retrained": again, "measured": measured})
    write_json(place / "unlearned.json", {"cases": model.forgot})


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Model], list[tuple[str, int, str]]]:
    """Models in the order in which they were made, and what befell them when all were there."""
    some = st.sets(st.sampled_from(CASES), max_size=3)
    models: list[Model] = []
    for _ in range(draw(st.integers(1, 7))):
        kind = draw(st.sampled_from(["run", "run", "run", "trunk", "unfinished", "site"]))
        folds = draw(st.integers(1, 3)) if kind == "run" else 1
        learnt = [draw(some) for _ in range(folds)]
        measured = [draw(some) - own if kind in ("run", "site") else set() for own in learnt]
        there = [k for k, one in enumerate(models) if one.kind != "unfinished"]
        began = None
        if kind == "run" and there and draw(st.booleans()):
            before = draw(st.sampled_from(there))
            began = (before, draw(st.integers(0, len(models[before].learnt) - 1)))
        model = Model(kind, learnt, measured, began)
        handed = models[began[0]].knows[began[1]] if began else set()
        model.knows = [own | handed for own in learnt]
        models.append(model)
    events = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["move", "forget"]),
                st.integers(0, len(models) - 1),
                st.sampled_from(CASES),
            ),
            max_size=4,
        )
    )
    return models, events


def happen(models: list[Model], events: list[tuple[str, int, str]], places: list[Path]) -> None:
    for what, number, case_id in events:
        model = models[number]
        if what == "move" and not model.moved:
            model.moved = True
            places[number] = places[number].rename(places[number].with_name(f"moved{number}"))
        elif what == "forget" and model.kind == "run" and model.began is None and not model.moved:
            # `unlearn` refuses where the trunk saw the case; a model that was moved is known by
            # its digest, which forgetting changes: then nothing is left to know it by.
            forget(model, number, places[number], case_id)


def run(learnt: str, began: tuple[int, int] | None = None, knows: str = "") -> Model:
    return Model("run", [set(learnt)], [set()], began, [set(learnt + knows)])


# What chance seldom comes to: a fold that has forgotten since, a chain of what was moved.
@example(([run("a"), run("b", (0, 0), "a"), run("c", (1, 0), "ab")], [("forget", 0, "a")]))
@example(([run("a"), run("b", (0, 0), "a"), run("c", (1, 0), "ab")], [("move", 0, "a")]))
@example(
    (
        [
            Model("trunk", [{"a"}], [set()], None, [{"a"}]),
            run("", (0, 0), "a"),
            run("", (1, 0), "a"),
        ],
        [("move", 0, "a"), ("move", 1, "a")],
    )
)
@settings(max_examples=40, deadline=None)
@given(histories())
def test_every_model_with_traces_of_a_case_is_named(
    drawn: tuple[list[Model], list[tuple[str, int, str]]],
) -> None:
    models, events = copy.deepcopy(drawn)
    with tempfile.TemporaryDirectory() as name:
        folder, places = Path(name).resolve(), []
        for number in range(len(models)):
            write(models, number, folder, places)
        forgotten = {number for what, number, _ in events if what == "forget"}
        happen(models, [e for e in events if not (e[0] == "move" and e[1] in forgotten)], places)
        for case_id in CASES:
            found = {one.folder: one for one in affected(case_id, [folder])}
            learnt = {
                p for p, m in zip(places, models, strict=True) if case_id in set().union(*m.knows)
            }
            looked = {
                p
                for p, m in zip(places, models, strict=True)
                if case_id in set().union(*m.measured)
            }
            assert {place for place, one in found.items() if one.learnt} == learnt
            assert found.keys() == learnt | looked
            assert all(one.dataset == ("set",) and one.how for one in found.values())
        for place, model in zip(places, models, strict=True):
            for fold, knows in enumerate(model.knows):
                seen = seen_by(place / f"fold_{fold}", "set")
                assert seen <= knows  # what was moved is no longer where the plan says
                assert seen == knows or any(one.moved for one in models)


def test_what_was_noted_before_stays(tmp_path: Path) -> None:
    note_seen(tmp_path, "set", ["b", "a"])
    note_seen(tmp_path, "set", ["c"])
    note_seen(tmp_path, "other", [])
    assert [one.dataset for one in affected("a", [tmp_path])] == [("set",)]
    assert affected("d", [tmp_path]) == []


def test_the_planar_network_of_a_trunk_learnt_from_what_the_trunk_did(tmp_path: Path) -> None:
    trunk, mine = tmp_path / "trunk", tmp_path / "mine"
    write_json(trunk / "trunk.json", {"saw": [{"dataset": "set", "cases": ["a"]}]})
    write_json(trunk / "planar" / "model.json", {})
    write_json(mine / "run.json", {})
    write_json(mine / "dataset.json", {"name": "set"})
    write_json(mine / "splits_final.json", [{"train": ["b"], "val": []}])
    write_json(mine / "plan.json", {"transfer": {"trunk": str(trunk / "planar")}})
    assert seen_by(trunk / "planar", "set") == {"a"} and seen_by(trunk, "other") == set()
    assert seen_by(mine / "fold_0", "set") == {"a", "b"}
    assert {one.folder.name for one in affected("a", [tmp_path])} == {"trunk", "mine"}


def test_what_cannot_be_read_is_not_taken_to_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "saw.json").write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match="JSON"):
        seen_by(tmp_path / "fold_0", "set")
    assert affected("a", [tmp_path]) == []
