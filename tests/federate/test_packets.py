"""Each site in a network namespace of its own and every packet kept: nothing of a scan leaves.

In the voxels, names and headers of every scan stands what is nowhere else. It is looked for in all
that the sites' processes hand to the transport, before it is encrypted; what is on the wire is no
more than that, and goes nowhere but to the coordinator. One site of four leaks, and is found out.
"""

from __future__ import annotations

import base64
import gzip
import importlib.util
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.federate.canaries import Canary, Search, plant
from tests.federate.packets import APPLICATION, Packet, Seen, Sniffer, in_namespace, read, records

from qinjing.cli import main
from qinjing.config import read_json
from qinjing.data.nifti import read_nifti
from qinjing.engine.checkpoint import load_tensors
from qinjing.errors import InputError
from qinjing.federate.compression import compress
from qinjing.federate.compression.codecs import Quantise
from qinjing.federate.compression.spectral import Spectral
from qinjing.federate.message import Message, as_tensor

msgpack = pytest.importorskip("msgpack")
pytest.importorskip("nvflare")


def bench(name: str) -> ModuleType:
    """A file of `benchmarks/`, which is no package."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


namespaces = bench("namespaces")
HONEST, LEAKY = ("east", "north", "south"), "west"
SITES = (*HONEST, LEAKY)
PORT, ROUNDS, CASES = 8443, 2, 4
RUNS: dict[str, tuple[str, ...]] = {
    "plain": (), "spectral": ("--codec", "spectral"), "secure": ("--secure",),
}  # fmt: skip
PATIENCE_S = 600  # of a loaded machine; nothing is measured by it
ELSEWHERE = ("192.0.2.7", 9)  # of nobody
TAPPED = Path(__file__).with_name("tapped.py")


@dataclass(frozen=True)
class Federation:
    """What is left of one that is over.

    Attributes:
        folder: with the scans, and with what each site and the coordinator keeps.
        canaries: by site.
        handed: by process, the frames that it handed to gRPC.
        seen: by site, what passed its port.
    """

    folder: Path
    canaries: dict[str, list[Canary]]
    handed: dict[str, list[bytes]]
    seen: dict[str, Seen]

    def search(self, site: str) -> Search:
        """Look for the site's canaries, and for where the scans lie."""
        return Search(self.canaries[site], [str(self.folder)])


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Three trainings by the same four sites: of whole numbers, of few bytes, of sums alone."""
    if why := namespaces.why_not():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("packets")
    canaries = {
        site: [plant(folder / "scans" / site, CASES * number + case) for case in range(CASES)]
        for number, site in enumerate(SITES)
    }
    make_papers(folder)
    secret, nothing = folder / "secret", folder / "nothing"
    secret.write_bytes(secret_of(folder, canaries[LEAKY][0]))
    with ExitStack() as stack:
        network = stack.enter_context(namespaces.joined(len(SITES)))
        ports = map(namespaces.port, range(len(SITES)))
        sniffers = [stack.enter_context(Sniffer(network.hub, port)) for port in ports]

        def start(namespace: str, name: str, leak: Path, *words: object) -> subprocess.Popen[bytes]:
            command = [sys.executable, TAPPED, folder / f"{name}.tap", leak, "federate", *words]
            with (folder / f"{name}.log").open("ab") as log:
                process = subprocess.Popen(
                    [*namespaces.inside(namespace), *map(str, command)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        peers = ["--peers", folder / "p" / "identities.json"]
        sites = [
            start(leaf, site, secret if site == LEAKY else nothing, "join",
                  folder / "p" / "approved" / f"{site}.signed.json", "-o", folder / site, *peers)
            for site, leaf in zip(SITES, network.leaves, strict=True)
        ]  # fmt: skip
        for run, more in RUNS.items():
            words = ["-p", folder / "p", "-o", folder / run, "--sites", len(SITES)]
            words += ["--rounds", ROUNDS, "--steps", 1, "--net", "residual_unet"]
            words += ["--deadline", PATIENCE_S, *more]
            leader = start(network.hub, "coordinator", nothing, "coordinate", *words)
            assert leader.wait(PATIENCE_S) == 0, (folder / "coordinator.log").read_text()
        in_namespace(network.leaves[SITES.index(LEAKY)], stray)
        for process in sites:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_S)
    assert [sniffer.dropped for sniffer in sniffers] == [0] * len(SITES)
    kept = {site: sniffer.packets for site, sniffer in zip(SITES, sniffers, strict=True)}
    handed = {name: frames(folder / f"{name}.tap") for name in (*SITES, "coordinator")}
    return Federation(folder, canaries, handed, {site: read(own) for site, own in kept.items()})


def make_papers(folder: Path) -> None:
    host = ["--host", namespaces.HUB, "--port", str(PORT)]
    assert main(["federate", "provision", "-o", str(folder / "p"), "--name", "proof", *host]) == 0
    for site in SITES:
        scans = folder / "scans" / site
        declared = '{"basis": "licence", "reference": "CC0", "purposes": ["federated"]}'
        (scans / "consent.json").write_text(declared)
        words = ["--site", site, "-i", str(scans), "-o", str(folder / site)]
        invitation = str(folder / "p" / "invitation.json")
        assert main(["federate", "request", invitation, *words]) == 0
    asked = [str(folder / site / f"{site}.request.json") for site in SITES]
    assert main(["federate", "approve", *asked, "-p", str(folder / "p")]) == 0


def secret_of(folder: Path, canary: Canary) -> bytes:
    """A scan as a network gets it, in halves, and its patient's name."""
    path = folder / "scans" / LEAKY / "images" / f"{canary.case}.nii.gz"
    voxels = read_nifti(path).voxels.astype(np.float64)
    return ((voxels - voxels.mean()) / voxels.std()).astype("<f2").tobytes() + patient(canary)


