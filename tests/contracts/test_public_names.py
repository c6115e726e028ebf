"""The names that others build on, listed once: a new or a lost one is a decision."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tests.contracts.source import PACKAGE, modules, tree

LIST = Path(__file__).with_name("public_names.json")


def public_names(package: Path) -> dict[str, list[str]]:
    """Dotted package → the names of its `__all__`, read without importing; [] where it has none."""
    found: dict[str, list[str]] = {}
    for path in modules(package):
        if path.name != "__init__.py":
            continue
        dotted = ".".join(("qinjing", *path.parent.relative_to(package).parts))
        found[dotted] = sorted(_all_of(tree(path)))
    return found


def _all_of(module: ast.Module) -> list[str]:
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            value = getattr(node, "value", None)
            if isinstance(value, ast.List | ast.Tuple):
                return [str(ast.literal_eval(item)) for item in value.elts]
    return []


def name_faults(package: Path, listed: dict[str, list[str]]) -> list[str]:
    """Say each name that the package has and the list has not, and the reverse."""
    found = public_names(package)
    faults = []
    for dotted in sorted({*found, *listed}):
        has, promised = set(found.get(dotted, ())), set(listed.get(dotted, ()))
        faults += [f"{dotted}.{name} is public and not listed" for name in sorted(has - promised)]
        faults += [f"{dotted}.{name} is listed and gone" for name in sorted(promised - has)]
    return faults


def test_public_names_are_the_listed_ones() -> None:
    faults = name_faults(PACKAGE, json.loads(LIST.read_text(encoding="utf-8")))
    assert not faults, "\n".join([*faults, f"If meant, change {LIST.name} and CHANGELOG.md."])


def test_the_listed_names_are_there() -> None:
    import importlib

    for dotted, names in public_names(PACKAGE).items():
        module = importlib.import_module(dotted)
        assert [name for name in names if not hasattr(module, name)] == [], dotted
