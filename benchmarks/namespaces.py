"""Several hosts on one Linux machine: network namespaces around one that has a bridge.

The middle, `hub`, has the address `HUB`; each leaf has one network card and one cable to the
middle, and a way to everywhere else that leads there and ends. So all that a leaf sends passes its
own port of the bridge, wherever it is meant for, where it can be counted and seen.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

HUB = "10.77.0.1"


class Counted(NamedTuple):
    """Bytes that passed a leaf's port, Ethernet headers included."""

    sent: int
    received: int


@dataclass(frozen=True)
class Network:
    """Names of the namespaces.

    Attributes:
        hub: the one in the middle.
        leaves: the others; leaf number k is 10.77.0.(k + 2), its port at the hub `port(k)`.
    """

    hub: str
    leaves: tuple[str, ...]

    def counted(self) -> list[Counted]:
        """What passed each leaf's port until now."""
        told = _ip("-n", self.hub, "-s", "-j", "link", "show")
        ports = {link["ifname"]: link["stats64"] for link in json.loads(told)}
        mine = (ports[port(number)] for number in range(len(self.leaves)))
        return [Counted(own["rx"]["bytes"], own["tx"]["bytes"]) for own in mine]


def port(number: int) -> str:
    """Name of a leaf's port at the hub."""
    return f"to{number}"


def inside(namespace: str) -> list[str]:
    """Words before a command that is to run in a namespace; the process stays the same."""
    return ["ip", "netns", "exec", namespace]


def why_not() -> str:
    """Why there can be no namespaces here; "" where there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("ip") is None:
        return "network namespaces need Linux, root and Debian's package iproute2"
    name = f"qinjing-{os.getpid()}-try"
    try:
        with _namespaces([name]):
            _ip("-n", name, "link", "add", "hub", "type", "bridge")
            _ip("-n", name, "link", "add", "here", "type", "veth", "peer", "name", "there")
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"
    return ""


@contextmanager
def joined(count: int) -> Iterator[Network]:
    """Yield a network of so many leaves, which is gone with the block.

    Raises:
        CalledProcessError: `why_not` says why.
    """
    names = [f"qinjing-{os.getpid()}-{part}" for part in ("hub", *range(count))]
    with _namespaces(names):
        hub, *leaves = names
        _ip("-n", hub, "link", "add", "hub", "type", "bridge")
        _up(hub, "hub", HUB)
        for number, leaf in enumerate(leaves):
            peer = ["peer", "name", "wire", "netns", leaf]
            _ip("-n", hub, "link", "add", port(number), "type", "veth", *peer)
            _ip("-n", hub, "link", "set", port(number), "master", "hub")
            _up(hub, port(number))
            _up(leaf, "wire", f"10.77.0.{number + 2}")
            _ip("-n", leaf, "route", "add", "default", "via", HUB)
        yield Network(hub, tuple(leaves))


def _up(namespace: str, device: str, address: str = "") -> None:
    # One packet is one of Ethernet's, as on a cable, not a large one that is cut by the card; and
    # no IPv6 address by itself, whose announcements would stand among what is sent.
    _ip("-n", namespace, "link", "set", device, "gso_max_segs", "1", "addrgenmode", "none")
    if address:
        _ip("-n", namespace, "address", "add", f"{address}/24", "dev", device)
    _ip("-n", namespace, "link", "set", device, "up")


@contextmanager
def _namespaces(names: Sequence[str]) -> Iterator[None]:
    made: list[str] = []
    try:
        for name in names:
            _ip("netns", "add", name)
            made.append(name)
            _ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in made:
            _ip("netns", "delete", name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout
