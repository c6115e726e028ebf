"""What the report shows of a network's paths is what the network says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.report.test_runs import write_set

from qinjing.config import read_config, read_json, write_json
from qinjing.data.layouts import open_dataset
from qinjing.engine.checkpoint import ModelCard, load_model, save_model
from qinjing.engine.plan import Plan
from qinjing.report.gates import _patch, gates_figure
from qinjing.report.html import write_report
from qinjing.tasks.planning import Overrides
from qinjing.tasks.train import TrainConfig, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("gates")
    dataset, run = write_set(folder / "set"), folder / "run"
    overrides = Overrides(net="hybrid", net_options={"size": "tiny"}, steps=2)
    train(TrainConfig(dataset, run, overrides=overrides))
    return dataset, run


def of_net(run: Path, net: str, folder: Path) -> Path:
    """A run of another network, untrained."""
    plan = read_config(run / "plan.json", Plan)
    card = ModelCard(net, {"in_channels": 1, "classes": 2, "size": "tiny"})
    write_json(folder / "plan.json", replace(plan, model=card))
    torch.manual_seed(0)
    save_model(folder / "fold_0", card, card.build().state_dict())
    return folder


@pytest.mark.parametrize(
    ("net", "method", "said"),
    [("hybrid", "gates", "share of attention"), ("pyramid", "level_weights", "weight of a level")],
)
def test_the_picture_says_what_the_network_says(
    trained: tuple[Path, Path], tmp_path: Path, net: str, method: str, said: str
) -> None:
    dataset, run = trained
    run = run if net == "hybrid" else of_net(run, net, tmp_path)
    cases = open_dataset(dataset).cases
    made = gates_figure(run, cases)
    assert made is not None and made[1].startswith(f"Mean {said} over 5 cases")
    plan, model = read_config(run / "plan.json", Plan), load_model(run / "fold_0")
    shares = []
    for case in cases:
        image, label = _patch(case, plan.preprocessing, plan.patch_size)
        assert label.any()
        with torch.inference_mode():
            shares.append(getattr(model, method)(image[None])[0].numpy())
    numbers = [float(text) for text in re.findall(r"\d\.\d{3}", made[1])]
    np.testing.assert_allclose(numbers, np.mean(shares, axis=0), atol=6e-4)


def test_the_report_has_it_of_the_held_out_cases(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    run = trained[1]
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    held_out = len(read_json(run / "metrics.json")["cases"])
    assert f"Mean share of attention over {held_out} case" in page


def test_a_network_without_paths_has_no_such_picture(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    dataset, run = trained
    assert gates_figure(of_net(run, "unet", tmp_path), open_dataset(dataset).cases) is None
