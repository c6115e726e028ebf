"""Where a store of consents may be made: a file, or a PostgreSQL server of our own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database on a server of our own, reached by a socket in its folder."""
    pytest.importorskip("psycopg")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    path = os.pathsep.join([*map(str, binaries[::-1]), os.environ.get("PATH", "")])
    initdb, pg_ctl = shutil.which("initdb", path=path), shutil.which("pg_ctl", path=path)
    if not initdb or not pg_ctl:
        pytest.skip("no initdb and pg_ctl of PostgreSQL on this machine")
    folder = tmp_path_factory.mktemp("pg")
    as_other: list[str] = []
    if os.getuid() == 0:  # which PostgreSQL refuses
        if not shutil.which("setpriv"):
            pytest.skip("root without setpriv: PostgreSQL cannot be started")
        as_other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        os.chown(folder, 65534, 65534)
        for parent in folder.parents:
            if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(parent.stat().st_mode | 0o011)  # enter, not look
    data, socket = folder / "data", folder
    if len(str(socket / ".s.PGSQL.5432")) > 100:
        pytest.skip("the temporary folder's name is too long for a socket")

    def run(*words: str) -> None:
        made = subprocess.run([*as_other, *words], cwd=folder, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"PostgreSQL does not run here: {made.stderr[-300:]}")

    run(initdb, "-D", str(data), "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8")
    options = f"-c listen_addresses='' -k {socket} -F -c shared_buffers=16MB"
    run(pg_ctl, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
    server = int((data / "postmaster.pid").read_text().split()[0])
    yield f"postgresql://tester@/postgres?host={socket}"
    os.kill(server, signal.SIGQUIT)  # its immediate shutdown; nothing of it is wanted any more


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store may be made, empty each time."""
    if request.param == "sqlite":
        yield str(tmp_path / "consent.sqlite")
        return
    url = request.getfixturevalue("postgresql")
    yield url
    drop(url)


def drop(url: str) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