def patient(canary: Canary) -> bytes:
    return canary.words[1].encode()


def stray() -> None:
    """Say something to somebody who is not the coordinator."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"stray", ELSEWHERE)


def frames(tap: Path) -> list[bytes]:
    """What `tapped.py` kept."""
    data, at, found = tap.read_bytes(), 0, []
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        found.append(data[at + 4 : end])
        at = end
    return found


def carried(handed: list[bytes]) -> list[bytes]:
    """What frames carry, streams put together again."""
    from nvflare.fuel.f3.sfm.prefix import PREFIX_STRUCT
    from nvflare.fuel.f3.streaming.stream_const import StreamDataType, StreamHeaderKey

    found: list[bytes] = []
    streams: dict[object, dict[int, bytes]] = defaultdict(dict)
    for frame in handed:
        start = PREFIX_STRUCT.size + PREFIX_STRUCT.unpack_from(frame)[1]
        head = frame[PREFIX_STRUCT.size : start]
        told = msgpack.unpackb(head) if head else {}
        if told.get(StreamHeaderKey.DATA_TYPE) in (StreamDataType.CHUNK, StreamDataType.FINAL):
            place = told[StreamHeaderKey.OFFSET]
            streams[told[StreamHeaderKey.STREAM_ID]][place] = frame[start:]
        else:
            found.append(frame[start:])
    return found + [b"".join(own[place] for place in sorted(own)) for own in streams.values()]


def answers(federation: Federation, site: str, verb: str) -> list[Message]:
    found = []
    for data in carried(federation.handed[site]):
        try:
            found.append(Message.unpack(data))
        except InputError:  # what NVFlare says for itself
            continue
    return [message for message in found if message.verb == verb]


def streams(federation: Federation, site: str, up: bool) -> list[bytes]:
    """What a site's connections carried one way, encrypted."""
    every = federation.seen[site].streams.items()
    return [data for flow, data in every if (flow.target_port == PORT) == up]


def updates(federation: Federation, site: str) -> dict[str, list[int]]:
    """Bytes of tensors in each update that a site sent, by the tensors' group."""
    found: dict[str, list[int]] = defaultdict(list)
    for message in answers(federation, site, "learn"):
        for group, own in message.tensors.items():
            found[group].append(sum(v.numel() * v.element_size() for v in own.values()))
    return found


@pytest.mark.slow
def test_no_voxel_and_no_name_is_in_what_a_site_hands_over(federation: Federation) -> None:
    for site in HONEST:
        search = federation.search(site)
        assert len(answers(federation, site, "learn")) == len(RUNS) * ROUNDS
        for data in carried(federation.handed[site]):
            assert search(data) == set()
        assert search.plainly(b"".join(federation.handed[site])) == set()


