"""What features know already, measured without training: neighbours, a linear map, their rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qinjing.data.cache import IGNORED, CachedCase
from qinjing.data.patches import Shape, cut
from qinjing.nets.pretrainer import Pretrainer

_RIDGE = 1e-2
_PROBED = 16  # labelled cases at the most, half of the patients to learn from
_COLLAPSED_RANK, _COLLAPSED_USE = 2.0, 0.02


@dataclass(frozen=True)
class Probe:
    """Tell classes of cells from frozen features: some cases to learn from, others to tell.

    Attributes:
        known: labelled cases to learn from.
        asked: labelled cases to measure on.
        classes: background included.
        patch_size: voxels of a crop.
        crops: of each case, what is labelled anywhere in them: in one around its middle, place
            alone tells nearly all to features that know it, as a position embedding is.
        neighbours: of the k-NN vote.
        most: cells kept of the known cases, evenly.
    """

    known: Sequence[CachedCase]
    asked: Sequence[CachedCase]
    classes: int
    patch_size: Shape
    crops: int = 2
    neighbours: int = 10
    most: int = 20_000

    @torch.inference_mode()
    def measure(self, net: Pretrainer) -> dict[str, float]:
        """Return "knn_dice" and "linear_dice", mean Dice of the foreground's cells, 0 to 1."""
        x, y = self._cells(net, self.known)
        keep = torch.linspace(0, len(x) - 1, min(len(x), self.most)).long()
        x, y = x[keep], y[keep]
        asked, truth = self._cells(net, self.asked)
        found = {
            "knn_dice": nearest_vote(x, y, asked, self.classes, self.neighbours),
            "linear_dice": linear_vote(x, y, asked, self.classes),
        }
        dice = {name: self._dice(votes, truth) for name, votes in found.items()}
        return {name: round(value, 5) for name, value in dice.items() if value == value}

    def _cells(self, net: Pretrainer, cases: Sequence[CachedCase]) -> tuple[Tensor, Tensor]:
        """Features (N, F) of the cells of every case and the class that most of each is."""
        features, classes = [], []
        device = next(net.parameters()).device
        for image, label in self._crops(cases):
            maps = torch.cat([net.features(c[None, None].to(device)) for c in image], dim=1)
            known = label != IGNORED
            shares = F.one_hot(label.long() * known, self.classes) * known[..., None]
            cells = net.tokens(shares.movedim(-1, 0)[None].float())[0]
            said = cells.sum(-1) > 0  # something at least, where an annotator drew strokes alone
            features.append(net.tokens(maps)[0].float().cpu()[said])
            classes.append(cells[said].argmax(-1))
        return torch.cat(features), torch.cat(classes)

    def _crops(self, cases: Sequence[CachedCase]) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng(0)  # the same crops at every look
        for case in cases:
            places = np.concatenate([p for p in case.foreground if len(p)])
            for _ in range(self.crops):
                inside = places[rng.integers(len(places))]
                yield _from(case, inside - rng.integers(0, self.patch_size), self.patch_size)

    def _dice(self, votes: Tensor, truth: Tensor) -> float:
        scores = []
        for index in range(1, self.classes):
            ours, theirs = votes == index, truth == index
            total = int(ours.sum() + theirs.sum())
            if total:
                scores.append(2 * int((ours & theirs).sum()) / total)
        return float(np.mean(scores)) if scores else float("nan")


