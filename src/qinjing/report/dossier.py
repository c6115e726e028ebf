"""The file that a regulator asks for: what a model is declared as, and what bears that out.

It holds no claim of its own. Every line is read from the run, from tables of metrics, from the
signed record or from a service's audit; what a class needs and is not there is named as missing.

Source: the paper's 2.2.1; for what is told of a model, arXiv:1810.03993 (model cards).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import qinjing
from qinjing.config import atomic_path, plain, read_json, write_json
from qinjing.data.splits import read_splits
from qinjing.errors import EvidenceError, FormatError
from qinjing.evidence import verify
from qinjing.report import tables
from qinjing.report.declared import ServedModel, served
from qinjing.report.page import render
from qinjing.report.product_class import KINDS, allowed, must_be_confirmed
from qinjing.report.source import read_evaluated

# Which certificate a class needs, by the paper's 2.2.1.
CERTIFICATES: Mapping[str, str] = {
    "tool": "class I",
    "analysis": "class II",
    "diagnosis": "class III",
}
_WORDS: Mapping[str, str] = {
    "annotation": "segmentations",
    "picture": "pictures with outlines",
    "measurement": "volumes, diameters, grey values",
    "change": "change between two dates",
    "finding": "statements on disease with a confidence",
}


@dataclass(frozen=True)
class Need:
    """Something that a class's file must hold.

    Attributes:
        what: it is.
        there: whether it is.
        how: where it stands, or how to get it.
    """

    what: str
    there: bool
    how: str


def write_dossier(
    run: Path,
    output: Path,
    *,
    metrics: Sequence[Path] = (),
    service: Path | None = None,
    trusted_key: Path | None = None,
) -> dict[str, Any]:
    """Write dossier.html and dossier.json of a declared model into a folder.

    Args:
        run: a finished run that was declared.
        output: the folder.
        metrics: tables of `evaluate`, of which those on cases that the model never saw count.
        service: a folder of studies that a service answered with this model.
        trusted_key: of the one who may have signed; see `evidence.verify`.

    Returns:
        {"html", "json", "missing"}: the last, what the class needs and is not there.

    Raises:
        ConfigError: the model was not declared, or its splits are none.
        EvidenceError: its declaration is not as the record signed it.
        FormatError: a table of metrics cannot be read.
    """
    model = served(run)
    content: dict[str, Any] = {
        "product": _product(model),
        "model": _model(run),
        "data": _data(run),
        "measured": [_measured(path, _learnt(run)) for path in metrics],
        "record": _record(run, trusted_key),
        "use": _use(service, trusted_key, model) if service else None,
    }
    needs = _needs(content)
    content["needs"] = needs
    output.mkdir(parents=True, exist_ok=True)
    with atomic_path(output / "dossier.html") as temporary:
        page = render("dossier.html.j2", {**content, "version": qinjing.__version__})
        temporary.write_text(page, encoding="utf-8")
    write_json(output / "dossier.json", plain(content))
    return {
        "html": str(output / "dossier.html"),
        "json": str(output / "dossier.json"),
        "missing": [need.what for need in needs if not need.there],
    }


def _product(model: ServedModel) -> dict[str, Any]:
    known = model.declared
    return {
        "name": known.name,
        "class": known.product_class,
        "certificate": CERTIFICATES[known.product_class],
        "modality": known.modality,
        "intended_use": known.intended_use,
        "limits": list(known.limits),
        "may": [_WORDS[kind] for kind in KINDS if allowed(kind, known.product_class)],
        "may_not": [_WORDS[kind] for kind in KINDS if not allowed(kind, known.product_class)],
        "confirmation": must_be_confirmed(known.product_class),
        "labels": {str(value): name for value, name in model.labels()[0].items()},
    }


def _model(run: Path) -> dict[str, Any]:
    """The networks of a run, by their files' digests."""
    from qinjing.evidence.digests import digest

    folds = sorted(run.glob("fold_*/weights.safetensors"))
    plan = read_json(run / "plan.json") if (run / "plan.json").is_file() else {}
    return {
        "network": plan.get("net", ""),
        "parameters": plan.get("predicted", {}).get("parameters"),
        "spacing_mm": plan.get("preprocessing", {}).get("spacing_mm"),
        "folds": [{"fold": one.parent.name, "sha256": digest(one)} for one in folds],
    }


def _data(run: Path) -> dict[str, Any]:
    dataset = read_json(run / "dataset.json")
    cases = _cases(run, ("train", "val"))
    return {
        "name": dataset.get("name", ""), "reference": dataset.get("reference", ""),
        "licence": dataset.get("licence", dataset.get("license", "")), "cases": len(cases or ()),
    }  # fmt: skip


def _learnt(run: Path) -> set[str] | None:
    """The cases that any fold learnt from, with or without their labels; None where none knows."""
    return _cases(run, ("train", "unlabelled"))


