"""Segment scans with a trained model: a file, a folder, or what is in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qinjing.config import read_config
from qinjing.data.case import Case
from qinjing.data.preprocess import INTERPOLATION_ORDER, read_image
from qinjing.engine.checkpoint import load_model
from qinjing.engine.fuse import fuse
from qinjing.engine.infer import predict_labels_on_grid
from qinjing.engine.plan import Plan
from qinjing.errors import ConfigError, FormatError, InputError
from qinjing.tasks.segment import all_flips, window_for
from qinjing.volume import Volume


@dataclass(frozen=True, eq=False)
class Segmenter:
    """One or several trained networks with their plan.

    Attributes:
        nets: in evaluation mode, on `device`; their probabilities are averaged.
        plan: the plan that they were trained by, the first's where they are of several runs.
        device: "cpu" or "cuda".
    """

    nets: tuple[nn.Module, ...]
    plan: Plan
    device: str

    @classmethod
    def load(cls, folder: str | Path, *more: str | Path) -> Segmenter:
        """Load a run (every fold in it, as an ensemble) or a single ``fold_K`` of one.

        Args:
            folder: of the run or the fold.
            *more: others, of unlike networks perhaps, for the same scans and labels.

        Raises:
            FormatError: a folder holds no trained model, or a damaged one.
            ConfigError: two of them see scans in other ways, or tell other labels.
        """
        nets, plan = _load(Path(folder).resolve())
        for other in more:
            others, its = _load(Path(other).resolve())
            for name in ("label_values", "preprocessing", "patch_size", "flips", "one_piece"):
                if getattr(its, name) != getattr(plan, name):
                    raise ConfigError(
                        f"models' {name}", f"alike, as in {folder}", "others", where=other,
                        advice="average models of one data set, planned alike",
                    )  # fmt: skip
            nets += others
        return cls(nets, plan, plan.execution.device)

    def segment(
        self,
        image: Volume,
        *,
        flips: bool = False,
        confidence: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Volume, Volume | None]:
        """Label a scan on its own grid.

        Args:
            image: (D, H, W) or (C, D, H, W), grey values as read.
            flips: average over mirrored copies.
            confidence: return the winning class's probability as well.
            progress: called with windows done and windows in all.

        Returns:
            Label values, and probabilities in 1/255 or None.

        Raises:
            GeometryError: another number of channels than the model was trained with.
        """
        plan = self.plan
        labels, certainty = predict_labels_on_grid(
            self.nets,
            image,
            window_for(plan, all_flips(plan.flips) if flips else ((),)),
            plan.classes,
            spacing_mm=plan.preprocessing.spacing_mm,
            normalise=plan.preprocessing.normalise,
            order=INTERPOLATION_ORDER,
            precision=plan.execution.precision,
            confidence=confidence,
            device=torch.device(self.device),
            progress=progress,
        )
        values = np.array(plan.label_values, dtype=label_type(plan.label_values))
        if not np.array_equal(values, np.arange(len(values))):
            labels = labels.with_voxels(values[labels.voxels])
        return labels, certainty


def _load(folder: Path) -> tuple[tuple[nn.Module, ...], Plan]:
    """The networks of a run or of one of its folds, and their plan.

    Raises:
        FormatError: the folder holds no trained model, or a damaged one.
    """
    one = (folder / "weights.safetensors").exists()
    runs = [folder] if one else sorted(p.parent for p in folder.glob("fold_*/weights.safetensors"))
    if not runs:
        raise FormatError(
            "model", "a run folder with a finished fold", "none", where=folder,
            advice="train one with `qinjing train`",
        )  # fmt: skip
    plan = read_config((folder.parent if one else folder) / "plan.json", Plan)
    # Where it was trained says nothing of where it is used.
    plan = replace(plan, execution=plan.execution.here())
    return tuple(plan.execution.place(fuse(load_model(run))) for run in runs), plan


def predict_folder(
    model: str | Path | Sequence[str | Path],
    source: str | Path,
    output: str | Path,
    *,
    flips: bool = False,
    confidence: bool = False,
    largest: bool = False,
    min_volume_ml: float = 0.0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Segment a file or every image of a folder; a bad one is refused and the rest goes on.

    Args:
        model: a run folder or one of its folds, or several, whose probabilities are averaged.
        source: a scan, or a folder in any layout.
        output: folder for one label map per case, named as the case.
        flips: average over mirrored copies.
        confidence: write ``confidence/<case>.nii.gz`` as well.
        largest: keep only the largest component of each label.
        min_volume_ml: drop components below this volume.
        progress: called with cases done, cases in all and the case's id.

    Returns:
        "outputs" (paths), "refused" (case and reason), "seconds".

    Raises:
        FormatError: a model cannot be loaded.
        LayoutError: there is nothing to segment.
        ConfigError: the output is a file or would replace a scan; the model knows no mirroring;
            models that do not fit together.
    """
    from qinjing.data.layouts import list_images

    output = Path(output)
    found = list_images(source)
    _check_output(output, found)
    models = [model] if isinstance(model, str | Path) else list(model)
    segmenter = Segmenter.load(*models)
    if flips and not segmenter.plan.flips:
        raise ConfigError(
            "flips", "left out for a model that was not trained on mirrored scans", "flips",
            where=models[0],
        )  # fmt: skip
    return segment_cases(
        segmenter,
        [Case(case_id, case_id, images) for case_id, images in found],
        output,
        flips=flips,
        confidence=confidence,
        largest=largest,
        min_volume_ml=min_volume_ml,
        progress=progress,
    )


