"""Networks: tensors in, tensors out, nothing of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from qinjing.nets.subvoxel_unet import SubvoxelUNet
from qinjing.nets.unet import UNet

NETS: Mapping[str, Callable[..., nn.Module]] = {
    "subvoxel_unet": SubvoxelUNet,
    "unet": UNet,
}

__all__ = ["NETS", "SubvoxelUNet", "UNet"]
