"""What a folder of weights learnt from, told by what lies beside it and by what it began from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qinjing.config import read_json
from qinjing.errors import FormatError, InputError

UNKNOWN = "unknown"  # name of a data set that no file tells
_TELLS = ("run.json", "trunk.json", "saw.json")
Cases = dict[str, set[str]]  # ids, by the name of their data set


@dataclass(frozen=True)
class Told:
    """What a run, a trunk or a federated site's model keeps of what it saw.

    Attributes:
        home: its folder.
        file: name of the file in it that says what it learnt from.
        learnt: by a fold's folder, which cases; by "" where there are no folds.
        measured: likewise, the ids that it was measured on.
        began: the folder of weights that it began from.
    """

    home: Path
    file: str
    learnt: dict[str, Cases]
    measured: dict[str, set[str]]
    began: Path | None

    @property
    def is_run(self) -> bool:
        """Whether its folds learnt from different cases."""
        return "" not in self.learnt

    def by(self, weights: Path) -> Cases:
        """Return what weights in it learnt from; where no file says which, all that any did.

        Args:
            weights: their folder, resolved.
        """
        fold = next(iter(weights.relative_to(self.home).parts), "")
        return self.learnt[fold] if fold in self.learnt else together(self.learnt.values())


@dataclass(frozen=True)
class Handed:
    """What came to a model with the weights that it began from.

    Attributes:
        trunk: the folder of these weights.
        how: what they did with the cases, a phrase.
        cases: which.
        moved: whether they were found by their digest, elsewhere than the plan says.
    """

    trunk: Path
    how: str
    cases: Cases
    moved: bool = False


def seen_by(weights: Path, dataset: str) -> set[str]:
    """Return the cases of a data set that a model learnt from, or what it began from did.

    Those of a data set whose name is lost are counted: they may be of this one.

    Args:
        weights: folder of a trunk, of a run's fold or of a federated site's model.
        dataset: its name.

    Raises:
        FormatError: a file that says so is damaged, or a run's is missing.
    """
    return _of(Lineage(strict=True).learnt_by(weights), dataset)


def handed_to(run: Path, dataset: str) -> set[str]:
    """Return the cases of a data set that came to a run with what it began from.

    Among them are those that its trunk was made to forget after the run had begun from it.

    Args:
        run: a run folder.
        dataset: its name.

    Raises:
        FormatError: a file that says so is damaged, or a run's is missing.
    """
    handed = Lineage(strict=True).handed_to(run.resolve())
    return _of(together(one.cases for one in handed), dataset)


def home_of(weights: Path) -> Path | None:
    """Return the nearest folder, itself or above, that tells of weights.

    Args:
        weights: their folder.
    """
    places = (weights, *weights.parents[:2])
    return next((p for p in places if any((p / name).is_file() for name in _TELLS)), None)


class Lineage:
    """Follows weights to what they learnt from, through everything that they began from.

    Args:
        strict: refuse what cannot be read, rather than take it to say nothing.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self._strict = strict
        self._moved: dict[Path, Handed] = {}
        self._told: dict[Path, Told] = {}

    def told(self, home: Path) -> Told:
        """Return what a model tells of itself.

        Args:
            home: its folder, resolved.
        """
        if home not in self._told:
            is_run = (home / "run.json").is_file()
            self._told[home] = self._run(home) if is_run else self._trunk(home)
        return self._told[home]

    def learnt_by(self, weights: Path, below: frozenset[Path] = frozenset()) -> Cases:
        """Return what weights learnt from, themselves or through what they began from.

        Args:
            weights: their folder.
            below: what leads here, so that a circle ends.
        """
        weights = weights.resolve()
        home = home_of(weights)
        if home is None or weights in below:
            return {}
        handed = self.handed_to(home, below | {weights})
        return together([self.told(home).by(weights), *(one.cases for one in handed)])

    def handed_to(self, home: Path, below: frozenset[Path] = frozenset()) -> list[Handed]:
        """Return what came to a model with the weights that it began from.

        Args:
            home: its folder, resolved.
            below: what leads here, so that a circle ends.
        """
        handed = [self._moved[home]] if home in self._moved else []
        trunk = self.told(home).began
        if trunk is not None:
            forgotten = self._forgotten_since(home, trunk)
            handed.append(Handed(trunk, "had learnt from it then", forgotten))
            handed.append(Handed(trunk, "learnt from it", self.learnt_by(trunk, below)))
        return handed

    def add_moved(self, home: Path, handed: Handed) -> None:
        """Take note of what a model began from, where it was moved since.

        Args:
            home: the model's folder, resolved.
            handed: what came with it.
        """
        self._moved[home] = handed

    def _run(self, home: Path) -> Told:
        name = str(self._read(home / "dataset.json", {}).get("name", UNKNOWN))
        splits = self._read(home / "splits_final.json", [], needed=True)
        learnt = {
            f"fold_{k}": {name: {*split.get("train", ()), *split.get("unlabelled", ())}}
            for k, split in enumerate(splits)
        }
        measured = {f"fold_{k}": set(split.get("val", ())) for k, split in enumerate(splits)}
        return Told(home, "splits_final.json", learnt, measured, self._began(home, needed=True))

    def _trunk(self, home: Path) -> Told:
        """What a trunk says, or a site's model of a federation."""
        name = "trunk.json" if (home / "trunk.json").is_file() else "saw.json"
        content = self._read(home / name, {}, needed=True)
        saw: Cases = {k: set(v) for k, v in content.items()} if name == "saw.json" else {}
        for one in content.get("saw", []) if name == "trunk.json" else ():
            saw.setdefault(str(one["dataset"]), set()).update(one["cases"])
        cases = self._read(home / "fold_0" / "metrics.json", {}).get("cases", [])
        measured = {one["case_id"] for one in cases}
        return Told(home, name, {"": saw}, {"": measured}, self._began(home))

    def _began(self, home: Path, *, needed: bool = False) -> Path | None:
        transfer = self._read(home / "plan.json", {}, needed=needed).get("transfer")
        return Path(transfer["trunk"]).resolve() if transfer else None

    def _forgotten_since(self, home: Path, trunk: Path) -> Cases:
        """What a trunk had learnt from when the model began from it, and was made to forget."""
        its = home_of(trunk)
        if its is None or not (its / "unlearned.json").is_file():
            return {}
        told, folds = self.told(its), self.told(its).learnt
        fold = next(iter(trunk.relative_to(its).parts), "")
        forgot = {
            one["case_id"]
            for one in self._read(its / "unlearned.json", {}).get("cases", [])
            if {f"fold_{k}" for k in {*one["retrained"]} - {*one["measured"]}}
            & ({fold} if fold in folds else {*folds})
        }
        digest = trunk_digest(home) if forgot else None
        if not forgot or (digest and digest == folder_digest(trunk)):
            return {}
        return {name: forgot for cases in told.learnt.values() for name in cases}

    def _read(self, path: Path, otherwise: Any, *, needed: bool = False) -> Any:
        """What a file holds, if it holds the like."""
        if self._strict and (needed or path.exists()):
            content = read_json(path)
            if not isinstance(content, type(otherwise)):
                wanted = "a list" if isinstance(otherwise, list) else "an object"
                raise FormatError("content", wanted, type(content).__name__, where=path)
            return content
        try:
            content = read_json(path)
        except InputError:
            return otherwise
        return content if isinstance(content, type(otherwise)) else otherwise


