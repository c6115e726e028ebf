"""Every entry of every table does what all of its kind must do, without a test of its own."""

from __future__ import annotations

import contextlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from qinjing.data.layouts import LAYOUTS
from qinjing.data.readers import READERS
from qinjing.data.transforms import TRANSFORMS
from qinjing.errors import InputError

NAME = re.compile(r"[a-z][a-z0-9_]*")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, table in (("layout", LAYOUTS), ("reader", READERS), ("transform", TRANSFORMS))
        for name in table
    ],
)
def test_names_are_plain(kind: str, name: str) -> None:
    assert NAME.fullmatch(name), f"{kind} {name}"


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    assert inspect.getdoc(layout)
    assert layout.recognise(tmp_path) is False
    assert layout.recognise(tmp_path / "missing") is False
    with contextlib.suppress(InputError):  # a declaration that must be there is not
        assert layout.open(tmp_path).cases == ()


@pytest.mark.parametrize("name", READERS)
def test_reader(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    assert inspect.getdoc(reader.read) and inspect.getdoc(reader.read_header)
    for suffix in reader.suffixes:
        damaged = tmp_path / f"damaged{suffix}"
        damaged.write_bytes(b"\x1f\x8b not an image")
        for read in (reader.read, reader.read_header):
            for path in (damaged, tmp_path / f"missing{suffix}"):
                with pytest.raises(InputError, match=path.name):
                    read(path)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("shape", [(2, 1, 6, 7, 8), (1, 3, 1, 9, 9)], ids=["3-D", "one slice"])
def test_transform(name: str, shape: tuple[int, ...]) -> None:
    import torch

    assert inspect.getdoc(TRANSFORMS[name])
    transform = TRANSFORMS[name]()
    source = np.random.default_rng(0)
    image = torch.from_numpy(source.normal(size=shape).astype(np.float32))
    label = torch.from_numpy(source.integers(0, 3, (shape[0], *shape[2:])))
    image_before, label_before = image.clone(), label.clone()
    for seed in range(8):
        parameters = transform.draw(np.random.default_rng(seed), shape[0])
        again = transform.draw(np.random.default_rng(seed), shape[0])
        first = transform.apply(image, label, parameters)
        second = transform.apply(image, label, again)
        assert first[0].shape == image.shape and first[0].dtype == image.dtype
        assert first[1].shape == label.shape and first[1].dtype == label.dtype
        assert torch.isfinite(first[0]).all()
        assert set(first[1].unique().tolist()) <= {0, 1, 2}
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
        # The same batch is used again elsewhere: nothing may write into it.
        assert torch.equal(image, image_before) and torch.equal(label, label_before)
