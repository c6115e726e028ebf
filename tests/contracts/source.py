"""What the contract tests read: the package's source, never its imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "qinjing"


def modules(package: Path) -> list[Path]:
    """Every Python file of the package, sorted."""
    return sorted(package.rglob("*.py"))


@cache
def _parse(path: Path, changed_ns: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return _parse(path, path.stat().st_mtime_ns)


def public_definitions(
    path: Path,
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public functions, classes and methods with their dotted names.

    A module or a class whose name begins with an underscore is private with all it holds.
    """
    if any(part.startswith("_") and part != "__init__.py" for part in path.parts[-3:]):
        return
    yield from _public(tree(path).body, "")


def _public(
    body: list[ast.stmt], lead: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        yield lead + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from _public(node.body, f"{lead}{node.name}.")
