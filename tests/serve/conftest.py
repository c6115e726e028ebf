"""A store with some patients, tokens for it, and the service over both."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("sqlalchemy")

from fastapi.testclient import TestClient

from qinjing.config import write_json
from qinjing.data.consent import Change, Store
from qinjing.serve.app import create_app
from qinjing.serve.auth import Tokens
from qinjing.serve.listen import server_of
from qinjing.serve.settings import ServeConfig
from tests.serve.browser import MISSING

HEADERS = {"X-Qinjing": "1"}


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say it where the page was not tested, though no reason of a skip is asked for."""
    skipped = terminalreporter.stats.get("skipped", ())
    if any(MISSING in str(one.longrepr) for one in skipped):
        terminalreporter.write_line(MISSING, yellow=True)


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Leave the loggers as they were: a server sets its own handler."""
    logs = [logging.getLogger(name) for name in ("uvicorn", "qinjing.serve")]
    kept = [(log.handlers, log.propagate, log.level) for log in logs]
    yield
    for log, (handlers, propagate, level) in zip(logs, kept, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


def say(place: str, decision: Any, *patients: str, purpose: str = "research", **more: Any) -> None:
    now = datetime.datetime.now(UTC)
    with Store(place, create=True) as store:
        store.append([Change(one, purpose, decision, now, **more) for one in patients])


def write_models(folder: Path) -> Path:
    """Two runs: one that learnt from p-anna and was measured on p-bela, one the other way round."""
    for name, learnt, held in (("liver", "p-anna", "p-bela"), ("lung", "p-bela", "p-anna")):
        run = folder / name
        (run / "fold_0").mkdir(parents=True)
        write_json(run / "run.json", {})
        write_json(run / "dataset.json", {"name": f"{name} CT"})
        write_json(run / "splits_final.json", [{"train": [learnt], "val": [held]}])
    return folder


@dataclass(frozen=True)
class Service:
    """A service that was built, and what it stands on."""

    config: ServeConfig
    app: Any
    tokens: Tokens

    def token(self, role: str, **more: Any) -> str:
        return self.tokens.make(role, **more)[1]

    def client(self, role: str | None = None, **more: Any) -> TestClient:
        """A browser of this page: with a session of a fresh token, where a role is named."""
        scheme = "https" if self.config.tls else "http"
        client = TestClient(self.app, base_url=f"{scheme}://127.0.0.1", headers=HEADERS)
        if role is not None:
            shown = {"token": self.token(role, **more)}
            assert client.post("/api/session", json=shown).status_code == 200
        return client


@pytest.fixture
def place(tmp_path: Path) -> str:
    """A store with two patients."""
    store = str(tmp_path / "consent.sqlite")
    say(store, "permit", "p-anna", "p-bela", recorded_by="desk")
    say(store, "deny", "p-bela", purpose="commercial")
    return store


@pytest.fixture
def make(place: str, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Builds services over the store."""
    made: list[Service] = []

    def build(**options: Any) -> Service:
        given = {"consents": place, "tokens": tmp_path / "tokens.jsonl", **options}
        config = ServeConfig(**given)
        made.append(Service(config, create_app(config), Tokens(given["tokens"])))
        return made[-1]

    yield build
    for one in made:
        one.app.state.store.close()


@pytest.fixture
def service(make: Callable[..., Service], tmp_path: Path) -> Service:
    """A service over the store, with two models."""
    return make(models=(write_models(tmp_path / "models"),))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    return signed_by_itself(tmp_path_factory.mktemp("tls"))


def signed_by_itself(folder: Path, host: str = "") -> tuple[Path, Path]:
    """A certificate of a host, else of this machine, that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host or "127.0.0.1")])
    names = [x509.DNSName(host or "localhost")]
    names += [] if host else [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def running() -> Iterator[Callable[[Service], str]]:
    """Lets real uvicorn serve in a thread; returns the address."""
    ends: list[Callable[[], None]] = []

    def run(service: Service) -> str:
        server = server_of(service.config, service.app)
        door = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(15)
            door.close()

        ends.append(end)
        while not server.started:
            time.sleep(0.01)
        scheme = "https" if service.config.tls else "http"
        return f"{scheme}://127.0.0.1:{door.getsockname()[1]}"

    yield run
    for end in ends:
        end()
