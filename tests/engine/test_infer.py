"""Prediction slab by slab against MONAI's sliding window, Spacing and Invert on whole volumes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qinjing.data.resample import resample_axis, resample_volume
from qinjing.engine import label_writer
from qinjing.engine.infer import (
    Window,
    predict_labels_on_grid,
    predict_volume,
    window_starts,
    window_weight,
)
from qinjing.errors import ConfigError, QinjingError
from qinjing.volume import Volume

CLASSES = 5

# image shape, window, image spacing, network spacing
CASES = [
    ((23, 31, 20), (8, 12, 10), (1.3, 0.7, 0.7), (1.0, 1.0, 1.0)),
    ((17, 18, 19), (8, 8, 8), (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ((20, 14, 15), (16, 16, 16), (1.0, 1.0, 1.0), (0.45, 0.6, 0.7)),  # thinner network grid
    ((5, 31, 9), (8, 12, 10), (3.0, 0.7, 0.7), (2.0, 1.0, 1.2)),  # smaller than the window
    ((1, 31, 9), (1, 12, 10), (3.0, 0.7, 0.7), (3.0, 1.0, 1.2)),  # one slice
    ((1, 9, 1), (4, 4, 4), (1.0, 1.0, 1.0), (1.0, 0.5, 1.0)),
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def make_net(channels: int = 2, classes: int = CLASSES, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    first, last = nn.Conv3d(channels, 8, 3, padding=1), nn.Conv3d(8, classes, 3, padding=1)
    net = nn.Sequential(first, nn.ReLU(), last).eval()
    with torch.no_grad():
        last.weight.mul_(8)
    return net


def make_volume(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> Volume:
    values = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    return Volume(values, np.diag([*spacing_mm, 1.0]))


def scale_of(case: tuple[tuple[float, ...], ...]) -> tuple[float, float, float]:
    d, h, w = (own / net for own, net in zip(case[2], case[3], strict=True))
    return d, h, w


def whole(
    image: Tensor, net: Callable[[Tensor], Tensor], patch: tuple[int, ...], overlap: float = 0.5
) -> Tensor:
    """MONAI's blended scores of the whole volume, (K, D, H, W)."""
    inferers = pytest.importorskip("monai.inferers")
    with torch.inference_mode():
        return inferers.sliding_window_inference(
            image[None], patch, 2, net, overlap=overlap, mode="gaussian"
        )[0]


def enlarge(scores: Tensor, shape: tuple[int, ...], scale: tuple[float, ...]) -> Tensor:
    for axis in range(3):
        scores = resample_axis(scores, axis + 1, shape[axis], scale[axis], 1)
    return scores


def test_window_starts_equal_monai() -> None:
    utils = pytest.importorskip("monai.data.utils")
    from monai.inferers.utils import _get_scan_interval

    rng = np.random.default_rng(0)
    for _ in range(60):
        patch = tuple(int(n) for n in rng.integers(1, 40, 3))
        shape = tuple(p + int(n) for p, n in zip(patch, rng.integers(0, 12, 3), strict=True))
        overlap = float(rng.choice([0, 0.1, 0.25, 0.5, 0.625, 0.9]))
        step = _get_scan_interval(shape, patch, 3, (overlap,) * 3)
        expected = [
            tuple(int(start) for start, _ in slices)
            for slices in utils.dense_patch_slices(shape, patch, step, return_slice=False)
        ]
        starts = [window_starts(n, p, overlap) for n, p in zip(shape, patch, strict=True)]
        assert list(product(*starts)) == expected


@pytest.mark.parametrize("patch", [(8, 8, 8), (7, 12, 1), (1, 1, 1), (40, 56, 40)])
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_window_weight_equals_monai(patch: tuple[int, int, int], blend: str) -> None:
    utils = pytest.importorskip("monai.data.utils")
    expected = utils.compute_importance_map(patch, mode=blend, sigma_scale=0.125)
    torch.testing.assert_close(window_weight(patch, blend), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("batch_size", "channels_last"), [(1, False), (3, True)])
