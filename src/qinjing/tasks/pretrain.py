"""Pre-train a trunk on volumes without labels, and say what it saw and what it knows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qinjing.config import plain, read_config, read_json, write_json
from qinjing.data import cache
from qinjing.data.case import Case, Dataset
from qinjing.data.consent.affected import note_seen
from qinjing.data.fingerprint import fingerprint_dataset
from qinjing.data.preprocess import Normalisation, Preprocessing, read_image, read_pair, unlabelled
from qinjing.data.splits import read_splits
from qinjing.data.transforms import strong_intensity
from qinjing.engine.checkpoint import ModelCard, save_model
from qinjing.engine.device import Execution, candidates, default_device, environment
from qinjing.engine.fit import FitConfig, Progress, fit, timed_steps
from qinjing.engine.log import read_events
from qinjing.engine.plan import Plan, make_plan
from qinjing.engine.trial import gradient_fault
from qinjing.errors import ConfigError, InputError, LayoutError
from qinjing.nets.blocks import Triple
from qinjing.nets.pretrainer import Pretrainer
from qinjing.tasks.consented import Admitted, admitted, keeper
from qinjing.tasks.distil_itself import Objective, SelfDistillation
from qinjing.tasks.planning import DEFAULT_BUDGET_S, Tell, silent
from qinjing.tasks.pretrain_plan import (
    VOLUMES_A_STEP,
    cell_of,
    crop_of,
    planar_card,
    stride_of,
    trunk_card,
)
from qinjing.tasks.probes import Probe, cases_to_probe

if TYPE_CHECKING:
    from qinjing.evidence import Digested

PROTOTYPES = 256
_RATE = {"adamw": 0.4, "muon": 1.0}  # of the rate that the plan trains with, docs/notes/0010
_TRIAL_S = 3.0
_FINISHING_S = 5.0  # what the last files take
CHECKPOINT_S = 30.0


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training, as `trunk.json` keeps it.

    Attributes:
        datasets: folders in any layout, labelled or not, of any modality; the first decides the
            network's stages.
        output: takes `model.json`, `weights.safetensors`, `planar/`, `trunk.json`, `log.jsonl`.
        budget_s: wall seconds in all; 15 minutes where None and no steps are given.
        steps: optimiser steps, instead of a budget.
        net: name in `NETS`.
        objective: the parts of what is learnt.
        seed: decides every draw.
        splits: a `splits_final.json` of the first data set: of its first fold only what trains is
            looked at, labelled or not.
        resume: go on where the folder stands.
    """

    datasets: tuple[Path, ...]
    output: Path
    budget_s: float | None = None
    steps: int | None = None
    net: str = "residual_unet"
    objective: Objective = field(default_factory=Objective)
    seed: int = 0
    splits: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class _Source:
    """One data set, as it goes into pre-training."""

    behind: Admitted
    cases: tuple[Case, ...]
    plan: Plan

    @property
    def dataset(self) -> Dataset:
        """What was opened."""
        return self.behind.dataset


def pretrain(config: PretrainConfig, tell: Tell | None = None) -> dict[str, Any]:
    """Pre-train a trunk.

    Args:
        config: on what and how.
        tell: told of ("checked" | "plan" | "prepared" | "step" | "validation", fields).

    Returns:
        "output", "steps", "seconds", the last validation's measures under "measures", "refused".

    Raises:
        InputError: a data set cannot be used, the network has no planar form, or the folder holds
            another pre-training.
    """
    from qinjing import evidence

    tell = tell or silent
    start = time.monotonic()
    _claim(config)
    if (config.output / "trunk.json").exists():  # nothing is left to resume
        done = read_json(config.output / "trunk.json")
        summary = {name: done[name] for name in ("steps", "seconds", "measures")}
        return {"output": str(config.output), **summary, "refused": []}
    read = evidence.digested({f"dataset {k}": path for k, path in enumerate(config.datasets)})
    sources, refused = _sources(config, tell)
    torch.set_num_threads(sources[0].plan.threads)
    cases = _prepare(config, sources, refused)
    tell("prepared", {"cases": sum(map(len, cases))})
    execution, step_s = _fastest(config, sources, cases)
    task = _task(config, sources, cases, execution.device)
    task.keep = keeper(_behind_gates(sources, cases), config.output / "log.jsonl", tell)
    spent = time.monotonic() - start + _FINISHING_S
    left = None if config.steps else max(5.0, (config.budget_s or DEFAULT_BUDGET_S) - spent)
    steps = config.steps or max(20, int(0.93 * (left or 0) / step_s))
    planned = sources[0].plan.fit
    settings = FitConfig(
        steps,
        learning_rate=_RATE[planned.optimiser] * planned.learning_rate,
        optimiser=planned.optimiser,
        weight_decay=0.02,
        ema_decay=float(np.clip(1 - 10 / steps, 0.9, 0.9995)),  # a few per cent of the training
        clip_norm=3.0,
        patience=10,  # a plateau of the probe is no reason to stop
        budget_s=left,
        checkpoint_s=CHECKPOINT_S,
    )

    def report(progress: Progress, event: dict[str, Any]) -> None:
        tell(event["kind"], {**event, "fold": 0, "steps": progress.steps})

    result = fit(task, settings, execution, config.output, config.resume, report)
    seconds = round(time.monotonic() - start, 1)
    # From the log: what was killed after its last step has nothing left to validate.
    measured = [e for e in read_events(config.output / "log.jsonl") if e["kind"] == "validation"]
    measures = {k: v for k, v in measured[-1].items() if k != "kind"}
    summary = {"steps": result.steps, "seconds": seconds, "measures": measures}
    card = {**summary, "cell": list(task.net.cell), "crop": list(task.patch_size)}
    _save(config, sources, read, result.weights, card)
    return {"output": str(config.output), **summary, "refused": refused}


