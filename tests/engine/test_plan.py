"""Plans: nnU-Net's published topologies, thick slices, odd shapes."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qinjing.config import read_config, write_json
from qinjing.data.fingerprint import CaseFingerprint, ChannelIntensity, Fingerprint
from qinjing.engine.plan import Plan, make_plan, patch_size, stages, target_spacing_mm
from qinjing.nets import NETS


def fingerprint(
    shape: tuple[int, int, int],
    spacings: list[tuple[float, float, float]],
    channel: str = "MRI",
) -> Fingerprint:
    cases = tuple(
        CaseFingerprint(f"c{i}", shape, s, {0: 9, 1: 1}, shape, 1.0) for i, s in enumerate(spacings)
    )
    seen = (ChannelIntensity(40.0, 60.0, -100.0, 250.0),)
    return Fingerprint("d", (channel,), {0: "background", 1: "organ"}, cases, seen)


def test_thick_slices_are_treated_slice_by_slice_until_the_plane_is_as_coarse() -> None:
    strides, kernels = stages(np.array([10, 144, 144]), (8.0, 1.5, 1.5), 5, fold=True)
    assert strides[0] == (1, 2, 2) and kernels[0] == (1, 3, 3)
    assert kernels[-1] == (3, 3, 3)
    assert [s[0] for s in strides] == [1, 1, 2, 1, 1]


def test_an_isotropic_grid_is_halved_alike() -> None:
    strides, kernels = stages(np.array([36, 50, 35]), (1.0, 1.0, 1.0), 4, fold=True)
    assert strides == ((2, 2, 2),) * 3  # a fourth would leave fewer than four voxels
    assert kernels == ((3, 3, 3),) * 3


def test_one_slice_is_a_plane() -> None:
    plan = make_plan(fingerprint((1, 64, 64), [(1.0, 1.0, 1.0)]), device="cpu", threads=1)
    assert plan.patch_size[0] == 1
    net = plan.model.build().eval()
    with torch.no_grad():
        assert net(torch.zeros(1, 1, 1, 64, 64)).shape == (1, 2, 1, 64, 64)


def test_the_patch_keeps_to_its_voxels_and_its_multiple() -> None:
    patch = patch_size(np.array([300, 512, 512]), (8, 16, 16), 450_000)
    assert all(n % m == 0 for n, m in zip(patch, (8, 16, 16), strict=True))
    assert prod(patch) <= 1.3 * 450_000
    assert patch_size(np.array([36, 50, 35]), (8, 8, 8), 450_000) == (40, 56, 40)


def test_the_patch_holds_the_labels_and_a_margin_not_the_whole_scan() -> None:
    seen = fingerprint((100, 100, 100), [(1.0, 1.0, 1.0)])
    case = replace(seen.cases[0], extent=(40, 30, 4))
    plan = make_plan(replace(seen, cases=(case,)), device="cpu", threads=1)
    multiple = plan.model.build().multiple[0]  # type: ignore[union-attr, index]
    wanted = (50, 37.5, 32)
    assert plan.patch_size == tuple(int(-(-n // multiple) * multiple) for n in wanted)


def test_a_prediction_keeps_one_piece_only_where_every_truth_is_one() -> None:
    seen = fingerprint((32, 32, 32), [(1.0, 1.0, 1.0)] * 2)
    assert make_plan(seen, device="cpu", threads=1).one_piece
    apart = replace(seen.cases[1], largest_piece=0.99)  # a satellite lesion
    seen = replace(seen, cases=(seen.cases[0], apart))
    assert not make_plan(seen, device="cpu", threads=1).one_piece


def test_wider_stages_learn_at_a_lower_rate() -> None:
    small = make_plan(fingerprint((36, 50, 35), [(1.0, 1.0, 1.0)]), device="cpu", threads=1)
    thick = make_plan(fingerprint((10, 144, 144), [(8.0, 1.5, 1.5)]), device="cpu", threads=1)
    assert (small.fit.learning_rate, thick.fit.learning_rate) == (4e-3, 2e-3)
    narrow = make_plan(
        fingerprint((10, 144, 144), [(8.0, 1.5, 1.5)]), device="cpu", threads=1, net="unet"
    )
    assert len(narrow.model.options["strides"]) == 4 and narrow.fit.learning_rate == 4e-3


def test_updates_are_orthogonal_where_that_pays() -> None:
    seen = fingerprint((36, 50, 35), [(1.0, 1.0, 1.0)])
    plans = {net: make_plan(seen, device="cpu", threads=1, net=net) for net in NETS}
    kept = {net for net, plan in plans.items() if plan.fit.optimiser == "adamw"}
    assert kept == {"subvoxel_unet", "unetr"}


def test_spacing_is_the_median_and_finer_along_thick_slices_that_vary() -> None:
    assert target_spacing_mm(fingerprint((9, 9, 9), [(1.0, 2.0, 2.0), (1.0, 1.0, 1.0)])) == (
        1.0, 1.5, 1.5,
    )  # fmt: skip
    thick = [(4.0, 1.0, 1.0)] * 2 + [(8.0, 1.0, 1.0)] * 8
    assert target_spacing_mm(fingerprint((9, 9, 9), thick))[0] == pytest.approx(4.0)


def test_only_ct_is_windowed() -> None:
    for channel, scheme in (("CT", "ct"), ("T1", "zscore")):
        plan = make_plan(fingerprint((32, 32, 32), [(1, 1, 1)], channel), device="cpu", threads=1)
        assert plan.preprocessing.normalisation[0].scheme == scheme


def test_prediction_mirrors_only_what_training_did() -> None:
    plan = make_plan(fingerprint((32, 32, 32), [(1, 1, 1)]), device="cpu", threads=1)
    assert plan.flips == ()
    assert all(transform["name"] != "flip" for transform in plan.augmentation)


@pytest.mark.parametrize(
    ("device", "net"), [("cuda", "subvoxel_unet"), ("cuda", "unet"), *(("cpu", n) for n in NETS)]
)
def test_a_plan_survives_json_and_its_net_runs(device: str, net: str, tmp_path: Path) -> None:
    if not isinstance(NETS[net], type):  # another package builds it
        pytest.importorskip("monai")
        pytest.importorskip("einops")
    plan = make_plan(fingerprint((10, 40, 40), [(8, 1.5, 1.5)]), device=device, threads=2, net=net)
    write_json(tmp_path / "plan.json", plan)
    again = read_config(tmp_path / "plan.json", Plan)
    write_json(tmp_path / "again.json", again)
    assert (tmp_path / "again.json").read_text() == (tmp_path / "plan.json").read_text()
    with torch.no_grad():
        assert again.model.build().eval()(torch.zeros(1, 1, *plan.patch_size)).shape[1] == 2


def test_a_net_gets_what_its_constructor_takes() -> None:
    flat, large = fingerprint((1, 64, 64), [(1, 1, 1)]), fingerprint((128,) * 3, [(1, 1, 1)])

    def options(seen: Fingerprint, device: str, net: str) -> dict[str, Any]:
        return make_plan(seen, device=device, threads=1, net=net).model.options

    cpu, cuda = options(large, "cpu", "unet"), options(large, "cuda", "unet")
    assert (cpu["size"], cuda["size"]) == ("small", "paper") and "widths" not in cpu
    assert options(large, "cuda", "subvoxel_unet")["widths"][:2] == (64, 128)
    # The finest stage of a net that folds halves; the pyramid has four levels and no more.
    for net, first, count in (("unet", 1, 5), ("hybrid", 1, 5), ("pyramid", 2, 4)):
        strides = options(large, "cuda", net)["strides"]
        assert strides[0] == (first,) * 3 and len(strides) == count
    assert options(flat, "cpu", "unetr")["spatial_dims"] == 2
    assert options(large, "cpu", "unetr")["spatial_dims"] == 3
    assert options(large, "cpu", "unetr")["patch_size"][0] > 32
    # Ten thick slices would be padded to 32 by a network that halves every axis five times.
    thick = fingerprint((10, 96, 96), [(8, 1.5, 1.5)])
    assert options(thick, "cpu", "swin_unetr")["spatial_dims"] == 2
    assert options(thick, "cpu", "segresnet")["spatial_dims"] == 3  # 16 slices for 10
    assert options(large, "cpu", "swin_unetr")["spatial_dims"] == 3
    assert set(options(large, "cpu", "segresnet")) == {
        "in_channels", "classes", "size", "spatial_dims",
    }  # fmt: skip
