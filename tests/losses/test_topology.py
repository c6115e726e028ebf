"""Topology losses against GUDHI's diagrams, MONAI's clDice, finite differences and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.losses.test_persistence import peers_diagrams

from qinjing.errors import ConfigError
from qinjing.losses import CentrelineDiceLoss, TopologyLoss

pytest.importorskip("numba")


def logits_of(probability: np.ndarray) -> torch.Tensor:
    """Logits (1, 2, D, H, W) whose softmax gives class 1 these probabilities."""
    odds = torch.logit(torch.from_numpy(np.clip(probability, 1e-12, 1 - 1e-12)))
    return torch.stack([torch.zeros_like(odds), odds])[None]


def ring(gap: float = 0.9) -> np.ndarray:
    """A ring of 0.9 on a ground of 0.2 with a weak place."""
    image = np.full((1, 7, 7), 0.2)
    image[0, 1:6, 1:6] = 0.9
    image[0, 2:5, 2:5] = 0.2
    image[0, 1, 3] = gap
    return image


def test_a_ring_by_hand() -> None:
    target = torch.from_numpy(ring() > 0.5).long()[None]
    # Loop (0.6, 0.2) against (1, 0): √(0.4² + 0.2²); component 0.9 against 1.
    loss = TopologyLoss()(logits_of(ring(0.6)), target)
    assert float(loss) == pytest.approx(np.sqrt(0.4**2 + 0.2**2) + 0.1, abs=1e-9)
    # Truth without a loop: it goes to the diagonal.
    filled = torch.zeros_like(target)
    filled[..., 1:6, 1:6] = 1
    loss = TopologyLoss(weights=(0, 3, 0), order=1, inner_norm=float("inf"))
    assert float(loss(logits_of(ring(0.6)), filled)) == pytest.approx(3 * 0.4 / 2)
    # A prediction without one: the truth's goes there.
    assert float(loss(logits_of(np.where(filled[0] > 0, 0.9, 0.2)), target)) == pytest.approx(1.5)


def test_a_shell_by_hand() -> None:
    probability = np.full((5, 5, 5), 0.1)
    probability[1:4, 1:4, 1:4] = 0.8
    probability[2, 2, 2] = 0.3
    target = torch.from_numpy(probability > 0.5).long()[None]
    loss = TopologyLoss(weights=(0, 0, 1))(logits_of(probability), target)
    assert float(loss) == pytest.approx(np.hypot(0.2, 0.3))


def test_the_slope_closes_a_gap_and_removes_a_speck() -> None:
    probability = ring(0.4)
    probability[0, 0, 6] = 0.2
    probability = np.pad(probability, ((0, 0), (0, 3), (0, 3)), constant_values=0.2)
    probability[0, 8, 8] = 0.7  # a speck
    target = torch.from_numpy(ring() > 0.5).long()
    target = torch.nn.functional.pad(target, (0, 3, 0, 3))[None]
    logits = logits_of(probability).requires_grad_()
    TopologyLoss()(logits, target).backward()
    slope = logits.grad[0, 1, 0]
    assert slope[1, 3] < 0 < slope[8, 8]
    assert (slope != 0).sum() <= 8  # only the voxels that open or close something


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 8, 9)], ids=["3-D", "one slice"])
@pytest.mark.parametrize("order", [1.0, 2.0])
@pytest.mark.parametrize("inner_norm", [2.0, float("inf")])
def test_loss_equals_the_same_made_with_gudhi(
    shape: tuple[int, ...], order: float, inner_norm: float
) -> None:
    distance = pytest.importorskip("gudhi.wasserstein").wasserstein_distance
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 3, *shape)))
    target = torch.from_numpy(rng.integers(0, 3, (2, *shape)))
    weights, expected = (0.5, 1.0, 2.0), 0.0
    for sample, truth in zip(torch.softmax(logits, 1).numpy(), target.numpy(), strict=True):
        for label in (1, 2):
            true = (truth == label).squeeze().astype(float)
            pairs = zip(peers_diagrams(sample[label].squeeze()), peers_diagrams(true), strict=True)
            for weight, (one, other) in zip(weights, pairs, strict=True):
                # Superlevel sets with birth above death, turned over for GUDHI.
                cost = distance(1 - one, 1 - other, order=order, internal_p=inner_norm,
                                keep_essential_parts=True)  # fmt: skip
                expected += weight * cost / 4
    loss = TopologyLoss(weights, order, inner_norm)(logits, target)
    assert float(loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("order", [1.0, 2.0])
@pytest.mark.parametrize("inner_norm", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("downsample", [1, 2])
def test_slope_equals_finite_differences(order: float, inner_norm: float, downsample: int) -> None:
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(1, 2, 3, 4, 5))).requires_grad_()
    target = torch.from_numpy(rng.integers(0, 2, (1, 3, 4, 5)))
    loss = TopologyLoss(order=order, inner_norm=inner_norm, downsample=downsample)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))


def test_a_class_that_is_not_there_pulls_its_highest_voxel_down() -> None:
    logits = torch.randn(1, 2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    TopologyLoss(weights=(1, 0, 0))(logits, torch.zeros(1, 1, 6, 6).long()).backward()
    highest = torch.softmax(logits, 1)[0, 1].argmax()
    assert logits.grad[0, 1].flatten()[highest] > 0


def test_threads_half_precision_and_samples_do_not_change_the_result() -> None:
    rng = np.random.default_rng(2)
    logits = torch.from_numpy(rng.normal(size=(3, 3, 5, 6, 7)).astype(np.float32))
    target = torch.from_numpy(rng.integers(0, 3, (3, 5, 6, 7)))
    loss, threads = TopologyLoss(), torch.get_num_threads()
    one_by_one = [float(loss(logits[n : n + 1], target[n : n + 1])) for n in range(3)]
    try:
        torch.set_num_threads(4)
        together = loss(logits, target)
    finally:
        torch.set_num_threads(threads)
    assert float(together) == pytest.approx(np.mean(one_by_one), abs=1e-6)
    half = loss(logits.bfloat16(), target)
    assert torch.equal(half, loss(logits.bfloat16().float(), target))


def test_cropping_sees_what_differs_and_nothing_else() -> None:
    truth = np.zeros((1, 12, 12), bool)
    truth[0, 2:4, 2:10] = True
    probability = np.where(truth, 0.9, 0.1)
    target = torch.from_numpy(truth).long()[None]
    cropped = TopologyLoss(crop_margin=1)
    logits = logits_of(probability).requires_grad_()
    right = cropped(logits, target)
    assert float(right.detach()) == 0
    right.backward()
    assert not logits.grad.any()
    probability[0, 9, 9] = 0.8  # a speck: inside the box there is a component too many
    assert float(cropped(logits_of(probability), target)) == pytest.approx(0.8, abs=1e-6)


def test_averaged_blocks_of_a_right_answer_cost_nothing() -> None:
    target = torch.randint(0, 2, (2, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    sure = torch.nn.functional.one_hot(target, 2).movedim(-1, 1) * 200.0
    assert float(TopologyLoss(downsample=2)(sure, target)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [("weights", (1, 1)), ("weights", (1, -1, 1)), ("order", 0.5), ("inner_norm", float("nan")),
     ("downsample", 0), ("crop_margin", -1)],
)  # fmt: skip
def test_arguments_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        TopologyLoss(**{name: value})


@pytest.mark.parametrize("depth", [1, 9])
@pytest.mark.parametrize("classes", [2, 3])
def test_centreline_dice_equals_monais(depth: int, classes: int) -> None:
    monai = pytest.importorskip("monai.losses")
    logits = torch.randn(2, classes, depth, 12, 13, generator=torch.Generator().manual_seed(0))
    target = torch.randint(
        0, classes, (2, depth, 12, 13), generator=torch.Generator().manual_seed(1)
    )
    truth = torch.nn.functional.one_hot(target, classes).movedim(-1, 1).float()
    peer = monai.SoftclDiceLoss(iter_=2, softmax=True, include_background=False, smooth=1e-12)
    inputs = (logits, truth) if depth > 1 else (logits.squeeze(2), truth.squeeze(2))
    torch.testing.assert_close(CentrelineDiceLoss(iterations=2)(logits, target), peer(*inputs))
    with pytest.raises(ConfigError, match="iterations"):
        CentrelineDiceLoss(-1)
    with pytest.raises(ConfigError, match="smooth"):
        CentrelineDiceLoss(smooth=0)
