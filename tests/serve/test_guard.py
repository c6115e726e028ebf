"""What stands before every route: origin, host, sizes, headers, and what a log may hold."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

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
