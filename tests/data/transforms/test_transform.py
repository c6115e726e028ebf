from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from qinjing.data.transforms import TRANSFORMS
from qinjing.data.transforms.transform import interval, probability, spatial_axes
from qinjing.errors import ConfigError

CHANCES = {
    "affine": ("rotation_probability", "scale_probability", "elastic_probability"),
}


def build(name: str, chance: float) -> Any:
    return TRANSFORMS[name](**dict.fromkeys(CHANCES.get(name, ("probability",)), chance))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_never_by_chance_zero_and_always_by_chance_one(name: str, batch: Any) -> None:
    image, label = batch
    never = build(name, 0.0)
    same = never.apply(image, label, never.draw(np.random.default_rng(0), 4))
    assert torch.equal(same[0], image) and torch.equal(same[1], label)
    always = build(name, 1.0)
    changed = always.apply(image, label, always.draw(np.random.default_rng(0), 4))[0]
    assert all(not torch.equal(a, b) for a, b in zip(changed, image, strict=True))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_only_drawn_samples_change_and_each_by_its_own_row(name: str, batch: Any) -> None:
    image, label = batch
    transform = build(name, 0.5)
    drawn = next(
        p
        for p in (transform.draw(np.random.default_rng(seed), 4) for seed in range(99))
        if 0 < touched(p).sum() < 4
    )
    out_image, out_label = transform.apply(image, label, drawn)
    for row in np.flatnonzero(~touched(drawn)):
        assert torch.equal(out_image[row], image[row]) and torch.equal(out_label[row], label[row])
    if name == "mix":  # needs its partners
        return
    for row in np.flatnonzero(touched(drawn)):
        alone = dataclasses.replace(
            drawn,
            **{f.name: getattr(drawn, f.name)[row : row + 1] for f in dataclasses.fields(drawn)},
        )
        one_image, one_label = transform.apply(image[row : row + 1], label[row : row + 1], alone)
        torch.testing.assert_close(one_image[0], out_image[row], rtol=1e-5, atol=1e-5)
        assert torch.equal(one_label[0], out_label[row])
        assert not torch.equal(out_image[row], image[row])


def touched(parameters: Any) -> np.ndarray:
    return parameters.mirrored.any(1) if hasattr(parameters, "mirrored") else parameters.applied


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("chance", [-0.1, 1.1, float("nan"), "0.5", None, True])
def test_refuses_impossible_probabilities(name: str, chance: Any) -> None:
    with pytest.raises(ConfigError, match="probability must be a number from 0 to 1"):
        build(name, chance)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("affine", {"rotation_deg": [[-15, 15]]}),
        ("affine", {"rotation_deg": [[15, -15], [0, 0], [0, 0]]}),
        ("affine", {"scale": [0.0, 1.0]}),
        ("affine", {"in_plane": True}),
        ("affine", {"control_points": 3}),
        ("bias_field", {"degree": 0}),
        ("bias_field", {"coefficient": [0.1]}),
        ("blur", {"sigma": [0.0, 1.0]}),
        ("brightness", {"factor": [-1.0, 1.0]}),
        ("contrast", {"factor": "0.5"}),
        ("flip", {"axes": [0, 3]}),
        ("flip", {"axes": [1, 1]}),
        ("gamma", {"gamma": [0.0, 1.0]}),
        ("low_resolution", {"zoom": [0.5, 1.5]}),
        ("mix", {"size": [0.5, 2.0]}),
        ("noise", {"std": [0.1, float("inf")]}),
    ],
)
def test_refuses_impossible_options(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))}|rotation_deg"):
        TRANSFORMS[name](**options)


def test_checks_take_lists_as_json_gives_them() -> None:
    assert interval("x", [1, 2]) == (1.0, 2.0)
    assert probability("x", 1) == 1.0
    assert spatial_axes("x", [2, 0]) == (2, 0)
