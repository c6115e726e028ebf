"""Which models saw a case, told by what they keep beside their weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinjing.config import read_json, write_json
from qinjing.errors import InputError

_BEGAN = "began from"


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
    moved: dict[Path, Seen] = {}
    while True:
        known: dict[Path, Seen | None] = dict(moved)
        for place in places:
            _look(place, case_id, known)
        more = _began_from_moved(places, known)
        if not more:
            return [seen for place in places if (seen := known[place]) is not None]
        moved |= more  # others may have begun from these


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


def _look(place: Path, case_id: str, known: dict[Path, Seen | None]) -> Seen | None:
    """What a folder says of a case, itself or through the trunk that it began from."""
    if place not in known:
        known[place] = None  # so that a circle ends
        is_run = (place / "run.json").is_file()
        seen = _run(place, case_id) if is_run else _trunk(place, case_id)
        trunk = _began_from(place)
        if trunk is not None:
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
    return Seen(place, _dataset(place), learnt, tuple(how), _signed(place, "splits_final.json"))


def _trunk(place: Path, case_id: str) -> Seen | None:
    """What a trunk says, or a site's model of a federation."""
    name = "trunk.json" if (place / "trunk.json").is_file() else "saw.json"
    content = _json(place / name, {})
    saw = content.get("saw", []) if name == "trunk.json" else [
        {"dataset": dataset, "cases": cases} for dataset, cases in content.items()
    ]  # fmt: skip
    names = tuple(str(one["dataset"]) for one in saw if case_id in one["cases"])
    if names:
        return Seen(place, names, True, ("learnt from it",), _signed(place, name))
    measured = _json(place / "fold_0" / "metrics.json", {}).get("cases", [])
    if case_id in {one["case_id"] for one in measured}:
        names, signed = tuple(content), _signed(place, "fold_0/metrics.json")
        return Seen(place, names, False, ("was measured on it",), signed)
    return None


def _through(
    place: Path, trunk: Path, case_id: str, seen: Seen | None, known: dict[Path, Seen | None]
) -> Seen | None:
    """The same folder's word, with what its trunk learnt from added."""
    home = trunk if (trunk / "trunk.json").exists() else trunk.parent
    before = _look(home, case_id, known) if trunk.is_dir() else None
    if _forgotten_since(place, trunk, case_id):
        how, dataset = f"{_BEGAN} {trunk}, which had learnt from it then", _dataset(home)
    elif before is not None and trunk in _that_learnt(before):
        how, dataset = f"{_BEGAN} {trunk}, which learnt from it", before.dataset
    else:
        return seen
    told = (*(seen.how if seen else ()), how)
    return Seen(place, dataset, True, told, _signed(place, "plan.json"))


def _that_learnt(seen: Seen) -> list[Path]:
    """Folders of a model that learnt from the case, which others may begin from."""
    folds = sorted(seen.folder.glob("fold_*"))
    if (seen.folder / "run.json").is_file() and not any(h.startswith(_BEGAN) for h in seen.how):
        return [f for f in folds if f"{f.name.replace('_', ' ')} learnt from it" in seen.how]
    return [seen.folder, *folds] if seen.learnt else []


def _forgotten_since(place: Path, trunk: Path, case_id: str) -> bool:
    """Whether a run began from a fold that had learnt from the case and was made to forget it."""
    told = _json(trunk.parent / "unlearned.json", {}).get("cases", [])
    learnt = {
        f"fold_{fold}"
        for one in told
        if one["case_id"] == case_id
        for fold in {*one["retrained"]} - {*one["measured"]}
    }
    return trunk.name in learnt and _trunk_digest(place) != _folder_digest(trunk)


def _began_from_moved(
    places: Sequence[Path], known: Mapping[Path, Seen | None]
) -> dict[Path, Seen]:
    """What began from a model that learnt from the case and was moved since."""
    learnt = [seen for place in places if (seen := known[place]) and seen.learnt]
    wanted = {place: digest for place in places if (digest := _trunk_digest(place))}
    if not wanted:
        return {}
    trunks = {_folder_digest(f): (f, one) for one in learnt for f in _that_learnt(one)}
    found = {}
    for place, digest in wanted.items():
        seen, (trunk, before) = known[place], trunks.get(digest, (None, None))
        if before is not None and not (seen and seen.learnt):
            how = (*(seen.how if seen else ()), f"{_BEGAN} {trunk}, which learnt from it")
            found[place] = Seen(place, before.dataset, True, how, True)
    return found


def _dataset(place: Path) -> tuple[str, ...]:
    return (str(_json(place / "dataset.json", {}).get("name", "unknown")),)


def _began_from(place: Path) -> Path | None:
    transfer = _json(place / "plan.json", {}).get("transfer")
    return Path(transfer["trunk"]).resolve() if transfer else None


def _signed(place: Path, name: str) -> bool:
    """Whether a whole statement of the folder's record names the file as it is.

    The record of a site's model lies with the site, a folder above.
    """
    from qinjing.evidence import digest

    sha256 = digest(place / name)
    return any(
        {"name": told, "digest": {"sha256": sha256}} in statement["subject"]
        for record, told in ((place, name), (place.parent, f"{place.name}/{name}"))
        for statement in _statements(record)
    )


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
