"""A site's desk: an answer is kept for who asks again, a refusal is not."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from typing import Any

import pytest

from qinjing.federate.message import Message

pytest.importorskip("nvflare")

from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
from nvflare.fuel.f3.message import Message as Carried

from qinjing.federate.flare.member import Desk


def carried(data: bytes) -> Any:
    return Carried(headers={MessageHeaderKey.ORIGIN: "server"}, payload=data)


def asked(desk: Desk, request: bytes) -> Message:
    """Lay a request down and wait for its answer, as the coordinator does."""
    assert desk.take(carried(request)).get_header("state") == "taken"
    got = desk.give(carried(hashlib.sha256(request).hexdigest().encode()))
    assert got.get_header("state") == "done"
    return Message.unpack(got.payload)


def test_a_refusal_is_thought_over_when_the_request_comes_again_and_an_answer_is_kept() -> None:
    answers = [
        Message("refused", {"reason": "the hour must be in 18:00-06:00, it is 12:00"}),
        Message("refused", {"reason": "the hour must be in 18:00-06:00, it is 17:00"}),
        Message("learn", {"cases": 4}),
    ]
    worked: list[bytes] = []

    class Site:
        def answer(self, request: bytes) -> bytes:
            if len(worked) == len(answers):
                raise SystemExit  # how this thread ends
            worked.append(request)
            return answers[len(worked) - 1].pack()

    desk, request = Desk(), Message("learn", {"round": 3}).pack()

    def serve() -> None:
        with contextlib.suppress(SystemExit):
            desk.serve(Site(), lambda *_: None)  # type: ignore[arg-type]

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert [asked(desk, request) for _ in answers] == answers  # what stood in the way is gone
    assert [asked(desk, request) for _ in range(2)] == [answers[-1]] * 2
    assert worked == [request] * 3
    desk.take(carried(Message("finish", {}).pack()))
    thread.join(30)
    assert not thread.is_alive()
