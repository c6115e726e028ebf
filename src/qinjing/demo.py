"""The main road in minutes: train, predict scans never seen, compare with two baselines, report.

Without a data set the scans are phantoms (`physics/phantom.py`). One case in five is set apart
before anything is measured, by patient; nothing that trains or learns a threshold sees it.

The thresholds are as good as one interval of grey values a label can be: each is the interval that
reaches the highest Dice on the training cases, after removing each scan's own scale.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qinjing import evidence
from qinjing.config import write_json
from qinjing.data.case import Case, Dataset
from qinjing.data.layouts import open_dataset
from qinjing.data.readers import read_volume, suffix
from qinjing.data.splits import make_splits
from qinjing.errors import ConfigError, LayoutError

PHANTOMS = 40
STEPS = 300  # of each training on phantoms: wall seconds on busy cores afford too few to learn from
BUDGET_S = 200.0  # of each training on a data set, whose scans may be of any size
# Half the channels that are planned: the small network that is compared with.
SMALL_WIDTHS = (8, 16, 32, 64)
FOLDS = 5  # one in so many is never seen
BINS = 128
MARKER = "demo.json"
NAME, UNET, THRESHOLD = "Qinjing", "small U-Net", "thresholds"


def run_demo(
    dataset: Path | None, output: Path, steps: int = STEPS, *, cases: int = PHANTOMS
) -> dict[str, Any]:
    """Train, predict unseen cases, compare and report.

    Args:
        dataset: a folder in any layout; phantoms where None.
        output: a new folder, or one of an earlier demo, which is replaced.
        steps: of each training on phantoms; a data set has 200 s for each instead.
        cases: how many phantoms to draw.

    Returns:
        "report", "dice" of each method on the unseen cases, "seconds", "refused".

    Raises:
        ConfigError: `output` holds something else.
        LayoutError: fewer than ten labelled cases.
    """
    from qinjing.report.html import write_report
    from qinjing.tasks.planning import Overrides
    from qinjing.tasks.predict import predict_folder
    from qinjing.tasks.train import TrainConfig, train

    start = time.monotonic()
    _claim(output)
    opened = _dataset(dataset, output, cases)
    known, unseen, refused = _set_apart(opened, output)
    read = evidence.digested({"known": known.root, "unseen": unseen.root})

    models = {NAME: output / "qinjing", UNET: output / "unet"}
    if dataset is None:
        small, budget_s = {"widths": SMALL_WIDTHS}, None
        chosen = (Overrides(steps=steps), Overrides("unet", small, steps=steps))
    else:
        chosen, budget_s = (Overrides(), Overrides("unet")), BUDGET_S
    for (name, model), overrides in zip(models.items(), chosen, strict=True):
        _say(f"training {name}: " + (f"{budget_s:.0f} s" if budget_s else f"{steps} steps"))
        train(TrainConfig(known.root, model, budget_s, overrides=overrides), _Narrator(name).tell)

    results: dict[str, Path] = {}
    for name, model in models.items():
        _say(f"predicting {len(unseen.cases)} unseen cases with {name}")
        results[name] = output / "results" / model.name
        predicted = predict_folder(model, unseen.root, results[name], confidence=True)
        refused += predicted["refused"]
    _say(f"learning {THRESHOLD} from the same training cases")
    results[THRESHOLD] = output / "results" / THRESHOLD
    _threshold(known, unseen, results[THRESHOLD])

    dice = _evaluate(results, unseen)
    _say("writing the report")
    report = write_report(
        results[NAME] / "metrics.json",
        output / "report.html",
        {name: results[name] / "metrics.json" for name in (UNET, THRESHOLD)},
        name=NAME,
        run=models[NAME],
        dataset=unseen.root,
    )
    summary = {
        "report": str(Path(report["report"]).resolve()),
        "dice": dice,
        "unseen_cases": len(unseen.cases),
        "seconds": round(time.monotonic() - start, 1),
        "refused": refused,
    }
    write_json(output / MARKER, summary)
    evidence.append(
        output,
        "demo",
        read,
        [output / MARKER, output / "report.html", output / "results"],
        {"steps": steps, "budget_s": budget_s, "phantoms": dataset is None},
        basis=opened.licence or None,
    )
    _say(f"done in {summary['seconds']:.0f} s; the report is {summary['report']}")
    return summary


def _say(words: str) -> None:
    """Tell a person, and leave standard output to the result."""
    print(words, file=sys.stderr, flush=True)


def _claim(output: Path) -> None:
    """Take the folder: a new one, an empty one, or an earlier demo's, which is replaced."""
    if output.is_dir() and any(output.iterdir()):
        if not (output / MARKER).is_file():
            raise ConfigError(
                "output", "a new folder or an earlier demo's", "other files", where=output,
                advice="choose another folder with -o",
            )  # fmt: skip
        shutil.rmtree(output)
    write_json(output / MARKER, {"state": "running"})