def cases_to_probe(
    cases: Sequence[CachedCase], patients: Mapping[str, str]
) -> tuple[list[CachedCase], list[CachedCase]]:
    """Return labelled cases to learn from and others to tell, no patient among both.

    Args:
        cases: of one data set; those without a label are passed over.
        patients: case id → patient.
    """
    labelled = [case for case in cases if any(len(places) for places in case.foreground)]
    probed = labelled[:: max(1, len(labelled) // _PROBED)][:_PROBED]
    taught = set(sorted({patients[case.case_id] for case in probed})[::2])
    known = [case for case in probed if patients[case.case_id] in taught]
    return known, [case for case in probed if patients[case.case_id] not in taught]


def _from(case: CachedCase, corner: np.ndarray, patch_size: Shape) -> tuple[Tensor, Tensor]:
    """Cut a crop whose first voxel is this, or the nearest with which it lies in the case."""
    shape, size = np.array(case.label.shape), np.array(patch_size)
    low = np.minimum(0, (shape - size) // 2)  # a larger crop is centred
    d, h, w = (int(c) for c in np.clip(corner, low, np.maximum(shape - size, low)))
    image, label = cut(case.image, (d, h, w), patch_size), cut(case.label, (d, h, w), patch_size)
    return torch.from_numpy(image), torch.from_numpy(label)


def nearest_vote(
    known: Tensor, classes: Tensor, asked: Tensor, n_classes: int, neighbours: int
) -> Tensor:
    """Return the class (M,) that the nearest of `known` (N, F) give each of `asked` (M, F).

    Votes count by likeness, exp(cosine / 0.07), as in arXiv:1805.01978.
    """
    known, asked = F.normalize(known, dim=-1), F.normalize(asked, dim=-1)
    votes = []
    for part in asked.split(4096):
        likeness, nearest = (part @ known.T).topk(min(neighbours, len(known)), dim=1)
        ballot = torch.zeros(len(part), n_classes)
        ballot.scatter_add_(1, classes[nearest], (likeness / 0.07).exp())
        votes.append(ballot.argmax(1))
    return torch.cat(votes)


def linear_vote(known: Tensor, classes: Tensor, asked: Tensor, n_classes: int) -> Tensor:
    """Return the class (M,) that ridge regression on the classes' indicators gives."""
    mean, deviation = known.mean(0), known.std(0).clamp_min(1e-6)
    a = torch.cat([(known - mean) / deviation, torch.ones(len(known), 1)], dim=1).double()
    b = torch.cat([(asked - mean) / deviation, torch.ones(len(asked), 1)], dim=1).double()
    target = F.one_hot(classes, n_classes).double()
    # Classes count alike, however few their cells.
    weight = (1 / target.sum(0).clamp_min(1))[classes][:, None]
    gram = (a * weight).T @ a + _RIDGE * torch.eye(a.shape[1], dtype=torch.float64)
    return (b @ torch.linalg.solve(gram, (a * weight).T @ target)).argmax(1)


def collapse_measures(features: Tensor, assigned: Tensor, logits: Tensor) -> dict[str, float]:
    """Return signs of collapse, each of which a healthy training keeps up.

    Args:
        features: (N, F) of cells.
        assigned: (N, K) probabilities over prototypes.
        logits: (N, K) that the teacher's softmax would take.

    Returns:
        "feature_rank" (1 to F: exponential of the entropy of the singular values),
        "prototypes_used" (0 to 1: perplexity of the nearest prototypes over K), "teacher_entropy"
        (0 to 1: of one assignment, mean over samples), "collapsed" (0 or 1).

    Source: arXiv:2210.02885 (RankMe).
    """
    singular = torch.linalg.svdvals((features - features.mean(0)).double())
    share = singular / singular.sum().clamp_min(1e-12)
    rank = float((-(share * (share + 1e-12).log()).sum()).exp())
    k = assigned.shape[1]
    counts = torch.bincount(logits.argmax(1), minlength=k).double()
    use = counts / counts.sum()
    used = float((-(use * (use + 1e-12).log()).sum()).exp()) / k
    entropy = -(assigned * (assigned + 1e-12).log()).sum(-1).mean() / log(k)
    collapsed = rank < _COLLAPSED_RANK or used < _COLLAPSED_USE
    return {
        "feature_rank": round(rank, 3),
        "prototypes_used": round(used, 4),
        "teacher_entropy": round(float(entropy), 4),
        "collapsed": float(collapsed),
    }