@pytest.mark.slow
def test_the_same_search_finds_a_site_that_leaks(federation: Federation) -> None:
    search, first = federation.search(LEAKY), federation.canaries[LEAKY][0]
    found = [search(data) for data in carried(federation.handed[LEAKY])]
    assert set().union(*found) == {f"voxels of {first.case}", patient(first).decode()}
    assert sum(map(bool, found)) == len(RUNS)  # each time that it prepared its scans, and then only


@pytest.mark.slow
def test_the_same_search_finds_every_scan_at_home(federation: Federation) -> None:
    """And so the scans that were learnt from are those with the canaries, in the voxels learnt."""
    for site in SITES:
        search = federation.search(site)
        learnt = set()
        for training in (federation.folder / site / "work" / "rounds").iterdir():
            learnt |= {case for own in read_json(training / "saw.json").values() for case in own}
        assert len(learnt) == CASES - 1
        for canary in federation.canaries[site]:
            voxels = federation.folder / site / "work" / "cache" / canary.case / "image.npy"
            assert search(voxels.read_bytes()) == {f"voxels of {canary.case}"}
            scan = federation.folder / "scans" / site / "images" / f"{canary.case}.nii.gz"
            words = set(canary.words[3:])  # of the header; the others are names
            assert search(scan.read_bytes()) >= {f"voxels of {canary.case}", *words}
            table = federation.folder / "scans" / site / "participants.tsv"
            assert search(table.read_bytes()) >= set(canary.words[1:3])


@pytest.mark.slow
def test_what_is_on_the_wire_is_what_was_handed_over_and_adds_up_to_the_model(
    federation: Federation,
) -> None:
    net = load_tensors(federation.folder / "plain" / "fold_0" / "weights.safetensors")[0]
    floating = [v for v in net.values() if v.is_floating_point()]
    count = sum(v.numel() for v in floating)
    for site in HONEST:
        sent = updates(federation, site)
        assert sent["change"] == [4 * count] * ROUNDS
        assert all(size < 0.06 * 4 * count for size in sent["few"])
        assert all(4 * count < size < 4.01 * count + 1000 for size in sent["sum"])
        assert [len(own) for own in sent.values()] == [ROUNDS] * len(RUNS)
        tensors, frames = sum(map(sum, sent.values())), sum(map(len, federation.handed[site]))
        assert tensors < frames < 1.01 * tensors + 200_000
    for up in (True, False):
        senders = [(site, [site]) for site in SITES] if up else [("coordinator", list(SITES))]
        for sender, ports in senders:
            handed = sum(map(len, federation.handed[sender]))
            carried = sum(
                len(data)
                for site in ports for stream in streams(federation, site, up)
                for kind, data in records(stream) if kind == APPLICATION
            )  # fmt: skip
            print(f"{sender} handed over {handed} bytes, TLS carried {carried}")
            # TLS 1.3 and HTTP/2 add less than 1 %; certificates and what HTTP/2 acknowledges.
            assert handed < carried < 1.01 * handed + 20_000 * len(ports), sender
    for site in SITES:
        print(f"{site} sent {federation.seen[site].came_in} bytes on the wire")


@pytest.mark.slow
def test_a_site_speaks_to_the_coordinators_port_alone_and_encrypted(federation: Federation) -> None:
    for site in SITES:
        search = federation.search(site)
        seen = federation.seen[site]
        assert seen.opened == {(namespaces.HUB, PORT)}
        elsewhere = {(ELSEWHERE[0], "protocol 17")} if site == LEAKY else set()
        assert seen.others == elsewhere  # and that the sniffer would see it, says the leaky one
        for stream in (*streams(federation, site, True), *streams(federation, site, False)):
            assert search.plainly(stream) == set()
            sent = b"".join(data for kind, data in records(stream) if kind == APPLICATION)
            assert len(zlib.compress(sent, 1)) > 0.999 * len(sent)


