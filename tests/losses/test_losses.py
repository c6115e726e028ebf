"""Losses against MONAI's, torch's and values computed by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from qinjing.errors import ConfigError
from qinjing.losses import (
    LOSSES,
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceLoss,
    GeneralisedDiceLoss,
    GradientBoundaryLoss,
    ShapeLoss,
    TopologyLoss,
    TverskyLoss,
    deep_supervision,
)

LOGITS = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(0, 3, (2, 4, 5, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("per_batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_dice_equals_monais(per_batch: bool, background: bool) -> None:
    monai = pytest.importorskip("monai.losses")
    peer = monai.DiceLoss(
        include_background=background, softmax=True, to_onehot_y=True, batch=per_batch,
        smooth_nr=1.0, smooth_dr=1.0,
    )  # fmt: skip
    ours = DiceLoss(1.0, per_batch, background)(LOGITS, TARGET)
    torch.testing.assert_close(ours, peer(LOGITS, TARGET[:, None]))


@pytest.mark.parametrize("per_batch", [False, True])
def test_relatives_of_dice_equal_monais(per_batch: bool) -> None:
    monai = pytest.importorskip("monai.losses")
    how = {"softmax": True, "to_onehot_y": True, "batch": per_batch}
    pairs = [
        (
            DiceLoss(1.0, per_batch, squared=True),
            monai.DiceLoss(
                include_background=False, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0, **how
            ),
        ),
        (GeneralisedDiceLoss(1e-5, per_batch), monai.GeneralizedDiceLoss(**how)),
        (
            TverskyLoss(0.2, 0.8, 1.0, per_batch),
            monai.TverskyLoss(
                include_background=False, alpha=0.2, beta=0.8, smooth_nr=1.0, smooth_dr=1.0, **how
            ),
        ),
    ]
    for target in (TARGET, TARGET.clamp(max=1)):  # the second lacks a class
        for ours, peer in pairs:
            torch.testing.assert_close(ours(LOGITS, target), peer(LOGITS, target[:, None]))


def test_tversky_of_halves_is_dice_and_its_relatives_refuse_what_they_cannot_use() -> None:
    dice = DiceLoss(smooth=2.0)(LOGITS, TARGET)
    torch.testing.assert_close(TverskyLoss(0.5, 0.5, 1.0)(LOGITS, TARGET), dice)
    with pytest.raises(ConfigError, match="alpha, beta and smooth"):
        TverskyLoss(-0.1)
    with pytest.raises(ConfigError, match="smooth"):
        GeneralisedDiceLoss(0.0)


def test_dice_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, -100.0]]).T.reshape(1, 2, 1, 1, 2)
    # Class 1 has probability 1/2 in the first voxel, 0 in the second; truth is 1 in both.
    target = torch.ones(1, 1, 1, 2, dtype=torch.int64)
    loss = DiceLoss(smooth=0.0)(logits, target)
    assert float(loss) == pytest.approx(1 - 2 * 0.5 / (0.5 + 2))
    with pytest.raises(ConfigError, match="smooth"):
        DiceLoss(smooth=-1.0)


def test_cross_entropy_by_hand() -> None:
    logits = torch.log(torch.tensor([0.2, 0.8])).reshape(1, 2, 1, 1, 1)
    loss = CrossEntropyLoss()(logits, torch.ones(1, 1, 1, 1, dtype=torch.int64))
    assert float(loss) == pytest.approx(0.2231436, abs=1e-6)  # −ln 0.8
    with pytest.raises(ConfigError, match="label_smoothing"):
        CrossEntropyLoss(1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_sure_right_answer_costs_nothing_and_gradients_are_right(name: str) -> None:
    loss = LOSSES[name]()
    sure = torch.nn.functional.one_hot(TARGET, 3).movedim(-1, 1).float() * 200
    assert float(loss(sure, TARGET)) == pytest.approx(0, abs=1e-5)
    small = LOGITS[:1, :, :2, :2, :2].double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, TARGET[:1, :2, :2, :2]), (small,))


def test_deep_supervision_weighs_by_halves_and_picks_block_centres() -> None:
    target = torch.zeros(1, 4, 4, 4, dtype=torch.int64)
    target[:, 1::2, 1::2, 1::2] = 1  # just the places that stand for each block
    fine = torch.zeros(1, 2, 4, 4, 4)
    coarse = torch.zeros(1, 2, 2, 2, 2)
    coarse[:, 1] = 100.0
    loss = CrossEntropyLoss()
    expected = 2 / 3 * float(loss(fine, target)) + 1 / 3 * 0.0
    assert float(deep_supervision(loss, (fine, coarse), target)) == pytest.approx(
        expected, abs=1e-6
    )


def test_deep_supervision_knows_where_coarse_voxels_of_padded_images_lie() -> None:
    target = torch.arange(9).view(1, 9, 1, 1)
    seen = []

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(target.flatten().tolist())
        return logits.sum()

    # 9 voxels, padded to 16, are 4 at a stride of 4; the last two lie in the padding.
    deep_supervision(loss, (torch.zeros(1, 2, 9, 1, 1), torch.zeros(1, 2, 4, 1, 1)), target)
    assert seen[1] == [2, 6, 8, 8]


def test_terms_of_shape_come_in_along_the_schedule() -> None:
    pytest.importorskip("numba")
    loss = ShapeLoss(1.0, 0.5, 0.25, 1.0, start=0.4, full=0.8)
    plain = float(DiceCrossEntropyLoss()(LOGITS, TARGET))
    edges = float(GradientBoundaryLoss()(LOGITS, TARGET))
    parts = float(TopologyLoss()(LOGITS, TARGET))
    for share, risen in ((0.0, 0.0), (0.4, 0.0), (0.6, 0.5), (0.8, 1.0), (1.0, 1.0)):
        loss.at(share)
        expected = plain + risen * (0.5 * edges + 0.25 * parts)
        assert float(loss(LOGITS, TARGET)) == pytest.approx(expected, rel=1e-5)


def test_terms_of_shape_may_come_in_at_once() -> None:
    pytest.importorskip("numba")
    loss = ShapeLoss(start=0.5, full=0.5)
    for share, risen in ((0.0, 0.0), (0.49, 0.0), (0.5, 1.0), (1.0, 1.0)):
        loss.at(share)
        assert loss.risen == risen


def test_the_papers_sum_has_no_cross_entropy() -> None:
    pytest.importorskip("numba")
    loss = ShapeLoss(2.0, 3.0, 4.0, 0.0, topology={"weights": (1.0, 0.0, 0.0)})
    expected = (
        2 * DiceLoss()(LOGITS, TARGET)
        + 3 * GradientBoundaryLoss()(LOGITS, TARGET)
        + 4 * TopologyLoss(weights=(1.0, 0.0, 0.0))(LOGITS, TARGET)
    )
    torch.testing.assert_close(loss(LOGITS, TARGET), expected)
    with pytest.raises(ConfigError, match="in order"):
        ShapeLoss(start=0.8, full=0.2)
    with pytest.raises(ConfigError, match="at least 0"):
        ShapeLoss(boundary_weight=-1.0)


def test_coarse_maps_get_no_terms_of_shape() -> None:
    pytest.importorskip("numba")
    loss, coarse = ShapeLoss(), torch.randn(2, 3, 2, 3, 3)
    both = deep_supervision(loss, (LOGITS, coarse), TARGET)
    small = TARGET[:, 1::2, 1::2, 1::2]
    small = torch.nn.functional.pad(small, (0, 0, 0, 1)) if small.shape[2] == 2 else small
    small[:, :, 2] = TARGET[:, 1::2, 4, 1::2]  # an odd axis: the last block has one voxel
    expected = 2 / 3 * loss(LOGITS, TARGET) + 1 / 3 * DiceCrossEntropyLoss()(coarse, small)
    torch.testing.assert_close(both, expected)


def test_without_a_topology_term_numba_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    loss = ShapeLoss(topology_weight=0.0)
    expected = DiceCrossEntropyLoss()(LOGITS, TARGET) + GradientBoundaryLoss()(LOGITS, TARGET)
    torch.testing.assert_close(loss(LOGITS, TARGET), expected)
    with pytest.raises(ConfigError, match=r"numba must be installed.*qinjing\[topology\]"):
        ShapeLoss()
