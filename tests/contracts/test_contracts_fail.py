"""Break one rule at a time in a copy of the package: the contract must say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.contracts.source import PACKAGE
from tests.contracts.test_docstrings import docstring_faults
from tests.contracts.test_layers import layer_faults
from tests.contracts.test_light_imports import bare_node_faults, heavy_imports
from tests.contracts.test_no_unsafe import machine_paths, unsafe
from tests.contracts.test_public_names import name_faults, public_names
from tests.contracts.test_sizes import oversized


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package to break."""
    copy = tmp_path / "qinjing"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("errors.py", "import qinjing.volume\n"),
        ("losses/__init__.py", "import qinjing.nets\n"),
        ("volume.py", "def late():\n    from qinjing.tasks import segment\n"),
    ],
    ids=["upward", "sideways", "upward inside a function"],
)
def test_a_wrong_import_is_seen(package: Path, room: str, statement: str) -> None:
    if "segment" in statement:
        (package / "tasks" / "segment.py").touch()
    _append(package / room, "\n" + statement)
    assert "BROKEN" in layer_faults(package)


def test_a_room_without_a_place_is_seen(package: Path) -> None:
    (package / "utils.py").write_text('"""Odds and ends."""\n', encoding="utf-8")
    assert "utils" in layer_faults(package)


def test_missing_words_are_seen(package: Path) -> None:
    before = set(docstring_faults(package))
    (package / "losses" / "bad.py").write_text(
        '"""A loss."""\n\ndef bad(x):\n    """Return (B, C) of x."""\n    return x\n'
        "def silent(x):\n    return x\n",
        encoding="utf-8",
    )
    (package / "nets" / "bad.py").write_text(
        '"""A net."""\n\nclass Bad:\n    """A net.\n\n    Source: arXiv:1606.04797\n    """\n',
        encoding="utf-8",
    )
    new = sorted(set(docstring_faults(package)) - before)
    assert [fault.split(":", 1)[0] + fault.split(":")[2][:13] for fault in new] == [
        "losses/bad.py no Source", "losses/bad.py no docstring", "nets/bad.py no shapes, a",
    ]  # fmt: skip


def test_a_long_file_and_a_long_function_are_seen(package: Path) -> None:
    before = set(oversized(package))
    (package / "data" / "lengthy.py").write_text("x = 1\n" * 401, encoding="utf-8")
    (package / "data" / "enough.py").write_text("x = 1\n" * 400, encoding="utf-8")
    body = "    x = 1\n" * 60
    (package / "data" / "work.py").write_text(f"def work():\n{body}", encoding="utf-8")
    (package / "data" / "less.py").write_text(f"def less():\n{body[10:]}", encoding="utf-8")
    assert set(oversized(package)) - before == {"data/lengthy.py", "data/work.py:work"}


def test_a_new_and_a_lost_public_name_are_seen(package: Path) -> None:
    listed = public_names(package)
    (package / "losses" / "__init__.py").write_text('__all__ = ["surprise"]\n', encoding="utf-8")
    assert name_faults(package, {**listed, "qinjing.losses": ["lost"]}) == [
        "qinjing.losses.surprise is public and not listed",
        "qinjing.losses.lost is listed and gone",
    ]


def test_a_heavy_import_is_seen(package: Path) -> None:
    (package / "losses" / "bad.py").write_text("import scipy\n", encoding="utf-8")
    (fault,) = bare_node_faults(package, ("errors", "losses.bad"))
    assert fault.startswith("losses.bad ModuleNotFoundError scipy")
    _append(package / "errors.py", "\nimport torch\n")
    assert "torch" in heavy_imports(package, "import qinjing.errors")


@pytest.mark.parametrize(
    "statement",
    [
        "import pickle", "from joblib import load", "eval('1')", "torch.load('w.pt')",
        "subprocess.run('ls', shell=True)", "os.system('ls')", "np.load('x.npy')",
        "np.load('x.npy', allow_pickle=True)", "yaml.load(text)",
    ],
)  # fmt: skip
def test_unsafe_code_is_seen(package: Path, statement: str) -> None:
    before = len(unsafe(package))
    (package / "bad.py").write_text(statement + "\n", encoding="utf-8")
    assert len(unsafe(package)) == before + 1


def test_a_machine_path_is_seen(tmp_path: Path) -> None:
    folder = "/ro" + "ot/data"
    (tmp_path / "a.md").write_text(f"in {folder} it lies\nbut ./work/ is a folder\n", "utf-8")
    assert machine_paths(tmp_path, ["a.md"]) == [f"a.md:1: in {folder} it lies"]
