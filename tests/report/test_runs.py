"""Runs of several seeds as one method, their costs, and the pictures of their cases."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest

from qinjing.config import read_json, write_json
from qinjing.data.nifti import write_nifti
from qinjing.errors import ConfigError
from qinjing.report.compare import compare, compare_files
from qinjing.report.runs import read_runs
from qinjing.tasks.ablate import AblateConfig, ablate, folder_of
from qinjing.tasks.planning import Overrides
from qinjing.volume import Volume

VARIANTS = {
    "Whole net": Overrides(net="subvoxel_unet", steps=2),
    "Smaller loss": Overrides(net="subvoxel_unet", loss="dice", steps=2),
}


def write_set(folder: Path) -> Path:
    for number in range(5):
        rng = np.random.default_rng(number)
        label = np.zeros((12, 16, 16), np.uint8)
        label[3:9, 4 : 9 + number % 3, 4:10] = 1
        image = (100 * label + rng.normal(0, 10, label.shape)).astype(np.int16)
        for kind, voxels in (("images", image), ("labels", label)):
            volume = Volume(voxels, np.diag([2.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])
            write_nifti(folder / kind / f"case{number}.nii.gz", volume)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[AblateConfig, list[Path]]:
    dataset = write_set(tmp_path_factory.mktemp("set"))
    config = AblateConfig(dataset, tmp_path_factory.mktemp("ablation"), VARIANTS, seeds=2)
    return config, [Path(run) for run in ablate(config)["runs"]]


def test_seeds_follow_one_plan_and_differ_in_chance_only(trained) -> None:
    config, runs = trained
    assert [str(run.relative_to(config.output)) for run in runs] == [
        "whole-net/seed_0", "whole-net/seed_1", "smaller-loss/seed_0", "smaller-loss/seed_1",
    ]  # fmt: skip
    plans = [read_json(run / "plan.json") for run in runs]
    assert plans[0] == plans[1] and plans[2] == plans[3]
    assert (plans[0]["loss"], plans[2]["loss"]) == ("dice_ce", "dice")
    weights = [(run / "fold_0" / "weights.safetensors").read_bytes() for run in runs]
    assert len(set(weights)) == 4


def test_what_is_finished_is_not_trained_again_and_another_set_is_refused(trained) -> None:
    config, runs = trained
    before = [(run / "run.json").stat().st_mtime_ns for run in runs]
    seen: list[str] = []
    again = ablate(config, lambda kind, fields: seen.append(kind))
    assert [Path(run) for run in again["runs"]] == runs
    assert [(run / "run.json").stat().st_mtime_ns for run in runs] == before
    assert set(seen) == {"variant"}
    other = {"Whole net": Overrides(steps=2)}
    with pytest.raises(ConfigError, match="another Whole net"):
        ablate(AblateConfig(config.dataset, config.output, other, seeds=2))
    with pytest.raises(ConfigError, match="another budget_s"):
        ablate(AblateConfig(config.dataset, config.output, VARIANTS, budget_s=9, seeds=2))
    few = {"Whole net": VARIANTS["Whole net"]}
    assert len(ablate(AblateConfig(config.dataset, config.output, few, seeds=2))["runs"]) == 2
    with pytest.raises(ConfigError, match="two at least"):
        ablate(AblateConfig(config.dataset, config.output, few, seeds=1))


def test_a_variant_that_cannot_be_built_is_refused_before_anything_is_trained(
    trained, tmp_path: Path
) -> None:
    config, _ = trained
    variants = {**VARIANTS, "No such": Overrides(net="unet", net_options={"depth": 3})}
    with pytest.raises(ConfigError, match="net option"):
        ablate(AblateConfig(config.dataset, tmp_path, variants))
    assert not list(tmp_path.iterdir())


def test_a_method_is_the_mean_of_its_seeds(trained) -> None:
    _, paths = trained
    runs, refused = read_runs(paths)
    assert not refused and [run.name for run in runs] == ["whole-net", "smaller-loss"]
    assert [len(run.seeds) for run in runs] == [2, 2]
    tables = [read_json(path / "metrics.json") for path in paths[:2]]
    for case_id, entry in runs[0].cases.items():
        each = [
            case["labels"]["1"]["dice"]
            for table in tables
            for case in table["cases"]
            if case["case_id"] == case_id
        ]
        assert entry["labels"]["1"]["dice"] == pytest.approx(statistics.mean(each))


def test_costs_say_what_the_files_say(trained) -> None:
    _, paths = trained
    first, second = compare(paths)["costs"]
    means = [read_json(p / "metrics.json")["mean"]["foreground"]["dice"]["mean"] for p in paths[:2]]
    assert first["dice"]["mean"] == pytest.approx(statistics.mean(means))
    assert first["dice"]["seed_sd"] == pytest.approx(statistics.stdev(means))
    measured = [read_json(path / "measured.json")["training_s"] for path in paths[2:]]
    assert second["training_s"] == pytest.approx(statistics.mean(measured))
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    weights = load_file(paths[0] / "fold_0" / "weights.safetensors")
    counted = sum(value.numel() for value in weights.values() if value.dtype == torch.float32)
    assert first["parameters_million"] == pytest.approx(counted / 1e6)
    assert first["giga_flops"] > 0 and first["net"] == "subvoxel_unet"


def test_seeds_of_one_method_alone_are_compared_with_each_other(trained) -> None:
    _, paths = trained
    result = compare(paths[:2])
    assert [run["name"] for run in result["runs"]] == ["seed_0", "seed_1"]


def test_a_label_that_one_seed_missed_is_missing_in_the_mean(trained, tmp_path: Path) -> None:
    _, paths = trained
    copies = []
    for number, path in enumerate(paths):
        copies.append(tmp_path / f"m{number // 2}" / f"s{number % 2}")
        for name in ("run.json", "plan.json", "splits_final.json", "metrics.json"):
            write_json(copies[-1] / name, read_json(path / name))
    table = read_json(copies[1] / "metrics.json")
    table["cases"][0]["labels"]["1"]["hd95_mm"] = None
    write_json(copies[1] / "metrics.json", table)
    runs, _ = read_runs(copies)
    assert runs[0].name == "m0"
    entry = runs[0].cases[table["cases"][0]["case_id"]]["labels"]["1"]
    assert entry["hd95_mm"] is None and entry["dice"] is not None


def test_errors_of_either_sign_do_not_cancel_and_names_stay_apart(trained, tmp_path: Path) -> None:
    _, paths = trained
    copies = []
    for number, path in enumerate((*paths[:2], *paths[2:])):
        copies.append(tmp_path / f"set{number // 2}" / "same" / f"s{number % 2}")
        for name in ("run.json", "plan.json", "splits_final.json", "metrics.json"):
            write_json(copies[-1] / name, read_json(path / name))
        table = read_json(copies[-1] / "metrics.json")
        table["cases"][0]["labels"]["1"]["volume_error_ml"] = 5.0 if number % 2 else -5.0
        write_json(copies[-1] / "metrics.json", table)
    runs, _ = read_runs(copies)
    assert [run.name for run in runs] == ["set0/same", "set1/same"]
    first = next(iter(runs[0].cases.values()))
    assert first["labels"]["1"]["volume_error_ml"] == 5.0


def test_pages_show_the_baselines_worst_and_best_case(trained, tmp_path: Path) -> None:
    _, paths = trained
    result = compare_files(paths, tmp_path)
    held_out = result["rows"][0]["n"]
    pictures = sorted(path.name for path in tmp_path.glob("comparison-case-*.png"))
    assert len(pictures) == min(3, held_out)
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "the baseline's" in page and "parameters (M)" in page
    assert folder_of("Whole net") in page
    again = compare_files(paths, tmp_path, tmp_path / "nothing")
    assert any("No pictures" in note for note in again["notes"])
    assert not list(tmp_path.glob("comparison-case-*.png"))
