"""What a model is declared as: for which scans, and what it may put out.

One model has one declaration, which lies beside its weights and is signed; a service reads it and
takes no other word for it. A file that the run's record does not bear out is refused.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qinjing.config import from_json, plain, read_json, write_json
from qinjing.data.dicom.codes import Term, read_terms
from qinjing.errors import ConfigError, EvidenceError, FormatError
from qinjing.evidence import VerifyResult, append, digest
from qinjing.evidence.verify import verify_record
from qinjing.report.product_class import CLASSES

DECLARATION = "declared.json"


@dataclass(frozen=True)
class Declaration:
    """What was declared for a model.

    Attributes:
        name: under which people know it, of 64 letters at most, so that DICOM files can bear it.
        modality: of the series that it is for, as DICOM has it: "CT", "MR", "PT".
        product_class: "tool", "analysis" or "diagnosis".
        intended_use: for whom and what, in words that stand on every report.
        limits: what it was not made for or tested on.
        least_slices: series of fewer are left alone: localisers and the like.

    Raises:
        ConfigError: the class is unknown, a word cannot be used, or one that must be there is not.

    Source: DICOM PS3.5 6.2: CS is of 16 letters at most, LO of 64 without a backslash; "^" and "="
    part a person's name (PN).
    """

    name: str
    modality: str
    product_class: str
    intended_use: str = ""
    limits: tuple[str, ...] = ()
    least_slices: int = 8

    def __post_init__(self) -> None:
        if self.product_class not in CLASSES:
            raise ConfigError("product class", f"one of {', '.join(CLASSES)}", self.product_class)
        if not re.fullmatch("[A-Z]{2,16}", self.modality):
            raise ConfigError("modality", "of 2 to 16 letters A to Z", self.modality or "none")
        fits = self.name.strip() and len(self.name) <= 64 and self.name.isprintable()
        if not fits or set(self.name) & set("\\^="):
            rule = "printable text of 1 to 64 letters without \\, ^ and ="
            raise ConfigError("name", rule, repr(self.name) if self.name else "none")
        if self.product_class == "diagnosis" and not (self.intended_use and self.limits):
            raise ConfigError(
                "intended use and limits", "declared for a model of class diagnosis", "none"
            )


@dataclass(frozen=True)
class ServedModel:
    """A model that answers studies.

    Attributes:
        run: its folder.
        declared: what it is for, and what it may put out.
    """

    run: Path
    declared: Declaration

    @property
    def name(self) -> str:
        """Under which people know it."""
        return self.declared.name

    @property
    def product_class(self) -> str:
        """What it may put out."""
        return self.declared.product_class

    @property
    def card(self) -> Mapping[str, Any]:
        """What a report says of it."""
        known = self.declared
        limits = list(known.limits)
        return {"name": known.name, "intended_use": known.intended_use, "limits": limits}

    def labels(self) -> tuple[dict[int, str], dict[str, Term]]:
        """Return what its label values are called, without background, and the user's own codes."""
        return read_terms(self.run / "dataset.json")


def declare(run: Path, declaration: Declaration) -> Path:
    """Write a model's declaration beside its weights, and sign it.

    Another class makes another product: the former declaration must be taken away by hand first.
    The same declaration again changes nothing, but is signed where the last signed one is another:
    a call that was killed in between can be made once more.

    Raises:
        ConfigError: the model sees several channels at once, two of its labels have one name, or
            it is declared otherwise already.
        EvidenceError: the run's record does not hold.
    """
    channels = read_json(run / "dataset.json").get("channel_names", [0])
    if len(channels) != 1:
        raise ConfigError(
            "model", "of one channel, to answer studies by itself", len(channels), where=run,
            advice="several series cannot be told apart by their modality",
        )  # fmt: skip
    names = Counter(ServedModel(run, declaration).labels()[0].values())
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise ConfigError(
            "labels", "of different names", f"two called {twice}", where=run / "dataset.json"
        )
    path = run / DECLARATION
    if not path.exists():
        write_json(path, plain(asdict(declaration)))
    elif _read(path) != declaration:
        raise ConfigError(
            "declaration", "the one that this model has", "another", where=path,
            advice="another class is another product: copy the run, or take the file away",
        )  # fmt: skip
    if _signed(verify_record(run)) != digest(path):
        append(run, "declare", {}, [path], asdict(declaration))
    served(run)
    return path


def served(run: Path) -> ServedModel:
    """Return a model with its declaration, if the run's record bears it out.

    The record is checked (signatures, chain, head) and the declaration's file against the last
    statement that declared; the weights and what else the record names are not: that is `verify`.
    Whoever holds another key can still sign another declaration, as can be seen in the record.

    Raises:
        ConfigError: none was made, or it is none of ours.
        EvidenceError: the record does not hold, or names no such declaration.
        FormatError: it cannot be read.
    """
    path, place = run / DECLARATION, shlex.quote(str(run))
    again = f"qinjing serve declare -m {place} --class tool --modality CT"
    if not path.is_file():
        raise ConfigError(
            "model", "one that was declared", "no declaration", where=run, advice=again
        )
    record = verify_record(run)
    if record.faults:
        raise EvidenceError(
            "record of the declared model", "whole and signed", record.faults[0], where=run,
            advice=f"qinjing verify {place}",
        )  # fmt: skip
    signed = _signed(record)
    if signed is None:
        raise EvidenceError(
            "declaration", "signed", "a file that no statement names", where=path,
            advice=f"declare it, with what it says: {again}",
        )  # fmt: skip
    if signed != digest(path):
        raise EvidenceError(
            "declaration", "as it was signed", "another", where=path,
            advice=f"put the signed one back, or take the file away and declare anew: {again}",
        )  # fmt: skip
    return ServedModel(run, _read(path))


def declared_of(model: Path) -> ServedModel | None:
    """Return a run, or the run of a fold, with its declaration; None where none was made.

    Raises:
        InputError: as `served` refuses it.
    """
    place = model.resolve()
    fold = (place / "weights.safetensors").is_file()
    for run in (model, place.parent) if fold else (model,):
        if (run / DECLARATION).is_file():
            return served(run)
    return None


def _signed(record: VerifyResult) -> str | None:
    """The digest of the declaration that a record's last statement on it names."""
    found = None
    for one in record.statements:
        if one.command == "declare":
            found = one.outputs.get(DECLARATION, found)
    return found


def _read(path: Path) -> Declaration:
    try:
        said: Declaration = from_json(read_json(path), Declaration, where=str(path))
    except (TypeError, KeyError) as error:
        raise FormatError("declaration", "as it was written", error, where=path) from None
    return said
