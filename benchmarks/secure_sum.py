"""What a secure sum costs in seconds a stage and bytes a site, beside a plain sum.

Five sites with 15 million float32 each (60 MB) by default, all in one process on one core, without
a network: none, then two of them drop out between sharing and sending their vectors. `plain` adds
the same vectors as they come. The least CPU time of some rounds is kept, since a busy machine only
adds. `ratio_site` and `ratio_server` say how many plain sums a site's masking and the server's
adding and unmasking cost; `wire_ratio` is bytes against float32; `peak_gib` is the peak of memory
above the sites' vectors, of one site and the server together. `ciphers` says what a mask of one
such vector costs with the stream ciphers that were to choose from.

    .venv/bin/python benchmarks/secure_sum.py -o benchmarks/results/secure_sum.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import cryptography  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes  # noqa: E402

from qinjing.config import write_json  # noqa: E402
from qinjing.engine.device import environment, peak_memory_gib  # noqa: E402
from qinjing.federate.secure_sum import Server, Site, Terms  # noqa: E402

T = TypeVar("T")
BOUND = 8.0
BLOCK = 2**17


def plain(vectors: list[np.ndarray]) -> np.ndarray:
    """The float32 sum that a server makes of vectors which it may see."""
    total = np.zeros_like(vectors[0])
    for vector in vectors:
        total += vector
    return total


def one_round(
    vectors: list[np.ndarray], bits: int, drop: int
) -> tuple[dict[str, float], dict[str, int], np.ndarray]:
    """Seconds of each stage (of one site, the mean over them), bytes of one site, and the sum."""
    count = len(vectors)
    keys = {f"site {i}": Ed25519PrivateKey.generate() for i in range(count)}
    identities = {site: key.public_key().public_bytes_raw() for site, key in keys.items()}
    terms = Terms("benchmark", identities, len(vectors[0]), BOUND, bits)
    seconds: dict[str, float] = {}

    def timed(stage: str, parts: int, call: Callable[[], T]) -> T:
        start = time.process_time()
        result = call()
        seconds[stage] = seconds.get(stage, 0.0) + (time.process_time() - start) / parts
        return result

    sites = {site: Site(terms, site, key) for site, key in keys.items()}
    server = Server(terms)
    adverts = {s: timed("site_advertise", count, it.advertise) for s, it in sites.items()}
    roster = timed("server_introduce", 1, lambda: server.introduce(adverts))
    shares = {
        s: timed("site_share", count, lambda it=it: it.share(roster)) for s, it in sites.items()
    }
    boxes = timed("server_deliver", 1, lambda: server.deliver(shares))
    stay = list(sites)[drop:]
    for number, s in enumerate(sites):
        if s in stay:
            vector = vectors[number]
            sent = timed("site_mask", len(stay), lambda s=s, v=vector: sites[s].mask(boxes[s], v))
            timed("server_add", 1, lambda s=s, sent=sent: server.add(s, sent))
    survivors = timed("server_survivors", 1, server.survivors)
    agreed = {
        s: timed("site_agree", len(stay), lambda s=s: sites[s].agree(survivors)) for s in stay
    }
    request = timed("server_request", 1, lambda: server.request(agreed))
    answers = {
        s: timed("site_unmask", len(stay), lambda s=s: sites[s].unmask(request)) for s in stay
    }
    total = timed("server_total", 1, lambda: server.total(answers))
    values = timed("server_values", 1, total.values)
    of = stay[0]
    small = sum(len(messages[of]) for messages in (adverts, shares, agreed, answers))
    out = {"sent": len(sent) + small, "vector": len(sent), "small": small}
    received = len(roster) + len(boxes[of]) + len(survivors) + len(request)
    return seconds, {**out, "received": received}, values


def least(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {stage: round(min(r[stage] for r in rounds), 5) for stage in rounds[0]}


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return round(min(taken), 5)


def ciphers(length: int, repeats: int) -> dict[str, float]:
    """Seconds to draw one mask of `length` words of 4 bytes."""
    nothing, drawn = bytes(BLOCK), bytearray(BLOCK)

    def draw(cipher: Cipher[Any]) -> None:
        stream = cipher.encryptor()
        for _ in range(4 * length // BLOCK):
            stream.update_into(nothing, drawn)

    choices = {
        "aes_256_ctr": Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))),
        "aes_128_ctr": Cipher(algorithms.AES(bytes(16)), modes.CTR(bytes(16))),
        "chacha20": Cipher(algorithms.ChaCha20(bytes(32), bytes(16)), None),
    }
    return {name: cpu_seconds(lambda c=c: draw(c), repeats) for name, c in choices.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--sites", type=int, default=5)
    parser.add_argument("--length", type=int, default=15_000_000, help="values of a vector")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each kind")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    vectors = [
        np.clip(rng.standard_normal(wanted.length, np.float32), -BOUND, BOUND)
        for _ in range(wanted.sites)
    ]
    before = peak_memory_gib()
    plain_seconds = cpu_seconds(lambda: plain(vectors), wanted.repeats)
    result: dict[str, Any] = {
        "environment": {**environment(), "cryptography": cryptography.__version__},
        "sites": wanted.sites,
        "values": wanted.length,
        "unit": "CPU seconds on one core; of a site: one site's",
        "plain": {"seconds": plain_seconds, "bytes_per_site": 4 * wanted.length},
        "ciphers": ciphers(wanted.length, wanted.repeats),
    }
    for bits in (32, 24, 16):
        for drop in (0, 2):
            found = [one_round(vectors, bits, drop) for _ in range(wanted.repeats)]
            seconds = least([r[0] for r in found])
            _, sizes, values = found[-1]
            site = sum(v for stage, v in seconds.items() if stage.startswith("site_"))
            server = sum(v for stage, v in seconds.items() if stage.startswith("server_"))
            result.setdefault("peak_gib", round(peak_memory_gib() - before, 3))
            exact = np.zeros(wanted.length)
            for vector in vectors[drop:]:
                exact += vector
            result[f"bits_{bits}_dropped_{drop}"] = {
                "seconds": seconds,
                "site_seconds": round(site, 4),
                "server_seconds": round(server, 4),
                "ratio_site": round(site / plain_seconds, 2),
                "ratio_server": round(server / plain_seconds, 2),
                "bytes_per_site": sizes,
                "wire_ratio": round(sizes["sent"] / (4 * wanted.length), 4),
                "largest_error": float(np.abs(values - exact).max()),
                "plain_largest_error": float(np.abs(plain(vectors[drop:]) - exact).max()),
            }
    if wanted.output:
        write_json(wanted.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
