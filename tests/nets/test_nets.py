"""Every network in the table: shapes, gradients, saving, odd sizes, slices, sizes by name."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qinjing.engine.checkpoint import ModelCard, load_model, save_model
from qinjing.engine.fuse import fuse
from qinjing.errors import ConfigError
from qinjing.nets import NETS
from qinjing.nets.blocks import (
    ConvNorm,
    channels_to_voxels,
    complete_stages,
    voxels_to_channels,
)

BASELINES = ("swin_unetr", "unetr", "segresnet")
STAGED = [name for name in NETS if name not in BASELINES]


def tiny(name: str, **options: Any) -> dict[str, Any]:
    """The smallest options of a net; a staged one has thick slices in its first stage."""
    if name in BASELINES:
        pytest.importorskip("monai")
        pytest.importorskip("einops")
        return {"size": "tiny", **options}
    folds = getattr(NETS[name], "folds", False)
    first = (1, 2, 2) if folds else (1, 1, 1)
    stages = {"strides": (first, (2, 2, 2)), "kernels": ((1, 3, 3), (3, 3, 3))}
    size = {"widths": (4, 8)} if name == "subvoxel_unet" else {"size": "tiny"}
    return {**size, **stages, **options}


def make(name: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return NETS[name](**tiny(name, **options))


def learn(net: torch.nn.Module, image: torch.Tensor) -> list[str]:
    """Train one step's gradients; return the parameters that none reaches."""
    outputs = net.train()(image)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    sum(output.square().mean() for output in outputs).backward()
    return [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shape", [(8, 16, 16), (5, 13, 7), (1, 9, 9)])
def test_logits_have_the_inputs_shape(name: str, shape: tuple[int, int, int]) -> None:
    net = make(name, in_channels=2, classes=3).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 2, *shape)).shape == (2, 3, *shape)


