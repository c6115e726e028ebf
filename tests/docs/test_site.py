"""The site builds strictly, and its generated pages hold what the code holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PROJECT


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)],
        cwd=PROJECT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_every_command_has_its_section(site: Path) -> None:
    from qinjing.cli.commands import COMMANDS

    page = (site / "reference" / "cli" / "index.html").read_text(encoding="utf-8")
    assert [words for words in COMMANDS if f"usage: qinjing {words} " not in page] == []


@pytest.mark.parametrize("name", ["NETS", "LOSSES", "LAYOUTS", "READERS", "TRANSFORMS"])
def test_every_entry_of_a_table_is_listed(site: Path, name: str) -> None:
    from docs.hooks import entries

    page = (site / "reference" / "tables" / "index.html").read_text(encoding="utf-8")
    assert [key for key in entries(name) if f"<code>{key}</code>" not in page] == []


@pytest.mark.parametrize("name", ["Volume", "InputError", "hd95_mm", "read_nifti", "write_dataset"])
def test_the_python_reference_holds(site: Path, name: str) -> None:
    page = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert f".{name}" in page


def test_every_page_is_in_the_navigation() -> None:
    text = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [p.relative_to(PROJECT / "docs").as_posix() for p in (PROJECT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in text] == []