VOXELS: dict[str, Callable[[np.ndarray], bytes]] = {
    "as they are": lambda v: v.astype("<i2").tobytes(),
    "the other byte order": lambda v: v.astype(">i2").tobytes(),
    "bytes": lambda v: (v / v.max() * 255).astype("u1").tobytes(),
    "normalised": lambda v: ((v - 300) / 45).astype("<f4").tobytes(),
    "normalised, the other byte order": lambda v: ((v - 300) / 45).astype(">f4").tobytes(),
    "doubles": lambda v: v.astype(">f8").tobytes(),
    "halves": lambda v: ((v - 300) / 45).astype("<f2").tobytes(),
    "bfloat16": lambda v: torch.from_numpy(v / 45).bfloat16().view(torch.int16).numpy().tobytes(),
    "upside down": lambda v: (1 - v[::-1] / 1000).astype("<f4").tobytes(),
    "4 bits": lambda v: np.rint((v - v.mean()) / np.ptp(v) * 15).astype("i1").tobytes(),
    "deflated twice": lambda v: zlib.compress(zlib.compress(v.astype("<f4").tobytes())),
    "gzip": lambda v: gzip.compress(v.astype("<i2").tobytes()),
    "an update": lambda v: Message("learn", {}, {"change": {"w": torch.from_numpy(v)}}).pack(),
    "8 bits of an update": lambda v: few(v, Quantise(8)),
    "frequencies of an update": lambda v: few(v, Spectral(8.0)),
    "halves of an update": lambda v: few(v, "float16"),
}
WORDS: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "capitals": lambda w: w.upper().encode(),
    "backwards": lambda w: w[::-1].encode(),
    "two bytes a letter": lambda w: w.encode("utf-16-be"),
    "base64": lambda w: base64.b64encode(b"by " + w.encode() + b"."),
    "hexadecimal": lambda w: w.encode().hex().encode(),
    "deflated": lambda w: zlib.compress(w.encode()),
    "a field": lambda w: Message("learn", {"reason": f"no {w} here"}).pack(),
}


def few(values: np.ndarray, codec: object) -> bytes:
    update = {"change/w": torch.from_numpy(values).float().reshape(8, -1)}
    data = compress(update, codec)  # type: ignore[arg-type]
    return Message("learn", {}, {"few": {"bytes": as_tensor(data)}}).pack()


@pytest.mark.parametrize("form", VOXELS)
def test_the_search_finds_voxels_in(form: str, tmp_path: Path) -> None:
    canaries = [plant(tmp_path, number) for number in range(3)]
    noise = np.random.default_rng(0).normal(300, 20, (2, 200))
    values = np.concatenate([noise[0], canaries[1].lines[0], noise[1]])
    before = b"" if "update" in form else b"123"  # bytes at any place, messages from their start
    found = Search(canaries)(before + VOXELS[form](values))
    assert found == {f"voxels of {canaries[1].case}"}


@pytest.mark.parametrize("form", WORDS)
def test_the_search_finds_words(form: str, tmp_path: Path) -> None:
    canaries = [plant(tmp_path, number) for number in range(3)]
    word = canaries[1].words[4]
    assert Search(canaries)(b"some bytes" + WORDS[form](word) + b"others") == {word}


def test_segments_become_a_stream_and_a_gap_is_an_error() -> None:
    def packet(number: int, data: bytes, flags: int = 16) -> Packet:
        segment = struct.pack(">HHIIBBHHH", 40000, PORT, number, 0, 5 << 4, flags, 0, 0, 0) + data
        ends = socket.inet_aton("10.77.0.2") + socket.inet_aton(namespaces.HUB)
        ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0) + ends
        return Packet(True, bytes(12) + b"\x08\x00" + ip + segment + bytes(6))  # padded

    last = 2**32 - 1  # numbers begin anywhere, and go round
    begun = packet(last - 2, b"", flags=2)
    one, two, three = (
        packet((last - 1 + k) % 2**32, d) for k, d in ((0, b"ab"), (2, b"c"), (3, b"d"))
    )
    again = [packet(7, b"", flags=2), packet(8, b"ef")]  # from the same port
    seen = read([begun, begun, one, three, two, one, *again])
    assert list(seen.streams.values()) == [b"abcd", b"ef"]
    assert seen.opened == {(namespaces.HUB, PORT)} and seen.others == set()
    with pytest.raises(ValueError, match="bytes 2 to 3 of a stream are missing"):
        read([begun, one, three])
