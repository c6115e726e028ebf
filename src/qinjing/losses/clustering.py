"""Prototypes of features, moved batch by batch to the middle of what was assigned to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OnlineKMeans(nn.Module):
    """Spherical k-means over a stream of batches.

    Each centroid is a running mean of the features nearest to it. A centroid that nothing has come
    to for long is put where a feature of the batch lies, so that none stays dead.

    Args:
        clusters: K.
        channels: C of the features.
        decay: of the running means; near 1 remembers longer.
        least_share: of the even share of samples (1 / K), below which a centroid is moved.

    Source: arXiv:1112.6209's spherical k-means (Coates and Ng, DOI 10.1007/978-3-642-35289-8_30),
        mini-batches after Sculley (DOI 10.1145/1772690.1772862).
    """

    centroids: Tensor
    share: Tensor

    def __init__(
        self, clusters: int, channels: int, decay: float = 0.9, least_share: float = 0.1
    ) -> None:
        super().__init__()
        self.decay, self.least_share = decay, least_share
        self.register_buffer("centroids", F.normalize(torch.randn(clusters, channels), dim=-1))
        self.register_buffer("share", torch.full((clusters,), 1.0 / clusters))

    def forward(self, features: Tensor) -> Tensor:
        """Return similarities (N, K) of features (N, C) to the centroids, −1 to 1."""
        return F.normalize(features.float(), dim=-1) @ self.centroids.T

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Move the centroids by one batch of features (N, C)."""
        x = F.normalize(features.float(), dim=-1)
        nearest = (x @ self.centroids.T).argmax(1)
        clusters = len(self.centroids)
        counts = torch.bincount(nearest, minlength=clusters).to(x.dtype)
        sums = torch.zeros_like(self.centroids).index_add_(0, nearest, x)
        there = counts > 0
        means = F.normalize(sums[there], dim=-1)
        moved = torch.lerp(means, self.centroids[there], self.decay)
        self.centroids[there] = F.normalize(moved, dim=-1)
        self.share.mul_(self.decay).add_(counts / len(x), alpha=1 - self.decay)
        dead = (self.share < self.least_share / clusters).nonzero()[:, 0][: len(x)]
        if len(dead):  # evenly through the batch: no draw, so that a resumed run does the same
            picks = torch.linspace(0, len(x) - 1, len(dead), device=x.device).long()
            self.centroids[dead] = x[picks]
            self.share[dead] = 1.0 / clusters
