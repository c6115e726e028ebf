"""Losses against MONAI's, torch's and values computed by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from qinjing.errors import ConfigError
from qinjing.losses import (
    LOSSES,
    BettiMatchingLoss,
    CentrelineDiceLoss,
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceLoss,
    DistanceBoundaryLoss,
    GeneralisedDiceLoss,
    GradientBoundaryLoss,
    ShapeLoss,
    TopologyLoss,
    TverskyLoss,
    deep_supervision,
)
from qinjing.nets import NETS

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
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="alpha, beta and smooth"):
            TverskyLoss(0.5, wrong)
    with pytest.raises(ConfigError, match="alpha or beta must be above 0"):
        TverskyLoss(0.0, 0.0, 0.0)
    with pytest.raises(ConfigError, match="smooth"):
        GeneralisedDiceLoss(0.0)


@pytest.mark.parametrize(
    "loss", [DiceLoss(0.0), DiceLoss(0.0, per_batch=False), TverskyLoss(0.0, 0.5, 0.0)]
)
def test_what_is_not_there_and_not_found_costs_nothing_without_smoothing(
    loss: torch.nn.Module,
) -> None:
    target = torch.zeros_like(TARGET)
    logits = torch.zeros(2, 3, 4, 5, 6)
    logits[:, 0] = 200.0  # the others' probability is 0 to the last bit
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert float(value.detach()) == 0 and not logits.grad.any()
    # Class 1 is there and found, class 2 is neither.
    target[:, 0] = 1
    sure = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) * 200.0
    assert float(loss(sure, target)) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_one_class_is_refused_where_nothing_is_left_of_it(name: str) -> None:
    if name in ("shape", "topology", "betti_matching"):
        pytest.importorskip("numba")
    loss, logits = LOSSES[name](), torch.zeros(1, 1, 2, 2, 2)
    target = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    if name in ("cross_entropy", "generalised_dice"):  # they know the background
        assert float(loss(logits, target)) == 0
        return
    with pytest.raises(ConfigError, match="logits must be of at least 2 classes"):
        loss(logits, target)


def test_dice_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [100.0, -100.0]]).T.reshape(1, 2, 1, 1, 2)
    # Class 1 has probability 1/2 in the first voxel, 0 in the second; truth is 1 in both.
    target = torch.ones(1, 1, 1, 2, dtype=torch.int64)
    loss = DiceLoss(smooth=0.0)(logits, target)
    assert float(loss) == pytest.approx(1 - 2 * 0.5 / (0.5 + 2))
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="smooth"):
            DiceLoss(smooth=wrong)
    for wrong in ((-1.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(ConfigError, match=r"weights must be .* \(dice_ce\)"):
            DiceCrossEntropyLoss(*wrong)


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
    outputs = (torch.zeros(1, 2, 9, 1, 1), torch.zeros(1, 2, 4, 1, 1))
    deep_supervision(loss, outputs, target, (16, 1, 1))
    assert seen[1] == [2, 6, 8, 8]
    # Padded to 12, they are 4 at a stride of 3.
    deep_supervision(loss, outputs, target, (6, 1, 1))
    assert seen[3] == [1, 4, 7, 8]
    with pytest.raises(ConfigError, match=r"whole parts of 9 voxels along D, got 4; .*`multiple`"):
        deep_supervision(loss, outputs, target)
    with pytest.raises(ConfigError, match="whole parts of 10 voxels along D, got 4"):
        deep_supervision(loss, outputs, target, (5, 1, 1))
    for wrong in ((0, 1, 1), (2, 2)):
        with pytest.raises(ConfigError, match="multiple must be three numbers"):
            deep_supervision(loss, outputs, target, wrong)


def places(full: int, coarse: tuple[int, ...], multiple: int | None) -> list[list[int]]:
    """Which voxel along one axis each coarse voxel is held against, for each coarse output."""
    seen = []

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(target.flatten().tolist())
        return logits.sum()

    outputs = [torch.zeros(1, 2, n, 1, 1) for n in (full, *coarse)]
    given = None if multiple is None else (multiple, 1, 1)
    deep_supervision(loss, outputs, torch.arange(full).view(1, full, 1, 1), given)
    return seen[1:]


@pytest.mark.parametrize(
    ("full", "coarse", "multiple", "expected"),
    [
        (4, (4, 2), 8, [[1, 3, 3, 3], [2, 3]]),  # padded to 8
        (4, (4, 2), 4, [[0, 1, 2, 3], [1, 3]]),  # the same lengths, not halved at first
        (4, (8, 4, 2), 16, [[1, 3, 3, 3, 3, 3, 3, 3], [2, 3, 3, 3], [3, 3]]),
        (4, (4, 2), None, [[0, 1, 2, 3], [1, 3]]),
        (2, (2, 2), None, [[0, 1], [0, 1]]),  # two slices that are never halved
        (4, (2,), None, [[1, 3]]),
        (1, (4, 2), 8, [[0, 0, 0, 0], [0, 0]]),
        (1, (4, 2), None, None),
        (5, (4, 2), 8, [[1, 3, 4, 4], [2, 4]]),
        (5, (4, 2), None, None),
        (17, (12, 6), 24, [[*range(1, 17, 2), 16, 16, 16, 16], [2, 6, 10, 14, 16, 16]]),
        (9, (3,), None, [[1, 4, 7]]),
        (25, (9, 3), 27, [[1, 4, 7, 10, 13, 16, 19, 22, 24], [4, 13, 22]]),
        (3, (9, 3), 27, [[1, 2, 2, 2, 2, 2, 2, 2, 2], [2, 2, 2]]),
        (4, (2, 8), None, None),
    ],
)
def test_coarse_voxels_are_held_against_what_lies_at_their_centre(
    full: int, coarse: tuple[int, ...], multiple: int | None, expected: list[list[int]] | None
) -> None:
    if expected is None:
        with pytest.raises(ConfigError, match="pass the network's total strides as `multiple`"):
            places(full, coarse, multiple)
    else:
        assert places(full, coarse, multiple) == expected


@pytest.mark.parametrize("name", ["subvoxel_unet", "residual_unet"])
def test_deep_supervision_fits_what_networks_return(name: str) -> None:
    net = NETS[name](1, 2)
    image = torch.rand(1, 1, 4, 13, 16)
    outputs = net(image)
    target = (image[:, 0] > 0.5).long()
    padded = torch.nn.functional.pad(image, (0, 0, 0, 3, 0, 4), mode="replicate")[:, 0]
    seen = []

    def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(target)
        return logits.sum()

    deep_supervision(loss, outputs, target, net.multiple)
    for output, held in zip(outputs[1:], seen[1:], strict=True):
        d, h, w = (n // m for n, m in zip((8, 16, 16), output.shape[2:], strict=True))
        centres = (padded > 0.5).long()[:, d // 2 :: d, h // 2 :: h, w // 2 :: w]
        assert torch.equal(held, centres)
    with pytest.raises(ConfigError, match="along H, got 8, 4; pass"):
        deep_supervision(loss, outputs, target)


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


@pytest.mark.parametrize(
    ("boundary", "edges"), [("boundary", GradientBoundaryLoss), ("distance", DistanceBoundaryLoss)]
)
@pytest.mark.parametrize(
    ("topology", "parts", "options"),
    [
        ("topology", TopologyLoss, {"order": 1.0}),
        ("betti_matching", BettiMatchingLoss, {"weights": (1.0, 0.5, 0.0)}),
        ("cldice", CentrelineDiceLoss, {"iterations": 2}),
    ],
)
def test_any_term_of_shape_can_be_added(
    boundary: str, edges: type, topology: str, parts: type, options: dict
) -> None:
    pytest.importorskip("numba")
    loss = LOSSES["shape"](
        2.0, 3.0, 4.0, 5.0, topology=options, boundary_term=boundary, topology_term=topology
    )
    expected = (
        2 * DiceLoss()(LOGITS, TARGET)
        + 3 * edges()(LOGITS, TARGET)
        + 4 * parts(**options)(LOGITS, TARGET)
        + 5 * CrossEntropyLoss()(LOGITS, TARGET)
    )
    torch.testing.assert_close(loss(LOGITS, TARGET), expected)
    assert LOSSES[boundary] is edges and LOSSES[topology] is parts


@pytest.mark.parametrize("weight", [0.0, 1.0])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"boundary_term": "distanz"}, "one of boundary, distance, got distanz; did you mean dist"),
        ({"topology_term": "betti"}, "one of topology, betti_matching, cldice, got betti"),
        ({"topology": {"weight": (1, 1, 1)}}, r"one of weights, order, .*, got weight"),
        ({"topology": {"iterations": 3}}, "got iterations"),
        ({"topology_term": "cldice", "topology": {"order": 1}}, "one of iterations, smooth, got o"),
        ({"topology": "cldice"}, "options of its term, got cldice .*topology_term"),
        ({"topology": {"weights": (1, -1, 1)}}, "weights must be three"),
    ],
)
def test_wrong_terms_and_options_are_refused_whatever_their_weight(
    weight: float, wrong: dict, said: str
) -> None:
    pytest.importorskip("numba")
    with pytest.raises(ConfigError, match=said):
        ShapeLoss(boundary_weight=weight, topology_weight=weight, **wrong)


def test_coarse_maps_get_no_terms_of_shape() -> None:
    pytest.importorskip("numba")
    loss, coarse = ShapeLoss(), torch.randn(2, 3, 2, 3, 3)
    both = deep_supervision(loss, (LOGITS, coarse), TARGET, (2, 2, 2))
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
    with pytest.raises(ConfigError, match="got weight"):
        ShapeLoss(topology_weight=0.0, topology={"weight": (1, 1, 1)})
    assert torch.isfinite(ShapeLoss(topology_term="cldice")(LOGITS, TARGET))
