"""Every network in the table: shapes, gradients, saving, odd sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qinjing.engine.checkpoint import ModelCard, load_model, save_model
from qinjing.errors import ConfigError
from qinjing.nets import NETS
from qinjing.nets.blocks import channels_to_voxels, voxels_to_channels

SMALL = {"widths": (4, 8), "kernels": ((3, 3, 3), (1, 3, 3))}
STRIDES = {
    "subvoxel_unet": ((1, 2, 2), (2, 2, 2)),
    "unet": ((1, 1, 1), (1, 2, 2)),
}


def make(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return NETS[name](**{**SMALL, "strides": STRIDES[name], **options})


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shape", [(8, 16, 16), (5, 13, 7), (1, 9, 9)])
def test_logits_have_the_inputs_shape(name: str, shape: tuple[int, int, int]) -> None:
    net = make(name, in_channels=2, classes=3).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 2, *shape)).shape == (2, 3, *shape)


@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_every_parameter(name: str) -> None:
    net = make(name).train()
    outputs = net(torch.randn(2, 1, 8, 16, 16))
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    sum(output.square().mean() for output in outputs).backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", NETS)
def test_saved_and_loaded_is_the_same(name: str, tmp_path: Path) -> None:
    options = {**SMALL, "strides": STRIDES[name]}
    net = NETS[name](**options).eval()
    save_model(tmp_path, ModelCard(name, options), net.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path)(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NETS)
def test_options_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="equally many"):
        make(name, widths=(4, 8, 16))
    with pytest.raises(ConfigError, match="odd"):
        make(name, kernels=((2, 3, 3), (3, 3, 3)))


def test_folding_is_pixel_unshuffle_and_is_undone() -> None:
    x = torch.randn(2, 3, 1, 6, 4)
    ours = voxels_to_channels(x, (1, 2, 2))
    torch.testing.assert_close(ours[:, :, 0], torch.nn.functional.pixel_unshuffle(x[:, :, 0], 2))
    x = torch.randn(2, 3, 4, 6, 6)
    back = channels_to_voxels(voxels_to_channels(x, (2, 3, 2)), (2, 3, 2))
    torch.testing.assert_close(back, x, rtol=0, atol=0)


def test_coarse_outputs_while_training() -> None:
    outputs = make("subvoxel_unet").train()(torch.randn(1, 1, 8, 16, 16))
    assert [tuple(o.shape[2:]) for o in outputs] == [(8, 16, 16), (8, 8, 8)]
