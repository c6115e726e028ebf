"""From a fingerprint to a plan: every choice that a person would otherwise make by hand.

The rules are few and each has its reason beside it. What a rule cannot know (how fast this machine
runs which precision, how much memory a step takes) is measured by a probe and written in after.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from math import ceil, prod
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.modules.conv import _ConvNd

from qinjing.data.fingerprint import Fingerprint
from qinjing.data.preprocess import Normalisation, Preprocessing
from qinjing.data.resample import resampled_shape
from qinjing.data.transforms import default_augmentation
from qinjing.engine.checkpoint import ModelCard
from qinjing.engine.device import Execution
from qinjing.engine.fit import FitConfig
from qinjing.errors import ConfigError
from qinjing.nets import NETS
from qinjing.nets.baselines import MULTIPLE
from qinjing.nets.blocks import Triple, total_stride
from qinjing.registry import constructor

_ANISOTROPY = 3.0  # spacing ratio above which slices count as thick, as in nnU-Net
# No mirroring. On the hippocampus 400 steps without it reach Dice 0.860 and 600 with it 0.827: a
# short budget is better spent on anatomy as it lies, and left and right stay apart.
_MIRROR: tuple[int, ...] = ()
# A patch holds what is labelled and a quarter more: on the hippocampus that is two thirds of the
# voxels of a whole case, and as many more steps in the same time.
_MARGIN = 1.25
_LEAST_PATCH = 32  # voxels along each axis, where the case has as many
_LEAST_MAP = 4  # voxels of the coarsest feature map along each axis
# Voxels in a patch and in a batch, by device. On a CPU a step should take well under a second, so
# that ten minutes hold a thousand of them; there two patches a step beat four (Dice 0.871 against
# 0.860 on the hippocampus at equal time).
_PATCH_VOXELS = {"cpu": 450_000, "cuda": 2_500_000}
_BATCH_VOXELS = {"cpu": 180_000, "cuda": 5_000_000}
_BATCH = {"cpu": (2, 8), "cuda": (2, 16)}
_WIDTHS = {"cpu": (32, 64, 128, 256), "cuda": (64, 128, 256, 320, 320)}  # at most so many stages
# All learn sooner with orthogonal updates but these, docs/notes/0006: the folded one loses by them
# in a few dozen steps, and UNETR's many matrices take as long to make orthogonal as all else.
_ELEMENTWISE = ("subvoxel_unet", "unetr")
_SIZE = {"cpu": "small", "cuda": "paper"}  # of a net that knows sizes


@dataclass(frozen=True)
class Predicted:
    """What the plan expects training and predicting to cost, from a measured probe.

    Attributes:
        step_s: wall seconds a training step.
        training_s: wall seconds of fitting one fold, validation included.
        training_memory_gib: peak memory of the device while training, a process's on CPUs.
        predicting_s: wall seconds for one case of mean size, reading and writing included.
        predicting_memory_gib: the same while predicting the largest case.
    """

    step_s: float
    training_s: float
    training_memory_gib: float
    predicting_s: float
    predicting_memory_gib: float


@dataclass(frozen=True)
class Transfer:
    """Weights to start from.

    Attributes:
        trunk: folder of a pre-trained trunk, or of a fold that `train` made.
        tune: "full" lets every weight learn, "frozen" the heads alone, "lora" the heads and
            low-rank additions to the rest.
    """

    trunk: str
    tune: Literal["full", "frozen", "lora"] = "full"

    def __post_init__(self) -> None:
        if self.tune not in ("full", "frozen", "lora"):
            raise ConfigError("tune", "full, frozen or lora", self.tune)


@dataclass(frozen=True)
class Plan:
    """Everything that decides a training, saved as `plan.json`.

    Attributes:
        dataset: the data set's name.
        label_values: ascending, background first; the index is the network's class.
        preprocessing: grid and grey values.
        patch_size: voxels along D, H and W.
        batch_size: patches a step.
        foreground: share of patches centred on a labelled voxel.
        model: network and its options.
        loss: name in `LOSSES`.
        loss_options: of its constructor.
        gradient_weighting: strength of `reweight_gradients`; 0 leaves gradients alone.
        augmentation: names and options, in order.
        flips: axes that training mirrored, along which prediction may mirror as well.
        fit: the loop's settings.
        execution: device, precision and memory format, the fastest measured.
        threads: CPU threads.
        one_piece: everything labelled hangs together in every case, so that a prediction keeps its
            largest piece only.
        transfer: the trunk to start from, None starts from chance.
        unlabelled_weight: of what the moving average of the weights says of unlabelled images; 0
            leaves them out.
        timings: what the probe measured, one entry per way of running.
        predicted: costs, None before the probe.
    """

    dataset: str
    label_values: tuple[int, ...]
    preprocessing: Preprocessing
    patch_size: Triple
    batch_size: int
    foreground: float
    model: ModelCard
    loss: str
    augmentation: tuple[dict[str, Any], ...]
    flips: tuple[int, ...]
    fit: FitConfig
    execution: Execution
    threads: int
    one_piece: bool = False
    loss_options: dict[str, Any] = field(default_factory=dict)
    gradient_weighting: float = 0.0
    transfer: Transfer | None = None
    unlabelled_weight: float = 0.0
    timings: tuple[dict[str, Any], ...] = ()
    predicted: Predicted | None = None

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.label_values)


def make_plan(
    fingerprint: Fingerprint,
    *,
    device: str,
    threads: int,
    net: str = "subvoxel_unet",
    loss: str = "dice_ce",
    spacing_mm: tuple[float, float, float] | None = None,
) -> Plan:
    """Decide everything that the fingerprint decides; the probe adds the rest.

    Args:
        fingerprint: the measured data set.
        device: "cpu" or "cuda".
        threads: CPU threads.
        net: name in `NETS`.
        loss: name in `LOSSES`.
        spacing_mm: overrides the grid along D, H and W.
    """
    spacing = spacing_mm or target_spacing_mm(fingerprint)
    shapes = [resampled_shape(c.shape, c.spacing_mm, spacing) for c in fingerprint.cases]
    make = constructor(NETS, "net", net)
    most = min(len(_WIDTHS[device]), getattr(make, "most_stages", 9))
    folds = getattr(make, "folds", False)
    typical = np.median(shapes, axis=0)
    strides, kernels = stages(typical, spacing, most, folds)
    room = np.minimum(typical, _room(fingerprint, spacing))
    patch = patch_size(room, total_stride(strides), _PATCH_VOXELS[device])
    least, most = _BATCH[device]
    batch = int(np.clip(_BATCH_VOXELS[device] // prod(patch), least, most))
    flat = max(spacing) / min(spacing) > _ANISOTROPY
    model = ModelCard(
        net,
        {
            "in_channels": len(fingerprint.channel_names),
            "classes": fingerprint.classes,
            **_stage_options(net, device, strides, kernels, patch),
        },
    )
    return Plan(
        dataset=fingerprint.dataset,
        label_values=tuple(sorted(fingerprint.labels)),
        preprocessing=Preprocessing(spacing, normalisations(fingerprint)),
        patch_size=patch,
        batch_size=batch,
        foreground=0.67,
        model=model,
        loss=loss,
        augmentation=tuple(default_augmentation(patch, flat, _MIRROR)),
        flips=_MIRROR,
        fit=_fitting(model),
        execution=Execution(device),
        threads=threads,
        # Counted on the truth, so that no score decides it: a heart is one piece, lesions are not.
        # Of what is labelled in part nobody knows how it hangs together.
        one_piece=fingerprint.ignored is None
        and all(case.largest_piece == 1 for case in fingerprint.cases),
    )


def _stage_options(
    net: str, device: str, strides: tuple[Triple, ...], kernels: tuple[Triple, ...], patch: Triple
) -> dict[str, Any]:
    """What the plan knows of a network's size, as far as its constructor takes it."""
    make = constructor(NETS, "net", net)
    widths = _WIDTHS[device][: len(strides)]
    if not getattr(make, "folds", False):  # at full resolution half the width costs as much
        widths = tuple(max(8, width // 2) for width in widths)
    # A network that halves every axis would pad a few thick slices to many: it takes them singly.
    multiple = MULTIPLE.get(net, 1)
    wasteful = ceil(patch[0] / multiple) * multiple > 2 * patch[0]
    singly = wasteful or all(kernel[0] == 1 for kernel in kernels)
    known = {
        "size": _SIZE[device],
        "widths": widths,
        "strides": strides,
        "kernels": kernels,
        "spatial_dims": 2 if singly else 3,
        "patch_size": patch,
    }
    taken = inspect.signature(make).parameters
    if "size" in taken:  # it brings its own widths
        del known["widths"]
    return {name: value for name, value in known.items() if name in taken}


def peak_rate(model: ModelCard) -> float:
    """Return the peak rate that 128 channels take, less in proportion for a wider network.

    Measured: 0.004 for the hippocampus (128); on ACDC (256) 450 steps reach Dice 0.700 with 0.0015
    and 0.672 with 0.004, a network of 128 channels 0.684 with 0.004 and 0.504 with 0.002.

    Source: arXiv:2203.03466 (Adam's rate falls as one over the width).
    """
    with torch.random.fork_rng(devices=[]):  # a plan must not shift the caller's chances
        parts = model.build().modules()
    widths = [part.out_channels for part in parts if isinstance(part, _ConvNd)]
    return 4e-3 * min(1.0, 128 / max(widths, default=128))


def _fitting(model: ModelCard) -> FitConfig:
    """How a network is trained, before its steps are known."""
    optimiser: Literal["adamw", "muon"] = "adamw" if model.net in _ELEMENTWISE else "muon"
    return FitConfig(steps=1000, learning_rate=peak_rate(model), optimiser=optimiser)


def _room(fingerprint: Fingerprint, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Voxels along each axis that hold a typical case's labels with a margin around them."""
    extents = [resampled_shape(c.extent, c.spacing_mm, spacing_mm) for c in fingerprint.cases]
    return np.maximum(_MARGIN * np.median(extents, axis=0), _LEAST_PATCH)


def target_spacing_mm(fingerprint: Fingerprint) -> tuple[float, float, float]:
    """Return the grid to train on: the median, finer along thick slices that vary.

    Source: arXiv:1904.08128 (nnU-Net): median spacing, the tenth percentile along a thick axis.
    """
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    target = np.median(spacings, axis=0)
    thick = int(np.argmax(target))
    if target[thick] > _ANISOTROPY * np.delete(target, thick).max():
        target[thick] = max(np.percentile(spacings[:, thick], 10), np.delete(target, thick).max())
    d, h, w = np.round(target, 4).tolist()
    return d, h, w


def normalisations(fingerprint: Fingerprint) -> tuple[Normalisation, ...]:
    """Return Hounsfield windows for CT channels, standardisation for all others."""
    return tuple(
        Normalisation("ct", seen.percentile_00_5, seen.percentile_99_5, seen.mean, seen.sd)
        if name.strip().upper() == "CT" and seen.sd > 0
        else Normalisation()
        for name, seen in zip(fingerprint.channel_names, fingerprint.intensities, strict=True)
    )


def stages(
    shape: np.ndarray, spacing_mm: tuple[float, ...], most: int, fold: bool
) -> tuple[tuple[Triple, ...], tuple[Triple, ...]]:
    """Return strides and kernels of every stage, finest first.

    An axis is halved while its voxels are no coarser than twice the finest and its map stays at
    least four voxels long; a kernel spans an axis under the same rule of spacing. So thick slices
    are treated slice by slice until the other axes have become as coarse.

    Args:
        shape: of a typical case on the network's grid.
        spacing_mm: of that grid.
        most: stages at the most.
        fold: the first stage already halves.

    Source: arXiv:1904.08128 (nnU-Net's network topology).
    """
    size, spacing = np.array(shape, dtype=float), np.array(spacing_mm, dtype=float)
    spanned = np.zeros(3, dtype=bool)
    strides: list[Triple] = []
    kernels: list[Triple] = []
    while len(strides) < most:
        near = spacing < 2 * spacing.min() + 1e-6
        halve = near & (size >= 2 * _LEAST_MAP)
        if not strides and not fold:
            halve[:] = False
        elif not halve.any() and strides:
            break
        d, h, w = (2 if h else 1 for h in halve)
        strides.append((d, h, w))
        size, spacing = size / (d, h, w), spacing * (d, h, w)
        spanned |= spacing < 2 * spacing.min() + 1e-6  # once spanned, always
        # From three voxels on: over two slices oneDNN's bfloat16 weight gradient reads memory that
        # nothing was written to (torch 2.13, docs/notes/0010).
        kd, kh, kw = (3 if n and s >= 3 else 1 for n, s in zip(spanned, size, strict=True))
        kernels.append((kd, kh, kw))
    return tuple(strides), tuple(kernels)


def patch_size(shape: np.ndarray, multiple: Triple, most_voxels: int) -> Triple:
    """Return a patch like a typical case, shrunk in proportion to a number of voxels.

    Args:
        shape: of a typical case on the network's grid.
        multiple: the patch is a multiple of it along each axis.
        most_voxels: bound on the patch's voxels, met up to rounding.
    """
    size = np.array(shape, dtype=float)
    while prod(size) > most_voxels:
        longest = int(np.argmax(size / np.array(multiple)))
        size[longest] -= multiple[longest]
    d, h, w = (ceil(n / m) * m for n, m in zip(np.maximum(size, 1), multiple, strict=True))
    return d, h, w


def with_steps(plan: Plan, steps: int, budget_s: float | None, validations: int) -> Plan:
    """Return the plan with so many steps, and an average of weights to suit."""
    fit = replace(
        plan.fit,
        steps=steps,
        budget_s=budget_s,
        validations=validations,
        # The average reaches over the last few per cent of the steps.
        ema_decay=float(np.clip(1 - 25 / steps, 0.9, 0.999)),
    )
    return replace(plan, fit=fit)
