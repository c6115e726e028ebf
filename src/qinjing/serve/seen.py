"""Whose a case is, and which models saw a patient's: what is told, and in which words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qinjing.config import plain
from qinjing.data.consent import Seen, affected
from qinjing.data.layouts import open_dataset

_BEGAN, _WHICH = "began from ", ", which "


class Owners:
    """Whose each case is, as data sets say: they are opened once, when this is built.

    Args:
        datasets: folders, or MONAI datalists.

    Raises:
        InputError: one of them cannot be read.
    """

    def __init__(self, datasets: Sequence[Path]) -> None:
        self._names: set[str] = set()
        self._whose: dict[str, dict[str, set[str]]] = {}  # case → data set → patients
        for folder in datasets:
            dataset = open_dataset(folder)
            self._names.add(dataset.name)
            for case in dataset.cases:
                whose = self._whose.setdefault(case.case_id, {})
                whose.setdefault(dataset.name, set()).add(case.patient_id)

    def cases(self, patient_id: str) -> list[str]:
        """Return the ids of a patient's cases.

        The patient's own id is one of them unless a data set says that it is another patient's:
        where there is no table of participants, a case is called as its patient.

        Args:
            patient_id: who.
        """
        found = {
            case_id
            for case_id, whose in self._whose.items()
            if any(patient_id in patients for patients in whose.values())
        }
        if patient_id not in self._whose:
            found.add(patient_id)
        return sorted(found)

    def models(self, patient_id: str, folders: Sequence[Path], *, sure: bool) -> Iterator[Seen]:
        """Yield what models saw of a patient, once for each case.

        Two data sets may use one id for two patients, so a model counts by its data set's name.

        Args:
            patient_id: who.
            folders: to look below.
            sure: leave out the models of data sets that are not known here, which may have used
                the id for somebody else.
        """
        for case_id in self.cases(patient_id):
            for seen in affected(case_id, folders):
                names = tuple(
                    name for name in seen.dataset if self._is(patient_id, case_id, name, sure)
                )
                if names:
                    yield replace(seen, dataset=names)
                elif len({how.startswith(_BEGAN) for how in seen.how}) == 2:
                    yield seen  # it saw the id itself, too, but names its trunk's data sets alone

    def _is(self, patient_id: str, case_id: str, dataset: str, sure: bool) -> bool:
        """Whether a data set's case is the patient's."""
        whose = self._whose.get(case_id, {})
        if dataset in whose:
            return patient_id in whose[dataset]
        if case_id == patient_id and all(patient_id in patients for patients in whose.values()):
            return True
        return not (sure or dataset in self._names)


def merged(found: Iterable[Seen], roots: Sequence[Path]) -> list[dict[str, Any]]:
    """Return one entry a model, whichever of the cases it saw.

    Args:
        found: what they saw.
        roots: the folders looked below; places are told as from these, and of a place outside
            them its last part alone.
    """
    entries: dict[Path, dict[str, Any]] = {}
    for seen in found:
        one = entries.setdefault(
            seen.folder,
            {"model": _short(seen.folder, roots), "dataset": [], "learnt": False, "how": [],
             "signed": True},
        )  # fmt: skip
        one["dataset"] = sorted({*one["dataset"], *seen.dataset})
        one["how"] = sorted({*one["how"], *(_how(text, roots) for text in seen.how)})
        one["learnt"] = one["learnt"] or seen.learnt
        one["signed"] = one["signed"] and seen.signed
    return [plain(one) for one in entries.values()]


def _how(text: str, roots: Sequence[Path]) -> str:
    """The same phrase, without this machine's folders."""
    place, which, did = text.removeprefix(_BEGAN).rpartition(_WHICH)
    if not text.startswith(_BEGAN) or not which:
        return text
    return f"{_BEGAN}{_short(Path(place), roots)}{which}{did}"


def _short(place: Path, roots: Sequence[Path]) -> str:
    """A place as from the nearest root, with the root's own name; elsewhere its last part."""
    inside = [
        (Path(root.name) / place.relative_to(root)).as_posix()
        for root in (one.resolve() for one in roots)
        if root.name and place.is_relative_to(root)
    ]
    if inside:
        return min(inside, key=len)
    return f"{place.parent.name}/{place.name}" if place.name.startswith("fold_") else place.name
