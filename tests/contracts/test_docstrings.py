"""Public things say what they are; nets, losses and metrics say where they come from."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.contracts.source import PACKAGE, modules, public_definitions, tree

# What stands for a published method in each room: in `nets` functions are plumbing, in `metrics`
# classes are records of what was measured.
SOURCED = {
    "nets": (ast.ClassDef,),
    "losses": (ast.ClassDef, ast.FunctionDef),
    "metrics": (ast.FunctionDef,),
}
# arXiv:2011.12345, 10.1016/j.media.2020, "DICOM PS3.3 C.8", or a URL of a standard.
SOURCE = re.compile(
    r"^\s*Source:.*(arXiv|10\.\d{4,}/|PS3\.\d+|ISO|https?://|doi|ISBN)", re.M | re.I
)
# "(B, C, D, H, W)", "(D, H, W)", "(N, 3)".
SHAPE = re.compile(r"\((?:[A-Z]|\.\.\.|\d+), ?[^()\n]+\)")
# Methods that every reader knows by their class: the class carries the sentence.
PLAIN_METHODS = {"forward"}


def docstring_faults(package: Path) -> list[str]:
    """Name every public item that breaks the docstring rule, with the rule that it breaks."""
    faults: list[str] = []
    for path in modules(package):
        name = path.relative_to(package).as_posix()
        room = name.split("/")[0]
        module_text = ast.get_docstring(tree(path)) or ""
        if not module_text:
            faults.append(f"{name}: no module docstring")
        for item, node in public_definitions(path):
            text = ast.get_docstring(node) or ""
            where = f"{name}:{item}"
            if not text:
                if item.rpartition(".")[2] not in PLAIN_METHODS:
                    faults.append(f"{where}: no docstring")
                continue
            top = "." not in item
            sourced = top and isinstance(node, SOURCED.get(room, ()))
            if sourced and not SOURCE.search(f"{text}\n{module_text}"):
                faults.append(f"{where}: no Source: line with an arXiv number, a DOI or a standard")
            if room == "nets" and isinstance(node, ast.ClassDef) and top:
                whole = "\n".join(
                    [text, module_text, *(ast.get_docstring(m) or "" for m in node.body
                                          if isinstance(m, ast.FunctionDef))]
                )  # fmt: skip
                if not SHAPE.search(whole):
                    faults.append(f"{where}: no shapes, as in (B, C, D, H, W)")
    return faults


def test_public_items_are_documented() -> None:
    faults = docstring_faults(PACKAGE)
    assert not faults, "\n".join(faults)


def test_the_rule_reads_source_lines_as_people_write_them() -> None:
    assert SOURCE.search("Source: Milletari et al. 2016, arXiv:1606.04797")
    assert SOURCE.search("x\n    Source: doi:10.1038/s41592-020-01008-z, methods.")
    assert not SOURCE.search("Source: own work")
    assert SHAPE.search("logits (B, K, D, H, W)") and not SHAPE.search("logits (one per class)")
