"""What the codecs of `qinjing.federate.compression` cost and lose on real updates.

Three sites train a small network together on generated anatomy of two makes of scanner, without
compression, and their updates are kept in `--work` (found there, they are not made again). Then
each codec sends the updates of one site, and what the server sends back, round after round, with
error feedback and without. "one_round" is the relative error of the first round; "sum" that of the
sum over all rounds, which is where the weights would be. Bits are measured on the bytes.

Beside it: how far the standard library's coders and ours lie from the entropy of the quantised
symbols, each frequency of each kernel by itself, in the last round with error feedback; and on
independent Laplacian numbers.

    .venv/bin/python benchmarks/compression.py -o benchmarks/results/compression.json
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isal import isal_zlib
from safetensors.torch import load_file, save_file
from torch import Tensor

from qinjing.config import atomic_path, write_json
from qinjing.engine.device import environment
from qinjing.federate.compression import (
    CODECS,
    ErrorFeedback,
    compress,
    decompress,
)
from qinjing.federate.compression.entropy import LARGEST, decode, encode, entropy_bits
from qinjing.federate.compression.wire import Reader
from qinjing.losses import LOSSES
from qinjing.nets import NETS
from qinjing.physics.phantom import LABELS, VENDORS, draw, render
from qinjing.registry import build

SITES = (0, 1, 0)  # the make of each site's scanner
CASES, STEPS, PATCH, WIDTHS = 4, 20, (24, 32, 32), (16, 32, 64)
BROADCAST = str(len(SITES))
MEASURED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("float32", {}),
    ("float16", {}),
    ("quantise", {"bits": 8}),
    ("quantise", {"bits": 4}),
    ("quantise", {"bits": 2}),
    ("quantise", {"bits": 2, "rows": True}),
    ("top_k", {"share": 0.02}),
    ("top_k", {"share": 0.05}),
    ("top_k", {"share": 0.1}),
    ("low_rank", {"rank": 4}),
    ("low_rank", {"rank": 8}),
    ("spectral", {"bits": 0.4}),
    ("spectral", {"bits": 1.0}),
    ("spectral", {"bits": 1.4}),
)


def train(rounds: int, work: Path) -> None:
    """Federated averaging; each round's updates of the sites and of the server go to a file."""
    makes = list(VENDORS)
    sites = [_cases(number, makes[make]) for number, make in enumerate(SITES)]
    torch.manual_seed(0)
    net = NETS["subvoxel_unet"](1, len(LABELS), widths=WIDTHS)
    loss = LOSSES["dice_ce"]()
    held = {name: value.clone() for name, value in net.state_dict().items()}
    for number in range(rounds):
        path = work / f"round_{number}.safetensors"
        if path.exists():
            known = load_file(path)
            held = {name: held[name] + known[f"{BROADCAST}/{name}"] for name in held}
            continue
        updates = []
        for site, cases in enumerate(sites):
            net.load_state_dict(held)
            net.train()
            rng = np.random.default_rng((9, number, site))
            optimiser = torch.optim.AdamW(net.parameters(), 1e-3)
            for _ in range(STEPS):
                image, label = _patch(cases, rng)
                value = loss(net(image)[0], label)
                optimiser.zero_grad()
                value.backward()
                optimiser.step()
            updates.append({n: v.detach() - held[n] for n, v in net.state_dict().items()})
        mean = {name: sum(own[name] for own in updates) / len(SITES) for name in held}
        held = {name: held[name] + mean[name] for name in held}
        kept = {
            f"{site}/{name}": value.contiguous()
            for site, own in enumerate([*updates, mean])
            for name, value in own.items()
        }
        with atomic_path(path) as temporary:
            save_file(kept, temporary)


def _cases(site: int, make: str) -> list[tuple[Tensor, Tensor]]:
    found = []
    for number in range(CASES):
        image, label = render(draw(np.random.default_rng((site, number)), make))
        grey = (image.voxels - image.voxels.mean()) / image.voxels.std()
        found.append((torch.from_numpy(grey), torch.from_numpy(label.voxels.astype(np.int64))))
    return found