def _cases(run: Path, sides: Sequence[str]) -> set[str] | None:
    path = run / "splits_final.json"
    if not path.is_file():
        return None
    folds: list[Mapping[str, Any]] = [*read_splits(path, measured=False)]
    return {case for fold in folds for side in sides for case in fold.get(side, ())}


def _measured(path: Path, learnt: set[str] | None) -> dict[str, Any]:
    """A table, and why it says nothing on unseen cases: "" where it does."""
    found = read_evaluated(path).metrics
    columns, rows = tables.summary_rows(found)
    cases = sorted({str(one["case_id"]) for one in found["cases"]})
    known = len(learnt.intersection(cases)) if learnt is not None else 0
    seen = ""
    if not cases:
        seen = "It holds no case, and does not count as measured."
    elif learnt is None:
        seen = (
            "The run has no splits_final.json that says what it learnt from: this does not count "
            "as measured on cases that it never saw."
        )
    elif known:
        seen = (
            f"The model learnt from {known} of these {len(cases)} cases: this does not count as "
            "measured on cases that it never saw."
        )
    return {
        "name": (path if path.is_dir() else path.parent).name,
        "cases": len(found["cases"]),
        "case_ids": cases,
        "seen": seen,
        "figures": sum(one.mean != "–" for _, _, cells in rows for one in cells),
        "without_interval": sum(
            one.mean != "–" and not one.range for _, _, cells in rows for one in cells
        ),
        "columns": [tables.title(one, found.get("tolerance_mm")) for one in columns],
        "rows": [
            (name, [f"{one.mean} ({one.range})" if one.range else one.mean for one in cells])
            for name, _, cells in rows
        ],
    }


def _record(run: Path, trusted_key: Path | None) -> dict[str, Any]:
    """What the signed record says, and whether it holds."""
    try:
        found = verify(run, trusted_key=trusted_key)
    except EvidenceError as error:
        return {"statements": [], "keys": [], "faults": [str(error)]}
    told = [{"command": one.command, "time": one.time} for one in found.statements]
    faults = [str(one) for one in found.faults]
    return {"statements": told, "keys": list(found.key_ids), "faults": faults}


def _use(service: Path, trusted_key: Path | None, model: ServedModel) -> dict[str, Any]:
    """What was done with a service's answers, by those lines of its audit that are signed.

    A confirmation counts where it is of this model's class, and of this model where it names one.
    """
    audit = service / "audit"
    if not audit.is_dir():
        raise FormatError("service", "a folder with an audit", "none", where=service)
    try:
        found = verify(audit, trusted_key=trusted_key)
    except EvidenceError as error:
        return {"did": {}, "confirmed_by": [], "faults": [str(error)]}
    faults = [str(one) for one in found.faults]
    did: Counter[str] = Counter()
    persons: set[str] = set()
    for one in found.statements:
        said = one.configuration
        if not (isinstance(said, Mapping) and all(_text(said, k) for k in ("did", "person"))):
            faults.append(f"{one.record} line {one.line} says not who did what")
            continue
        did[said["did"]] += 1
        ours = said.get("product_class") == model.product_class
        if said["did"] == "confirmed" and ours and said.get("model", model.name) == model.name:
            persons.add(said["person"])
    return {"did": dict(sorted(did.items())), "confirmed_by": sorted(persons), "faults": faults}


def _text(said: Mapping[str, Any], key: str) -> bool:
    return isinstance(said.get(key), str) and bool(said[key])


def _needs(content: Mapping[str, Any]) -> list[Need]:
    """What a file of this class must hold, and whether it does."""
    product, record, measured = content["product"], content["record"], content["measured"]
    unseen = [set(one["case_ids"]) for one in measured if not one["seen"]]
    needs = [
        Need("intended use in words", bool(product["intended_use"]), "serve declare --use"),
        Need("limits in words", bool(product["limits"]), "serve declare --limits"),
        Need("weights by digest", bool(content["model"]["folds"]), "train"),
        Need("an unbroken signed record from data to weights",
             bool(record["statements"]) and not record["faults"], "verify"),
        Need("measured on cases that it never saw", bool(unseen),
             "evaluate, then dossier --metrics"),
    ]  # fmt: skip
    if product["class"] != "tool":
        every = any(one["figures"] for one in measured)
        every &= all(not one["without_interval"] for one in measured)
        needs.append(Need("intervals of every figure", every, "evaluate: two cases or more"))
    if product["confirmation"]:
        use = content["use"]
        apart = any(not one & other for one, other in combinations(unseen, 2))
        needs += [
            Need("measured at two places or more", apart,
                 "dossier --metrics A B, with no case in both"),
            Need("an audit of use that holds", bool(use) and not use["faults"],
                 "dossier --service FOLDER"),
            Need("confirmed by named readers", bool(use and use["confirmed_by"]),
                 "the service's confirmation"),
        ]  # fmt: skip
    return needs
