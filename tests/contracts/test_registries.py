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
from qinjing.losses import LOSSES
from qinjing.nets import NETS
from qinjing.registry import build

NAME = re.compile(r"[a-z][a-z0-9_]*")
# Losses that count parts wherever they lie: a map that is sure and wrong may hold as many of them
# as the truth, and is then nearer to it than one that says nothing anywhere.
BLIND_TO_PLACE = {"topology"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, name)
        for kind, table in (
            ("layout", LAYOUTS),
            ("loss", LOSSES),
            ("net", NETS),
            ("reader", READERS),
            ("transform", TRANSFORMS),
        )
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
        if reader.folder:
            pytest.importorskip("pydicom")
            damaged, missing = tmp_path / "damaged", tmp_path / "missing"
            damaged.mkdir()
            (damaged / f"slice{suffix}").write_bytes(b"\x1f\x8b not an image")
        else:
            damaged, missing = tmp_path / f"damaged{suffix}", tmp_path / f"missing{suffix}"
            damaged.write_bytes(b"\x1f\x8b not an image")
        for read in (reader.read, reader.read_header):
            for path in (damaged, missing):
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


@pytest.mark.parametrize("name", NETS)
def test_net(name: str) -> None:
    import torch

    if not isinstance(NETS[name], type):  # another package builds it
        pytest.importorskip("monai")
        pytest.importorskip("einops")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build(NETS, "net", name, in_channels=2, classes=3)
    assert inspect.getdoc(NETS[name])
    assert any(parameter.requires_grad for parameter in net.parameters())
    image = torch.randn(2, 2, 17, 20, 24)
    # Training: full resolution first, every weight learns.
    outputs = net(image)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert outputs[0].shape == (2, 3, 17, 20, 24)
    sum(output.square().mean() for output in outputs).backward()
    without = [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    # Predicting: one map of logits, the same for the same image, one sample apart from the other.
    net.eval()
    with torch.no_grad():
        logits = net(image)
        assert torch.is_tensor(logits) and logits.shape == (2, 3, 17, 20, 24)
        assert torch.isfinite(logits).all() and torch.equal(logits, net(image))
        assert torch.allclose(net(image[:1])[0], logits[0], atol=1e-4)
    assert not torch.allclose(torch.softmax(logits, 1).sum(1), logits.sum(1)), "not logits"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 4])
def test_loss(name: str, classes: int) -> None:
    import torch

    loss = build(LOSSES, "loss", name)
    assert inspect.getdoc(LOSSES[name])
    torch.manual_seed(0)
    target = torch.randint(0, classes, (2, 4, 5, 6))
    truth = torch.nn.functional.one_hot(target, classes).movedim(-1, 1).float()
    logits = torch.randn(2, classes, 4, 5, 6, requires_grad=True)
    value = loss(logits, target)
    assert value.ndim == 0 and torch.isfinite(value)
    value.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad.any()
    # Right is better than unsure, unsure better than wrong.
    right, unsure, wrong = (float(loss(20 * x, target)) for x in (truth, 0 * truth, -truth))
    assert right < unsure and right < wrong
    if name not in BLIND_TO_PLACE:
        assert unsure < wrong
    # A patch that holds nothing but background is no accident.
    assert torch.isfinite(loss(logits, torch.zeros_like(target)))