def segment_cases(
    segmenter: Segmenter,
    cases: Sequence[Case],
    output: Path,
    *,
    flips: bool = False,
    confidence: bool = False,
    largest: bool = False,
    min_volume_ml: float = 0.0,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Segment cases into a folder; see `predict_folder`."""
    from qinjing.data.nifti import write_nifti

    start = time.monotonic()
    written: list[str] = []
    refused: list[dict[str, str]] = []
    for number, case in enumerate(cases):
        if progress:
            progress(number, len(cases), case.case_id)
        try:
            image = read_image(case)
            labels, certainty = segmenter.segment(image, flips=flips, confidence=confidence)
            labels = _cleaned(labels, segmenter.plan, largest, min_volume_ml)
            like = _grid_of(case)
            name = f"{case.case_id}.nii.gz"
            write_nifti(output / name, labels.restore_axes(like))
            written.append(str(output / name))
            if certainty is not None:
                write_nifti(output / "confidence" / name, certainty.restore_axes(like))
                written.append(str(output / "confidence" / name))
        except InputError as error:
            refused.append({"case_id": case.case_id, "reason": str(error)})
    if progress:
        progress(len(cases), len(cases), "")
    return {
        "outputs": written,
        "refused": refused,
        "seconds": round(time.monotonic() - start, 2),
    }


def _check_output(output: Path, found: Sequence[tuple[str, tuple[Path, ...]]]) -> None:
    """Refuse an output that is a file, or that would put a label map in the place of a scan."""
    if output.exists() and not output.is_dir():
        raise ConfigError("output", "a folder", "a file", where=output)
    scans = {path.resolve() for _, images in found for path in images}
    for case_id, _ in found:
        path = output / f"{case_id}.nii.gz"
        if path.resolve() in scans:
            raise ConfigError(
                "output", "a folder where no scan would be replaced", path.name, where=output,
                advice="name another folder",
            )  # fmt: skip


def _cleaned(labels: Volume, plan: Plan, largest: bool, min_volume_ml: float) -> Volume:
    from qinjing.data.components import keep_components, largest_piece

    if plan.one_piece:
        labels = labels.with_voxels(largest_piece(labels.voxels)[0])
    if not largest and not min_volume_ml:
        return labels

    kept = plan.label_values[1:] if largest else ()
    return keep_components(labels, min_volume_ml=min_volume_ml, largest=kept)


def _grid_of(case: Case) -> Volume:
    """The grid of the case's file as it lies on disk, without its voxels."""
    from qinjing.data.readers import find_reader

    header = find_reader(case.images[0]).read_header(case.images[0])
    return Volume(np.broadcast_to(np.zeros((), np.uint8), header.shape[-3:]), header.affine)


def label_type(values: Sequence[int]) -> type[np.generic]:
    """Return the smallest integer type that holds every label value."""
    if min(values) < 0:
        return np.int16 if max(values) < 2**15 else np.int32
    return np.uint8 if max(values) < 2**8 else np.uint16