@pytest.mark.parametrize("name", NETS)
def test_fused_for_prediction_the_logits_are_equal(name: str) -> None:
    net, image = make(name).eval(), torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        expected = net(image)
        torch.testing.assert_close(fuse(net)(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_every_parameter(name: str) -> None:
    assert learn(make(name), torch.randn(2, 1, 8, 16, 16)) == []


@pytest.mark.parametrize("name", NETS)
def test_slices(name: str) -> None:
    if name in BASELINES:
        options: dict[str, Any] = {"spatial_dims": 2}
    else:
        first, *rest = tiny(name)["strides"]
        options = {"strides": (first, *[(1, 2, 2)] * len(rest)), "kernels": ((1, 3, 3),) * 2}
    net = make(name, **options)
    assert learn(net, torch.randn(2, 1, 3, 17, 20)) == []
    image = torch.randn(1, 1, 3, 17, 20)
    with torch.no_grad():
        whole = net.eval()(image)
        single = net(image[:, :, 1:2])
    assert single.shape == (1, 2, 1, 17, 20) and torch.isfinite(whole).all()
    if name in BASELINES:
        torch.testing.assert_close(single, whole[:, :, 1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    net = make(name).eval()
    save_model(tmp_path, ModelCard(name, tiny(name)), net.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path)(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_autocast_computes_the_same_within_its_precision(name: str) -> None:
    net = make(name).eval()
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        exact = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(image).float()
    assert (rough - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("name", STAGED)
def test_options_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="equally many"):
        make(name, widths=(8, 16, 16))
    with pytest.raises(ConfigError, match="odd"):
        make(name, kernels=((2, 3, 3), (3, 3, 3)))
    for widths in ((9, 18), (17, 34)):
        with pytest.raises(ConfigError, match="widths must be multiples of four from eight on"):
            make(name, widths=widths)


@pytest.mark.parametrize("spatial_dims", [1, 4])
@pytest.mark.parametrize("name", BASELINES)
def test_other_dimensions_are_refused(name: str, spatial_dims: int) -> None:
    with pytest.raises(ConfigError, match=f"spatial_dims must be 2 or 3, got {spatial_dims}"):
        NETS[name](size="tiny", spatial_dims=spatial_dims)


@pytest.mark.parametrize("name", [name for name in NETS if name != "subvoxel_unet"])
def test_an_unknown_size_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="size must be one of tiny, small, paper"):
        NETS[name](size="huge")


# Millions with four channels and four classes: Table 2 of the survey; the pyramid has as many as
# the SwinUNETR that it is compared with.
PAPER = {"unet": 34.5, "transunet": 121.6, "hybrid": 67.3, "pyramid": 62.2}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_sizes(name: str) -> None:
    with torch.device("meta"):
        net = NETS[name](in_channels=4, classes=4, size="paper")
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert millions == pytest.approx(PAPER[name], rel=0.01)


def test_stages_are_filled_in() -> None:
    widths, strides, kernels = complete_stages((4, 8, 16), None, None, None, (1, 1, 1))
    assert widths == (4, 8, 16)
    assert strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2)) and kernels == ((3, 3, 3),) * 3
    assert complete_stages((4, 8), None, [(2, 2, 2)], None, (1, 1, 1))[0] == (4,)
    assert complete_stages((4, 8), None, [(2, 2, 2)] * 3, None, (1, 1, 1))[0] == (4, 8, 8)


def test_folding_is_pixel_unshuffle_and_is_undone() -> None:
    x = torch.randn(2, 3, 1, 6, 4)
    ours = voxels_to_channels(x, (1, 2, 2))
    torch.testing.assert_close(ours[:, :, 0], torch.nn.functional.pixel_unshuffle(x[:, :, 0], 2))
    x = torch.randn(2, 3, 4, 6, 6)
    back = channels_to_voxels(voxels_to_channels(x, (2, 3, 2)), (2, 3, 2))
    torch.testing.assert_close(back, x, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["subvoxel_unet", "pyramid"])
def test_coarse_outputs_while_training(name: str) -> None:
    outputs = make(name).train()(torch.randn(1, 1, 8, 16, 16))
    assert [tuple(o.shape[2:]) for o in outputs] == [(8, 16, 16), (8, 8, 8)]


@pytest.mark.parametrize("name", ["residual_unet", "hybrid"])
def test_coarse_outputs_are_of_all_decoders_but_the_finest(name: str) -> None:
    image = torch.randn(1, 1, 16, 16, 16)
    outputs = NETS[name](size="small").train()(image)
    assert [o.shape[-1] for o in outputs] == [16, 8, 4]  # of three decoders
    assert isinstance(make(name).train()(image), torch.Tensor)  # two stages


@pytest.mark.parametrize(
    ("kernel", "stride", "lengths"),
    [((3, 1, 5), (1, 1, 1), (8, 9, 10)), ((2, 2, 1), (2, 2, 1), (4, 4, 10)),
     ((3, 3, 3), (2, 2, 2), (3, 4, 4))],
)  # fmt: skip
def test_the_size_after_a_convolution_is_as_said(
    kernel: tuple[int, int, int], stride: tuple[int, int, int], lengths: tuple[int, int, int]
) -> None:
    found = ConvNorm(1, 4, kernel, stride)(torch.randn(1, 1, 8, 9, 10))
    assert found.shape[2:] == lengths


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_without_monai_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(ConfigError, match=r"MONAI with einops must be installed.*qinjing\[peers\]"):
        NETS[name]()
    assert inspect.getdoc(NETS[name])


def test_unetr_refuses_what_its_positions_do_not_reach() -> None:
    net = make("unetr", patch_size=(10, 20, 16))
    assert net(torch.randn(1, 1, 16, 32, 16)).shape == (1, 2, 16, 32, 16)
    with pytest.raises(ConfigError, match=r"no larger than the patch_size \(16, 32, 16\)"):
        net(torch.randn(1, 1, 16, 33, 16))
