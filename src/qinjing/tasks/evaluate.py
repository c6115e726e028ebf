"""Measure a folder of predictions against references: the content of metrics.json."""

from __future__ import annotations

import contextlib
import math
import platform
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinjing.config import read_json, write_json
from qinjing.data.case import Case
from qinjing.data.layouts import open_dataset
from qinjing.data.layouts.discover import discover_labels, label_values
from qinjing.data.layouts.files import image_files
from qinjing.data.readers import read_volume, stem
from qinjing.errors import (
    ConfigError,
    FormatError,
    GeometryError,
    InputError,
    LabelError,
    LayoutError,
)
from qinjing.metrics.grid import axis_cosines
from qinjing.metrics.overlap import LARGEST_LABEL
from qinjing.metrics.segmentation import CONVENTIONS, measure, summarise
from qinjing.tasks.nnunet_summary import summary_path, write_nnunet_summary
from qinjing.volume import Volume

WORST = 5


@dataclass(frozen=True)
class _References:
    """Label maps by case, one each if all is well, and what their data set declares."""

    files: Mapping[str, Sequence[Path]]
    patients: Mapping[str, str]
    labels: Mapping[int, str]
    ignored: int | None = None


def evaluate(
    predictions: str | Path,
    references: str | Path,
    *,
    labels: Mapping[int, str] | None = None,
    tolerance_mm: float = 1.0,
    patients: Mapping[str, str] | None = None,
    cases: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure every prediction against the reference of the same name.

    A case that cannot be measured is refused and listed, and the rest goes on: no reference,
    another grid, an undeclared label, a damaged file, no prediction of a case that was named or
    held out by its fold. Other references without a prediction stand in "unpredicted".

    Args:
        predictions: a folder of label maps, or one file; `confidence/<case_id>` beside them holds
            the probability of the predicted label (uint8, 255 is 1) and gives the ECE.
        references: a folder of label maps, a data set, or one file.
        labels: foreground value → name; by default as the data set declares them, else every
            value that the references hold.
        tolerance_mm: of the normalised surface Dice.
        patients: case → patient; by default as the data set knows them, else each case is one.
        cases: only these; by default what was predicted, and the fold's validation cases where
            `predictions` is `RUN/fold_K/validation`.
        progress: called with cases done and cases in all.

    Returns:
        The content of metrics.json (docs/architecture.md).

    Raises:
        InputError: no predictions or references, a damaged declaration, a negative tolerance.
    """
    predictions, references = Path(predictions), Path(references)
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise InputError("tolerance_mm", "0 or more", tolerance_mm)
    found = _open_references(references, labels)
    pairs, unpredicted = _pairs(predictions, references, found, cases)
    declared = {v: n for v, n in sorted((labels or found.labels).items()) if v != 0}
    measured: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    for done, (case_id, pair) in enumerate(pairs.items()):
        if progress:
            progress(done, len(pairs))
        try:
            case, fault = _measure_case(*pair, declared, found.ignored, tolerance_mm)
        except InputError as error:
            refused.append({"case_id": case_id, "reason": str(error)})
            continue
        refused += [{"case_id": case_id, "reason": fault}] if fault else []
        patient = {**found.patients, **(patients or {})}.get(case_id, case_id)
        measured.append({"case_id": case_id, "patient_id": patient, **case})
    if progress:
        progress(len(pairs), len(pairs))
    head = {"labels": {str(value): name for value, name in declared.items()},
            "tolerance_mm": tolerance_mm, "conventions": CONVENTIONS,
            "predictions": str(predictions), "references": str(references)}  # fmt: skip
    means = _means(measured, list(declared))
    return {**head, **means, "refused": refused, "unpredicted": unpredicted}


def _means(cases: list[dict[str, Any]], labels: list[int]) -> dict[str, Any]:
    patients = [case.get("patient_id", case["case_id"]) for case in cases]
    return {
        "cases": cases,
        "mean": summarise(cases, labels, patients),
        "worst": _worst(cases),
        "environment": _environment(),
    }


def evaluate_files(
    predictions: Path,
    references: Path,
    output: Path,
    *,
    labels: Mapping[int, str] | None = None,
    tolerance_mm: float = 1.0,
    patients: Mapping[str, str] | None = None,
    cases: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate and write metrics.json, and nnU-Net's summary beside it; return the former.

    Raises:
        ConfigError: `output` is a folder; nothing is measured then.
        InputError: as `evaluate`; nothing is written then.
    """
    output = Path(output)
    if output.is_dir():
        raise ConfigError("output", "a file to write, such as metrics.json", "a folder",
                          where=output)  # fmt: skip
    metrics = evaluate(
        predictions,
        references,
        labels=labels,
        tolerance_mm=tolerance_mm,
        patients=patients,
        cases=cases,
        progress=progress,
    )
    write_nnunet_summary(metrics, summary_path(output))
    write_json(output, metrics)
    return metrics


def pool(tables: Sequence[Path], output: Path) -> dict[str, Any]:
    """Write one metrics.json over the cases of several, such as the folds of a run; return it.

    Args:
        tables: metrics.json files of the same labels, no case in two of them.
        output: metrics.json to write.

    Raises:
        FormatError: a table cannot be read.
    """
    pooled = pool_tables([read_json(path) for path in tables])
    write_json(output, pooled)
    return pooled


def pool_tables(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of one metrics.json over the cases of several, means and all.

    Args:
        contents: of metrics.json files; one or more, no case in two of them.
    """
    labels = {v: name for content in contents for v, name in content.get("labels", {}).items()}
    cases = [case for content in contents for case in content["cases"]]
    refused = [one for content in contents for one in content.get("refused") or ()]
    seen = {one["case_id"] for one in (*cases, *refused)}
    unpredicted = {name for content in contents for name in content.get("unpredicted") or ()}
    head = {name: contents[0].get(name) for name in ("tolerance_mm", "conventions")}
    return {"labels": labels, **head, **_means(cases, [int(value) for value in labels]),
            "refused": refused, "unpredicted": sorted(unpredicted - seen)}  # fmt: skip


def _pairs(
    predictions: Path, references: Path, found: _References, cases: Collection[str] | None
) -> tuple[dict[str, tuple[Sequence[Path], Sequence[Path]]], list[str]]:
    """Return case → its predictions and references, in order: none, or several, is a fault.

    The second value names the references of which nobody said that they must have a prediction.
    """
    listed = [predictions] if predictions.is_file() else image_files(predictions)
    if not listed:
        raise LayoutError("predictions", "a folder of label maps", "no image", where=predictions)
    predicted = _by_stem(listed)
    files = dict(found.files)
    if predictions.is_file() and references.is_file():  # two files are a pair whatever their names
        files = dict(zip(predicted, files.values(), strict=True))
    held_out = _fold_cases(predictions) if cases is None else []
    names = {*held_out, *predicted} if cases is None else set(cases)
    pairs = {name: (predicted.get(name, []), files.get(name, [])) for name in sorted(names)}
    left = [] if held_out or cases is not None else sorted(files.keys() - predicted.keys())
    return pairs, left


def _by_stem(files: Sequence[Path]) -> dict[str, Sequence[Path]]:
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(stem(path), []).append(path)
    return {**found}


def _open_references(references: Path, labels: Mapping[int, str] | None) -> _References:
    """Find label maps: a data set's, or a folder's, with the data set around it if there is one."""
    if references.is_file() and references.suffix.lower() != ".json":
        return _of_files([references], labels)
    fault: InputError | None = None
    for root in (references, references.parent):
        try:
            dataset = open_dataset(root)
        except InputError as error:
            fault = fault or error
            if root == references and not isinstance(error, LayoutError):
                raise
            continue
        inside = [c for c in dataset.cases if c.label is not None and (
            root == references or c.label.parent.resolve() == references.resolve())]  # fmt: skip
        if inside:
            return _References(
                {case.case_id: [case.label] for case in inside if case.label is not None},
                {case.case_id: case.patient_id for case in inside},
                dataset.labels,
                dataset.ignored,
            )
    files = image_files(references)
    if not files:
        raise LayoutError("references", "a folder of label maps or a data set", fault,
                          where=references)  # fmt: skip
    return _of_files(files, labels)


def _of_files(files: Sequence[Path], labels: Mapping[int, str] | None) -> _References:
    found = labels or discover_labels(Case(stem(path), "", (), path) for path in files)
    return _References(_by_stem(files), {}, found)


def _fold_cases(predictions: Path) -> list[str]:
    """Return the validation cases of RUN/fold_K/validation by RUN/splits_final.json, else none."""
    fold = re.fullmatch(r"fold_(\d+)", predictions.resolve().parent.name)
    splits_file = predictions.resolve().parent.parent / "splits_final.json"
    if fold is None or not splits_file.is_file():
        return []
    try:
        return [str(case_id) for case_id in read_json(splits_file)[int(fold[1])]["val"]]
    except (LookupError, TypeError) as error:
        raise FormatError("splits_final.json", f"a list with fold {fold[1]}", error,
                          where=splits_file) from None  # fmt: skip


def _measure_case(
    predictions: Sequence[Path],
    references: Sequence[Path],
    labels: Mapping[int, str],
    ignored: int | None,
    tolerance_mm: float,
) -> tuple[dict[str, Any], str]:
    """Measure a pair of files; the second value says why there is no ECE where one was expected."""
    prediction_file = _one("prediction", predictions, "reference", references)
    reference_file = _one("reference", references, "prediction", predictions)
    prediction = _read_labels(prediction_file, labels)
    reference = _read_labels(reference_file, labels, ignored)
    prediction, reference = _on_one_grid(prediction, reference, prediction_file)
    confidence, fault = None, ""
    beside = prediction_file.parent / "confidence" / prediction_file.name
    unlabelled = 0
    if ignored is not None:  # what nobody labelled is background in both
        known = reference.voxels != ignored
        unlabelled = int(known.size - known.sum())
        prediction = prediction.with_voxels(prediction.voxels * known)
        reference = reference.with_voxels(reference.voxels * known)
    if beside.is_file() and not unlabelled:
        try:
            confidence = _read_confidence(beside, prediction, reference)
        except InputError as error:
            fault = f"ECE not measured: {error}"
    case = measure(
        prediction.voxels,
        reference.voxels,
        sorted(labels),
        reference.spacing_mm,
        reference.voxel_volume_ml,
        tolerance_mm,
        confidence,
        axis_cosines(reference.affine),
    )
    files = {"prediction": str(prediction_file), "reference": str(reference_file)}
    grid = {"shape": list(reference.shape), "spacing_mm": list(reference.spacing_mm)}
    missing = {"unlabelled_voxels": unlabelled} if unlabelled else {}
    return {**case, **grid, **files, **missing}, fault


def _one(name: str, files: Sequence[Path], other: str, others: Sequence[Path]) -> Path:
    where = (*files, *others)[0].parent if files or others else None
    if not files:
        raise LayoutError(name, f"there for every {other}", "none", where=where)
    if len(files) > 1:
        raise LayoutError(name, "one file", ", ".join(file.name for file in files), where=where,
                          advice="take all but one away")  # fmt: skip
    return files[0]


def _read_labels(path: Path, labels: Mapping[int, str], ignored: int | None = None) -> Volume:
    """Read a label map as (D, H, W) integers, all of them declared or ignored."""
    volume = _read_3d(path)
    values = label_values(volume.voxels)
    if not np.isfinite(values).all() or (values != np.rint(values)).any():
        raise LabelError("label values", "whole numbers", "others", where=path)
    unknown = sorted({int(value) for value in values} - {0, *labels, ignored})
    if unknown or values.min() < 0 or values.max() > LARGEST_LABEL:
        shown = ", ".join(str(value) for value in unknown[:10])
        raise LabelError("labels", f"0 or among {sorted(labels)}", shown, where=path)
    small = np.uint8 if values.max() < 256 else np.uint16
    return volume.with_voxels(volume.voxels.astype(small, copy=False))


def _read_3d(path: Path) -> Volume:
    volume = read_volume(path)
    if volume.voxels.ndim == 4:
        if volume.voxels.shape[0] != 1:
            raise GeometryError("label map", "3-D", f"shape {volume.voxels.shape}", where=path)
        volume = volume.with_voxels(volume.voxels[0])
    if not volume.voxels.size:
        raise GeometryError("label map", "of at least one voxel", volume.voxels.shape, where=path)
    return volume


def _on_one_grid(prediction: Volume, reference: Volume, path: Path) -> tuple[Volume, Volume]:
    """Return both on one grid; an array stored along other axes or backwards is the same grid."""
    difference = reference.grid_difference(prediction)
    if difference is None:
        return prediction, reference
    prediction, reference = prediction.canonical(), reference.canonical()
    if reference.grid_difference(prediction) is None:
        return prediction, reference
    raise GeometryError("prediction", "on the reference's grid", difference, where=path)


def _read_confidence(path: Path, prediction: Volume, reference: Volume) -> np.ndarray:
    volume = _read_3d(path)
    if prediction.grid_difference(volume) is not None:
        volume = volume.canonical()
    difference = reference.grid_difference(volume)
    if difference is not None:
        raise GeometryError("confidence", "on the prediction's grid", difference, where=path)
    voxels = volume.voxels
    within = voxels.dtype.kind == "f" and bool(((voxels >= 0) & (voxels <= 1)).all())
    if voxels.dtype != np.uint8 and not within:
        raise InputError("confidence", "uint8, or from 0 to 1", voxels.dtype, where=path)
    return voxels


def _worst(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name the cases of lowest foreground Dice, the lowest first."""
    means = ((c.get("foreground", {}).get("dice"), c["case_id"]) for c in cases)
    known = [(dice, case_id) for dice, case_id in means if dice is not None]
    return [{"case_id": case_id, "dice": dice} for dice, case_id in sorted(known)[:WORST]]


def _environment() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("qinjing", "numpy", "scipy"):
        with contextlib.suppress(PackageNotFoundError):  # run from a checkout, not installed
            found[name] = version(name)
    return found