def _save(
    config: PretrainConfig,
    sources: Sequence[_Source],
    read: Mapping[str, Digested],
    weights: Mapping[str, Tensor],
    summary: Mapping[str, Any],
) -> None:
    """Write both networks and the card, drop the copies of images, leave evidence."""
    from qinjing import evidence

    card = trunk_card(sources[0].plan)
    save_model(config.output, card, _part(weights, "trunk."))
    if config.objective.planes:
        save_model(config.output / "planar", planar_card(card), _part(weights, "planar."))
    seen = read_json(config.output / "saw.json")
    saw = [
        {
            "dataset": source.dataset.name,
            "licence": source.dataset.licence,
            "channels": list(source.dataset.channel_names),
            "cases": seen[source.dataset.name],
            "sha256": read[f"dataset {k}"].sha256,
            "spacing_mm": list(source.plan.preprocessing.spacing_mm),
        }
        for k, source in enumerate(sources)
    ]
    content = {
        "saw": saw,
        "labels_used": "none; the probe's scores are measured with labels, not learnt from",
        "normalisation": "each image to zero mean and unit deviation",
        "objective": asdict(config.objective),
        "seed": config.seed,
        **summary,
        "environment": environment(),
    }
    write_json(config.output / "trunk.json", plain(content))
    shutil.rmtree(config.output / "cache", ignore_errors=True)
    shutil.rmtree(config.output / "checkpoint", ignore_errors=True)
    made = [p for p in sorted(config.output.rglob("*")) if p.is_file() and "evidence" not in p.name]
    grounds = sorted({source.behind.basis or "" for source in sources} - {""})
    evidence.append(
        config.output, "pretrain", read, made, asdict(config), basis=", ".join(grounds) or None
    )


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): value for n, value in weights.items() if n.startswith(prefix)}


def make_pretrainer(card: ModelCard, objective: Objective, cell: Triple) -> Pretrainer:
    """Build a trunk with its heads, and its planar twin where the objective has one."""
    planar: nn.Module | None = planar_card(card).build() if objective.planes else None
    features = int(card.options["classes"])
    return Pretrainer(card.build(), planar, 1, features, PROTOTYPES, cell)


def _claim(config: PretrainConfig) -> None:
    """Refuse a folder of another pre-training; write down what this one is."""
    if config.steps and config.budget_s:
        raise ConfigError("steps and budget", "given one at a time", "both")
    path = config.output / "pretrain.json"
    wanted = plain(replace(config, resume=False))
    if path.exists():
        if not config.resume:
            raise ConfigError(
                "output", "a new folder", "a pre-training", where=config.output,
                advice="add --resume to go on with it, or choose another folder",
            )  # fmt: skip
        if read_json(path) != wanted:
            raise ConfigError(
                "resumed pre-training", "given the options that it started with", where=path,
                advice="choose another output folder or repeat the first command",
            )  # fmt: skip
    else:
        write_json(path, wanted)


