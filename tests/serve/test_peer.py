"""Another server that is asked: over real sockets, where it is busy, silent, false or greedy."""

from __future__ import annotations

import base64
import json
import logging
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("httpx2")

from qinjing.errors import ConfigError, FormatError
from qinjing.serve.peer import TRIES, Caller, PassingError, Peer, RefusedError
from tests.serve.answering import Server, answering


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with ExitStack() as begun:
        yield lambda *answers, **more: begun.enter_context(answering(*answers, **more))


def no_wait(_: float) -> None: ...


def test_who_asks_is_said_anew_each_time_from_the_file(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, login = serve((200, {}, b"[]")), tmp_path / "login"
    with Caller(Peer(server.url, login)) as caller:
        login.write_text("eyJhbGciOi.J9-_~+/==\n")
        caller.json("GET", "/studies")
        login.write_text("user:pass:word")
        caller.json("GET", "/studies")
    with Caller(Peer(server.url)) as caller:
        caller.json("GET", "/studies")
    shown = [headers.get("authorization") for _, _, headers, _ in server.asked]
    basic = base64.b64encode(b"user:pass:word").decode()
    assert shown == ["Bearer eyJhbGciOi.J9-_~+/==", f"Basic {basic}", None]


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", b"user:a\nb", b"\xff", None])
def test_a_login_of_another_form_is_refused_and_not_repeated(
    content: bytes | None, serve: Callable[..., Server], tmp_path: Path
) -> None:
    server, login = serve((200, {}, b"[]")), tmp_path / "login"
    if content is not None:
        login.write_bytes(content)
    with Caller(Peer(server.url, login)) as caller, pytest.raises(ConfigError) as said:
        caller.json("GET", "/studies")
    assert server.asked == [] and "two words" not in str(said.value)


def test_what_is_busy_is_asked_again_and_as_late_as_it_asks(serve: Callable[..., Server]) -> None:
    server = serve(
        (503, {}, b""), (429, {"Retry-After": "17"}, b""), (502, {"Retry-After": "9999"}, b""),
        (200, {}, b'{"a": 1}'),
    )  # fmt: skip
    waits: list[float] = []
    with Caller(Peer(server.url), waits.append) as caller:
        assert caller.json("GET", "/studies") == {"a": 1}
    assert 1 <= waits[0] <= 1.5 and waits[1:] == [17, 60]


def test_what_stays_busy_or_breaks_off_is_given_up(serve: Callable[..., Server]) -> None:
    for answer in ((503, {}, b""), (200, {"Content-Length": "99"}, b"[")):
        server = serve(answer)
        with Caller(Peer(server.url), no_wait) as caller, pytest.raises(PassingError):
            caller.json("GET", "/studies")
        assert len(server.asked) == TRIES


def test_a_no_is_not_asked_again_and_a_login_goes_nowhere_else(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    login = tmp_path / "login"
    login.write_text("token")
    other = serve((200, {}, b"[]"))
    for status in (302, 307, 400, 401, 403, 404, 409):
        server = serve((status, {"Location": other.url, "Warning": "299 x: no"}, b"secret"))
        with Caller(Peer(server.url, login), no_wait) as caller:
            with pytest.raises(RefusedError, match=f"HTTP {status}$") as said:
                caller.json("GET", "/studies/1.2.3")
            assert said.value.status == status and said.value.warning == "299 x: no"
            assert "1.2.3" not in str(said.value) and "secret" not in str(said.value)
        assert len(server.asked) == 1
    assert other.asked == []


def test_answers_are_json_of_bounded_length(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinjing.serve.peer._MOST_JSON", 100)
    deep = b"[" * 100
    for body, rule in ((b"<html>", "JSON"), (b"[" + b" " * 100, "100 bytes"), (deep, "JSON")):
        with (
            Caller(Peer(serve((200, {}, body)).url), no_wait) as caller,
            pytest.raises(FormatError, match=rule),
        ):
            caller.json("GET", "/studies")
    packed = serve((200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"))
    with Caller(Peer(packed.url)) as caller, pytest.raises(FormatError, match="unpacked"):
        caller.json("GET", "/studies")
    with Caller(Peer(serve((204, {}, b"")).url)) as caller:
        assert caller.json("GET", "/studies") is None


def test_only_a_certificate_that_is_trusted_is_talked_to(
    serve: Callable[..., Server], certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = serve((200, {}, b"[]"), context=context)
    with Caller(Peer(server.url, ca=cert)) as caller:
        assert caller.json("GET", "/studies") == []
    with (
        Caller(Peer(server.url), no_wait) as caller,
        pytest.raises(ConfigError, match="signed by one that is trusted"),
    ):
        caller.json("GET", "/studies")
    assert len(server.asked) == 1
    with pytest.raises(ConfigError, match="a file in PEM"):
        Caller(Peer(server.url, ca=key))
    with pytest.raises(ConfigError, match="a file in PEM"):
        Caller(Peer(server.url, ca=tmp_path / "none"))


def test_no_log_repeats_an_address(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve((503, {}, b""), (200, {}, json.dumps([{}]).encode()))
    with Caller(Peer(server.url), no_wait) as caller:
        caller.json("GET", "/studies/1.2.840.99999", params={"PatientID": "MRN1"})
    assert "1.2.840.99999" in server.asked[0][1]
    assert "99999" not in caplog.text and "MRN1" not in caplog.text


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://pacs/dicom-web", "of https, unless it is of this machine"),
        ("https://user:w0rd@pacs/", "without a user"),
        ("https://pacs/?a=1", "https://HOST"),
        ("https://pacs/#a", "https://HOST"),
        ("https:///studies", "https://HOST"),
        ("https://pacs:port/", "https://HOST"),
        ("ftp://pacs/", "https://HOST"),
        ("pacs", "https://HOST"),
    ],
)
def test_other_urls_are_refused(url: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as said:
        Peer(url)
    assert "w0rd" not in str(said.value)


def test_this_machine_may_be_asked_without_tls() -> None:
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert Peer(f"http://{host}:80/dicom-web/").url == f"http://{host}:80/dicom-web"
