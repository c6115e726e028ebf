"""Networks of MONAI through the same door, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from qinjing.errors import ConfigError
from qinjing.nets.blocks import Triple, of_size, pad_to_multiple

# Of each net the sizes' own arguments; "paper" is the size that its authors publish.
_SWIN_UNETR: dict[str, dict[str, Any]] = {
    "tiny": {"feature_size": 12, "depths": (1, 1, 1, 1)},
    "small": {"feature_size": 12},
    "paper": {"feature_size": 48},
}
_UNETR: dict[str, dict[str, Any]] = {
    "tiny": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 2},
    "small": {"feature_size": 8, "hidden_size": 192, "mlp_dim": 768, "num_heads": 6},
    "paper": {"feature_size": 16, "hidden_size": 768, "mlp_dim": 3072, "num_heads": 12},
}
_SEGRESNET: dict[str, dict[str, Any]] = {
    "tiny": {"init_filters": 8, "blocks_down": (1, 1), "blocks_up": (1,)},
    "small": {"init_filters": 16},
    "paper": {"init_filters": 32},
}
# Voxels along each axis come in multiples of these; other images are padded.
MULTIPLE = {"swin_unetr": 32, "segresnet": 8, "unetr": 16}


def swin_unetr(
    in_channels: int = 1, classes: int = 2, size: str = "small", spatial_dims: int = 3
) -> nn.Module:
    """Swin UNETR: shifted-window attention as encoder, convolutions as decoder (MONAI).

    Args:
        in_channels: image channels.
        classes: background included.
        size: "tiny", "small" or "paper".
        spatial_dims: 2 treats every slice as an image of its own.

    Raises:
        ConfigError: no such size, other dimensions than 2 or 3, or MONAI is not installed.

    Source: arXiv:2201.01266 (Hatamizadeh et al.).
    """
    net = _monai("SwinUNETR", spatial_dims)(
        **_swin_arguments(in_channels, classes, size, spatial_dims)
    )
    return Padded(net, (MULTIPLE["swin_unetr"],) * 3, spatial_dims)


def _swin_arguments(
    in_channels: int = 1, classes: int = 2, size: str = "small", spatial_dims: int = 3
) -> dict[str, Any]:
    return {
        "in_channels": in_channels,
        "out_channels": classes,
        "spatial_dims": spatial_dims,
        # Instance normalisation refuses a map of one voxel, which a patch of 32 ends in.
        "norm_name": _GROUP_NORM,
        **of_size(_SWIN_UNETR, size, "swin_unetr"),
    }


def unetr(
    in_channels: int = 1,
    classes: int = 2,
    size: str = "small",
    spatial_dims: int = 3,
    patch_size: Triple = (32, 32, 32),
) -> nn.Module:
    """UNETR: a vision transformer as encoder, convolutions as decoder (MONAI).

    Args:
        in_channels: image channels.
        classes: background included.
        size: "tiny", "small" or "paper".
        spatial_dims: 2 treats every slice as an image of its own.
        patch_size: the largest image along (D, H, W), since positions are learned one by one.

    Raises:
        ConfigError: no such size, other dimensions than 2 or 3, or MONAI is not installed.

    Source: arXiv:2103.10504 (Hatamizadeh et al.).
    """
    options, m = of_size(_UNETR, size, "unetr"), MULTIPLE["unetr"]
    d, h, w = (-(-n // m) * m for n in patch_size)
    net: Any = _monai("UNETR", spatial_dims)(
        in_channels,
        classes,
        img_size=(d, h, w)[3 - spatial_dims :],
        spatial_dims=spatial_dims,
        norm_name=_GROUP_NORM,
        **options,
    )
    for block in net.vit.blocks:
        block.norm_cross_attn = nn.Identity()  # MONAI makes one in any case and never uses it
    return Padded(net, (d, h, w), spatial_dims, largest=(d, h, w))


def segresnet(
    in_channels: int = 1, classes: int = 2, size: str = "small", spatial_dims: int = 3
) -> nn.Module:
    """SegResNet: residual encoder and a light decoder (MONAI).

    Args:
        in_channels: image channels.
        classes: background included.
        size: "tiny", "small" or "paper".
        spatial_dims: 2 treats every slice as an image of its own.

    Raises:
        ConfigError: no such size, other dimensions than 2 or 3, or MONAI is not installed.

    Source: arXiv:1810.11654 (Myronenko), without its auto-encoder.
    """
    net = _monai("SegResNet", spatial_dims)(
        **_segresnet_arguments(in_channels, classes, size, spatial_dims)
    )
    return Padded(net, (MULTIPLE["segresnet"],) * 3, spatial_dims)


def _segresnet_arguments(
    in_channels: int = 1, classes: int = 2, size: str = "small", spatial_dims: int = 3
) -> dict[str, Any]:
    return {
        "in_channels": in_channels,
        "out_channels": classes,
        "spatial_dims": spatial_dims,
        **of_size(_SEGRESNET, size, "segresnet"),
    }


def monai_definition(
    net: str, options: Mapping[str, Any], window: Sequence[int] = ()
) -> dict[str, Any] | None:
    """Return how MONAI alone builds what is inside one of these networks, as a bundle says it.

    Its weights have the names here without the `net.` before them.

    Args:
        net: name in `NETS`.
        options: of its constructor.
        window: voxels along (D, H, W) that it will be run on, where that is known.

    Returns:
        `{"_target_": class, …}`; None for networks that are not MONAI's, take slices one by one,
        are changed here, or would be run on windows that only `Padded` makes fit.

    Source: MONAI 1.6.
    """
    arguments = {"swin_unetr": _swin_arguments, "segresnet": _segresnet_arguments}.get(net)
    if arguments is None or options.get("spatial_dims", 3) != 3:
        return None
    if any(n % MULTIPLE[net] for n in window):
        return None
    names = {"swin_unetr": "SwinUNETR", "segresnet": "SegResNet"}
    return {"_target_": f"monai.networks.nets.{names[net]}", **arguments(**options)}


class Padded(nn.Module):
    """A network for some sizes of image, made to take any, and slices as well as volumes.

    Shapes: (B, in_channels, D, H, W) → logits (B, classes, D, H, W).

    Args:
        net: takes and returns maps of `spatial_dims` dimensions.
        multiple: edge values are added up to a multiple along (D, H, W).
        spatial_dims: 3, or 2 to run slices one by one.
        largest: image along (D, H, W) that the network can take, None where there is no bound.

    Source: arXiv:2201.01266; padding is the plain way.
    """

    def __init__(
        self, net: nn.Module, multiple: Triple, spatial_dims: int, largest: Triple | None = None
    ) -> None:
        super().__init__()
        self.net, self.flat, self.largest = net, spatial_dims == 2, largest
        self.multiple: Triple = (1, *multiple[1:]) if self.flat else multiple

    def forward(self, x: Tensor) -> Tensor:
        b, _, d, h, w = x.shape
        if self.largest and any(
            n > most for n, most in list(zip((d, h, w), self.largest, strict=True))[self.flat :]
        ):
            raise ConfigError(
                "image", f"no larger than the patch_size {self.largest}", (d, h, w),
                advice="predict in windows, or build the network with a larger patch_size",
            )  # fmt: skip
        x = pad_to_multiple(x, self.multiple)
        if not self.flat:
            return self.net(x)[..., :d, :h, :w]
        y = self.net(x.transpose(1, 2).flatten(0, 1))[..., :h, :w]
        return y.unflatten(0, (b, d)).transpose(1, 2)


_GROUP_NORM = ("group", {"num_groups": 4})


def _monai(name: str, spatial_dims: int) -> Callable[..., nn.Module]:
    """The constructor of a network of MONAI, once what it would refuse in its own words is checked.

    Raises:
        ConfigError: other dimensions than 2 or 3, or MONAI is not installed.
    """
    if spatial_dims not in (2, 3):
        raise ConfigError("spatial_dims", "2 or 3", spatial_dims, where=name)
    try:
        import_module("einops")  # MONAI asks for it no sooner than in `forward`
        found: Callable[..., nn.Module] = getattr(import_module("monai.networks.nets"), name)
    except ModuleNotFoundError:
        raise ConfigError(
            "MONAI with einops", "installed for this network", "none", where=name,
            advice="pip install 'qinjing[peers]'",
        ) from None  # fmt: skip
    return found
