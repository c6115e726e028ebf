"""Real sockets: TLS, slow callers, what is logged, and the command."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qinjing import cli
from qinjing.errors import ConfigError
from qinjing.serve.listen import listen, server_of
from qinjing.serve.settings import ServeConfig
from tests.serve.conftest import HEADERS, Service


def test_over_tls_it_is_served_and_nothing_is_logged_of_patients(
    make: Callable[..., Service], running: Callable[[Service], str], certificate: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cert, key = certificate
    service = make(tls_cert=cert, tls_key=key)
    address = running(service)
    trusted = ssl.create_default_context(cafile=str(cert))
    with httpx2.Client(base_url=address, verify=trusted, headers=HEADERS) as client:
        assert client.post("/api/session", json={"token": "qj_0_wrong-Secret"}).status_code == 401
        token = service.token("ethics", name="Dr. Li")
        answer = client.post("/api/session", json={"token": token})
        assert answer.status_code == 200 and "__Host-qinjing" in client.cookies
        assert "server" not in answer.headers
        for route, more in (("patient", {}), ("withdraw", {"purposes": ["research"]})):
            asked = {"patient_id": "p-anna", **more}
            assert client.post(f"/api/consent/{route}", json=asked).status_code == 200
        asked = {"search": "p-anna"}
        assert client.post("/api/consent/patients", json=asked).json()["patients"]
        assert client.get("/consent?patient=p-anna").status_code == 200
        client.post("/api/consent/patient", json={"patient_id": ["p-anna"]})
        assert client.get("/p-anna").status_code == 404
    out, err = capfd.readouterr()
    assert "a token from 127.0.0.1 opened nothing" in err
    assert "p-anna" not in out + err and "wrong-Secret" not in out + err and token not in out + err
    assert "GET" not in out + err
    port = int(address.rsplit(":", 1)[1])
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", port)) as wire, pytest.raises(ssl.SSLError):
        old.wrap_socket(wire, server_hostname="127.0.0.1")


def test_who_sends_slowly_or_for_ever_is_let_go(
    make: Callable[..., Service], running: Callable[[Service], str]
) -> None:
    address = running(make(body_s=0.2))
    port = int(address.rsplit(":", 1)[1])
    head = b"POST /api/session HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Qinjing: 1\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert wire.recv(4096).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b" " * 0x8000)
        wire.sendall(b"\r\n9000\r\n" + b" " * 0x9000 + b"\r\n0\r\n\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as wire:
        wire.sendall(b"GET /" + b"a" * 100_000)
        assert b" 400 " in wire.recv(4096).split(b"\r\n")[0]


def test_who_does_not_say_what_he_wants_is_let_go(
    make: Callable[..., Service], running: Callable[[Service], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinjing.serve.listen._HEADER_S", 0.3)
    address = running(make())
    port = int(address.rsplit(":", 1)[1])
    whole = b"GET /consent HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for begun in (b"", whole[:-2]):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
            wire.sendall(begun)
            assert wire.recv(4096) == b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as wire:
        for _ in range(2):  # who asks twice is answered twice, and then must go on asking
            wire.sendall(whole)
            told = b""
            while b"</html>" not in told:
                told += wire.recv(65536)
        wire.sendall(whole[:-2])
        assert wire.recv(4096) == b""


def test_what_cannot_be_opened_is_said(
    make: Callable[..., Service], place: str, tmp_path: Path
) -> None:
    service = make()
    (tmp_path / "bad.pem").write_text("no certificate")
    bad = tmp_path / "bad.pem"
    with pytest.raises(ConfigError, match="--tls-cert and --tls-key must be a certificate"):
        server_of(ServeConfig(place, tls_cert=bad, tls_key=bad), service.app)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="--host and --port must be an address that is free"):
            listen(ServeConfig(place, port=port), lambda _: None)
    with pytest.raises(ConfigError, match="consent store must be there"):
        listen(ServeConfig(str(tmp_path / "none")), lambda _: None)


def test_a_key_with_a_password_is_refused_and_none_is_asked_for(
    make: Callable[..., Service], certificate: Any, place: str, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = certificate
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )  # fmt: skip
    with pytest.raises(ConfigError, match="--tls-key must be a key without a password"):
        server_of(ServeConfig(place, tls_cert=cert, tls_key=locked), make().app)


def test_the_command_serves_until_it_is_stopped(place: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "qinjing", "serve", "--consents", place, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            address = line.split()[1].rstrip(";")
            assert line.startswith("serving http://127.0.0.1:") and address.endswith("/consent")
            end = time.monotonic() + 30
            while True:  # the door is open before the house is lit
                try:
                    answer = httpx2.get(address)
                    break
                except httpx2.TransportError:
                    assert time.monotonic() < end
            assert answer.status_code == 200 and "秦镜" in answer.text
        finally:
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
    assert process.returncode == 130 and "every change that was confirmed is kept" in said


def test_tokens_are_made_listed_and_taken_back_on_the_command_line(
    place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[int, str]:
        code = cli.main(["serve", *words])
        out, err = capsys.readouterr()
        return code, out + err

    code, said = call("token", "--role", "ethics", "--name", "Dr. Li", "--consents", place)
    assert code == 0 and "qj_" in said and "shown this once" in said
    code, said = call("token", "--role", "patient", "--patient", "p-anna", "--consents", place)
    assert code == 0
    token_id = said.split("qj_")[1][:8]
    code, said = call("tokens", "--consents", place)
    assert code == 0 and "Dr. Li" in said and "p-anna" not in said and "qj_" not in said
    assert call("revoke", token_id, "--consents", place)[0] == 0
    assert "revoked" in call("tokens", "--consents", place)[1]
    assert Path(f"{place}.tokens.jsonl").stat().st_mode & 0o077 == 0
    code, said = call("token", "--role", "patient", "--consents", place)
    assert code == 2 and "--patient must be given" in said
    code, said = call("--consents", place, "tokens")
    assert code == 2 and "options must be behind all of `serve tokens`" in said
    code, said = call("--consents", place, "--host", "0.0.0.0")
    assert code == 2 and "while there is no TLS" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "words", [("token", "--role", "reader"), ("tokens",), ("revoke", "1a2b3c4d")]
)
def test_the_store_of_tokens_must_be_there(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typo = tmp_path / "nowhere" / "typo.sqlite"
    assert cli.main(["serve", *words, "--consents", str(typo)]) == 2
    assert "consent store must be there, got nothing" in capsys.readouterr().err
    assert not typo.parent.exists()
    if words != ("revoke", "1a2b3c4d"):  # nothing needs the store where the tokens' place is said
        file = tmp_path / "tokens.jsonl"
        assert cli.main(["serve", *words, "--consents", str(typo), "--tokens", str(file)]) == 0


def test_a_patient_of_whom_the_store_knows_nothing_is_warned_of(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = ["serve", "token", "--json", "--role", "patient", "--patient"]
    for patient, more, warning in (
        ("p-anna", [], ""),
        ("p-ana", [], "--patient must be one of whom the store knows something, got p-ana"),
        ("p-anna", ["--consents", str(tmp_path / "none")], "which could not be looked up"),
    ):
        file = ["--tokens", str(tmp_path / "tokens.jsonl")]
        assert cli.main([*token, patient, "--consents", place, *file, *more]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["role"] == "patient"
        assert warning in err and err.count("warning") == bool(warning)


def test_without_fastapi_the_command_says_what_to_install(place: str, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from qinjing import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "serve", "--consents", place]
    run = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert run.returncode == 2 and "pip install 'qinjing[serve]'" in run.stderr