def _dataset(dataset: Path | None, output: Path, cases: int) -> Dataset:
    """Open the given data set, or draw phantoms."""
    if dataset is None:
        from qinjing.physics.phantom import write_dataset

        _say(f"drawing {cases} phantoms of two vendors")
        dataset = write_dataset(output / "phantoms", cases=cases)
    return open_dataset(dataset)


def _set_apart(
    opened: Dataset, output: Path
) -> tuple[Dataset, Dataset, list[dict[str, str]]]:  # fmt: skip
    """Check every file once, then link known and unseen cases into a data set each."""
    from qinjing.data.check import check_dataset

    _say(f"checking {len(opened.cases)} cases of {opened.name}")
    result = check_dataset(opened)
    refused = [{"case_id": f.case_id or "", "reason": f.message} for f in result.refused]
    good = [case for case in result.good if case.label is not None]
    if len({case.patient_id for case in good}) < 2 * FOLDS:
        raise LayoutError("data set", f"of {2 * FOLDS} labelled patients at least", len(good),
                          where=opened.root)  # fmt: skip
    apart = set(make_splits(good, folds=FOLDS)[0]["val"])
    known = [case for case in good if case.case_id not in apart]
    unseen = [case for case in good if case.case_id in apart]
    _say(f"{len(known)} cases to learn from, {len(unseen)} set apart")
    return (
        _link(opened, known, output / "known"),
        _link(opened, unseen, output / "unseen"),
        refused,
    )


def _link(opened: Dataset, cases: Sequence[Case], folder: Path) -> Dataset:
    """Link cases into a folder of their own, channel by channel where an image has several."""
    channels = len(cases[0].images)
    rows = ["participant_id\tgroup"]
    rows += sorted({f"{case.patient_id}\t{case.group or 'n/a'}" for case in cases})
    description: dict[str, Any] = {"name": opened.name, "licence": opened.licence or "not declared"}
    names = {str(i): name for i, name in enumerate(opened.channel_names)}
    if channels > 1:
        labels = {name: value for value, name in opened.labels.items()}
        ending = suffix(cases[0].images[0])
        description |= {"channel_names": names, "labels": labels, "file_ending": ending,
                        "numTraining": len(cases)}  # fmt: skip
    else:
        labels_msd = {str(value): name for value, name in opened.labels.items()}
        description |= {"modality": names, "labels": labels_msd, "training": []}
    for case in cases:
        if case.label is None:
            continue
        label = _point(folder / "labelsTr" / f"{case.case_id}{suffix(case.label)}", case.label)
        for channel, image in enumerate(case.images):
            name = f"{case.case_id}_{channel:04d}" if channels > 1 else case.case_id
            link = _point(folder / "imagesTr" / f"{name}{suffix(image)}", image)
        if channels == 1:
            description["training"].append(
                {"image": f"./imagesTr/{link.name}", "label": f"./labelsTr/{label.name}"}
            )
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_json(folder / "dataset.json", description)
    return open_dataset(folder)


def _point(link: Path, target: Path) -> Path:
    """Make a link, or a copy where the file system has none."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.symlink_to(target.resolve())
    except OSError:
        shutil.copyfile(target, link)
    return link


class _Narrator:
    """Print a line now and then while a network trains."""

    def __init__(self, name: str, every_s: float = 15.0) -> None:
        self.name = name
        self.every_s = every_s
        self.last = time.monotonic()

    def tell(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Take an event of `train`."""
        if kind == "plan":
            plan = fields["plan"]
            _say(f"  {self.name}: patch {plan.patch_size}, batch {plan.batch_size}, "
                 f"{plan.execution.precision}, {plan.fit.steps} steps")  # fmt: skip
        elif kind == "step" and time.monotonic() - self.last > self.every_s:
            self.last = time.monotonic()
            _say(f"  {self.name}: step {fields['step'] + 1} of {fields['steps']}, "
                 f"loss {fields['loss']:.3f}")  # fmt: skip
        elif kind == "validation":
            _say(f"  {self.name}: Dice {fields['score']:.3f} on the held-out fold")


