"""Augmentation: random changes of a batch, on the device where the batch is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qinjing import registry
from qinjing.data.transforms.affine import Affine
from qinjing.data.transforms.augmentation import (
    Augmentation,
    default_augmentation,
    strong_intensity,
)
from qinjing.data.transforms.bias_field import BiasField
from qinjing.data.transforms.blur import Blur
from qinjing.data.transforms.brightness import Brightness
from qinjing.data.transforms.contrast import Contrast
from qinjing.data.transforms.flip import Flip
from qinjing.data.transforms.gamma import Gamma
from qinjing.data.transforms.low_resolution import LowResolution
from qinjing.data.transforms.mix import Mix
from qinjing.data.transforms.noise import Noise
from qinjing.data.transforms.transform import Transform
from qinjing.errors import ConfigError

TRANSFORMS: Mapping[str, Callable[..., Transform]] = {
    "affine": Affine,
    "bias_field": BiasField,
    "blur": Blur,
    "brightness": Brightness,
    "contrast": Contrast,
    "flip": Flip,
    "gamma": Gamma,
    "low_resolution": LowResolution,
    "mix": Mix,
    "noise": Noise,
}


def augmentation_from_config(configs: Sequence[Mapping[str, Any]]) -> Augmentation:
    """Build an augmentation from `{"name": …, "options": {…}}` entries, in their order.

    Raises:
        ConfigError: an entry of another form, an unknown name, or an option that cannot be.
    """
    if not isinstance(configs, list | tuple):
        raise ConfigError("augmentation", "a list", configs)
    transforms = []
    for place, config in enumerate(configs):
        where = f"augmentation[{place}]"
        if not isinstance(config, Mapping) or not {"name"} <= set(config) <= {"name", "options"}:
            raise ConfigError(where, "an object with a name and options", config)
        if not isinstance(config["name"], str):
            raise ConfigError(f"{where}.name", "a text", config["name"])
        options = config.get("options", {})
        if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
            raise ConfigError(f"{where}.options", "an object", options)
        transforms.append(registry.build(TRANSFORMS, "transform", config["name"], **options))
    return Augmentation(tuple(transforms))


__all__ = [
    "TRANSFORMS",
    "Augmentation",
    "Transform",
    "augmentation_from_config",
    "default_augmentation",
    "strong_intensity",
]
