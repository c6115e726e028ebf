"""Forgetting a case: the same bits as never having learnt from it, at the cost of one shard."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tasks.test_train import write_case

from qinjing import evidence
from qinjing.config import read_config, read_json, write_json
from qinjing.data.case import Case
from qinjing.data.consent import affected
from qinjing.data.consent.affected import note_seen
from qinjing.data.consent.lineage import seen_by
from qinjing.data.layouts import open_dataset
from qinjing.data.splits import make_shards, read_splits, write_splits
from qinjing.engine.checkpoint import load_tensors
from qinjing.engine.plan import Plan, Transfer, make_plan, with_steps
from qinjing.errors import ConfigError
from qinjing.tasks import forgetting
from qinjing.tasks import train as training
from qinjing.tasks import unlearn as unlearning
from qinjing.tasks.planning import measure
from qinjing.tasks.predict import predict_folder
from qinjing.tasks.train import TrainConfig, train
from qinjing.tasks.unlearn import UnlearnConfig, unlearn


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forgettable")
    for number in range(10):
        write_case(folder, f"case{number}", number)
    return folder


@pytest.fixture(scope="module")
def config(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("sharded")
    opened = open_dataset(dataset)
    made = make_plan(measure(opened, opened.cases), device="cpu", threads=1)
    plan = with_steps(replace(made, batch_size=2), 2, None, 1)
    write_json(folder / "plan.json", plan)
    write_splits(folder / "splits.json", make_shards(opened.cases, 2))
    given = {"plan": folder / "plan.json", "splits": folder / "splits.json"}
    return TrainConfig(dataset, folder / "run", fold="all", **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(config: TrainConfig) -> Path:
    train(config)
    return config.output


def weights(fold: Path) -> dict[str, torch.Tensor]:
    return load_tensors(fold / "weights.safetensors")[0]


def test_shards_share_no_patient() -> None:
    cases = [Case(f"p{n // 2}_{n % 2}", f"p{n // 2}", (Path("x"),)) for n in range(80)]
    shards = make_shards(cases, 8)
    learnt = [i for shard in shards for i in shard["train"]]
    held_out = [i for shard in shards for i in shard["val"]]
    assert sorted([*learnt, *held_out]) == sorted(case.case_id for case in cases)
    owners = [{i.partition("_")[0] for i in shard["train"]} for shard in shards]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 32
    assert max(map(len, owners)) - min(map(len, owners)) <= 1
    with pytest.raises(ConfigError, match="from 2 to a fifth of the patients, 8"):
        make_shards(cases, 9)


def test_forgetting_is_never_having_learnt(
    config: TrainConfig, run: Path, dataset: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    splits = read_splits(mine / "splits_final.json")
    case = splits[1]["train"][0]
    other = weights(mine / "fold_0")
    stopped: list[str] = []

    def kill(kind: str, fields: object) -> None:
        if kind == "step" and not stopped:
            stopped.append(kind)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(UnlearnConfig(mine, case), kill)
    outcome = unlearn(UnlearnConfig(mine, case))
    assert outcome["retrained"] == [1] and outcome["share"] == 0.5
    # What training without the case comes to, from nothing.
    never = [{**split, "train": [i for i in split["train"] if i != case]} for split in splits]
    write_splits(tmp_path / "never.json", never)
    train(replace(config, output=tmp_path / "never", splits=tmp_path / "never.json"))
    for fold in ("fold_0", "fold_1"):
        for name, value in weights(tmp_path / "never" / fold).items():
            assert torch.equal(value, weights(mine / fold)[name])
    assert all(torch.equal(value, weights(mine / "fold_0")[name]) for name, value in other.items())
    assert any(
        not torch.equal(value, weights(mine / "fold_1")[name])
        for name, value in weights(run / "fold_1").items()
    )
    # Nothing of it is left but that it was forgotten.
    left = [
        path.relative_to(mine).as_posix()
        for path in mine.rglob("*")
        if path.is_file() and (case in path.name or case.encode() in path.read_bytes())
    ]
    assert set(left) <= {"unlearned.json", "fingerprint.json", "evidence.jsonl"}
    assert not evidence.verify(mine).faults
    assert len(predict_folder(mine, dataset / "images", tmp_path / "out")["outputs"]) == 10


def test_what_was_only_measured_on_is_forgotten_without_training(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    splits = read_splits(mine / "splits_final.json")
    write_splits(mine / "splits_final.json", [{**splits[0], "val": [*splits[0]["val"]]}, splits[1]])
    case = splits[0]["val"][0]
    with pytest.raises(ConfigError, match="left with a case on either side"):
        unlearn(UnlearnConfig(mine, case))
    with pytest.raises(ConfigError, match="one that the run saw"):
        unlearn(UnlearnConfig(mine, "nobody"))
    monkeypatch.setattr(training, "fit", None)  # nothing is trained
    more = [{**splits[0], "val": [case, splits[1]["val"][0]]}, splits[1]]
    write_splits(mine / "splits_final.json", more)
    assert unlearn(UnlearnConfig(mine, case))["retrained"] == []
    cases = [one["case_id"] for one in read_json(mine / "metrics.json")["cases"]]
    assert case not in cases and cases
    assert not (mine / "fold_0" / "validation" / f"{case}.nii.gz").exists()
    assert not evidence.verify(mine).faults


def test_what_is_measured_on_is_unlearnt_too_where_its_score_may_end_a_training(
    config: TrainConfig, dataset: Path, tmp_path: Path
) -> None:
    ids = [case.case_id for case in open_dataset(dataset).cases]
    splits = [
        {"train": ids[:3], "val": ids[6:8]},
        {"train": ids[3:6], "val": ids[8:]},
    ]
    plan = with_steps(read_config(config.plan, Plan), 10, None, 10)  # type: ignore[arg-type]
    write_json(tmp_path / "plan.json", replace(plan, fit=replace(plan.fit, patience=1)))

    def trained(name: str, splits: list[dict[str, list[str]]]) -> Path:
        write_json(tmp_path / f"{name}.json", splits)
        given = {"plan": tmp_path / "plan.json", "splits": tmp_path / f"{name}.json"}
        train(replace(config, output=tmp_path / name, **given))  # type: ignore[arg-type]
        return tmp_path / name

    mine = trained("run", splits)
    outcome = unlearn(UnlearnConfig(mine, ids[6]))
    assert (outcome["retrained"], outcome["measured"]) == ([0], [0])
    never = trained("never", [{**splits[0], "val": [ids[7]]}, splits[1]])
    for fold in ("fold_0", "fold_1"):
        for name, value in weights(never / fold).items():
            assert torch.equal(value, weights(mine / fold)[name])
    measured = [one["case_id"] for one in read_json(mine / "fold_0" / "metrics.json")["cases"]]
    assert measured == [ids[7]]


def test_what_began_from_a_fold_that_learnt_from_the_case_is_not_said_to_forget_it(
    run: Path, tmp_path: Path
) -> None:
    before, mine = tmp_path / "before", tmp_path / "run"
    for copy in (before, mine):
        shutil.copytree(run, copy)
    plan = read_config(mine / "plan.json", Plan)
    write_json(mine / "plan.json", replace(plan, transfer=Transfer(str(before / "fold_1"), "full")))
    splits = read_splits(run / "splits_final.json")
    with pytest.raises(ConfigError, match="trunk must be one that did not see the case"):
        unlearn(UnlearnConfig(mine, splits[1]["train"][0]))
    assert not list(tmp_path.glob(".run.unlearning.json"))


def test_a_kill_before_anything_is_dropped_leaves_the_run_among_those_that_learnt(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    case_id = read_splits(mine / "splits_final.json")[1]["train"][0]

    def killed(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(unlearning, "_drop_folds", killed)
    with pytest.raises(KeyboardInterrupt):
        unlearn(UnlearnConfig(mine, case_id))
    assert [one.how for one in affected(case_id, [mine])] == [("fold 1 learnt from it",)]


def test_what_began_from_a_federated_model_that_learnt_from_the_case_is_not_said_to_forget_it(
    run: Path, tmp_path: Path
) -> None:
    site, mine = tmp_path / "work" / "model", tmp_path / "run"
    shutil.copytree(run / "fold_0", site / "fold_0")
    shutil.copytree(run, mine)
    case_id = read_splits(run / "splits_final.json")[1]["train"][0]
    note_seen(site, read_json(run / "dataset.json")["name"], [case_id])
    plan = read_config(mine / "plan.json", Plan)
    write_json(mine / "plan.json", replace(plan, transfer=Transfer(str(site / "fold_0"), "full")))
    with pytest.raises(ConfigError, match="trunk must be one that did not see the case"):
        unlearn(UnlearnConfig(mine, case_id))
    assert (mine / "fold_1" / "result.json").exists()


def test_weights_that_no_file_tells_of_learnt_from_all_that_the_run_did(run: Path) -> None:
    splits = read_splits(run / "splits_final.json")
    name = read_json(run / "dataset.json")["name"]
    assert seen_by(run / "fold_1", name) == {*splits[1]["train"]}
    assert seen_by(run / "best", name) == {*splits[0]["train"], *splits[1]["train"]}


def test_a_run_that_is_half_way_through_forgetting_is_not_trained(
    config: TrainConfig, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    case_id = read_splits(mine / "splits_final.json")[1]["train"][0]

    def killed(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(unlearning, "write_splits", killed)
        unlearn(UnlearnConfig(mine, case_id))
    assert not (mine / "fold_1").exists()
    (tmp_path / "link").symlink_to(mine)
    for place in (mine, tmp_path / "link"):
        with pytest.raises(ConfigError, match=f"repeat `qinjing unlearn .* {case_id}`"):
            train(replace(config, output=place, resume=True))
    assert not (mine / "fold_1").exists()
    assert unlearn(UnlearnConfig(mine, case_id))["retrained"] == [1]
    assert affected(case_id, [mine]) == []
    train(replace(config, output=mine, resume=True))  # nothing is in its way any more
    # A journal that a removed run left is not the next one's.
    journal = forgetting.journal_of(tmp_path / "next")
    write_json(journal, {"case_id": case_id, "dropped": [1]})
    with pytest.raises(ConfigError, match="fold must be"):
        train(replace(config, output=tmp_path / "next", fold=9))
    assert not journal.exists()