def _sources(config: PretrainConfig, tell: Tell) -> tuple[list[_Source], list[dict[str, str]]]:
    """Open every data set, measure its grids and plan; unreadable images are refused."""
    from qinjing.data.layouts import open_dataset

    sources, refused = [], []
    names = set()
    for number, path in enumerate(config.datasets):
        dataset = open_dataset(path)
        kept = set()
        if config.splits and number == 0:
            fold = read_splits(config.splits, dataset.cases)[0]
            kept = {*fold["train"], *fold.get("unlabelled", ())}
        cases = []
        behind = admitted(dataset)
        allowed, excluded = behind.parted()
        refused += [one for one in excluded if not kept or one["case_id"] in kept]
        for case in allowed:
            if kept and case.case_id not in kept:
                continue
            try:
                read_image(case)
                cases.append(case)
            except InputError as error:
                refused.append({"case_id": case.case_id, "reason": str(error)})
        if not cases:
            rule = "of one image at least that can be read and may be"
            raise LayoutError("data set", rule, "none", where=path)
        if dataset.name in names:
            raise ConfigError("data sets", "of different names", dataset.name, where=path)
        names.add(dataset.name)
        one = replace(dataset, channel_names=("image",), labels={0: "background", 1: "any"})
        fingerprint = fingerprint_dataset(one, cases, _first_channel)
        plan = make_plan(
            fingerprint, device=default_device(), threads=torch.get_num_threads(), net=config.net
        )
        sources.append(_Source(behind, tuple(cases), plan))
    tell("checked", {"cases": sum(len(s.cases) for s in sources), "refused": refused})
    for source in sources:  # before they are looked at
        note_seen(config.output, source.dataset.name, (case.case_id for case in source.cases))
    return sources, refused


def _behind_gates(
    sources: Sequence[_Source], cases: Sequence[Sequence[cache.CachedCase]]
) -> list[tuple[Admitted, Sequence[cache.CachedCase]]]:
    return [(source.behind, own) for source, own in zip(sources, cases, strict=True)]


def _first_channel(case: Case) -> tuple[Any, Any]:
    image, label = unlabelled(case)
    return image.with_voxels(image.voxels.reshape(-1, *image.shape)[:1]), label


def _prepare(
    config: PretrainConfig, sources: Sequence[_Source], refused: list[dict[str, str]]
) -> list[list[cache.CachedCase]]:
    """Every data set on a grid of its own, every channel standardised."""
    prepared = []
    for number, source in enumerate(sources):
        folder = config.output / "cache" / str(number)
        own = []
        for case in source.cases:
            image = read_image(case)
            channels = image.voxels.size // prod(image.shape)
            how = Preprocessing(source.plan.preprocessing.spacing_mm, (Normalisation(),) * channels)
            labels = tuple(sorted(source.dataset.labels))
            fault = label_fault(case, labels, source.dataset.ignored)
            if fault:  # pre-training does not need it, and the probe goes without
                refused.append({"case_id": case.case_id, "reason": f"label left out: {fault}"})
                case = replace(case, label=None)
            cache.prepare([case], folder, how, labels, source.dataset.ignored)
            own.append(cache.load(folder, case.case_id))
        prepared.append(own)
    return prepared


def label_fault(case: Case, labels: Sequence[int], ignored: int | None = None) -> str | None:
    """Say why a case's label map cannot be measured with, or None."""
    if case.label is None:
        return None
    try:
        _, label = read_pair(case)
    except InputError as error:
        return str(error)
    unknown = sorted(set(np.unique(label.voxels).tolist()) - {*labels, ignored})
    if not unknown:
        return None
    return f"label values must be among {list(labels)}, got {unknown[:5]} ({case.label})"


def _task(
    config: PretrainConfig,
    sources: Sequence[_Source],
    cases: Sequence[Sequence[cache.CachedCase]],
    device: str,
) -> SelfDistillation:
    """A fresh network and its task, the same for the same seed."""
    plan = sources[0].plan
    crop = crop_of(plan)
    torch.manual_seed(config.seed)
    net = make_pretrainer(trunk_card(plan), config.objective, cell_of(plan))
    patients = {case.case_id: case.patient_id for case in sources[0].cases}
    known, asked = cases_to_probe(cases[0], patients)
    classes = len(sources[0].dataset.labels)
    probe = Probe(known, asked, classes, crop) if asked and classes > 1 else None
    spatial = [one for one in plan.augmentation if one["name"] == "affine"]
    return SelfDistillation(
        net,
        [case for own in cases for case in own],
        crop,
        VOLUMES_A_STEP[device],
        spatial,
        strong_intensity(),
        config.objective,
        probe,
        config.seed,
        stride_of(plan),
        device,
    )


def _fastest(
    config: PretrainConfig,
    sources: Sequence[_Source],
    cases: Sequence[Sequence[cache.CachedCase]],
) -> tuple[Execution, float]:
    """The fastest right way of running a step here; a resumed run keeps to what was found."""
    path = config.output / "execution.json"
    if path.exists():
        return read_config(path, Execution), read_json(config.output / "timing.json")["step_s"]
    timings = []
    for execution in candidates(default_device()):
        task = _task(config, sources, cases, execution.device)
        if gradient_fault(task, execution) is None:
            settings = FitConfig(10, optimiser=sources[0].plan.fit.optimiser)
            timings.append((timed_steps(task, settings, execution, _TRIAL_S), execution))
    step_s, best = min(timings, key=lambda timing: timing[0])
    write_json(path, best)
    write_json(config.output / "timing.json", {"step_s": step_s})
    return best, step_s
