"""Which models saw a case, told by what they keep beside their weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qinjing.config import read_json, write_json
from qinjing.data.consent.lineage import (
    Handed,
    Lineage,
    Told,
    folder_digest,
    statements,
    trunk_digest,
)


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

    Runs say so in `splits_final.json`, trunks in `trunk.json`, sites of a federation and trunks
    that are not finished in `saw.json`. What a run began from is looked up where the run's plan
    says, or else known by its digest.

    Args:
        case_id: of the case; two data sets may use one id, so their names are told.
        folders: to look below.
    """
    places = sorted({place for folder in folders for place in _models(Path(folder))})
    lineage = Lineage()
    while True:  # what began from a model that was moved may be what others began from
        found = [seen for place in places if (seen := _seen(lineage, place, case_id))]
        if not _add_moved(lineage, places, found, case_id):
            return found


def note_seen(folder: Path, dataset: str, cases: Iterable[str]) -> None:
    """Write into `saw.json` what is about to be learnt from; what was noted before stays.

    Args:
        folder: takes the file.
        dataset: its name.
        cases: ids.
    """
    path = folder / "saw.json"
    seen = read_json(path) if path.exists() else {}
    own = sorted(set(cases) | set(seen.get(dataset, ())))
    if seen.get(dataset) != own:
        write_json(path, {**seen, dataset: own})


def _models(folder: Path) -> list[Path]:
    """Folders of runs and trunks, finished or not."""
    found = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        run = {"run.json", "splits_final.json"} <= set(names)
        if run or {"trunk.json", "saw.json"} & set(names):
            found.append(Path(place).resolve())
    return found


def _seen(lineage: Lineage, place: Path, case_id: str) -> Seen | None:
    """What a folder says of a case, itself or through the weights that it began from."""
    told = lineage.told(place)
    seen = _itself(told, case_id)
    for handed in lineage.handed_to(place):
        names = tuple(name for name, cases in handed.cases.items() if case_id in cases)
        if names:
            how = (*(seen.how if seen else ()), f"began from {handed.trunk}, which {handed.how}")
            return Seen(place, names, True, how, handed.moved or _signed(place, "plan.json"))
    return seen


def _itself(told: Told, case_id: str) -> Seen | None:
    how: list[str] = []
    names: list[str] = []
    learnt, file = False, told.file
    for fold, cases in told.learnt.items():
        if not (told.home / fold).is_dir():
            continue
        who = f"{fold.replace('_', ' ')} " if fold else ""
        own = [name for name, ids in cases.items() if case_id in ids]
        if own:
            how.append(f"{who}learnt from it")
            names, learnt = own, True
        elif case_id in told.measured[fold]:
            how.append(f"{who}was measured on it")
            names = names or [*cases]
            file = told.file if fold else "fold_0/metrics.json"
    if not how:
        return None
    return Seen(told.home, tuple(names), learnt, tuple(how), _signed(told.home, file))


def _add_moved(
    lineage: Lineage, places: Sequence[Path], found: Sequence[Seen], case_id: str
) -> bool:
    """Take note of what began from a model that learnt from the case and was moved since."""
    learnt = {seen.folder: seen for seen in found if seen.learnt}
    wanted = {
        place: digest for place in places if place not in learnt and (digest := trunk_digest(place))
    }
    if not wanted:
        return False
    trunks = {
        folder_digest(weights): (weights, seen)
        for place, seen in learnt.items()
        for weights in _weights(lineage.told(place))
        if any(case_id in cases for cases in lineage.learnt_by(weights).values())
    }
    more = {place: trunks[digest] for place, digest in wanted.items() if digest in trunks}
    for place, (weights, before) in more.items():
        cases = {name: {case_id} for name in before.dataset}
        lineage.add_moved(place, Handed(weights, "learnt from it", cases, moved=True))
    return bool(more)


def _weights(told: Told) -> list[Path]:
    """Folders of a model that others may begin from."""
    own = [] if told.is_run else [told.home]
    return [*own, *sorted(path.parent for path in told.home.glob("*/model.json"))]


def _signed(place: Path, name: str) -> bool:
    """Whether a whole statement of the folder's record names the file as it is.

    The record of a site's model lies with the site, a folder above.
    """
    from qinjing.evidence import digest

    sha256 = digest(place / name)
    return any(
        {"name": told, "digest": {"sha256": sha256}} in statement["subject"]
        for record, told in ((place, name), (place.parent, f"{place.name}/{name}"))
        for statement in statements(record)
    )
