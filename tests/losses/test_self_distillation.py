"""Learning from a teacher against torch's own losses, SciPy's clusters and values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2

from qinjing.losses.clustering import OnlineKMeans
from qinjing.losses.self_distillation import (
    centred_softmax,
    distillation_loss,
    koleo_loss,
    masked_reconstruction_loss,
    sinkhorn,
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_sinkhorn_gives_every_prototype_its_share() -> None:
    scores = torch.rand(512, 16) + torch.linspace(0, 0.5, 16)  # the last ones are liked most
    plan = sinkhorn(scores, temperature=0.1, rounds=50)
    torch.testing.assert_close(plan.sum(1), torch.ones(512))
    torch.testing.assert_close(plan.sum(0), torch.full((16,), 32.0), rtol=0.01, atol=0)
    softmax = (scores / 0.1).softmax(1).sum(0)
    assert softmax.max() > 2 * softmax.min()


def test_sinkhorn_equals_the_transport_plan_by_hand() -> None:
    # exp(scores / 1) = [[1, 1], [1, 3]]: one round of columns (2, 4), then rows.
    scores = torch.tensor([[1.0, 1.0], [1.0, 3.0]]).log()
    expected = torch.tensor([[0.5, 0.25], [0.5, 0.75]])
    expected = expected / expected.sum(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(scores, 1.0, 1), expected)


def test_distillation_is_torchs_cross_entropy_with_soft_targets() -> None:
    student, teacher = torch.randn(40, 7, requires_grad=True), torch.rand(40, 7).softmax(1)
    ours = distillation_loss(student, teacher, 0.1)
    torch.testing.assert_close(ours, F.cross_entropy(student / 0.1, teacher))
    chosen = torch.zeros(40)
    chosen[3:9] = 1
    ours = distillation_loss(student, teacher, 0.1, chosen)
    torch.testing.assert_close(ours, F.cross_entropy(student[3:9] / 0.1, teacher[3:9]))
    assert distillation_loss(student, teacher, weight=torch.zeros(40)) == 0


def test_centring_takes_the_liked_prototype_back() -> None:
    scores = torch.randn(64, 8) * 0.01 + torch.eye(8)[2]
    assert (scores.argmax(1) == 2).all()
    found = centred_softmax(scores, scores.mean(0))
    assert len(found.argmax(1).unique()) > 4
    torch.testing.assert_close(found.sum(1), torch.ones(64))


def test_koleo_by_hand_and_its_push() -> None:
    # Two unit vectors 60 degrees apart lie 1 from each other: log 1 = 0; opposite ones lie 2.
    near = torch.tensor([[1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    assert abs(float(koleo_loss(near))) < 1e-6
    assert float(koleo_loss(torch.tensor([[1.0, 0.0], [-3.0, 0.0]]))) == pytest.approx(-math.log(2))
    assert koleo_loss(near[:1]) == 0
    x = near.clone().requires_grad_()
    koleo_loss(x).backward()
    assert x.grad is not None
    moved = F.normalize(near - 0.1 * x.grad, dim=1)
    assert (moved[0] - moved[1]).norm() > 1


def test_reconstruction_counts_hidden_voxels_alone() -> None:
    image = torch.randn(1, 2, 2, 2, 2)
    masked = torch.zeros(1, 1, 2, 2, 2)
    masked[0, 0, 0] = 1
    wrong = image + 3 * (1 - masked)
    assert masked_reconstruction_loss(wrong, image, masked) == 0
    found = masked_reconstruction_loss(image + 3 * masked, image, masked)
    assert float(found) == pytest.approx(2.5)  # smooth L1 of 3


def test_online_kmeans_finds_scipys_clusters() -> None:
    rng = np.random.default_rng(0)
    middles = np.eye(6)[:4] * 5
    points = np.concatenate([middle + rng.normal(0, 0.3, (200, 6)) for middle in middles])
    x = F.normalize(torch.from_numpy(rng.permutation(points)).float(), dim=1)
    kmeans = OnlineKMeans(4, 6, decay=0.8)
    theirs, label = kmeans2(x.numpy(), 4, seed=1, minit="++")
    kmeans.centroids.copy_(x[[int((label == k).nonzero()[0][0]) for k in range(4)]])
    for _ in range(20):
        for batch in x.split(100):
            kmeans.update(batch)
    theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
    likeness = kmeans.centroids.numpy() @ theirs.T
    assert sorted(likeness.argmax(1)) == [0, 1, 2, 3]
    assert likeness.max(1).min() > 0.995
    torch.testing.assert_close(kmeans(x[:3]), x[:3] @ kmeans.centroids.T)


def test_no_cluster_stays_dead() -> None:
    kmeans = OnlineKMeans(8, 3)
    x = F.normalize(torch.randn(256, 3), dim=1)
    kmeans.centroids.copy_(F.normalize(torch.tensor([[1.0, 1e-3 * i, 0.0] for i in range(8)])))
    for _ in range(60):
        kmeans.update(x)
    assert len(kmeans(x).argmax(1).unique()) == 8