def _evaluate(results: Mapping[str, Path], unseen: Dataset) -> dict[str, float | None]:
    """Measure every method on the same unseen cases."""
    from qinjing.tasks.evaluate import evaluate_files

    dice = {}
    labels = {value: name for value, name in unseen.labels.items() if value}
    for name, folder in results.items():
        metrics = evaluate_files(folder, unseen.root, folder / "metrics.json", labels=labels)
        dice[name] = metrics["mean"]["foreground"]["dice"]["mean"]
        _say(f"  {name}: mean Dice {dice[name] or 0.0:.3f} on {len(unseen.cases)} unseen cases")
    return dice


@dataclass(frozen=True)
class Threshold:
    """The interval of standardised grey values that finds one label best.

    Attributes:
        value: the label.
        low: inclusive bound, in standard deviations from the scan's mean.
        high: exclusive bound.
        dice: reached over all training voxels together.
    """

    value: int
    low: float
    high: float
    dice: float


def standardise(voxels: np.ndarray) -> np.ndarray:
    """Return the first channel, lightly smoothed, in standard deviations from its mean.

    Args:
        voxels: (D, H, W) or (C, D, H, W) grey values.

    Returns:
        (D, H, W) float32; mean and deviation are of the voxels brighter than the mean, so that air
        around the patient does not count.
    """
    from scipy.ndimage import uniform_filter

    grey = np.asarray(voxels[0] if voxels.ndim == 4 else voxels, dtype=np.float32)
    bright = grey[grey > grey.mean()]
    bright = bright if bright.size > 1 else grey.reshape(-1)
    smooth = uniform_filter(grey, 3)
    return (smooth - bright.mean()) / max(float(bright.std()), 1e-6)


def learn_thresholds(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], values: Sequence[int]
) -> list[Threshold]:
    """Find for each label the interval with the highest Dice, among all of 128 bins.

    Args:
        pairs: standardised image and label map of each training case, (D, H, W).
        values: the labels, background left out.
    """
    edges = np.concatenate([[-np.inf], np.linspace(-4, 4, BINS - 1), [np.inf]])
    every = np.zeros(BINS)
    inside = np.zeros((len(values), BINS))
    for grey, label in pairs:
        every += np.histogram(grey, edges)[0]
        for i, value in enumerate(values):
            inside[i] += np.histogram(grey[label == value], edges)[0]
    taken = np.concatenate([[0.0], np.cumsum(every)])
    found = []
    for value, counts in zip(values, inside, strict=True):
        hits = np.concatenate([[0.0], np.cumsum(counts)])
        hit = hits[None, :] - hits[:, None]  # [low edge, high edge]
        size = taken[None, :] - taken[:, None]
        dice = np.where(size > 0, 2 * hit / np.maximum(size + hits[-1], 1), 0)
        low, high = np.unravel_index(int(np.argmax(dice)), dice.shape)
        found.append(
            Threshold(value, float(edges[low]), float(edges[high]), float(dice[low, high]))
        )
    return found


def apply_thresholds(grey: np.ndarray, thresholds: Sequence[Threshold]) -> np.ndarray:
    """Label a standardised image (D, H, W); where intervals overlap the better one wins."""
    label = np.zeros(grey.shape, dtype=np.uint16)
    for threshold in sorted(thresholds, key=lambda t: t.dice):
        label[(grey >= threshold.low) & (grey < threshold.high)] = threshold.value
    return label


def _threshold(known: Dataset, unseen: Dataset, output: Path) -> None:
    """Learn from the known cases and label the unseen ones."""
    from qinjing.data.nifti import write_nifti

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for case in known.cases:
            if case.label is not None:
                grey = standardise(read_volume(case.images[0]).voxels)
                yield grey, read_volume(case.label).voxels.reshape(grey.shape)

    thresholds = learn_thresholds(pairs(), [value for value in known.labels if value])
    for case in unseen.cases:
        image = read_volume(case.images[0])
        label = apply_thresholds(standardise(image.voxels), thresholds)
        write_nifti(output / f"{case.case_id}.nii.gz", image.with_voxels(label))
    bounds = [[t.value, *(b if abs(b) < np.inf else None for b in (t.low, t.high)), t.dice]
              for t in thresholds]  # fmt: skip
    write_json(output / "thresholds.json", {"value, low, high, training Dice": bounds})
