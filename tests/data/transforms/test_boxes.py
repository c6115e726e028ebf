"""Flip and mix: voxels moved, none changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from qinjing.data.transforms.flip import Flip
from qinjing.data.transforms.mix import Mix


def test_flip_equals_numpy(batch: Any) -> None:
    image, label = batch
    transform = Flip((0, 2))
    seen = set()
    for seed in range(10):
        drawn = transform.draw(np.random.default_rng(seed), 4)
        out_image, out_label = transform.apply(image, label, drawn)
        for row in range(4):
            axes = tuple(np.flatnonzero(drawn.mirrored[row]))
            seen.add(axes)
            expected = np.flip(image[row].numpy(), [axis + 1 for axis in axes])
            assert np.array_equal(out_image[row], expected)
            assert np.array_equal(out_label[row], np.flip(label[row].numpy(), axes))
    assert seen == {(), (0,), (2,), (0, 2)}


def test_mix_copies_one_box_of_another_sample_in_image_and_label() -> None:
    # Every voxel says whose it is and where it was.
    place = torch.arange(10 * 12 * 8.0).reshape(1, 1, 10, 12, 8)
    image = torch.arange(5.0).reshape(5, 1, 1, 1, 1) * 1000 + place
    label = (image[:, 0] // 1000).to(torch.uint8)
    transform = Mix((0.3, 0.6), 1.0)
    for seed in range(10):
        drawn = transform.draw(np.random.default_rng(seed), 5)
        out_image, out_label = transform.apply(image, label, drawn)
        assert torch.equal((out_image[:, 0] // 1000).to(torch.uint8), out_label)
        assert torch.equal(out_image % 1000, place.expand_as(out_image))
        for row in range(5):
            assert drawn.partner[row] != row
            foreign = out_label[row] != row
            assert set(out_label[row][foreign].tolist()) == {drawn.partner[row]}
            where = foreign.nonzero()
            edges = where.amax(0) - where.amin(0) + 1
            assert edges.prod() == foreign.sum()  # one whole box
            expected = np.round(drawn.size[row] * (10, 12, 8))
            assert np.array_equal(edges.numpy(), expected)


def test_mix_of_one_sample_changes_nothing() -> None:
    image, label = torch.rand(1, 1, 4, 4, 4), torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    transform = Mix(probability=1.0)
    out, _ = transform.apply(image, label, transform.draw(np.random.default_rng(0), 1))
    assert torch.equal(out, image)
