from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from qinjing.data.transforms import augmentation_from_config, default_augmentation
from qinjing.errors import ConfigError


def test_default_is_nnunets_in_order_and_survives_json() -> None:
    configs = default_augmentation((40, 56, 40), False, (1, 2))
    assert [config["name"] for config in configs] == [
        "affine", "noise", "blur", "brightness", "contrast",
        "low_resolution", "gamma", "gamma", "flip",
    ]  # fmt: skip
    assert json.loads(json.dumps(configs)) == configs
    assert configs[-1]["options"]["axes"] == [1, 2]
    built = augmentation_from_config(configs)
    assert len(built.transforms) == 9
    assert augmentation_from_config(json.loads(json.dumps(configs))) == built


@pytest.mark.parametrize(("patch", "anisotropic"), [((16, 64, 64), True), ((1, 64, 64), False)])
def test_thick_slices_are_left_apart(patch: tuple[int, ...], anisotropic: bool) -> None:
    affine, *others = default_augmentation(patch, anisotropic, ())
    assert affine["options"]["in_plane"] is True
    assert affine["options"]["rotation_deg"] == [[-180.0, 180.0], [0.0, 0.0], [0.0, 0.0]]
    assert [o["options"]["axes"] for o in others if o["name"] == "low_resolution"] == [[1, 2]]
    assert "flip" not in [other["name"] for other in others]


def test_same_seed_same_bits_and_input_untouched(batch: Any) -> None:
    image, label = batch
    before = image.clone(), label.clone()
    augmentation = augmentation_from_config(default_augmentation((14, 18, 16), False))
    results = []
    for seed in (3, 3, 4):
        drawn = augmentation.draw(np.random.default_rng(seed), 4)
        results.append(augmentation.apply(image, label, drawn))
    for first, second, other in zip(*results, strict=True):
        assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(image, before[0]) and torch.equal(label, before[1])


def test_full_precision_within_autocast(batch: Any) -> None:
    blur = augmentation_from_config([{"name": "blur", "options": {"probability": 1.0}}])
    drawn = blur.draw(np.random.default_rng(0), 4)
    plain, _ = blur.apply(*batch, drawn)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = blur.apply(*batch, drawn)
    assert torch.equal(plain, inside) and inside.dtype == torch.float32


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        ([{"name": "gama"}], "did you mean gamma"),
        ([{"name": "gamma", "options": {"gama": [1, 2]}}], "transform option must be one of"),
        ([{"name": "flip"}, {"options": {}}], r"augmentation\[1\] must be an object"),
        (["flip"], r"augmentation\[0\] must be an object"),
        ([{"name": "flip", "options": [1]}], r"augmentation\[0\].options must be an object"),
        ([{"name": "flip", "chance": 1}], r"augmentation\[0\] must be an object"),
        ([{"name": ["flip"]}], r"augmentation\[0\].name must be a text"),
        ({"name": "flip"}, "augmentation must be a list"),
    ],
)
def test_refuses_what_is_no_configuration(configs: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        augmentation_from_config(configs)
