"""What an import costs: nothing heavy for the command, torch and NumPy alone for training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.contracts.source import PACKAGE

HEAVY = (
    "torch",
    "monai",
    "scipy",
    "matplotlib",
    "nibabel",
    "pydicom",
    "jinja2",
    "isal",
    "cryptography",
    "tqdm",
)
TRAINING_CORE = (
    "engine.fit", "engine.plan", "engine.infer", "nets", "losses", "data.cache", "data.patches",
    "data.transforms", "tasks.segment",
)  # fmt: skip
ABSENT_ON_A_NODE = (
    "scipy", "nibabel", "matplotlib", "jinja2", "cryptography", "isal", "tqdm", "monai", "yaml",
    "tensorboard", "mlflow", "pandas", "SimpleITK", "numba", "pydicom",
)  # fmt: skip

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"{{name}} is not on this machine", name=name)
sys.meta_path.insert(0, Absent())
"""

TRY = """
from importlib import import_module
for name in {names!r}:
    try:
        import_module("qinjing." + name)
    except Exception as error:
        print(name, type(error).__name__, error)
"""


def _python(code: str, package: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def heavy_imports(package: Path, statement: str) -> list[str]:
    """The heavy packages that a statement brings in."""
    code = f"import sys\n{statement}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    run = _python(code, package)
    assert run.returncode == 0, run.stderr
    found = run.stdout.strip().splitlines()[-1]
    return [name for name in HEAVY if f"'{name}'" in found]


def bare_node_faults(package: Path, names: tuple[str, ...]) -> list[str]:
    """Import modules where only torch, NumPy and safetensors are; say which fail and why."""
    code = BLOCK.format(absent=ABSENT_ON_A_NODE) + TRY.format(names=names)
    run = _python(code, package)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_the_package_imports_nothing_heavy() -> None:
    assert heavy_imports(PACKAGE, "import qinjing") == []


def test_the_command_imports_nothing_heavy_for_help() -> None:
    statement = (
        "import qinjing.cli, contextlib, io\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    qinjing.cli.main(['--help'])"
    )
    assert heavy_imports(PACKAGE, statement) == []


def test_training_needs_torch_and_numpy_alone() -> None:
    assert bare_node_faults(PACKAGE, TRAINING_CORE) == []


def test_the_block_blocks() -> None:
    run = _python(BLOCK.format(absent=ABSENT_ON_A_NODE) + "import scipy", PACKAGE)
    assert "not on this machine" in run.stderr
