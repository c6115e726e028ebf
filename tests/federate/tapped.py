"""Run a command of Qinjing and keep all that it hands to gRPC, before that encrypts it.

    python tests/federate/tapped.py TAP LEAK federate join …

TAP gets each frame, its length in four bytes before it. Nothing else differs from the command, but
where LEAK is a file: then what lies in it leaves with the site's second answer, deflated.
"""

from __future__ import annotations

import sys
import threading
import zlib
from pathlib import Path

from nvflare.fuel.f3.drivers.grpc_driver import StreamConnection

from qinjing.cli import main
from qinjing.federate.message import Message, as_tensor
from qinjing.federate.site import Site


def tap(path: Path) -> None:
    """Keep each frame before it is handed on."""
    hand_on, one = StreamConnection.send_frame, threading.Lock()
    file = path.open("ab", buffering=0)

    def send_frame(connection: StreamConnection, frame: bytes) -> None:
        with one:
            file.write(len(frame).to_bytes(4, "big") + bytes(frame))
        hand_on(connection, frame)

    StreamConnection.send_frame = send_frame


def leak(secret: bytes) -> None:
    """Let every site of this process send a secret with its word that it has prepared its scans."""
    honest = Site.answer

    def answer(site: Site, request: bytes) -> bytes:
        told = Message.unpack(honest(site, request))
        more = {"note": {"bytes": as_tensor(zlib.compress(secret))}}
        tensors = {**told.tensors, **(more if told.verb == "prepare" else {})}
        return Message(told.verb, told.fields, tensors).pack()

    Site.answer = answer  # type: ignore[method-assign]


if __name__ == "__main__":
    tap(Path(sys.argv[1]))
    if Path(sys.argv[2]).is_file():
        leak(Path(sys.argv[2]).read_bytes())
    raise SystemExit(main(sys.argv[3:]))
