"""Which models saw a case, told by what they keep beside their weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinjing.config import read_json
from qinjing.errors import InputError


@dataclass(frozen=True)
class Seen:
    """One model that saw a case.

    Attributes:
        folder: of the run or trunk.
        dataset: names of the data sets in which it saw a case of that id.
        learnt: whether it learnt from the case; else it was only measured on it.
        how: what it did with the case, a phrase each.
        signed: whether the folder's evidence names the very file that says so.
    """

    folder: Path
    dataset: tuple[str, ...]
    learnt: bool
    how: tuple[str, ...]
    signed: bool


def affected(case_id: str, folders: Sequence[str | Path]) -> list[Seen]:
    """List every model at or below the folders that saw a case, or began from one that did.

    Runs say so in `splits_final.json`, trunks in `trunk.json`, those that are not finished in
    `saw.json`. A trunk that a run began from is looked up where the run's plan says, or else
    known by its digest.

    Args:
        case_id: of the case; two data sets may use one id, so their names are told.
        folders: to look below.
    """
    places = sorted({place for folder in folders for place in _models(Path(folder))})
    known: dict[Path, Seen | None] = {}
    for place in places:
        _look(place, case_id, known)
    found = {place: seen for place in places if (seen := known[place]) is not None}
    trunks = {_folder_digest(p): p for p, seen in found.items() if seen.learnt}
    for place in places:  # what began from a trunk that was moved since
        trunk = trunks.get(_trunk_digest(place) or "")
        if trunk is not None and place not in found:
            how = (f"began from {trunk}, which learnt from it",)
            found[place] = Seen(place, found[trunk].dataset, True, how, True)
    return [found[place] for place in places if place in found]


def _models(folder: Path) -> list[Path]:
    """Folders of runs and trunks, finished or not."""
    found = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        run = {"run.json", "splits_final.json"} <= set(names)
        if run or {"trunk.json", "saw.json"} & set(names):
            found.append(Path(place).resolve())
    return found


def _look(place: Path, case_id: str, known: dict[Path, Seen | None]) -> Seen | None:
    """What a folder says of a case, itself or through the trunk that it began from."""
    if place not in known:
        known[place] = None  # so that a circle ends
        is_run = (place / "run.json").is_file()
        seen = _run(place, case_id) if is_run else _trunk(place, case_id)
        trunk = _began_from(place)
        if trunk is not None and (seen is None or not seen.learnt):
            seen = _through(place, trunk, case_id, seen, known)
        known[place] = seen
    return known[place]


def _run(place: Path, case_id: str) -> Seen | None:
    how: list[str] = []
    learnt = False
    for fold, split in enumerate(_json(place / "splits_final.json", [])):
        if not (place / f"fold_{fold}").is_dir():
            continue
        if case_id in (*split.get("train", ()), *split.get("unlabelled", ())):
            how.append(f"fold {fold} learnt from it")
            learnt = True
        elif case_id in split.get("val", ()):
            how.append(f"fold {fold} was measured on it")
    if not how:
        return None
    name = str(_json(place / "dataset.json", {}).get("name", "unknown"))
    return Seen(place, (name,), learnt, tuple(how), _signed(place, "splits_final.json"))


def _trunk(place: Path, case_id: str) -> Seen | None:
    name = "trunk.json" if (place / "trunk.json").is_file() else "saw.json"
    content = _json(place / name, {})
    saw = content.get("saw", []) if name == "trunk.json" else [
        {"dataset": dataset, "cases": cases} for dataset, cases in content.items()
    ]  # fmt: skip
    names = tuple(str(one["dataset"]) for one in saw if case_id in one["cases"])
    if not names:
        return None
    return Seen(place, names, True, ("learnt from it",), _signed(place, name))


def _through(
    place: Path, trunk: Path, case_id: str, seen: Seen | None, known: dict[Path, Seen | None]
) -> Seen | None:
    """The same folder's word, with what its trunk learnt from added."""
    is_fold = (trunk.parent / "run.json").is_file()
    before = _look(trunk.parent if is_fold else trunk, case_id, known) if trunk.is_dir() else None
    if before is None or not before.learnt:
        return seen
    if is_fold and f"{trunk.name.replace('_', ' ')} learnt from it" not in before.how:
        return seen
    how = (*(seen.how if seen else ()), f"began from {trunk}, which learnt from it")
    return Seen(place, before.dataset, True, how, _signed(place, "plan.json"))


def _began_from(place: Path) -> Path | None:
    transfer = _json(place / "plan.json", {}).get("transfer")
    return Path(transfer["trunk"]).resolve() if transfer else None


def _signed(place: Path, name: str) -> bool:
    """Whether a whole statement of the folder's record names the file as it is."""
    from qinjing.evidence import digest

    wanted = {"name": name, "digest": {"sha256": digest(place / name)}}
    return any(wanted in statement["subject"] for statement in _statements(place))


def _trunk_digest(place: Path) -> str | None:
    """Digest of the trunk that a run's evidence names."""
    for statement in _statements(place):
        for one in statement["predicate"].get("inputs", ()):
            if one["name"] == "trunk":
                return str(one["digest"]["sha256"])
    return None


def _folder_digest(place: Path) -> str:
    from qinjing.evidence import digest

    return digest(place)


def _statements(place: Path) -> list[dict[str, Any]]:
    """The statements of a folder's record whose signature holds."""
    from qinjing.evidence.digests import RECORD
    from qinjing.evidence.envelope import STATEMENT_PAYLOAD, unseal

    path, found = place / RECORD, []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            found.append(unseal(line, STATEMENT_PAYLOAD)[0])
        except ValueError:  # `qinjing verify` tells what is wrong with it
            continue
    return found


def _json(path: Path, otherwise: Any) -> Any:
    """What a file holds, if it holds the like."""
    try:
        content = read_json(path)
    except InputError:
        return otherwise
    return content if isinstance(content, type(otherwise)) else otherwise
