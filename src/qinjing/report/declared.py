"""What a model is declared as: for which scans, and what it may put out.

One model has one declaration, which lies beside its weights and is signed; a service reads it and
takes no other word for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qinjing.config import from_json, plain, read_json, write_json
from qinjing.data.dicom.codes import Term, read_terms
from qinjing.errors import ConfigError, FormatError
from qinjing.evidence.record import append
from qinjing.report.product_class import CLASSES

DECLARATION = "declared.json"


@dataclass(frozen=True)
class Declaration:
    """What was declared for a model.

    Attributes:
        name: under which people know it.
        modality: of the series that it is for, as DICOM has it: "CT", "MR", "PT".
        product_class: "tool", "analysis" or "diagnosis".
        intended_use: for whom and what, in words that stand on every report.
        limits: what it was not made for or tested on.
        least_slices: series of fewer are left alone: localisers and the like.

    Raises:
        ConfigError: the class is unknown, or a word that must be there is not.
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
        for name in ("name", "modality"):
            if not (getattr(self, name) and getattr(self, name).isprintable()):
                raise ConfigError(name, "printable text of one letter or more", "none")
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

    Raises:
        ConfigError: the model sees several channels at once, or is declared otherwise already.
    """
    channels = read_json(run / "dataset.json").get("channel_names", [0])
    if len(channels) != 1:
        raise ConfigError(
            "model", "of one channel, to answer studies by itself", len(channels), where=run,
            advice="several series cannot be told apart by their modality",
        )  # fmt: skip
    path = run / DECLARATION
    if path.exists():
        former = served(run).declared
        if former == declaration:
            return path
        raise ConfigError(
            "declaration", "the one that this model has", "another", where=path,
            advice="another class is another product: copy the run, or take the file away",
        )  # fmt: skip
    write_json(path, plain(asdict(declaration)))
    append(run, "declare", {}, [path], asdict(declaration))
    return path


def served(run: Path) -> ServedModel:
    """Return a model with its declaration.

    Raises:
        ConfigError: none was made.
        FormatError: it cannot be read.
    """
    path = run / DECLARATION
    if not path.is_file():
        raise ConfigError(
            "model", "one that was declared", "no declaration", where=run,
            advice=f"qinjing serve declare -m {run.name} --class tool --modality CT",
        )  # fmt: skip
    try:
        return ServedModel(run, from_json(read_json(path), Declaration))
    except (TypeError, KeyError) as error:
        raise FormatError("declaration", "as it was written", error, where=path) from None
