"""Nothing that runs what it reads, and no path of one machine."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

from tests.contracts.source import PACKAGE, modules, tree

PROJECT = PACKAGE.parents[1]
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
FORBIDDEN_CALLS = {
    "eval", "exec", "os.system", "os.popen", "torch.load", "yaml.load", "yaml.unsafe_load",
    "np.fromstring", "pickle.load", "pickle.loads", "tempfile.mktemp",
    "ssl._create_unverified_context",
}  # fmt: skip
# A letter in brackets, so that this file does not name them itself.
MACHINE = re.compile(
    r"(?<![\w.~>-])/(?:w[o]rk|r[o]ot|f[a]rm|home/(?!(?:someone|name)\b)\w+|opt/(?:py[p]i|wheels))(?:/|\b)"
)


def unsafe(package: Path) -> list[str]:
    """Every unsafe import, call and argument in the package."""
    faults: list[str] = []
    for path in modules(package):
        name = path.relative_to(package).as_posix()
        for node in ast.walk(tree(path)):
            line = getattr(node, "lineno", 0)
            faults += [f"{name}:{line}: {what}" for what in _unsafe_in(node)]
    return faults


def _unsafe_in(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"import {a.name}" for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
    if isinstance(node, ast.ImportFrom):
        return [f"from {node.module}"] * ((node.module or "").split(".")[0] in FORBIDDEN_MODULES)
    if not isinstance(node, ast.Call):
        return []
    found = []
    called = ast.unparse(node.func)
    if called in FORBIDDEN_CALLS:
        found.append(f"{called}(…)")
    arguments = {k.arg: k.value for k in node.keywords}
    for argument, bad in (("shell", True), ("allow_pickle", True), ("verify", False)):
        value = arguments.get(argument)
        if isinstance(value, ast.Constant) and value.value is bad:
            found.append(f"{argument}={bad}")
    if called in ("np.load", "numpy.load") and "allow_pickle" not in arguments:
        found.append("np.load without allow_pickle=False")
    return found


def machine_paths(root: Path, names: list[str]) -> list[str]:
    """Every line of the named text files that holds a path of one machine."""
    faults = []
    for name in names:
        try:
            lines = (root / name).read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, OSError):
            continue
        faults += [
            f"{name}:{i}: {line.strip()[:100]}"
            for i, line in enumerate(lines, 1)
            if MACHINE.search(line)
        ]
    return faults


def _committed() -> list[str]:
    """The checkout's own files; without git, those of the folders that hold source."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True
        ).stdout.decode()
        return [name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        top = ["src", "tests", "docs", "benchmarks"]
        found = [p for folder in top for p in (PROJECT / folder).rglob("*") if p.is_file()]
        found += [p for p in PROJECT.iterdir() if p.is_file()]
        return [p.relative_to(PROJECT).as_posix() for p in found if "__pycache__" not in p.parts]


def test_nothing_unsafe() -> None:
    faults = unsafe(PACKAGE)
    assert not faults, "\n".join(faults)


def test_no_path_of_one_machine() -> None:
    faults = machine_paths(PROJECT, _committed())
    assert not faults, "\n".join(faults)