def test_labels_equal_monai_end_to_end(case: tuple, batch_size: int, channels_last: bool) -> None:
    transforms = pytest.importorskip("monai.transforms")
    from monai.data import MetaTensor

    shape, patch, spacing_mm, net_spacing_mm = case
    volume, net = make_volume(shape, spacing_mm), make_net()
    spacing = transforms.Spacing(net_spacing_mm, mode="bilinear", padding_mode="border")
    image = spacing(MetaTensor(torch.from_numpy(volume.voxels), affine=volume.affine))
    scores = whole(image.as_tensor(), net, patch)
    tensor = MetaTensor(scores, affine=image.affine, applied_operations=image.applied_operations)
    expected = spacing.inverse(tensor).argmax(0).numpy()

    if channels_last:
        net = net.to(memory_format=torch.channels_last_3d)
    small = torch.from_numpy(resample_volume(volume, net_spacing_mm, 1).voxels)
    window = Window(patch, batch_size=batch_size)
    found = predict_volume(
        [net], small, window, CLASSES, target_shape=shape, target_scale=scale_of(case)
    )
    assert found.labels.dtype == np.uint8
    assert found.confidence is None
    assert found.labels.shape == expected.shape == shape
    assert (found.labels == expected).mean() >= 0.9999
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("several", [False, True])
def test_flips_ensembles_and_confidence_equal_the_whole_computation(
    case: tuple, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, patch, _, net_spacing_mm = case
    monkeypatch.setattr(label_writer, "_BLOCK_BYTES", 1)  # one slice at a time
    image = torch.from_numpy(resample_volume(make_volume(shape, case[2]), net_spacing_mm, 1).voxels)
    nets = [make_net(seed=s) for s in range(2 if several else 1)]
    flips = ((), (0,), (1, 2)) if several else ((),)

    def mean_probability(x: Tensor) -> Tensor:
        passes = []
        for net in nets:
            for flip in flips:
                dims = [axis + 2 for axis in flip]
                passes.append(net(x.flip(dims)).flip(dims).softmax(1))
        return torch.stack(passes).mean(0)

    scores = whole(image, mean_probability if several else nets[0], patch)
    probability = enlarge(scores if several else scores.softmax(0), shape, scale_of(case))
    expected = enlarge(scores, shape, scale_of(case)).argmax(0)
    certainty = probability.gather(0, expected[None])[0]

    found = predict_volume(
        nets,
        image,
        Window(patch, flips=flips, batch_size=2),
        CLASSES,
        target_shape=shape,
        target_scale=scale_of(case),
        confidence=True,
    )
    assert found.confidence is not None
    equal = found.labels == expected.numpy()
    assert equal.mean() >= 0.9999
    difference = np.abs(found.confidence.astype(float) - 255 * certainty.numpy())
    assert difference[equal].max() <= 0.51


def test_on_the_network_grid_nothing_is_interpolated() -> None:
    image = torch.randn(2, 19, 17, 23)
    net = make_net()
    scores = whole(image, net, (8, 8, 8), overlap=0.25)
    found = predict_volume([net], image, Window((8, 8, 8), 0.25), CLASSES, confidence=True)
    assert (found.labels == scores.argmax(0).numpy()).mean() >= 0.9999
    best = scores.softmax(0).amax(0).numpy() * 255
    assert found.confidence is not None
    assert np.abs(found.confidence - best).max() <= 0.51


def test_a_scan_in_any_axis_order_comes_back_on_its_own_grid() -> None:
    transforms = pytest.importorskip("monai.transforms")
    from monai.data import MetaTensor

    voxels = np.random.default_rng(3).normal(40, 100, (15, 21, 18)).astype(np.int16)
    c, s = np.cos(0.1), np.sin(0.1)
    turn = np.array([[0, 1, 0, 0], [s, 0, -c, 0], [-c, 0, -s, 0], [0, 0, 0, 1.0]])
    affine = turn @ np.diag([2.0, 0.8, 1.1, 1.0])
    affine[:3, 3] = (30, -20, 5)
    volume, net = Volume(voxels, affine), make_net(channels=1)

    lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    before = transforms.Compose(
        [
            transforms.Orientationd(
                "image", axcodes="SPL", labels=(("L", "R"), ("P", "A"), ("I", "S"))
            ),
            transforms.Spacingd("image", (1.4, 1.0, 1.0), mode="bilinear", padding_mode="border"),
        ]
    )
    tensor = MetaTensor(torch.from_numpy(voxels[None].astype(np.float32)), lps_to_ras @ affine)
    data = before({"image": tensor})
    scores = whole(data["image"].as_tensor() / 100, net, (8, 10, 12))
    data["pred"] = MetaTensor(
        scores, affine=data["image"].affine, applied_operations=data["image"].applied_operations
    )
    invert = transforms.Invertd("pred", before, orig_keys="image", nearest_interp=False)
    expected = invert(data)["pred"].argmax(0).numpy()

    labels, confidence = predict_labels_on_grid(
        [net],
        volume,
        Window((8, 10, 12)),
        CLASSES,
        spacing_mm=(1.4, 1.0, 1.0),
        normalise=lambda x: x.div_(100),
        confidence=True,
    )
    assert volume.grid_difference(labels) is None
    assert confidence is not None
    assert volume.grid_difference(confidence) is None
    assert (labels.voxels == expected).mean() >= 0.9999


def test_the_image_stays_as_it_was_and_progress_counts_every_window() -> None:
    image = torch.randn(2, 20, 20, 20)
    copy, seen = image.clone(), []
    window = Window((8, 8, 8), batch_size=4, flips=((), (2,)))
    predict_volume(
        [make_net()],
        image,
        window,
        CLASSES,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert torch.equal(image, copy)
    total = len(window_starts(20, 8, 0.5)) ** 3
    assert seen[-1] == (total, total)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


def test_bf16_runs_the_net_in_bf16_and_blends_in_float32() -> None:
    seen = []

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()

        def forward(self, x: Tensor) -> Tensor:
            out = self.net(x)
            seen.append(out.dtype)
            return out

    image = torch.randn(2, 12, 12, 12)
    plain = predict_volume([make_net()], image, Window((8, 8, 8)), CLASSES)
    found = predict_volume([Probe()], image, Window((8, 8, 8)), CLASSES, precision="bf16")
    assert set(seen) == {torch.bfloat16}
    assert (found.labels == plain.labels).mean() > 0.97


def test_more_than_256_classes_take_two_bytes() -> None:
    image = torch.linspace(0, 299, 6 * 6 * 6).view(1, 6, 6, 6)

    def net(x: Tensor) -> Tensor:
        return -((x - torch.arange(300.0).view(1, 300, 1, 1, 1)) ** 2)

    found = predict_volume([net], image, Window((6, 6, 6)), 300)
    assert found.labels.dtype == np.uint16
    np.testing.assert_array_equal(found.labels, image[0].round().numpy())


def test_what_cannot_be_predicted_is_refused() -> None:
    image, window = torch.zeros(2, 6, 6, 6), Window((6, 6, 6))
    with pytest.raises(ConfigError, match="nets must be at least one"):
        predict_volume([], image, window, CLASSES)
    with pytest.raises(ConfigError, match="image must be"):
        predict_volume([make_net()], image[0], window, CLASSES)
    with pytest.raises(ConfigError, match="net output must be of shape"):
        predict_volume([make_net()], image, window, CLASSES + 1)
    with pytest.raises(QinjingError, match="not finite"):
        predict_volume([lambda x: F.pad(x, (0,) * 6 + (0, 3)) / 0], image, window, CLASSES)
    for wrong in (
        {"patch_size": (0, 4, 4)},
        {"patch_size": (4, 4)},
        {"patch_size": (4, 4, 4), "overlap": 1.0},
        {"patch_size": (4, 4, 4), "blend": "linear"},
        {"patch_size": (4, 4, 4), "flips": ((3,),)},
        {"patch_size": (4, 4, 4), "flips": ()},
        {"patch_size": (4, 4, 4), "batch_size": 0},
    ):
        with pytest.raises(ConfigError, match="must be"):
            Window(**wrong)


MEASURE = """
import sys, torch
from qinjing.engine.infer import Window, predict_volume
depth, classes, members = (int(a) for a in sys.argv[1:])
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
net = torch.nn.Conv3d(1, classes, 1).eval()
def run(depth):
    image = torch.linspace(-1, 1, depth * 48 * 48).view(1, depth, 48, 48)
    flips = ((), (0,))[:members]
    predict_volume([net] * members, image, Window((16, 48, 48), flips=flips), classes,
                   target_shape=(4 * depth, 96, 96), target_scale=(0.25, 0.5, 0.5))
run(16)
before = peak()
run(depth)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("members", [1, 2])
def test_memory_does_not_grow_with_classes_times_voxels(members: int) -> None:
    # 240 slices of 48² become 960 of 96², 8.8 million voxels: 1.35 GB of scores for 40 classes.
    # One slab is allowed from the start; every slab after it must cost labels and image only.
    # 64 MiB are left to the allocator, which grew by 41 once: a twentieth of the scores.
    growth = {}
    for classes in (4, 40):
        command = [sys.executable, "-c", MEASURE, "240", str(classes), str(members)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        growth[classes] = float(done.stdout)
    labels_and_image_mib = (960 * 96 * 96 + 4 * 240 * 48 * 48) / 2**20
    assert growth[4] < labels_and_image_mib + 64
    assert growth[40] < labels_and_image_mib + 64
