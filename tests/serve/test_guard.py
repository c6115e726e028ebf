"""What stands before every route: origin, host, sizes, headers, and what a log may hold."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from qinjing.serve.auth import Token
from qinjing.serve.guard import Guard
from qinjing.serve.settings import ServeConfig
from tests.serve.conftest import Service

LOOK = {"patient_id": "p-anna"}


def test_nothing_without_a_token(service: Service) -> None:
    client = service.client()
    routes = [(m, r) for r, ways in service.app.openapi()["paths"].items() for m in ways]
    assert len(routes) == 10
    for method, route in routes:
        if route == "/api/session" and method in ("post", "delete"):
            continue
        if route == "/api/session/ways":
            continue
        answer = client.request(method, route, json={})
        assert (answer.status_code, answer.json()["code"]) == (401, "session"), route


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"X-Qinjing": None}, "header"),
        ({"Origin": "https://evil.example"}, "origin"),
        ({"Origin": "null"}, "origin"),
        ({"Origin": "https://127.0.0.1"}, "origin"),
        ({"Sec-Fetch-Site": "cross-site"}, "origin"),
        ({"Sec-Fetch-Site": "same-site"}, "origin"),
        ({"Host": "evil.example"}, "host"),
        ({"Host": "127.0.0.1.evil.example:8080"}, "host"),
        ({"Host": "["}, "host"),
    ],
)
def test_another_page_cannot_use_a_session(
    service: Service, headers: dict[str, str | None], code: str
) -> None:
    client = service.client("ethics")
    before = service.app.state.store.head()
    given = {**client.headers, **headers}
    client.headers = {k: v for k, v in given.items() if v is not None and k.lower() != "x-qinjing"}
    if headers.get("X-Qinjing", "1"):
        client.headers["X-Qinjing"] = "1"
    asked = {**LOOK, "purposes": ["research"]}
    for route in ("withdraw", "grant"):
        answer = client.post(f"/api/consent/{route}", json=asked)
        assert answer.status_code in (403, 421) and answer.json()["code"] == code
    assert service.app.state.store.head() == before


def test_this_page_can(service: Service) -> None:
    client = service.client("ethics")
    headers = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    asked = {**LOOK, "purposes": ["research"]}
    assert client.post("/api/consent/withdraw", json=asked, headers=headers).status_code == 200
    for host in ("localhost:8080", "[::1]:8080"):
        assert client.get("/consent", headers={"Host": host}).status_code == 200


def test_a_program_shows_its_token_in_a_header(service: Service) -> None:
    client = TestClient(service.app, base_url="http://127.0.0.1")
    bearer = {"Authorization": f"Bearer {service.token('reader')}"}
    assert client.post("/api/consent/patient", json=LOOK, headers=bearer).status_code == 200
    assert client.post("/api/consent/patient", json=LOOK).json()["code"] == "header"
    wrong = {"Authorization": "Bearer qj_00000000_x"}
    assert client.post("/api/consent/patient", json=LOOK, headers=wrong).status_code == 401
    basic = {"Authorization": "Basic x", "X-Qinjing": "1"}
    assert client.post("/api/consent/patient", json=LOOK, headers=basic).status_code == 401


def test_every_answer_is_dressed(service: Service, make: Callable[..., Service]) -> None:
    client = service.client("reader")
    for answer in (
        client.get("/consent"), client.get("/static/consent.js"), client.get("/nowhere"),
        client.post("/api/consent/patient", json=LOOK), client.get("/api/openapi.json"),
        client.post("/api/consent/patient", content=b"x" * 70_000),
        client.get("/consent", headers={"Host": "evil.example"}),
    ):  # fmt: skip
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in answer.headers


def test_the_cookie_is_for_this_host_and_this_page_alone(
    service: Service, make: Callable[..., Service], certificate: Any
) -> None:
    shown = {"token": service.token("reader")}
    plain = service.client().post("/api/session", json=shown).headers["set-cookie"]
    assert plain.startswith("qinjing=") and "HttpOnly" in plain and "SameSite=strict" in plain
    assert "Path=/" in plain and "Secure" not in plain and "Domain" not in plain
    cert, key = certificate
    tls = make(host="0.0.0.0", tls_cert=cert, tls_key=key)
    answer = tls.client().post("/api/session", json=shown)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-qinjing=") and "Secure" in cookie and "HttpOnly" in cookie
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert shown["token"] not in cookie and shown["token"] not in answer.text


def test_a_new_session_is_a_new_one_and_leaving_ends_it(service: Service) -> None:
    client = service.client("ethics")
    first = client.cookies["qinjing"]
    assert client.post("/api/session", json={"token": service.token("reader")}).status_code == 200
    assert client.cookies["qinjing"] != first
    assert client.get("/api/session").json()["role"] == "reader"
    second = client.cookies["qinjing"]
    assert client.delete("/api/session").status_code == 200
    for old in (first, second, "made up"):
        client.cookies.set("qinjing", old)
        assert client.get("/api/session").status_code == 401
        client.cookies.clear()


def test_a_session_ends_with_its_token(service: Service, make: Callable[..., Service]) -> None:
    kept, text = service.tokens.make("ethics")
    client = service.client()
    assert client.post("/api/session", json={"token": text}).status_code == 200
    assert client.get("/api/session").json()["token_id"] == kept.token_id
    service.tokens.revoke(kept.token_id)
    assert client.get("/api/session").status_code == 401
    assert client.post("/api/session", json={"token": text}).json()["code"] == "token"
    hasty = make(idle_s=1e-9).client()
    assert hasty.post("/api/session", json={"token": service.token("ethics")}).status_code == 200
    assert hasty.get("/api/session").json()["code"] == "session"


def test_guessing_ends_in_waiting(service: Service) -> None:
    client = service.client("ethics")
    for _ in range(10):
        assert client.post("/api/session", json={"token": "qj_1_2"}).status_code == 401
    answer = client.post("/api/session", json={"token": service.token("ethics")})
    assert (answer.status_code, answer.json()["code"]) == (429, "wait")
    assert 0 < int(answer.headers["retry-after"]) <= 300
    bearer = {"Authorization": f"Bearer {service.token('ethics')}"}
    assert client.post("/api/consent/patient", json=LOOK, headers=bearer).status_code == 429
    assert client.get("/api/session").status_code == 200  # who was in stays in


def test_long_and_odd_bodies_are_refused(service: Service) -> None:
    client = service.client("ethics")
    url = "/api/consent/patient"
    assert client.post(url, content=b" " * 70_000).status_code == 413
    assert client.post(url, content=iter([b" " * 40_000] * 2)).status_code == 413
    assert client.post(url, content=b"{}", headers={"Content-Length": "x"}).status_code == 413
    json_type = {"Content-Type": "application/json"}
    for body in (
        b"{", b"[]", b"null", b'{"patient_id": 1}', b'{"patient_id": ""}', b'{"other": 1}',
        b'{"patient_id": "a\\u0000b"}', b'{"patient_id": "\\ud800"}', b"\xff",
        b'{"patient_id": "' + b"a" * 300 + b'"}', b"[" * 20_000,
    ):  # fmt: skip
        answer = client.post(url, content=body, headers=json_type)
        assert answer.status_code in (400, 422), body[:40]
        assert answer.json().keys() == {"code", "error"}
    # A form of another page cannot be taken for JSON, header or not.
    plain = {"Content-Type": "text/plain"}
    asked = json.dumps({**LOOK, "purposes": ["research"]})
    answer = client.post("/api/consent/withdraw", content=asked, headers=plain)
    assert answer.status_code == 422


def test_files_are_those_of_the_page_alone(service: Service) -> None:
    client = service.client()
    assert client.get("/static/consent.js").headers["content-type"].startswith("text/javascript")
    for name in ("consent.html", "..%2fapp.py", "../app.py", "", "%00", "consent.css.map"):
        assert client.get(f"/static/{name}").status_code == 404
    assert client.get("/docs").status_code == 404
    page = client.get("/consent").text
    assert "<script>" not in page and "style=" not in page and "onclick" not in page
    assert page.count("<script") == 1 and 'src="/static/consent.js"' in page


def test_a_fault_of_ours_says_and_logs_nothing_of_a_patient(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def fail(self: object, patient_id: str) -> None:
        raise RuntimeError(f"{patient_id} broke it")

    client = service.client("ethics")
    monkeypatch.setattr("qinjing.data.consent.Store.history", fail)
    answer = client.post("/api/consent/patient", json=LOOK)
    assert answer.status_code == 500 and answer.json()["code"] == "fault"
    logged = "\n".join(r.getMessage() for r in caplog.records if r.name == "qinjing.serve")
    assert "RuntimeError at" in logged and "test_guard.py" in logged
    assert answer.json()["error"].rsplit(" ", 1)[1] in logged
    assert "p-anna" not in logged + answer.text + caplog.text.replace("test_", "")


def test_a_store_that_is_gone_is_said(service: Service, place: str) -> None:
    from pathlib import Path

    client = service.client("ethics")
    service.app.state.store.close()
    Path(place).write_text("not a database any more, and long enough to look like one\n" * 400)
    answer = client.post("/api/consent/patient", json=LOOK)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert place not in answer.text


def test_one_look_through_the_models_at_a_time_and_nobody_waits(service: Service) -> None:
    client = service.client("reader")
    walking: threading.Lock = service.app.state.walking
    with walking:
        begun = time.monotonic()
        answer = client.post("/api/consent/models", json=LOOK)
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert int(answer.headers["retry-after"]) >= 1 and time.monotonic() - begun < 10
    assert client.post("/api/consent/models", json=LOOK).status_code == 200
    assert walking.acquire(blocking=False)
    walking.release()


UPLOAD = f"/api/projects/{'a' * 32}/images/{'b' * 32}/annotation"
HUGE = 2 * 1024 * 1024
SHORT = 64 * 1024  # bytes that anybody may send, without room for a long body


class Held:
    """A guard before an application that holds what it got until it is let go."""

    def __init__(self, role: str = "annotator") -> None:
        self.let_go = asyncio.Event()
        self.got: list[int] = []
        self.read = 0
        token = Token("1a2b3c4d", role, "", None, "", "", "", "")  # type: ignore[arg-type]
        self.guard = Guard(self.app, ServeConfig("c", image_bytes=HUGE // 2), lambda _: token)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.got.append(len((await receive())["body"]))
        if self.got[-1]:
            await self.let_go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def put(self, size: int, path: str = UPLOAD) -> tuple[int, dict[str, str]]:
        """The status and headers of what was answered to a body of so many bytes in two parts."""
        parts = [size // 2, size - size // 2]
        sent: list[Any] = []

        async def receive() -> Any:
            self.read += 1
            body = b"x" * parts.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(parts)}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"127.0.0.1"), (b"x-qinjing", b"1")]
        scope = {"type": "http", "method": "PUT", "path": path, "headers": headers}
        await self.guard(scope, receive, send)
        return sent[0]["status"], {k.decode(): v.decode() for k, v in sent[0]["headers"]}

    async def hold(self, *sizes: int) -> list[asyncio.Task[Any]]:
        """Bodies that the application has."""
        tasks = [asyncio.create_task(self.put(size)) for size in sizes]
        while len(self.got) < len(sizes):
            await asyncio.sleep(0)
        return tasks


def test_long_bodies_are_few_at_once_and_short_ones_pass() -> None:
    async def go() -> None:
        held = Held()
        tasks = await held.hold(*[SHORT + 1] * 4)
        status, headers = await held.put(SHORT + 1)
        assert (status, headers["retry-after"]) == (503, "5") and len(held.got) == 4
        assert (await held.put(0))[0] == 200
        tasks += [asyncio.create_task(held.put(SHORT)) for _ in range(9)]
        while len(held.got) < 14:
            await asyncio.sleep(0)
        held.let_go.set()
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 13
        for _ in range(5):  # what was answered holds nothing
            assert (await held.put(SHORT + 1))[0] == 200

    asyncio.run(asyncio.wait_for(go(), 30))


def test_who_breaks_off_or_fails_holds_no_room() -> None:
    async def go() -> None:
        held = Held()
        held.let_go.set()
        for _ in range(5):
            status, _ = await held.put(HUGE)
            assert status == 413 and not held.got

        async def fail(*_: Any) -> None:
            raise RuntimeError

        held.guard._app = fail
        for _ in range(5):
            assert (await held.put(SHORT + 1))[0] == 500

    asyncio.run(asyncio.wait_for(go(), 30))


@pytest.mark.parametrize(
    ("role", "path", "status"),
    [
        ("patient", UPLOAD, 403),
        ("ethics", UPLOAD, 403),
        ("ethics", "/monailabel/datastore/image", 403),
        ("patient", "/monailabel/infer/liver", 403),
        ("annotator", UPLOAD, 200),
        ("reader", UPLOAD.replace("annotation", "final"), 200),
        ("annotator", "/monailabel/session/", 200),
        ("reader", "/monailabel/datastore", 200),
    ],
)
def test_nothing_is_read_of_a_long_body_from_who_may_not_send_it(
    role: str, path: str, status: int
) -> None:
    async def go() -> None:
        held = Held(role)
        held.let_go.set()
        assert (await held.put(SHORT + 1, path))[0] == status
        assert held.read == (2 if status == 200 else 0)

    asyncio.run(asyncio.wait_for(go(), 30))
