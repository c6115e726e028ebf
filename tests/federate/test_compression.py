"""Few bytes: what is kept, what is lost and made up for, and what hostile bytes meet."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.torch import load_file, save_file
from scipy.fft import dctn
from scipy.stats import entropy as scipy_entropy
from torch import Tensor

from qinjing.errors import ConfigError, FormatError
from qinjing.federate.compression import (
    CODECS,
    ErrorFeedback,
    compress,
    decompress,
)
from qinjing.federate.compression.codecs import Float16, Float32, Quantise, TopK
from qinjing.federate.compression.entropy import decode, encode
from qinjing.federate.compression.low_rank import LowRank
from qinjing.federate.compression.spectral import Spectral, _transformed
from qinjing.registry import build

LOSSY = [name for name in CODECS if name != "float32"]


def update(seed: int = 0, scale: float = 0.01) -> dict[str, Tensor]:
    """What a small network with batch norm would send."""
    source = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=source) ** 3

    return {
        "conv.weight": drawn(8, 4, 3, 3, 3),
        "conv.bias": drawn(16),
        "norm.running_mean": drawn(16),
        "norm.running_var": drawn(16),
        "norm.num_batches_tracked": torch.tensor(20),
        "up.weight": drawn(8, 4, 2, 2, 2),
        "linear.weight": drawn(17, 20),
        "head.weight": drawn(3, 8, 1, 1, 1),
        "scalar": drawn(),
        "nothing": drawn(0, 4),
        "mask": torch.tensor([True, False, True]),
    }


def shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def there_and_back(tensors: dict[str, Tensor], codec: object, **more: object) -> dict[str, Tensor]:
    return decompress(compress(tensors, codec, **more), shapes(tensors))  # type: ignore[arg-type]


def trained(tensors: dict[str, Tensor]) -> Tensor:
    """All numbers that the codec itself has sent, as one vector."""
    names = ("conv.weight", "up.weight", "linear.weight")
    return torch.cat([tensors[name].flatten() for name in names])


def relative(wanted: Tensor, got: Tensor) -> float:
    return float((wanted - got).norm() / wanted.norm())


# --- entropy coding -----------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    some.lists(
        some.lists(some.one_of(some.integers(-127, 127), some.integers(-1, 1)), max_size=70),
        max_size=6,
    )
)
def test_symbols_come_back(groups: list[list[int]]) -> None:
    arrays = [np.array(group, np.int8) for group in groups]
    back = decode(encode(arrays), sum(map(len, groups)))
    assert [group.tolist() for group in back] == groups


@pytest.mark.parametrize("scale", [0.3, 0.8, 3.0, 20.0])
def test_symbols_take_what_their_entropy_says(scale: float) -> None:
    drawn = np.random.default_rng(0).laplace(size=100_000) * scale
    symbols = np.clip(np.rint(drawn), -127, 127).astype(np.int8)
    _, counts = np.unique(symbols, return_counts=True)
    bound = symbols.size * scipy_entropy(counts, base=2) / 8
    assert bound < len(encode([symbols])) < 1.02 * bound


def test_groups_of_one_kind_share_a_table() -> None:
    rng = np.random.default_rng(0)
    rare = [(rng.random(1500) < 0.01).astype(np.int8) for _ in range(20)]
    often = [rng.integers(-3, 4, 1500).astype(np.int8) for _ in range(20)]
    mixed = [group for pair in zip(rare, often, strict=True) for group in pair]
    bound = 30_000 * (scipy_entropy([0.99, 0.01], base=2) + np.log2(7)) / 8
    assert len(encode(mixed)) < 1.02 * bound + 100  # one table for all would take 1.5 times that
    back = decode(encode(mixed), 60_000)
    assert all(np.array_equal(a, b) for a, b in zip(mixed, back, strict=True))


def test_symbols_end_where_their_bytes_do() -> None:
    symbols = np.random.default_rng(0).integers(-9, 10, 200).astype(np.int8)
    data = encode([symbols])
    for wrong in (data + b"\0\0", data + b"\0", data[:-2]):
        with pytest.raises(FormatError, match="symbols must be"):
            decode(wrong, 200)
    for at in range(len(data) - 150, len(data), 10):  # words in the middle of the stream
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(FormatError, match="symbols must be"):
            decode(bytes(changed), 200)


# --- what is kept -------------------------------------------------------------------------------


def test_float32_is_exact() -> None:
    sent = update()
    back = there_and_back(sent, "float32")
    assert list(back) == list(sent)
    for name, value in sent.items():
        assert back[name].dtype == value.dtype and torch.equal(back[name], value), name


@pytest.mark.parametrize("name", LOSSY)
def test_statistics_and_whole_numbers_are_exact_and_small_tensors_halves(name: str) -> None:
    sent = update()
    back = there_and_back(sent, name)
    for key in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "mask"):
        assert torch.equal(back[key], sent[key]) and back[key].dtype == sent[key].dtype, key
    for key in ("conv.bias", "head.weight", "scalar"):
        off = (back[key] - sent[key]).abs()
        assert off.max() <= sent[key].abs().max() * 2**-11, key
    assert back["nothing"].shape == (0, 4)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_halves_neither_overflow_nor_vanish(scale: float) -> None:
    sent = {"weight": torch.linspace(-scale, scale, 1024).view(32, 32)}
    back = there_and_back(sent, "float16")["weight"]
    assert torch.allclose(back, sent["weight"], rtol=2**-11, atol=0)


@pytest.mark.parametrize("name", CODECS)
def test_no_change_and_an_empty_update(name: str) -> None:
    still = {key: torch.zeros_like(value) for key, value in update().items()}
    back = there_and_back(still, name)
    assert all(torch.equal(back[key], value) for key, value in still.items())
    assert there_and_back({}, name) == {}


@pytest.mark.parametrize("name", CODECS)
def test_the_same_seed_gives_the_same_bytes(name: str) -> None:
    kept = update()
    first, memory = compress(kept, name, ErrorFeedback(), seed=3), ErrorFeedback()
    assert compress(kept, name, memory, seed=3) == first
    for key, value in update().items():
        assert torch.equal(kept[key], value), "the caller's update was changed"
    # What the sender believes that the receiver has is what it has.
    back = decompress(first, shapes(kept))
    for key, lost in memory.lost.items():
        assert torch.equal(kept[key] - back[key], lost), key


# --- what each codec promises -------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("rows", [False, True])
def test_quantised_numbers_are_off_by_half_a_step(bits: int, rows: bool) -> None:
    wanted = torch.randn(4, 800, generator=torch.Generator().manual_seed(0))
    got = there_and_back({"w": wanted}, Quantise(bits, rows))["w"]
    last = 2 ** (bits - 1) - 1
    for a, b in zip(wanted, got, strict=True) if rows else [(wanted, got)]:
        step = b[b != 0].abs().min()
        whole = b / step
        assert torch.allclose(whole, whole.round(), atol=1e-4)
        assert whole.abs().max() <= last + 1e-4
        inside = a.abs() <= (last + 0.5) * step
        assert ((a - b).abs()[inside] <= 0.5001 * step).all()
        assert torch.allclose(b[~inside].abs(), last * step)


def test_quantising_is_as_good_as_the_best_known_for_a_normal_source() -> None:
    # Max 1960, doi:10.1109/TIT.1960.1057548, table 2: equal steps, 2ⁿ levels, mean squared error.
    # We have one level less (0 is one of them): 3 of 4, 15 of 16, so a little more is allowed.
    numbers = {"w": torch.randn(200, 300, generator=torch.Generator().manual_seed(0))}
    for bits, least, most in ((2, 0.1188, 0.1902 * 1.05), (4, 0.01154, 0.01154 * 1.2)):
        error = relative(numbers["w"], there_and_back(numbers, Quantise(bits))["w"]) ** 2
        assert least < error < most, bits


@settings(max_examples=15, deadline=None)
@given(some.integers(0, 10**6), some.floats(0.001, 0.5), some.booleans())
def test_top_k_is_torchs_choice(seed: int, share: float, clustered: bool) -> None:
    source = torch.Generator().manual_seed(seed)
    sent = {"a": torch.randn(30, 40, generator=source), "b": torch.randn(15, 20, generator=source)}
    if clustered:  # all at the far end: the longest gaps
        sent["a"] *= 1e-3
    flat = torch.cat([value.flatten() for value in sent.values()])
    back = there_and_back(sent, TopK(share, bits=8))
    got = torch.cat([value.flatten() for value in back.values()])
    chosen = flat.abs().topk(max(1, round(share * len(flat)))).indices
    step = float(flat.abs().max()) / 127
    others = torch.ones(len(flat), dtype=torch.bool)
    others[chosen] = False
    assert not got[others].any()
    assert ((got - flat)[chosen].abs() <= 0.501 * step).all()


def test_gaps_take_what_the_entropy_of_places_says() -> None:
    sent = {"w": torch.randn(500, 800, generator=torch.Generator().manual_seed(0))}
    for share in (0.002, 0.02, 0.1):
        size = len(compress(sent, TopK(share, bits=2)))
        places = 400_000 * scipy_entropy([share, 1 - share], base=2) / 8
        signs = 400_000 * share / 8  # of the 3 values of 2 bits, 0 is never needed
        assert places + signs < size < 1.04 * (places + signs) + 400, share


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_is_nearly_the_best(rank: int) -> None:
    source = torch.Generator().manual_seed(0)
    left, right = torch.randn(32, 8, generator=source), torch.randn(8, 270, generator=source)
    matrix = left @ torch.diag(2.0 ** -torch.arange(8)) @ right
    sent = {"kernel": matrix.view(32, 10, 3, 3, 3)}
    best = torch.linalg.svdvals(matrix)[rank:].norm() / matrix.norm()
    for turns, factor in ((2, 1.5), (6, 1.01)):
        back = there_and_back(sent, LowRank(rank, turns=turns))["kernel"]
        assert best <= relative(sent["kernel"], back) <= factor * best
        assert torch.linalg.matrix_rank(back.view(32, 270), rtol=1e-5) == rank


def test_the_transform_is_scipys() -> None:
    kernel = np.random.default_rng(0).normal(size=(4, 5, 3, 2, 1)).astype(np.float32)
    waves = _transformed(kernel)
    assert np.allclose(waves, dctn(kernel, axes=(2, 3, 4), norm="ortho"), atol=1e-6)
    assert np.allclose(_transformed(waves, back=True), kernel, atol=1e-6)


@pytest.mark.parametrize("bits", [0.3, 1.0, 3.0])
def test_spectral_keeps_to_its_bits(bits: float) -> None:
    source = torch.Generator().manual_seed(0)
    kernels = torch.randn(64, 64, 1, 1, 1, generator=source) + 0.3 * torch.randn(
        64, 64, 3, 3, 3, generator=source
    )
    sent = {"kernel": kernels}
    data = compress(sent, Spectral(bits))
    assert 0.9 * bits < len(data) * 8 / kernels.numel() < 1.1 * bits
    # Smooth kernels: far better than as many bits spent on each tap by itself.
    error = relative(kernels, decompress(data, shapes(sent))["kernel"])
    assert error < 0.75 * 2**-bits


def test_fewer_bits_are_fewer_bytes_and_more_error() -> None:
    sent = update()
    of = [Float32(), Float16(), Quantise(8), Quantise(4), Quantise(2)]
    for family in (of, [Spectral(2), Spectral(1), Spectral(0.3)], [TopK(0.2), TopK(0.02)]):
        sizes = [len(compress(sent, codec)) for codec in family]
        errors = [relative(trained(sent), trained(there_and_back(sent, c))) for c in family]
        assert sizes == sorted(sizes, reverse=True) and errors == sorted(errors)


# --- error feedback -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LOSSY if name != "float16"])
def test_what_is_lost_is_made_up_for(name: str) -> None:
    """The sums of what was wanted and of what was decoded differ by the memory, and by no more."""
    memory, sums = ErrorFeedback(), {"wanted": 0.0, "with": 0.0, "without": 0.0}
    steady = update(99, scale=0.002)
    off = {}
    for number in range(8):
        wanted = {
            key: value + steady[key] if value.is_floating_point() else value
            for key, value in update(number, scale=0.001).items()
        }
        sums["wanted"] += trained(wanted)
        sums["with"] += trained(decompress(compress(wanted, name, memory), shapes(wanted)))
        sums["without"] += trained(there_and_back(wanted, name))
        off[number] = float((sums["wanted"] - sums["with"]).norm())
    kept = trained(memory.lost)
    assert torch.allclose(sums["wanted"] - sums["with"], kept, atol=1e-5)
    assert off[7] < 1.5 * off[3], "it grows"
    assert relative(sums["wanted"], sums["with"]) < 0.6 * relative(sums["wanted"], sums["without"])


def test_with_feedback_the_sum_is_off_by_one_step() -> None:
    memory, codec = ErrorFeedback(), Quantise(8)
    total = torch.zeros(16, 16)
    wanted = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    for number in range(1, 13):
        total += decompress(compress({"w": wanted}, codec, memory), {"w": (16, 16)})["w"]
        # The largest wanted is 0.5 and what was lost, half a step.
        step = 0.5 / 126
        assert (total - number * wanted).abs().max() <= step


def test_memory_is_saved_and_resumed(tmp_path: Path) -> None:
    straight, stopped = ErrorFeedback(), ErrorFeedback()
    for number in range(3):
        compress(update(number), "spectral", straight)
        compress(update(number), "spectral", stopped)
    save_file(stopped.lost, tmp_path / "memory.safetensors")
    before = stopped.lost
    copies = {key: value.clone() for key, value in before.items()}
    resumed = ErrorFeedback(load_file(tmp_path / "memory.safetensors"))
    last = compress(update(3), "spectral", straight)
    assert compress(update(3), "spectral", resumed) == last
    # A round that did not arrive: the dict of before is untouched and can be put back.
    assert compress(update(3), "spectral", stopped) == last
    assert all(torch.equal(before[key], value) for key, value in copies.items())


def test_the_memory_of_another_network_is_refused() -> None:
    memory = ErrorFeedback({"conv.bias": torch.zeros(17)})
    with pytest.raises(ConfigError, match=r"memory must be float32 of \(16,\)"):
        compress(update(), "quantise", memory)


# --- what is refused ----------------------------------------------------------------------------


def test_options_and_updates_that_cannot_be_used() -> None:
    for name, options in (
        ("quantise", {"bits": 1}), ("quantise", {"bits": 9}), ("top_k", {"share": 0.0}),
        ("top_k", {"share": 0.6}), ("low_rank", {"rank": 0}), ("spectral", {"bits": 0.0}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="codec's"):
            build(CODECS, "codec", name, **options)
    with pytest.raises(ConfigError, match="codec must be one of"):
        compress(update(), "zip")
    with pytest.raises(ConfigError, match="update must be of float32"):
        compress({"w": torch.zeros(3, dtype=torch.float64)}, "float32")
    with pytest.raises(FormatError, match=r"finite.*\(w\).*diverged"):
        compress({"w": torch.tensor([1.0, float("nan")])}, "float32")


def test_other_tensors_than_those_known_are_refused() -> None:
    data, known = compress(update(), "spectral"), dict(shapes(update()))
    for wrong in (
        {**known, "more": torch.Size([2])},
        {key: value for key, value in known.items() if key != "mask"},
        {**known, "conv.weight": torch.Size([4, 8, 3, 3, 3])},
    ):
        with pytest.raises(FormatError, match="update must be of"):
            decompress(data, wrong)


@cache
def once(name: str) -> bytes:
    return compress(update(), name)


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=40, deadline=None)
@given(source=some.data())
def test_damage_is_refused(name: str, source: some.DataObject) -> None:
    data = bytearray(once(name))
    if source.draw(some.booleans(), "cut"):
        data = data[: source.draw(some.integers(0, len(data) - 1), "length")]
    else:
        bit = source.draw(some.integers(0, 8 * len(data) - 1), "bit")
        data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        decompress(bytes(data), shapes(update()))


@pytest.mark.parametrize("name", CODECS)
@settings(max_examples=25, deadline=None)
@given(source=some.data())
def test_forgeries_with_a_right_digest_are_refused_or_harmless(
    name: str, source: some.DataObject
) -> None:
    known = shapes(update())
    data = bytearray(once(name)[:-32])
    for _ in range(source.draw(some.integers(1, 3), "changes")):
        at = source.draw(some.integers(0, len(data) - 1), "at")
        data[at] = source.draw(some.integers(0, 255), "byte")
    if source.draw(some.booleans(), "longer"):
        data += b"\0" * source.draw(some.integers(1, 9), "by")
    forged = bytes(data) + hashlib.sha256(data).digest()
    try:
        back = decompress(forged, known)
    except FormatError:
        return
    assert shapes(back) == known
    assert all(torch.isfinite(value).all() for value in back.values())


def forge(header: object, symbols: bytes = b"", plain: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else zlib.compress(json.dumps(header).encode())
    data = struct.pack("<4sIII", b"QJU\x01", len(text), len(plain), len(symbols))
    data += text + plain + symbols
    return data + hashlib.sha256(data).digest()


@pytest.mark.parametrize(
    "header",
    [
        [], {}, {"codec": {}, "tensors": []}, {"codec": {"name": "float32"}, "tensors": [["w"]]},
        {"codec": {"name": 3}, "tensors": [["w", "float32", [40, 40]]]},
        {"codec": {"name": "float32", "more": 1}, "tensors": [["w", "float32", [40, 40]]]},
        {"codec": {"name": "quantise", "bits": "4"}, "tensors": [["w", "float32", [40, 40]]]},
        {"codec": {"name": "low_rank", "rank": 10**30}, "tensors": [["w", "float32", [40, 40]]]},
        {"codec": {"name": "top_k", "share": 1e-300}, "tensors": [["w", "float32", [40, 40]]]},
        {"codec": {"name": "float32"}, "tensors": [["w", "object", [40, 40]]]},
        {"codec": {"name": "float32"}, "tensors": [["w", "float32", [2**40, 2**40]]]},
        {"codec": {"name": "float32"}, "tensors": [["w", "float32", [40, 40]]] * 2},
        b"not deflated", zlib.compress(b"\xff not text"), zlib.compress(b"[" * 10**5),
        zlib.compress(b" " * 2**25),
    ],
)  # fmt: skip
def test_headers_that_are_not_ours(header: object) -> None:
    with pytest.raises(FormatError):
        decompress(forge(header), {"w": (40, 40)})


def test_a_bomb_is_refused_before_there_is_room_for_it() -> None:
    """One symbol alone takes no bits: 2³² of them would come out of a few bytes."""
    described = zlib.compress(
        struct.pack("<I", 2**32 - 1) + b"\0" + bytes([127, 127]) + struct.pack("<H", 2**14)
    )
    lanes = 2**18
    symbols = struct.pack("<IBII", 1, 1, len(described), lanes) + described
    symbols += struct.pack("<I", 2**16) * lanes
    header = {
        "codec": {"name": "quantise", "bits": 4, "rows": False},
        "tensors": [["w", "float32", [40, 40]]],
    }
    with pytest.raises(FormatError, match="symbols must be at most"):
        decompress(forge(header, symbols, b"\0" * 4), {"w": (40, 40)})


def test_numbers_without_end_are_refused() -> None:
    header = {"codec": {"name": "float32"}, "tensors": [["w", "float32", [2]]]}
    with pytest.raises(FormatError, match="finite"):
        decompress(forge(header, plain=struct.pack("<ff", 1.0, float("inf"))), {"w": (2,)})
    whole = decompress(forge(header, plain=struct.pack("<ff", 1.0, 2.0)), {"w": (2,)})
    assert whole["w"].tolist() == [1.0, 2.0]
