"""Pre-training, transfer, a teacher for what is unlabelled, and the curve over labelled cases."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tasks.test_train import AFFINE, write_case

from qinjing import evidence
from qinjing.config import read_json, write_json
from qinjing.data import cache
from qinjing.data.cache import IGNORED
from qinjing.data.layouts import open_dataset
from qinjing.data.nifti import write_nifti
from qinjing.data.splits import read_splits, write_splits
from qinjing.engine.checkpoint import load_model, load_tensors
from qinjing.engine.log import read_events
from qinjing.engine.plan import Plan, make_plan, with_steps
from qinjing.errors import ConfigError, FormatError, InputError
from qinjing.nets.pretrainer import Pretrainer
from qinjing.report.label_curve import figure, summarise, write_label_curve
from qinjing.tasks import pretrain as room
from qinjing.tasks.distil_itself import Objective, SelfDistillation
from qinjing.tasks.judge_trunk import JudgeConfig, judge_trunk
from qinjing.tasks.label_curve import CHOICES, METHODS, LabelCurveConfig, label_curve
from qinjing.tasks.mean_teacher import MeanTeacherTask
from qinjing.tasks.planning import Overrides, decide, default_splits, measure
from qinjing.tasks.predict import predict_folder
from qinjing.tasks.pretrain import PretrainConfig, pretrain
from qinjing.tasks.probes import collapse_measures, linear_vote, nearest_vote
from qinjing.tasks.segment import SegmentTask
from qinjing.tasks.select import SelectConfig, describer, k_centres, select
from qinjing.tasks.train import TrainConfig, train
from qinjing.volume import Volume


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    for number in range(6):
        write_case(folder, f"case{number}", number)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _hasty() -> Iterator[None]:
    """Time every way of running by the fewest steps."""
    before, room._TRIAL_S = room._TRIAL_S, 0.0
    yield
    room._TRIAL_S = before


@pytest.fixture(scope="module")
def plan(dataset: Path) -> Plan:
    """A plan of the folded network, without a probe."""
    opened = open_dataset(dataset)
    made = make_plan(measure(opened, opened.cases), device="cpu", threads=1, net="subvoxel_unet")
    return with_steps(made, 3, None, 1)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images without labels, of two channels and another size, one of them damaged."""
    folder = tmp_path_factory.mktemp("scans") / "other"
    rng = np.random.default_rng(4)
    for number in range(3):
        for channel in range(2):
            image = rng.normal(size=(14, 18, 12)).astype(np.float32)
            write_nifti(
                folder / "images" / f"s{number}_{channel:04d}.nii.gz", Volume(image, AFFINE)
            )
    (folder / "images" / "torn_0000.nii.gz").write_bytes(b"\x1f\x8b torn")
    (folder / "images" / "torn_0001.nii.gz").write_bytes(b"\x1f\x8b torn")
    return folder