def _patch(cases: list[tuple[Tensor, Tensor]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    image, label = cases[rng.integers(len(cases))]
    sizes = zip(image.shape, PATCH, strict=True)
    corner = [int(rng.integers(0, whole - part + 1)) for whole, part in sizes]
    box = tuple(slice(a, a + part) for a, part in zip(corner, PATCH, strict=True))
    return image[box][None, None], label[box][None]


def send(
    updates: list[dict[str, Tensor]], name: str, options: dict[str, Any], feedback: bool
) -> dict[str, float]:
    """Bits a weight and relative errors of one codec over all rounds."""
    codec, memory = build(CODECS, "codec", name, **options), ErrorFeedback() if feedback else None
    wanted = {key: torch.zeros(x.shape, dtype=torch.float64) for key, x in updates[0].items()}
    got = {key: torch.zeros_like(x) for key, x in wanted.items()}
    sizes, first, seconds = [], 0.0, [0.0, 0.0]
    for update in updates:
        start = time.process_time()
        data = compress(update, codec, memory)
        middle = time.process_time()
        seen = decompress(data, {key: x.shape for key, x in update.items()})
        seconds[0] += middle - start
        seconds[1] += time.process_time() - middle
        first = first if sizes else _apart(update, seen)
        sizes.append(len(data))
        for key, x in update.items():
            wanted[key] += x
            got[key] += seen[key]
    weights = sum(x.numel() for x in wanted.values())
    return {
        "bytes": round(float(np.mean(sizes))),
        "bits_a_weight": round(float(np.mean(sizes)) * 8 / weights, 3),
        "below_float32": round(1 - float(np.mean(sizes)) / (4 * weights), 4),
        "one_round": round(first, 4),
        "sum": round(_apart(wanted, got), 4),
        "pack_cpu_seconds": round(seconds[0] / len(updates), 3),
        "unpack_cpu_seconds": round(seconds[1] / len(updates), 3),
    }


def _apart(wanted: dict[str, Tensor], got: dict[str, Tensor]) -> float:
    off = sum(float((wanted[key].double() - got[key]).square().sum()) for key in wanted)
    return (off / sum(float(x.double().square().sum()) for x in wanted.values())) ** 0.5


def _lzma(data: bytes) -> bytes:
    one = {"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=[one])


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": lambda data: zlib.compress(data, 9),
    "isal": lambda data: isal_zlib.compress(data, 3),
    "bz2": bz2.compress,
    "lzma": _lzma,
}


def coders(groups: list[np.ndarray]) -> dict[str, Any]:
    """Bits a symbol of each coder over the entropy of the groups by themselves."""
    counts = np.stack([np.bincount(g.astype(int) + LARGEST, minlength=255) for g in groups])
    symbols = sum(group.size for group in groups)
    bound = float(entropy_bits(counts).sum())
    most = max(1, int(np.abs(np.concatenate(groups)).max()))
    digits = (np.concatenate(groups).astype(np.int64) + most).astype(np.uint8)
    # As many symbols to a byte as fit: what suits the standard coders best at few bits.
    base = 2 * most + 1
    together = max(1, int(np.log(256) / np.log(base)))
    padded = np.pad(digits, (0, -len(digits) % together)).reshape(-1, together)
    dense = (padded * base ** np.arange(together)).sum(1).astype(np.uint8).tobytes()
    found: dict[str, Any] = {"entropy_bits_a_symbol": round(bound / symbols, 4)}
    for name, coder in CODERS.items():
        start = time.process_time()
        sizes = [len(coder(form)) for form in (digits.tobytes(), dense)]
        found[name] = {
            "above_entropy": round(min(sizes) * 8 / bound - 1, 4),
            "cpu_seconds": round((time.process_time() - start) / 2, 3),
        }
    start = time.process_time()
    data = encode(groups)
    found["ours"] = {
        "above_entropy": round(len(data) * 8 / bound - 1, 4),
        "cpu_seconds": round(time.process_time() - start, 3),
    }
    back = decode(data, symbols)
    assert all(np.array_equal(a, b) for a, b in zip(groups, back, strict=True))
    return found


def symbols_sent(updates: list[dict[str, Tensor]], bits: float) -> list[np.ndarray]:
    """The groups of symbols of the last round's update, with error feedback."""
    memory = ErrorFeedback()
    for update in updates:
        data = compress(update, build(CODECS, "codec", "spectral", bits=bits), memory)
    source = Reader(data)
    source.unpack(2**31)
    return [source.take_symbols() for _ in range(len(source._groups))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path(".scratch/compression"))
    parser.add_argument("-o", "--output", type=Path, help="write the JSON here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    train(arguments.rounds, arguments.work)
    files = [arguments.work / f"round_{n}.safetensors" for n in range(arguments.rounds)]
    streams: dict[str, list[dict[str, Tensor]]] = {"site_to_server": [], "server_to_site": []}
    for path in files:
        kept = load_file(path)
        for stream, site in zip(streams.values(), ("0", BROADCAST), strict=True):
            own = {n.partition("/")[2]: x for n, x in kept.items() if n.startswith(f"{site}/")}
            stream.append(own)
    rng = np.random.default_rng(0)
    result = {
        "environment": {**environment(), "threads": 1},
        "network": {"net": "subvoxel_unet", "widths": WIDTHS},
        "weights": sum(x.numel() for x in streams["site_to_server"][0].values()),
        "rounds": arguments.rounds,
        "local_steps": STEPS,
        "sites": len(SITES),
        "bar_bits_a_weight": 1.6,
        "entropy_coders": {
            **{
                f"spectral {bits} bits, last round": coders(
                    symbols_sent(streams["site_to_server"], bits)
                )
                for bits in (0.4, 1.0)
            },
            **{
                f"laplacian, step {step} of its scale": coders(
                    [np.clip(np.rint(rng.laplace(size=400_000) / step), -127, 127).astype(np.int8)]
                )
                for step in (1.0, 2.0, 4.0)
            },
        },
        "codecs": [
            {
                "codec": name,
                **options,
                **{
                    f"{way}{'' if feedback else ', no feedback'}": send(
                        updates, name, options, feedback
                    )
                    for way, updates in streams.items()
                    for feedback in (True, False)
                },
            }
            for name, options in MEASURED
        ],
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