def together(several: Iterable[Cases]) -> Cases:
    """Return the cases of several in one.

    Args:
        several: ids, by the name of their data set.
    """
    whole: Cases = {}
    for cases in several:
        for name, ids in cases.items():
            whole[name] = whole.get(name, set()) | ids
    return whole


def trunk_digest(home: Path) -> str | None:
    """Return the digest of the trunk that a run's evidence names.

    Args:
        home: the run folder.
    """
    for statement in statements(home):
        for one in statement["predicate"].get("inputs", ()):
            if one["name"] == "trunk":
                return str(one["digest"]["sha256"])
    return None


def folder_digest(place: Path) -> str | None:
    """Return the digest of a folder as it is; None where there is none.

    Args:
        place: the folder.
    """
    from qinjing.evidence import digest

    return digest(place) if place.is_dir() else None


def statements(place: Path) -> list[dict[str, Any]]:
    """Return the statements of a folder's record whose signature holds.

    Args:
        place: the folder.
    """
    from qinjing.evidence.digests import RECORD
    from qinjing.evidence.envelope import STATEMENT_PAYLOAD, unseal

    path, found = place / RECORD, []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            found.append(unseal(line, STATEMENT_PAYLOAD)[0])
        except ValueError:  # `qinjing verify` tells what is wrong with it
            continue
    return found


def _of(cases: Cases, dataset: str) -> set[str]:
    return cases.get(dataset, set()) | cases.get(UNKNOWN, set())