@pytest.fixture(scope="module")
def trunk(dataset: Path, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trunk") / "t"
    splits = output.with_name("splits.json")
    write_splits(splits, default_splits(open_dataset(dataset).cases))
    result = pretrain(PretrainConfig((dataset, scans), output, steps=6, splits=splits))
    assert [one["case_id"] for one in result["refused"]] == ["torn"]
    return output


def test_a_trunk_says_what_it_saw_and_keeps_no_copy(trunk: Path) -> None:
    card = read_json(trunk / "trunk.json")
    assert [len(one["cases"]) for one in card["saw"]] == [4, 3]
    assert card["saw"][1]["channels"] == ["channel 0", "channel 1"]
    assert 0 <= card["measures"]["knn_dice"] <= 1 and card["measures"]["feature_rank"] >= 1
    assert card["steps"] == 6 and not (trunk / "cache").exists()
    load_model(trunk)
    planar = load_model(trunk / "planar")
    with torch.no_grad():
        assert planar(torch.zeros(1, 1, 1, 16, 16)).shape[-3:] == (1, 16, 16)
    assert not evidence.verify(trunk).faults


@pytest.mark.parametrize(
    "objective",
    [
        Objective(),
        Objective(momentum=False),
        Objective(clustering="none", planes=0.0),
        Objective(clustering="kmeans"),
        Objective(masking=0.0, local_crops=0),
    ],
)
def test_a_stopped_pretraining_resumes_to_the_same_bits(
    dataset: Path, tmp_path: Path, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig((dataset,), tmp_path / "whole", steps=4, objective=objective)
    pretrain(config)
    batch = SelfDistillation.batch

    def stop(self: SelfDistillation, step: int, rank: int) -> object:
        if step == 2:
            raise KeyboardInterrupt
        return batch(self, step, rank)

    monkeypatch.setattr(room, "CHECKPOINT_S", 0.0)
    stopped = replace(config, output=tmp_path / "stopped")
    # The precision is measured, and noise may choose another one the second time.
    for name in ("execution.json", "timing.json"):
        write_json(stopped.output / name, read_json(config.output / name))
    monkeypatch.setattr(SelfDistillation, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(stopped)
    monkeypatch.setattr(SelfDistillation, "batch", batch)
    pretrain(replace(stopped, resume=True))
    parts = ("", "planar") if objective.planes else ("",)
    for part in parts:
        one, other = (
            load_tensors(folder / part / "weights.safetensors")[0]
            for folder in (config.output, stopped.output)
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_the_probes_found_outlives_a_kill_before_the_card(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PretrainConfig((dataset,), tmp_path / "trunk", steps=2)
    save = room._save

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "_save", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config)
    monkeypatch.setattr(room, "_save", save)
    result = pretrain(replace(config, resume=True))
    assert result["measures"]["feature_rank"] >= 1
    assert read_json(config.output / "trunk.json")["measures"] == result["measures"]


def test_a_folder_of_another_pretraining_is_refused(dataset: Path, trunk: Path) -> None:
    with pytest.raises(ConfigError, match="add --resume"):
        pretrain(PretrainConfig((dataset,), trunk, steps=6))
    with pytest.raises(ConfigError, match="options that it started with"):
        pretrain(PretrainConfig((dataset,), trunk, steps=7, resume=True))


@pytest.mark.parametrize("tune", ["full", "frozen", "lora"])
def test_training_from_a_trunk(
    dataset: Path, plan: Plan, trunk: Path, tmp_path: Path, tune: str
) -> None:
    run = tmp_path / "run"
    overrides = Overrides(trunk=str(trunk), tune=tune, layer_decay=0.8)  # type: ignore[arg-type]
    fingerprint = measure(open_dataset(dataset), open_dataset(dataset).cases)
    made = decide(fingerprint, overrides)
    assert made.fit.layer_decay == 0.8
    write_json(tmp_path / "plan.json", with_steps(made, 3, None, 1))
    told: list[str] = []
    train(
        TrainConfig(dataset, run, plan=tmp_path / "plan.json", fold=1),
        lambda kind, fields: told.append(fields["message"]) if kind == "warning" else None,
    )
    # The trunk kept out fold 0 alone.
    assert len(told) == 1 and "saw 1 of the 1 cases" in told[0]
    before, after = (load_tensors(f / "weights.safetensors")[0] for f in (trunk, run / "fold_1"))
    shared = [name for name in before if before[name].shape == after[name].shape]
    changed = [name for name in shared if not torch.equal(before[name], after[name])]
    assert len(shared) > 20
    assert bool(changed) == (tune != "frozen")
    done = predict_folder(run, dataset / "images", tmp_path / "out")
    assert len(done["outputs"]) == 6 and not done["refused"]
    assert read_json(run / "plan.json")["transfer"]["tune"] == tune


def test_a_trunk_of_another_network_is_refused(dataset: Path, trunk: Path, tmp_path: Path) -> None:
    overrides = Overrides(net="unet", trunk=str(trunk), steps=3)
    with pytest.raises(ConfigError, match="the trunk's, residual_unet"):
        train(TrainConfig(dataset, tmp_path / "run", overrides=overrides))
    with pytest.raises(ConfigError, match="with a trunk"):
        train(TrainConfig(dataset, tmp_path / "run2", overrides=Overrides(tune="lora", steps=3)))


def test_labels_of_unlabelled_cases_are_not_looked_at(
    dataset: Path, plan: Plan, tmp_path: Path
) -> None:
    """Two data sets that differ in the labels of the unlabelled cases alone give equal weights."""
    other = tmp_path / "other"
    for number in range(6):
        write_case(other, f"case{number}", number)
    fold = {
        "train": ["case0", "case1"],
        "unlabelled": ["case2", "case3"],
        "val": ["case4", "case5"],
    }
    for name in fold["unlabelled"]:
        label = np.zeros((16, 20, 12), np.uint8)
        label[2:4, 2:4, 2:4], label[8:, 8:, 8:] = 2, 5
        write_nifti(other / "labels" / f"{name}.nii.gz", Volume(label, AFFINE))
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([fold]))
    write_json(tmp_path / "plan.json", replace(plan, unlabelled_weight=1.0))
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, folder in zip(runs, (dataset, other), strict=True):
        train(TrainConfig(folder, run, splits=splits, plan=tmp_path / "plan.json"))
    weights = [load_tensors(run / "fold_0" / "weights.safetensors")[0] for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert read_splits(runs[0] / "splits_final.json")[0] == fold


def test_scans_without_a_label_file_are_learnt_from(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "partly"
    for number in range(5):
        write_case(folder, f"case{number}", number)
    for number in (3, 4):
        (folder / "labels" / f"case{number}.nii.gz").unlink()
    fold = {"train": ["case0", "case1"], "unlabelled": ["case3", "case4"], "val": ["case2"]}
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([fold]))
    write_json(tmp_path / "plan.json", replace(plan, unlabelled_weight=1.0))
    run = tmp_path / "run"
    result = train(TrainConfig(folder, run, splits=splits, plan=tmp_path / "plan.json"))
    assert not result["refused"]
    assert read_splits(run / "splits_final.json")[0] == fold


def test_the_teacher_is_heard(dataset: Path, plan: Plan, tmp_path: Path) -> None:
    """Without its word the same steps give other weights."""
    fold = {"train": ["case0"], "unlabelled": ["case2", "case3"], "val": ["case4"]}
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([fold]))
    weights = []
    for weight in (0.0, 1.0):
        run = tmp_path / f"run{weight}"
        write_json(tmp_path / "plan.json", replace(plan, unlabelled_weight=weight))
        train(TrainConfig(dataset, run, splits=splits, plan=tmp_path / "plan.json"))
        weights.append(load_tensors(run / "fold_0" / "weights.safetensors")[0])
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_blocks_of_labelled_patches_lie_among_unlabelled_ones(
    dataset: Path, plan: Plan, tmp_path: Path
) -> None:
    opened = open_dataset(dataset)
    cache.prepare(opened.cases, tmp_path, plan.preprocessing, plan.label_values)
    cases = [cache.load(tmp_path, case.case_id) for case in opened.cases]
    taught = replace(plan, unlabelled_weight=1.0)
    torch.manual_seed(0)
    task = MeanTeacherTask(plan.model.build(), taught, cases[:1], cases[1:4], cases[4:], seed=1)
    task.follow({name: value.clone() for name, value in task.net.state_dict().items()})
    inputs, targets = task.batch(5, 0)
    labelled, weak, mixed = inputs.split(plan.batch_size)
    labels, pasted = targets.split(plan.batch_size)
    from_labelled = (mixed == labelled).all(1)
    shares = (pasted != IGNORED).flatten(1).float().mean(1)
    assert torch.equal(from_labelled, pasted != IGNORED)
    assert torch.equal(pasted[from_labelled], labels[from_labelled])
    assert ((shares > 0.1) & (shares < 0.9)).all()
    assert not torch.equal(weak, mixed)
    # The teacher says nothing before it knows something.
    task.net.eval()
    with torch.no_grad():
        alone = SegmentTask(task.net, plan, cases[:1], cases[4:], seed=1).loss(labelled, labels, 0)
        early, late = (task.loss(inputs, targets, share) for share in (0.1, 0.9))
    torch.testing.assert_close(early, alone)
    assert late > early


def test_the_label_curve(dataset: Path, trunk: Path, tmp_path: Path) -> None:
    config = LabelCurveConfig(
        dataset, tmp_path / "curve", trunk, counts=(1, 0), seeds=1, steps=2,
        methods=("random", "both"),
    )  # fmt: skip
    result = label_curve(config)
    assert [(p["method"], p["count"]) for p in result["points"]] == [
        ("random", 1), ("random", 4), ("both", 1), ("both", 4),
    ]  # fmt: skip
    for point in result["points"]:
        fold = read_splits(Path(point["run"]) / "splits_final.json")[0]
        assert len(fold["train"]) == point["count"] == point["cases"]
        assert len(fold["train"]) + len(fold.get("unlabelled", [])) == 4
    plans = [read_json(Path(p["run"]) / "plan.json") for p in result["points"]]
    assert len({json.dumps([p["patch_size"], p["batch_size"], p["model"]]) for p in plans}) == 1
    events = list(read_events(Path(result["points"][0]["run"]) / "fold_0" / "log.jsonl"))
    again = label_curve(config)
    assert again["points"] == result["points"]
    assert events == list(read_events(Path(result["points"][0]["run"]) / "fold_0" / "log.jsonl"))
    write_label_curve(result, config.output)
    assert (config.output / "label_curve.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="another"):
        label_curve(replace(config, steps=3))
    all_seen = tmp_path / "all_seen"
    pretrain(PretrainConfig((dataset,), all_seen, steps=1))
    with pytest.raises(ConfigError, match="without the cases that are measured on"):
        label_curve(replace(config, output=tmp_path / "other", trunk=all_seen))


@pytest.mark.slow  # a minute; `test_selecting_cases` holds the choices themselves
def test_the_label_curve_with_chosen_patients(dataset: Path, trunk: Path, tmp_path: Path) -> None:
    config = LabelCurveConfig(
        dataset, tmp_path / "curve", trunk, counts=(1, 2, 0), seeds=1, steps=2,
        methods=("pretrained",), choices=("random", "coreset", "uncertainty"),
    )  # fmt: skip
    result = label_curve(config)
    runs = {(p["choice"], p["count"]): p["run"] for p in result["points"]}
    chosen = {key: set(read_splits(Path(run) / "splits_final.json")[0]["train"])
              for key, run in runs.items()}  # fmt: skip
    (first,) = chosen["random", 1]
    for choice in config.choices:
        # Where the patients are the same, one training stands for all.
        assert runs[choice, 1] == runs["random", 1] and runs[choice, 4] == runs["random", 4]
        assert first in chosen[choice, 2] and len(chosen[choice, 2]) == 2
    # As `select` chooses, of the patients that may train.
    every = {case.case_id for case in open_dataset(dataset).cases}
    rest = chosen["random", 4] - {first}
    run = Path(runs["random", 1])
    doubts = select(SelectConfig(dataset, 1, model=run, labelled=tuple(every - rest)))["chosen"]
    assert chosen["uncertainty", 2] == {first, doubts[0]["case_id"]}
    describe = describer(trunk)
    features = {c.case_id: describe(c) for c in open_dataset(dataset).cases}
    farthest = max(rest, key=lambda i: float(np.linalg.norm(features[i] - features[first])))
    assert chosen["coreset", 2] == {first, farthest}
    write_label_curve(result, config.output)
    text = (config.output / "label_curve.md").read_text()
    assert "pre-trained, core-set" in text and "pre-trained, least sure" in text
    with pytest.raises(ConfigError, match="coreset"):
        replace(config, trunk=None, methods=("random",))


def test_the_summary_by_hand() -> None:
    dice = {"random": (0.5, 0.6, 0.7), "pretrained": (0.6, 0.72, 0.78)}
    points = [
        {"method": method, "choice": "random", "count": 2, "seed": seed, "dice": value}
        for method, values in dice.items()
        for seed, value in enumerate(values)
    ]
    points.append({**points[0], "count": 9, "dice": 0.8})
    points.append({**points[3], "choice": "coreset", "dice": 0.65})
    rows = {(row["method"], row["choice"], row["count"]): row for row in summarise(points, 9)}
    row = rows["pretrained", "random", 2]
    assert (row["mean"], row["low"], row["high"], row["gain"]) == (0.7, 0.6, 0.78, 0.1)
    assert row["share_of_all"] == 0.875
    # Differences 0.1, 0.12, 0.08: t = 0.1 / (0.02 / √3) = 8.66, two degrees of freedom.
    assert row["p"] == pytest.approx(0.01307, abs=2e-5)
    assert rows["random", "random", 2]["p"] is None
    both = [{**p, "method": "both", "dice": p["dice"] + 0.2} for p in points[:3]]
    alone = [{**p, "method": "mean_teacher", "dice": 0.65} for p in points[:3]]
    (row,) = (r for r in summarise([*both, *alone], 9) if r["method"] == "both")
    # Differences 0.05, 0.15, 0.25: t = 0.15 / (0.1 / √3) = 2.598, two degrees of freedom.
    assert (row["gain"], row["gain_over_teacher"]) == (None, 0.15)
    assert row["p_over_teacher"] == pytest.approx(0.12168, abs=2e-5)
    # Every method with every choice fits into one figure.
    many = [{**points[0], "method": m, "choice": c} for m in METHODS for c in CHOICES]
    lines = figure(summarise(many, 9)).axes[0].get_legend_handles_labels()[1]
    assert len(set(lines)) == len(METHODS) * len(CHOICES)
    # A choice is held against chance with the same method and seed.
    assert rows["pretrained", "coreset", 2]["gain"] == 0.05


def test_votes_against_scikit_learns_neighbours_and_a_plain_solver() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).long() + (x[:, 2] > 1).long()
    known, asked = slice(0, 200), slice(200, 300)
    ours = nearest_vote(x[known], y[known], x[asked], 3, 7)
    theirs = neighbors.KNeighborsClassifier(
        7, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(x[known].numpy(), y[known].numpy())
    assert np.array_equal(ours.numpy(), theirs.predict(x[asked].numpy()))
    found = linear_vote(x[known], y[known], x[asked], 3)
    assert (found == y[asked]).float().mean() > 0.75


def test_collapse_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 8, generator=generator)
    logits = torch.randn(500, 16, generator=generator) * 10
    healthy = collapse_measures(features, logits.softmax(1), logits)
    assert healthy["feature_rank"] == pytest.approx(8, abs=0.2) and not healthy["collapsed"]
    assert healthy["prototypes_used"] > 0.9
    one_line = features[:, :1] * torch.ones(8)
    assert collapse_measures(one_line, logits.softmax(1), logits)["collapsed"]
    one_prototype = logits + 1000 * torch.eye(16)[3]
    found = collapse_measures(features, one_prototype.softmax(1), one_prototype)
    assert found["prototypes_used"] == pytest.approx(1 / 16, abs=1e-4)
    assert found["teacher_entropy"] == pytest.approx(0, abs=1e-3)


def test_tokens_stand_where_their_cells_do() -> None:
    net = Pretrainer(torch.nn.Identity(), None, 1, 1, 4, (2, 2, 1))
    image = torch.arange(2 * 4 * 4 * 3.0).view(2, 1, 4, 4, 3)
    tokens = net.tokens(net.features(image))
    assert tokens.shape == (2, 2 * 2 * 3, 1)
    assert tokens[1, 7, 0] == image[1, 0, 2:4, 0:2, 1].mean()


def test_a_trunk_is_judged_beside_fresh_weights(dataset: Path, trunk: Path, scans: Path) -> None:
    found = judge_trunk(JudgeConfig(dataset, trunk))
    assert len(found["known"]) == len(found["asked"]) == 3 and len(found["fresh"]) == 3
    assert not set(found["known"]) & set(found["asked"])
    # The trunk saw what trains in the first of five folds of six cases.
    assert found["seen"] == 4
    for one in (found["trunk"], found["grey"], *found["fresh"]):
        assert all(0 <= one[name] <= 1 for name in ("knn_dice", "linear_dice"))
    assert len({json.dumps(one) for one in found["fresh"]}) > 1
    # Here classes are grey values, so that these alone tell them.
    assert found["grey"]["knn_dice"] > 0.4
    with pytest.raises(FormatError, match=r"no trunk\.json"):
        judge_trunk(JudgeConfig(dataset, dataset))


def test_k_centres_by_hand_and_against_chance() -> None:
    points = [np.array([x, 0.0]) for x in (0, 1, 2, 9, 10)]
    # The mean is 4.4: 2 comes first, then the farthest, 10, then 0.
    assert [i for i, _ in k_centres(points, [], 3)] == [2, 4, 0]
    assert k_centres(points, [points[0]], 2) == [(4, 10.0), (2, 2.0)]
    assert len(k_centres(points, [], 9)) == 5
    rng = np.random.default_rng(0)
    cloud = list(rng.normal(size=(60, 3)))

    def reach(chosen: list[int]) -> float:
        return max(min(float(np.linalg.norm(p - cloud[i])) for i in chosen) for p in cloud)

    ours = reach([i for i, _ in k_centres(cloud, [], 6)])
    chance = [reach(list(rng.permutation(60)[:6])) for _ in range(200)]
    assert ours < np.median(chance)


def test_selecting_cases(dataset: Path, trunk: Path, tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(InputError, match="not labelled yet"):
        select(SelectConfig(dataset, 2, trunk=trunk))
    found = select(SelectConfig(dataset, 2, trunk=trunk, labelled=("case0",)))
    chosen = [one["case_id"] for one in found["chosen"]]
    assert len(set(chosen)) == 2 and "case0" not in chosen
    write_json(tmp_path / "plan.json", plan)
    train(TrainConfig(dataset, tmp_path / "run", plan=tmp_path / "plan.json"))
    doubts = select(SelectConfig(dataset, 6, model=tmp_path / "run", labelled=("case0",)))["chosen"]
    scores = [one["score"] for one in doubts]
    assert scores == sorted(scores, reverse=True) and 0 < scores[0] <= math.log(2)
    for wrong, words in (
        ({"trunk": trunk, "model": trunk}, "both"),
        ({}, "none"),
        ({"trunk": trunk, "labelled": ("nobody",)}, "nobody"),
    ):
        with pytest.raises(InputError, match=words):
            select(SelectConfig(dataset, 1, **wrong))
