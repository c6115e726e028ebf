"""What a trunk knows of a data set, measured without training it, beside fresh weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qinjing.config import read_json
from qinjing.data import cache
from qinjing.data.case import Case
from qinjing.data.consent.lineage import seen_by
from qinjing.data.preprocess import Normalisation, Preprocessing, read_image
from qinjing.engine.checkpoint import ModelCard, load_model
from qinjing.engine.device import default_device
from qinjing.engine.plan import make_plan
from qinjing.errors import ConfigError, FormatError
from qinjing.nets.pretrainer import Pretrainer
from qinjing.tasks.planning import Tell, measure, silent, sound_cases
from qinjing.tasks.pretrain import PROTOTYPES
from qinjing.tasks.pretrain_plan import crop_of
from qinjing.tasks.probes import Probe, cases_to_probe
from qinjing.tasks.transfer import trunk_card

CHANCES = 3  # trunks of fresh weights to compare with


@dataclass(frozen=True)
class JudgeConfig:
    """A trunk and what to measure it on.

    Attributes:
        dataset: folder in any layout, with labels.
        trunk: what `pretrain` made.
    """

    dataset: Path
    trunk: Path


def judge_trunk(config: JudgeConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Let neighbours and a linear map tell classes from a trunk's features, patients apart.

    Half of the patients, eight at the most, are learnt from, and the others told. The same is done
    with the features of fresh weights, and with grey values alone.

    Args:
        config: which trunk and data set.
        tell: told of ("checked", {"cases", "refused"}).

    Returns:
        "trunk", "grey" {"knn_dice", "linear_dice"} from 0 to 1; "fresh", the same of each of three
        trunks with fresh weights; "known" and "asked" cases; "seen", how many of them the trunk saw
        in pre-training; "refused".

    Raises:
        FormatError: `trunk` is not what `pretrain` made.
        ConfigError: the data set has one patient.
        InputError: the data set cannot be used.
    """
    if not (config.trunk / "trunk.json").is_file():
        raise FormatError(
            "trunk", "a folder that `qinjing pretrain` made", "no trunk.json", where=config.trunk
        )
    card = trunk_card(config.trunk)
    dataset, cases, refused = sound_cases(config.dataset, tell or silent)
    plan = make_plan(
        measure(dataset, cases), device=default_device(), threads=torch.get_num_threads()
    )
    crop = crop_of(replace(plan, model=card))
    patients = {case.case_id: case.patient_id for case in cases}
    labels = sorted(dataset.labels)
    with tempfile.TemporaryDirectory() as scratch:
        prepared = _prepared(cases, Path(scratch), plan.preprocessing.spacing_mm, labels,
                             dataset.ignored)  # fmt: skip
        known, asked = cases_to_probe(prepared, patients)
        if not asked:
            raise ConfigError("patients with labels", "two at least", 1, where=config.dataset)
        probe = Probe(known, asked, len(labels), crop)
        result = _found(probe, config.trunk, card)
    names = [case.case_id for case in (*known, *asked)]
    return {
        "dataset": dataset.name,
        **result,
        "known": [case.case_id for case in known],
        "asked": [case.case_id for case in asked],
        "seen": len(seen_by(config.trunk, dataset.name) & set(names)),
        "refused": refused,
    }


def _found(probe: Probe, folder: Path, card: ModelCard) -> dict[str, Any]:
    """What the probe finds in a trunk, in fresh ones like it, and in grey values."""
    d, h, w = read_json(folder / "trunk.json")["cell"]

    def measured(trunk: nn.Module) -> dict[str, float]:
        net = Pretrainer(trunk, None, 1, int(card.options["classes"]), PROTOTYPES, (d, h, w))
        return probe.measure(net.to(default_device()).eval())

    fresh = []
    for seed in range(CHANCES):
        torch.manual_seed(seed)
        fresh.append(measured(card.build()))
    return {"trunk": measured(load_model(folder)), "fresh": fresh, "grey": measured(_Grey())}


class _Grey(nn.Module):
    """The image itself as features; beside a constant, so that a cosine tells values apart."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1, 1, 1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([image, self.one.expand_as(image)], dim=1)


def _prepared(
    cases: Sequence[Case],
    folder: Path,
    spacing_mm: tuple[float, float, float],
    labels: Sequence[int],
    ignored: int | None,
) -> list[cache.CachedCase]:
    """Cases as pre-training sees them: on the data set's grid, every channel standardised."""
    made = []
    for case in cases:
        image = read_image(case)
        channels = image.voxels.size // prod(image.shape)
        how = Preprocessing(spacing_mm, (Normalisation(),) * channels)
        cache.prepare([case], folder, how, labels, ignored)
        one = cache.load(folder, case.case_id)
        made.append(replace(one, image=np.array(one.image), label=np.array(one.label)))
    return made
