"""Networks: tensors in, tensors out, nothing of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from qinjing.nets.baselines import segresnet, swin_unetr, unetr
from qinjing.nets.hybrid import Hybrid
from qinjing.nets.pyramid import PyramidTransformer
from qinjing.nets.residual_unet import ResidualUNet
from qinjing.nets.subvoxel_unet import SubvoxelUNet
from qinjing.nets.transunet import TransUNet
from qinjing.nets.unet import UNet

NETS: Mapping[str, Callable[..., nn.Module]] = {
    "subvoxel_unet": SubvoxelUNet,
    "unet": UNet,
    "residual_unet": ResidualUNet,
    "transunet": TransUNet,
    "hybrid": Hybrid,
    "pyramid": PyramidTransformer,
    "swin_unetr": swin_unetr,
    "unetr": unetr,
    "segresnet": segresnet,
}

__all__ = [
    "NETS",
    "Hybrid",
    "PyramidTransformer",
    "ResidualUNet",
    "SubvoxelUNet",
    "TransUNet",
    "UNet",
    "segresnet",
    "swin_unetr",
    "unetr",
]
