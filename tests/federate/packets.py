"""What passes a port of a network namespace: kept, put together to streams, read as far as it can.

Needs Linux and root, and no other program.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
_ALL, _IPV4, _ARP, _TCP = 0x0003, 0x0800, 0x0806, 6
_PACKET, _STATISTICS, _BUFFER_FORCED = 263, 6, 33  # of <linux/if_packet.h> and <asm/socket.h>
_OUTGOING = 4
_NETWORK = 0x40000000  # CLONE_NEWNET
APPLICATION = 23  # of TLS records


class Packet(NamedTuple):
    """One Ethernet frame, and whether it came in through the card."""

    came_in: bool
    data: bytes


class Flow(NamedTuple):
    """One direction of one TCP connection; a port can serve several, one after the other."""

    source: str
    source_port: int
    target: str
    target_port: int
    life: int = 0


@dataclass
class Seen:
    """What packets say.

    Attributes:
        streams: of each direction of a connection, its bytes in order.
        opened: (to whom, port) of each connection that was asked for from beyond the card.
        others: (to whom, what) of what else came in, but for who asks for a card's address.
        came_in: bytes of all packets that came in.
    """

    streams: dict[Flow, bytes] = field(default_factory=dict)
    opened: set[tuple[str, int]] = field(default_factory=set)
    others: set[tuple[str, str]] = field(default_factory=set)
    came_in: int = 0


class Sniffer:
    """Keeps every packet of one network card, from the moment it is made to the end of its block.

    Args:
        namespace: in which the card is.
        card: its name.

    Attributes:
        packets: in order.
        dropped: how many the system had no room for, known after the block.
    """

    def __init__(self, namespace: str, card: str) -> None:
        self.packets: list[Packet] = []
        self._over = False
        self._socket = in_namespace(namespace, lambda: _listening(card))
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        counted = self._socket.getsockopt(_PACKET, _STATISTICS, 8)
        self.dropped = int(struct.unpack("II", counted)[1])
        self._socket.close()

    def _keep(self) -> None:
        while True:
            try:
                data, place = self._socket.recvfrom(1 << 18)
                self.packets.append(Packet(place[2] != _OUTGOING, data))
            except TimeoutError:
                if self._over:  # and nothing is left
                    return


def read(packets: list[Packet]) -> Seen:
    """Put packets together."""
    seen = Seen()
    first: dict[Flow, int] = {}
    last: dict[Flow, Flow] = {}
    parts: dict[Flow, list[tuple[int, bytes]]] = defaultdict(list)
    for came_in, packet in packets:
        seen.came_in += len(packet) * came_in
        kind = int.from_bytes(packet[12:14], "big")
        ip = packet[14 : 14 + int.from_bytes(packet[16:18], "big")]
        if kind != _IPV4 or ip[9] != _TCP:
            if came_in and kind != _ARP:
                what = (socket.inet_ntoa(ip[16:20]), f"protocol {ip[9]}")
                seen.others.add(what if kind == _IPV4 else (packet[:6].hex(":"), f"{kind:#06x}"))
            continue
        source, target = socket.inet_ntoa(ip[12:16]), socket.inet_ntoa(ip[16:20])
        segment = ip[4 * (ip[0] & 15) :]
        source_port, target_port, number = struct.unpack_from(">HHI", segment)
        ends = Flow(source, source_port, target, target_port)
        flow = last.get(ends, ends)
        if segment[13] & 2:  # SYN, which takes a number itself, and may come again
            begin = (number + 1) & 0xFFFFFFFF
            if first.get(flow, begin) != begin:
                flow = flow._replace(life=flow.life + 1)
            last[ends], first[flow] = flow, begin
            if came_in and not segment[13] & 16:
                seen.opened.add((target, target_port))
        data = segment[4 * (segment[12] >> 4) :]
        if data:
            parts[flow].append((number, data))
    for flow, own in parts.items():
        seen.streams[flow] = _together(first[flow], own)
    return seen


def records(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of the TLS records of a stream; one that was cut off is left out."""
    at = 0
    while at + 5 <= len(stream):
        kind, version, length = struct.unpack_from(">BHH", stream, at)
        if version not in (0x0301, 0x0303):
            raise ValueError(f"no TLS record at {at}: {stream[at : at + 5].hex()}")
        if at + 5 + length <= len(stream):
            yield kind, stream[at + 5 : at + 5 + length]
        at += 5 + length


def _together(start: int, parts: list[tuple[int, bytes]]) -> bytes:
    """Segments in order; what came twice once. A gap is an error: then not all was kept."""
    stream = bytearray()
    placed = sorted(((number - start) & 0xFFFFFFFF, data) for number, data in parts)
    for place, data in placed:
        if place > len(stream):
            raise ValueError(f"bytes {len(stream)} to {place} of a stream are missing")
        stream[place : place + len(data)] = data
    return bytes(stream)


def _listening(card: str) -> socket.socket:
    listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
    listening.setsockopt(socket.SOL_SOCKET, _BUFFER_FORCED, 1 << 28)
    listening.settimeout(0.5)
    listening.bind((card, _ALL))
    return listening


def in_namespace(name: str, call: Callable[[], T]) -> T:
    """Do something in a thread that has gone into a namespace, and ends there."""
    told: list[T] = []

    def work() -> None:
        place = os.open(Path("/run/netns") / name, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(place, _NETWORK):
                raise OSError(ctypes.get_errno(), "setns", name)
        finally:
            os.close(place)
        told.append(call())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return told[0]
