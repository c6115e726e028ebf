"""The federation between processes under mutual TLS: papers, kills, strangers, refusals."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tasks.test_train import write_case

from qinjing.cli import main
from qinjing.config import read_config, read_json, write_json
from qinjing.engine.checkpoint import load_tensors
from qinjing.engine.log import read_events
from qinjing.errors import ConfigError, FormatError
from qinjing.federate.coordinator import federate
from qinjing.federate.doors import InProcess
from qinjing.federate.federation import FederationConfig
from qinjing.federate.message import Message
from qinjing.federate.policy import Policy, SiteConfig
from qinjing.federate.site import Site

pytest.importorskip("nvflare")

from qinjing.federate.flare import cells, papers
from qinjing.federate.flare.door import hosted
from qinjing.federate.flare.member import Desk

SITES = ("east", "north", "west")
PATIENCE_S = 300  # of a loaded machine; nothing is measured by it


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scans for each site: three to learn from, one held out."""
    folder = tmp_path_factory.mktemp("scans")
    for number, site in enumerate(SITES):
        for case in range(4):
            write_case(folder / site, f"case{4 * number + case:02d}", 4 * number + case)
        basis = {"basis": "licence", "reference": "CC0", "purposes": ["federated"]}
        write_json(folder / site / "consent.json", basis)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def joined(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Coordinator and three sites with all papers, made by the commands; west gives care alone."""
    folder = tmp_path_factory.mktemp("federation")
    write_json(folder / "care.json", {"purposes": ["care"]})
    host = ["--host", "localhost", "--port", str(free_port())]
    assert main(["federate", "provision", "-o", str(folder / "p"), "--name", "demo", *host]) == 0
    invitation = str(folder / "p" / "invitation.json")
    for site in SITES:
        words = ["--site", site, "-i", str(data / site), "-o", str(folder / site)]
        policy = ["--policy", str(folder / "care.json")] if site == "west" else []
        assert main(["federate", "request", invitation, *words, *policy]) == 0
    asked = [str(folder / site / f"{site}.request.json") for site in SITES]
    assert main(["federate", "approve", *asked, "-p", str(folder / "p")]) == 0
    for site in SITES:
        papers.accept(signed(folder, site), folder / site)
    return folder


def signed(folder: Path, site: str) -> Path:
    return folder / "p" / "approved" / f"{site}.signed.json"


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command as a process of its own; none outlives the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*words: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "qinjing", "federate", *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.Popen(
            command, text=True, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Read what a process says up to a line."""
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if words in line:
            return
    raise AssertionError(f"{words!r} was never said: {seen}")


def reference(folder: Path, data: Path, sites: tuple[str, ...], config: FederationConfig) -> Path:
    """The same federation in this process."""
    door = {}
    for name in sites:
        policy = read_config(folder / name / "policy.json", Policy)
        config_of = SiteConfig(name, data / name, config.output / "sites" / name, policy)
        door[name] = Site(config_of).answer
    federate(config, InProcess(door))
    return config.output


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (
        load_tensors(run / "fold_0" / "weights.safetensors")[0] for run in (one, other)
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_keys_stay_where_they_were_made(joined: Path) -> None:
    for folder in (joined / "p" / "ca", joined / "p" / "coordinator", *map(joined.joinpath, SITES)):
        (key,) = folder.glob("*.key")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for path in joined.rglob("*.json"):
        assert "PRIVATE" not in path.read_text()
    asked = read_json(joined / "east" / "east.request.json")
    # Where the scans lie is not told.
    assert set(asked) == {
        "identity", "identity_signature", "project", "site", "signing_request",
    }  # fmt: skip
    invited = read_config(joined / "p" / "invitation.json", papers.Invitation)
    # OpenSSL's own word on the fingerprint.
    said = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", joined / "east/root.pem"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.strip().rpartition("=")[2].replace(":", "").lower() == invited.fingerprint
    checked = ["-CAfile", joined / "east" / "root.pem", joined / "east" / "own.pem"]
    subprocess.run(["openssl", "verify", *checked], check=True, capture_output=True)


def test_papers_of_somebody_else_are_turned_away(joined: Path, data: Path, tmp_path: Path) -> None:
    papers.provision(tmp_path / "other", "demo", "localhost", 8443)
    again = papers.request(
        tmp_path / "other" / "invitation.json", "east", data / "east", tmp_path / "east"
    )
    with pytest.raises(ConfigError, match="a name that is free"):  # east's name, another's key
        papers.approve((again,), joined / "p")
    forged = papers.approve((again,), tmp_path / "other")["east"]
    with pytest.raises(ConfigError, match="root certificate must be the invitation's"):
        papers.accept(forged, joined / "east")
    with pytest.raises(ConfigError, match="site must be north"):
        papers.accept(signed(joined, "east"), joined / "north")
    mixed = read_json(forged) | {"root": read_json(signed(joined, "east"))["root"]}
    write_json(tmp_path / "mixed.json", mixed)
    with pytest.raises(FormatError, match="signed by the root"):
        papers.accept(tmp_path / "mixed.json", joined / "east")
    with pytest.raises(ConfigError, match="a new folder"):
        papers.provision(joined / "p", "demo", "localhost", 8443)
    request = read_json(again) | {"project": "another"}
    write_json(again, request)
    with pytest.raises(ConfigError, match="project must be demo"):
        papers.approve((again,), joined / "p")


def test_an_identity_that_was_changed_is_noticed(joined: Path, tmp_path: Path) -> None:
    keys = joined / "p" / "identities.json"
    numbers = {papers.keep_peers(keys, joined / site) for site in SITES}
    assert len(numbers) == 1  # the one that sites compare
    assert read_json(joined / "east" / "peers.json") == read_json(keys)
    for site in SITES:
        (joined / site / "peers.json").unlink()
    # On the way to the coordinator.
    asked = read_json(joined / "east" / "east.request.json")
    other = read_json(joined / "north" / "north.request.json")["identity"]
    write_json(tmp_path / "east.request.json", asked | {"identity": other})
    with pytest.raises(FormatError, match="identity must be signed by the key of the request"):
        papers.approve((tmp_path / "east.request.json",), joined / "p")
    # By the coordinator: its owner sees it, and by the number the others do.
    write_json(tmp_path / "identities.json", read_json(keys) | {"east": other})
    with pytest.raises(ConfigError, match="east's own key"):
        papers.keep_peers(tmp_path / "identities.json", joined / "east")
    assert papers.keep_peers(tmp_path / "identities.json", joined / "north") not in numbers
    (joined / "north" / "peers.json").unlink()


def test_a_certificate_of_another_root_does_not_get_in(
    joined: Path, data: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "east"
    papers.provision(tmp_path / "other", "demo", "localhost", 8443)
    asked = papers.request(tmp_path / "other" / "invitation.json", "east", data / "east", stranger)
    papers.accept(papers.approve((asked,), tmp_path / "other")["east"], stranger)
    invitation = read_config(joined / "p" / "invitation.json", papers.Invitation)
    with hosted(joined / "p") as door:
        # To the stranger our coordinator is no better.
        assert "is not the coordinator of this federation" in cells.why_not(stranger, invitation)
        (stranger / "root.pem").write_bytes((joined / "east" / "root.pem").read_bytes())
        assert "turns this site's certificate away" in cells.why_not(stranger, invitation)
        assert "does not answer yet" in cells.why_not(joined / "east", invitation)
        assert door.sites == ()
        # Nobody answers, and no call outlasts its deadline.
        assert list(door.ask({"east": b"anything"}, 0.2)) == []
    assert "cannot be reached" in cells.why_not(joined / "east", invitation)


def test_what_is_not_said_by_the_neighbour_itself_is_dropped() -> None:
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, MessagePropKey
    from nvflare.fuel.f3.message import Message as Carried

    def dropped(source: str, target: str, encoding: str = "bytes") -> bool:
        message = Carried()
        message.set_prop(MessagePropKey.ENDPOINT, SimpleNamespace(name="east"))
        message.set_header(MessageHeaderKey.ORIGIN, source)
        message.set_header(MessageHeaderKey.DESTINATION, target)
        message.set_header(MessageHeaderKey.PAYLOAD_ENCODING, encoding)
        return cells._crooked(message, "server") is not None

    assert not dropped("east", "server")
    assert dropped("north", "server")  # in another's name
    assert dropped("server", "north")  # to another site, in the coordinator's name
    assert dropped("east", "north")
    assert dropped("east", "server", "fobs")  # would be unpacked into objects


def test_only_the_coordinator_asks_and_a_repeated_request_is_worked_on_once() -> None:
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
    from nvflare.fuel.f3.message import Message as Carried

    request = Message("describe", {}).pack()
    worked: list[bytes] = []

    def carried(data: bytes, source: str = "server") -> Any:
        return Carried(headers={MessageHeaderKey.ORIGIN: source}, payload=data)

    class Once:
        def answer(self, data: bytes) -> bytes:
            if worked:
                raise KeyboardInterrupt  # how a site is stopped
            worked.append(data)
            desk.take(carried(data))  # it comes again while it is worked on
            other = Message("finish", {}).pack()
            desk.take(carried(other))  # and the coordinator goes on
            return Message("describe", {"n": 1}).pack()

    desk = Desk()
    assert desk.take(carried(request, "north")).get_header("state") == "refused"
    assert desk.give(carried(b"0" * 64)).get_header("state") == "unknown"
    assert desk.take(carried(request)).get_header("state") == "taken"
    with pytest.raises(KeyboardInterrupt):
        desk.serve(Once(), lambda *_: None)  # type: ignore[arg-type]
    import hashlib

    given = desk.give(carried(hashlib.sha256(request).hexdigest().encode()))
    assert given.get_header("state") == "done"
    assert Message.unpack(given.payload).fields == {"n": 1}
    assert worked == [request]


def test_two_sites_of_their_own_processes_learn_what_they_learn_in_one(
    joined: Path, data: Path, tmp_path: Path, start: Start
) -> None:
    both = ("east", "north")
    sites = {s: start("join", signed(joined, s), "-o", joined / s) for s in both}
    config = FederationConfig(
        tmp_path / "run", rounds=2, steps=1, net="subvoxel_unet", measurements=1,
        deadline_s=PATIENCE_S,
    )  # fmt: skip
    inside = reference(joined, data, both, replace(config, output=tmp_path / "inside"))
    with hosted(joined / "p") as door:
        door.wait_for(2, PATIENCE_S)
        result = federate(config, door)
    assert set(result["sites"]) == set(both)
    assert_same_weights(tmp_path / "run", inside)
    # Stopped by Ctrl-C, a site says how to come back.
    sites["east"].send_signal(signal.SIGINT)
    assert "give the same command to come back" in sites["east"].communicate(timeout=PATIENCE_S)[1]
    assert sites["east"].returncode == 130
    sites["east"].wait(PATIENCE_S)
    names = {path.name.removesuffix(".nii.gz") for path in data.rglob("case*.nii.gz")}
    assert len(names) == 12
    for log in joined.rglob("log.txt*"):
        text = log.read_text()
        assert "Connection" in text and not [name for name in names if name in text]


@pytest.mark.slow
def test_killed_in_the_middle_all_goes_on_to_the_same_bits(
    joined: Path, data: Path, tmp_path: Path, start: Start
) -> None:
    def join(site: str) -> subprocess.Popen[str]:
        return start("join", signed(joined, site), "-o", joined / site)

    def coordinate() -> subprocess.Popen[str]:
        return start(
            "coordinate", "-p", joined / "p", "-o", tmp_path / "run", "--sites", "3",
            "--rounds", "3", "--steps", "2", "--net", "subvoxel_unet",
            "--deadline", str(PATIENCE_S),
        )  # fmt: skip

    for site in ("east", "north"):
        for path in sorted((joined / site / "work").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    leader, east, north, west = coordinate(), join("east"), join("north"), join("west")
    read_until(leader, "round 1 of 3")
    read_until(east, "asked learn, round 2")
    for process in (leader, east):  # east is at its second round, and nobody is told
        process.kill()
        process.wait()
    leader, east = coordinate(), join("east")
    assert leader.communicate(timeout=PATIENCE_S)[1].count("round 2 of 3") == 1
    assert leader.returncode == 2  # done, but for one that refused
    rounds = [event["round"] for event in read_events(tmp_path / "run" / "log.jsonl")]
    assert rounds == [0, 1, 2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["sites"]) == {"east", "north"}
    assert "purpose must be one of care, got federated" in result["refused"]["west"]
    config = FederationConfig(tmp_path / "inside", rounds=3, steps=2, net="subvoxel_unet")
    inside = reference(joined, data, ("east", "north"), config)
    assert_same_weights(tmp_path / "run", inside)
    assert north.poll() is None and west.poll() is None
