"""Self-distillation of volumes: what a batch, a loss and a validation of pre-training are."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor, nn

from qinjing.data.cache import CachedCase
from qinjing.data.patches import batch_of_patches, draw_cases
from qinjing.data.transforms import augmentation_from_config
from qinjing.engine import parallel
from qinjing.errors import ConfigError
from qinjing.losses.clustering import OnlineKMeans
from qinjing.losses.self_distillation import (
    centred_softmax,
    distillation_loss,
    koleo_loss,
    masked_reconstruction_loss,
    sinkhorn,
)
from qinjing.nets.blocks import Triple
from qinjing.nets.pretrainer import Pretrainer
from qinjing.tasks.consented import Keep, all_of
from qinjing.tasks.probes import Probe, collapse_measures

STUDENT, TEACHER = 0.1, 0.05  # temperatures
CENTRE_DECAY = 0.9
LEAST_MAP = 3  # voxels of the coarsest map along an axis that was halved


@dataclass(frozen=True)
class Objective:
    """Which parts pre-training has, and how heavy each is.

    Attributes:
        momentum: the teacher is the average of the student's weights; else the student itself.
        clustering: how samples are assigned to prototypes: "sinkhorn" evenly, "kmeans" to running
            means of features, "none" by a centred softmax.
        masking: share of cells hidden from the student.
        image: weight of telling whole crops apart.
        cells: weight of the cells' assignments.
        planes: weight of a planar network, which sees slices along the three axes and shares the
            prototypes; 0 goes without it.
        reconstruction: weight of the hidden voxels' grey values.
        koleo: weight of spreading whole-crop embeddings.
        local_crops: small crops a volume and step.
    """

    momentum: bool = True
    clustering: str = "sinkhorn"
    masking: float = 0.5
    image: float = 0.5
    cells: float = 1.0
    planes: float = 0.5
    reconstruction: float = 1.0
    koleo: float = 0.05
    local_crops: int = 1

    def __post_init__(self) -> None:
        if self.clustering not in ("sinkhorn", "kmeans", "none"):
            raise ConfigError("clustering", "sinkhorn, kmeans or none", self.clustering)
        if not 0 <= self.masking < 1:
            raise ConfigError("masking", "from 0 to below 1", self.masking)
        weights = (self.image, self.cells, self.planes, self.reconstruction, self.koleo)
        if min(weights) < 0 or max(weights) == 0 or self.local_crops < 0:
            raise ConfigError("weights of the objective", "0 or more, and one above 0", weights)


@dataclass
class _Drawn:
    """What a step drew beside its images."""

    corners: list[Triple]  # of the local crops, in voxels
    planes: Triple  # a slice's index across D, H and W


class SelfDistillation:
    """Learn features of which a teacher, the student's own past, tells what it sees.

    Two views of one crop differ in grey values alone. The teacher sees the first; the student sees
    the second with cells hidden, and is to give each cell and the whole crop the prototypes that
    the teacher gives them; a small crop of a third view likewise, and its planar twin from slices.

    Args:
        net: trunk and heads.
        cases: prepared volumes; their labels are not looked at.
        patch_size: voxels of a crop, a multiple of the cell.
        batch_size: volumes a step.
        spatial: augmentation of the crop, before the views part; see `augmentation_from_config`.
        intensity: augmentation of each view.
        objective: the parts.
        probe: measures features on labelled cases, None without any.
        seed: with a step and a rank it decides every draw.
        stride: of the trunk's coarsest map.
        device: where views are made.
    """

    def __init__(
        self,
        net: Pretrainer,
        cases: Sequence[CachedCase],
        patch_size: Triple,
        batch_size: int,
        spatial: Sequence[dict[str, object]],
        intensity: Sequence[dict[str, object]],
        objective: Objective,
        probe: Probe | None,
        seed: int,
        stride: Triple = (8, 8, 8),
        device: str = "cpu",
    ) -> None:
        self.net = net
        self.cases, self.patch_size, self.batch_size = cases, patch_size, batch_size
        self.spatial = augmentation_from_config(list(spatial))
        self.intensity = augmentation_from_config(list(intensity))
        self.objective, self.probe, self.seed, self.device = objective, probe, seed, device
        self.local_size = _local_size(patch_size, net.cell, stride)
        self.teacher: Pretrainer = net
        if objective.clustering == "kmeans":
            net.add_module("kmeans", OnlineKMeans(*net.cell_head.prototypes.weight.shape))
        elif objective.clustering == "none":
            clusters = len(net.cell_head.prototypes.weight)
            net.register_buffer("cell_centre", torch.zeros(clusters))
            net.register_buffer("image_centre", torch.zeros(clusters))
        self.drawn = _Drawn([], (0, 0, 0))
        self.keep: Keep = all_of  # of the cases those that may still be used

    def follow(self, average: Mapping[str, Tensor]) -> None:
        """Let the teacher's weights be the average that the loop keeps."""
        if self.objective.momentum:
            self.teacher = copy.deepcopy(self.net).requires_grad_(False)
            self.teacher.load_state_dict(dict(average), assign=True)
            self.teacher.requires_grad_(False)

    def batch(self, step: int, rank: int) -> tuple[Tensor, Tensor]:
        """Return views (V·B, 1, D, H, W) and which voxels are hidden, (B, 1, D, H, W).

        First the B views of the teacher, then the student's, then those that the local crops are
        cut from.
        """
        rng = np.random.default_rng((self.seed, 2, step, rank))
        across = step * parallel.world_size() + rank
        kept = self.keep(self.cases, step)
        picks = draw_cases(len(kept), self.batch_size, across, self.seed)
        cases = [one_channel(kept[pick], rng) for pick in picks]
        images, labels = batch_of_patches(rng, cases, self.patch_size, 0.0, self.spatial.margin)
        images, labels = images.to(self.device), labels.to(self.device)
        drawn = self.spatial.draw(rng, self.batch_size)
        images, labels = self.spatial.apply(images, labels, drawn)
        views = [
            self.intensity.apply(images, labels, self.intensity.draw(rng, self.batch_size))[0]
            for _ in range(3 if self.objective.local_crops else 2)
        ]
        masked = torch.from_numpy(self._masks(rng)).to(self.device)
        cell = self.net.cell
        room = [n - k for n, k in zip(self.patch_size, self.local_size, strict=True)]
        corners = [
            tuple(int(c * rng.integers(r // c + 1)) for r, c in zip(room, cell, strict=True))
            for _ in range(self.objective.local_crops)
        ]
        planes = tuple(int(rng.integers(n)) for n in self.patch_size)
        self.drawn = _Drawn(corners, planes)  # type: ignore[arg-type]  # of three each
        return torch.cat(views), masked

    def loss(self, inputs: Tensor, targets: Tensor, share: float) -> Tensor:
        """Return the weighted sum of the objective's parts."""
        wanted, n = self.objective, self.batch_size
        views = inputs[n : 2 * n]
        targets = targets.to(inputs.dtype)
        with torch.no_grad():
            seen = self.teacher.features(inputs[:n])
            embedding, scores = self.teacher.cell_head(self.teacher.tokens(seen))
            if wanted.clustering == "kmeans":  # once a step, before anything is compared with it
                self._kmeans().update(embedding.flatten(0, -2))
            cells = self._assign("cell", embedding, scores)
            whole = self._assign("image", *self.teacher.image_head(self.teacher.whole(seen)))
        features = self.net.features(views, targets if wanted.masking else None)
        tokens = self.net.tokens(features)
        hidden = self.net.tokens(targets)[..., 0] if wanted.masking else None
        total = features.sum() * 0.0
        if wanted.cells:
            scores = self.net.cell_head(tokens)[1]
            scores = self._student_scores(scores, tokens)
            weight = None if hidden is None else (0.5 + hidden).flatten()
            part = distillation_loss(scores.flatten(0, 1), cells.flatten(0, 1), STUDENT, weight)
            total = total + wanted.cells * part
        embedding, scores = self.net.image_head(self.net.whole(features))
        if wanted.image:
            total = total + wanted.image * distillation_loss(scores, whole, STUDENT)
        if wanted.koleo:
            total = total + wanted.koleo * koleo_loss(embedding)
        if wanted.reconstruction and wanted.masking:
            predicted = self.net.reconstruct(features)
            part = masked_reconstruction_loss(predicted, views, targets)
            total = total + wanted.reconstruction * part
        for corner in self.drawn.corners:
            total = total + self._local(inputs[2 * n :], corner, cells, whole)
        if wanted.planes:
            total = total + wanted.planes * self._planes(inputs[:n], features, cells)
        return total

    def validate(self, net: nn.Module) -> dict[str, float]:
        """Return what the probe finds, and the signs of collapse; "score" is the probe's."""
        assert isinstance(net, Pretrainer)
        rng = np.random.default_rng((self.seed, 3))
        kept = self.keep(self.cases)
        picks = rng.permutation(len(kept))[:16]
        images = [one_channel(kept[pick], rng) for pick in picks]
        with torch.inference_mode():
            patches, _ = batch_of_patches(rng, images, self.patch_size, 0.0)
            maps = torch.cat([net.features(p[None].to(self.device)) for p in patches])
            tokens = net.tokens(maps).flatten(0, 1).float()
            _, scores = net.cell_head(tokens)
        measures = collapse_measures(tokens, sinkhorn(scores, TEACHER), scores / TEACHER)
        left = {id(case) for case in kept}
        known, asked = (
            (
                [case for case in part if id(case) in left]
                for part in (self.probe.known, self.probe.asked)
            )
            if self.probe
            else ([], [])
        )
        if self.probe and known and asked:
            measures |= replace(self.probe, known=known, asked=asked).measure(net)
        score = measures.get("knn_dice", measures["feature_rank"])
        return {**measures, "score": score}

    def _assign(self, head: str, embedding: Tensor, scores: Tensor) -> Tensor:
        """Probabilities (…, K) of a batch of samples, by the objective's clustering."""
        how, flat = self.objective.clustering, scores.flatten(0, -2)
        if how == "kmeans" and head == "cell":
            found = (self._kmeans()(embedding.flatten(0, -2)) / TEACHER).softmax(-1)
        elif how == "none":
            centre = self.net.get_buffer(f"{head}_centre")
            found = centred_softmax(flat, centre, TEACHER)
            centre.lerp_(flat.float().mean(0), 1 - CENTRE_DECAY)
        else:
            found = sinkhorn(flat, TEACHER)
        return found.view(scores.shape)

    def _student_scores(self, scores: Tensor, tokens: Tensor) -> Tensor:
        """Similarities to the prototypes that the teacher's assignment was made with."""
        if self.objective.clustering != "kmeans":
            return scores
        embedding = self.net.cell_head(tokens)[0]
        return torch.as_tensor(self._kmeans()(embedding.flatten(0, -2))).view(scores.shape)

    def _kmeans(self) -> OnlineKMeans:
        kmeans = self.net.get_submodule("kmeans")
        assert isinstance(kmeans, OnlineKMeans)
        return kmeans

    def _local(self, views: Tensor, corner: Triple, cells: Tensor, whole: Tensor) -> Tensor:
        """A small crop is to see what the teacher saw there, and of what whole it is a part."""
        d, h, w = (slice(c, c + n) for c, n in zip(corner, self.local_size, strict=True))
        features = self.net.features(views[:, :, d, h, w].contiguous())
        tokens = self.net.tokens(features)
        grid = [n // c for n, c in zip(self.patch_size, self.net.cell, strict=True)]
        there = cells.view(len(cells), *grid, -1)
        box = tuple(
            slice(c // k, c // k + n // k)
            for c, n, k in zip(corner, self.local_size, self.net.cell, strict=True)
        )
        wanted = there[(slice(None), *box)].flatten(1, 3)
        scores = self._student_scores(self.net.cell_head(tokens)[1], tokens)
        part = self.objective.cells * distillation_loss(
            scores.flatten(0, 1), wanted.flatten(0, 1), STUDENT
        )
        _, scores = self.net.image_head(self.net.whole(features))
        part = part + self.objective.image * distillation_loss(scores, whole, STUDENT)
        return part / max(1, self.objective.local_crops)

    def _planes(self, views: Tensor, features: Tensor, cells: Tensor) -> Tensor:
        """Slices along three axes and the volume are to agree where they cross.

        The planar network learns the volume's cells, and the volume what the planar teacher saw.
        """
        total = views.sum() * 0.0
        grid = [n // c for n, c in zip(self.patch_size, self.net.cell, strict=True)]
        there = cells.view(len(cells), *grid, -1)
        for axis, index in enumerate(self.drawn.planes):
            index = min(index, grid[axis] * self.net.cell[axis] - 1)
            plane = self.net.plane_features(views, axis, index)
            tokens = self.net.tokens(plane, axis)
            row = index // self.net.cell[axis]
            wanted = there.narrow(axis + 1, row, 1).flatten(1, 3)
            scores = self._student_scores(self.net.cell_head(tokens)[1], tokens)
            part = distillation_loss(scores.flatten(0, 1), wanted.flatten(0, 1), STUDENT)
            with torch.no_grad():
                seen = self.teacher.plane_features(views, axis, index)
                back = self._assign(
                    "cell", *self.teacher.cell_head(self.teacher.tokens(seen, axis))
                )
            across = self.net.tokens(features.narrow(axis + 2, index, 1), axis)
            scores = self._student_scores(self.net.cell_head(across)[1], across)
            part = part + distillation_loss(scores.flatten(0, 1), back.flatten(0, 1), STUDENT)
            total = total + part / 6
        return total

    def _masks(self, rng: np.random.Generator) -> np.ndarray:
        """Which voxels are hidden, whole cells at a time, (B, 1, D, H, W) float32."""
        cell, n = self.net.cell, self.batch_size
        grid = [ceil(size / length) for size, length in zip(self.patch_size, cell, strict=True)]
        count = round(self.objective.masking * prod(grid))
        out = np.zeros((n, prod(grid)), np.float32)
        for row in out:
            row[rng.permutation(prod(grid))[:count]] = 1
        out = out.reshape(n, 1, *grid)
        for axis, length in enumerate(cell):
            out = np.repeat(out, length, axis=axis + 2)
        d, h, w = self.patch_size
        return np.ascontiguousarray(out[:, :, :d, :h, :w])


def one_channel(case: CachedCase, rng: np.random.Generator) -> CachedCase:
    """Return the case with one of its channels, drawn, and without its label's places.

    A trunk takes images of any modality; with or without labels it draws the same.
    """
    channel = int(rng.integers(len(case.image)))
    return replace(case, image=case.image[channel : channel + 1], foreground=())


def _local_size(patch_size: Triple, cell: Triple, stride: Triple) -> Triple:
    """Half of a crop in whole cells, and no fewer voxels than make three on the coarsest map.

    Over two slices oneDNN's bfloat16 weight gradient reads memory that nothing was written to
    (torch 2.13).
    """
    least = [LEAST_MAP * s for s in stride]
    sizes = []
    for n, c, m in zip(patch_size, cell, least, strict=True):
        half = max(c, n // 2 // c * c, -(-m // c) * c)
        sizes.append(min(half, n // c * c))
    d, h, w = sizes
    return d, h, w
