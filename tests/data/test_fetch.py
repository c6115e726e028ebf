"""Against a server of this machine that knows Range, breaks off, lies and redirects."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from qinjing.data.fetch import BY_HAND, SOURCES, Source, fetch
from qinjing.errors import ConfigError, FormatError, QinjingError


def make_tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, aim in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, aim
            tar.addfile(info)
    return out.getvalue()


NOISE = np.random.default_rng(0).bytes(300_000)
GOOD = make_tar({"Set/dataset.json": b"{}", "Set/._dataset.json": b"mac", "Set/imagesTr/a": NOISE})


class Server(ThreadingHTTPServer):
    content = GOOD
    ranges = True
    breaks: list[int]  # after how many bytes of the body to break off, request by request
    codes: list[int]  # what to answer before anything else
    redirect = ""
    asked: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        if server.redirect:
            self.send_response(302)
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if server.codes:
            self.send_error(server.codes.pop(0))
            return
        start = int(asked[6:-1]) if asked and server.ranges else 0
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            end = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.breaks, server.codes, server.asked = [], [], []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def source(server: Server, content: bytes = GOOD, algorithm: str = "sha256") -> dict[str, Source]:
    digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    return {"Set": Source(f"http://127.0.0.1:{server.server_port}/set.tar", digest, "CC0")}


def check(folder: Path) -> None:
    assert (folder / "imagesTr/a").read_bytes() == NOISE
    assert sorted(p.name for p in folder.parent.iterdir()) == ["Set"]  # no .part, nothing partial
    assert sorted(p.name for p in folder.iterdir()) == ["dataset.json", "imagesTr"]


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_plain_download(server, tmp_path, algorithm):
    told = []
    sources = source(server, algorithm=algorithm)
    folder = fetch("Set", tmp_path, sources, progress=lambda n, total: told.append((n, total)))
    check(folder)
    assert told[-1] == (len(GOOD), len(GOOD))
    assert fetch("Set", tmp_path, sources) == folder and len(server.asked) == 1


def test_broken_connection_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = [100_000, 0, 50_000]
    check(fetch("Set", tmp_path, source(server), wait_s=0.001))
    assert server.asked == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]


def test_next_run_goes_on_where_the_last_was_killed(server, tmp_path):
    (tmp_path / "Set.part").write_bytes(GOOD[:123_456])
    check(fetch("Set", tmp_path, source(server)))
    assert server.asked == ["bytes=123456-"]


def test_complete_part_is_not_fetched_again(server, tmp_path):
    (tmp_path / "Set.part").write_bytes(GOOD)
    check(fetch("Set", tmp_path, source(server)))
    assert server.asked == [f"bytes={len(GOOD)}-"]


@pytest.mark.parametrize("stale", [b"other" * 1000, GOOD + b"too long"])
def test_part_of_another_version_starts_over(server, tmp_path, stale):
    (tmp_path / "Set.part").write_bytes(stale)
    check(fetch("Set", tmp_path, source(server), wait_s=0.001))
    assert server.asked[-1] is None


def test_server_without_ranges(server, tmp_path):
    server.ranges, server.breaks = False, [100_000]
    check(fetch("Set", tmp_path, source(server), wait_s=0.001))


def test_busy_server_is_asked_again(server, tmp_path):
    server.codes = [503, 429, 500]
    check(fetch("Set", tmp_path, source(server), wait_s=0.001))


def test_gives_up_in_one_sentence_and_keeps_what_it_has(server, tmp_path):
    server.breaks = [100_000] + [0] * 5
    with pytest.raises(QinjingError, match="after 5 attempts: the connection ended early"):
        fetch("Set", tmp_path, source(server), wait_s=0.001)
    assert (tmp_path / "Set.part").stat().st_size == 100_000
    check(fetch("Set", tmp_path, source(server)))


def test_not_there(server, tmp_path):
    server.codes = [404]
    with pytest.raises(QinjingError, match="answered 404"):
        fetch("Set", tmp_path, source(server))
    sources = source(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(QinjingError, match="could not be fetched"):
        fetch("Set", tmp_path, sources, attempts=2, wait_s=0.001)


def test_corrupt_archive_is_refused_and_removed(server, tmp_path):
    server.content = GOOD[:1000] + b"x" + GOOD[1001:]
    with pytest.raises(FormatError, match="archive must be of sha256:"):
        fetch("Set", tmp_path, source(server))
    assert not list(tmp_path.iterdir())


def make_zip(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return out.getvalue()


def test_zip(server, tmp_path):
    server.content = make_zip({"Set/dataset.json": b"{}", "Set/imagesTr/a": NOISE, "Set/._a": b""})
    check(fetch("Set", tmp_path, source(server, server.content)))


@pytest.mark.parametrize(
    "content",
    [
        make_tar({"../evil": b"x"}),
        make_tar({"/tmp/qinjing-evil": b"x", "Set/../../evil": b"y"}),
        make_tar({}, {"Set/link": "/etc/passwd"}),
        make_tar({}, {"Set/link": "../../evil"}),
        make_zip({"../evil": b"x"}),
        make_zip({"/evil": b"x"}),
        make_zip({"Set\\..\\..\\evil": b"x"}),
        b"not an archive" * 100,
        GOOD[:5000],
    ],
    # A name of the archive's bytes would hold the second in which it was packed, and the two
    # processes of a parallel run would collect different tests.
    ids=[
        "tar above", "tar absolute", "tar link absolute", "tar link above",
        "zip above", "zip absolute", "zip backslashes", "no archive", "cut short",
    ],
)  # fmt: skip
def test_archives_that_would_write_elsewhere_are_refused(server, tmp_path, content):
    server.content = content
    folder = tmp_path / "data"
    with pytest.raises(FormatError, match="archive"):
        fetch("Set", folder, source(server, content))
    assert not (folder / "Set").exists()
    assert not [p for p in tmp_path.rglob("*") if "evil" in p.name or "partial" in p.name]


@pytest.mark.parametrize(
    "url",
    ["http://example.org/x.tar", "ftp://example.org/x.tar", "file:///etc/passwd", "https://",
     "http://127.0.0.1.example.org/x", "http://[::bad/x"],
)  # fmt: skip
def test_only_https(server, tmp_path, url):
    with pytest.raises(ConfigError, match="https"):
        fetch("Set", tmp_path, {"Set": Source(url, "md5:0", "")})
    if not url.startswith("http://["):
        server.redirect = url
        with pytest.raises((ConfigError, QinjingError)):
            fetch("Set", tmp_path, source(server), attempts=1)


def test_unknown_name_lists_what_is_known(tmp_path):
    with pytest.raises(ConfigError, match="Task04_Hippocampus"):
        fetch("Task99", tmp_path)


def test_sources_are_https_with_a_digest():
    for known in SOURCES.values():
        assert known.url.startswith("https://") and known.licence
        assert known.digest.split(":")[0] in ("md5", "sha256")


@pytest.mark.parametrize("name", BY_HAND)
def test_sets_behind_a_login_say_where_they_are(name, tmp_path):
    with pytest.raises(ConfigError, match=rf"{name} must be fetched by hand from https://") as told:
        fetch(name, tmp_path / "data")
    assert "folder" in str(told.value) and not (tmp_path / "data").exists()
    with pytest.raises(ConfigError, match=name):
        fetch("nope", tmp_path)


def test_sources_are_those_that_monai_pins():
    theirs = pytest.importorskip("monai.apps").DecathlonDataset
    for name, source in SOURCES.items():
        assert (source.url, source.digest) == (theirs.resource[name], f"md5:{theirs.md5[name]}")
