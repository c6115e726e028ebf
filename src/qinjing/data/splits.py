"""Folds of cases that never part a patient, kept as nnU-Net's splits_final.json."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from qinjing.config import read_json, write_json
from qinjing.data.case import Case
from qinjing.errors import ConfigError


class Split(TypedDict):
    """One fold: case ids to train on and to validate on.

    "unlabelled" may name cases whose images train as well and whose labels, if there are any, are
    not looked at.
    """

    train: list[str]
    val: list[str]
    unlabelled: NotRequired[list[str]]


def make_splits(cases: Iterable[Case], folds: int = 5, seed: int = 12345) -> list[Split]:
    """Deal the cases to folds by patient, so that every case is validated once.

    Within a group the folds' numbers of patients differ by at most one, and so do they in all.

    Args:
        cases: of one data set.
        folds: how many, at least 2 and at most the number of patients.
        seed: of the shuffle; the same cases and seed give the same folds in any order of cases.

    Raises:
        ConfigError: more folds than patients, or fewer than 2.
    """
    by_patient: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: case.case_id):
        by_patient[case.patient_id].append(case)
    if not 2 <= folds <= len(by_patient):
        raise ConfigError("folds", f"from 2 to the number of patients, {len(by_patient)}", folds)
    strata: dict[str, list[str]] = defaultdict(list)
    for patient, own in sorted(by_patient.items()):
        strata["+".join(sorted({case.group for case in own}))].append(patient)
    rng = np.random.default_rng(seed)
    validated: list[list[str]] = [[] for _ in range(folds)]
    dealt = 0  # goes on through the strata, so that the folds' totals stay level too
    for _, patients in sorted(strata.items()):
        for i in rng.permutation(len(patients)):
            validated[dealt % folds] += [case.case_id for case in by_patient[patients[i]]]
            dealt += 1
    every = sorted(case_id for fold in validated for case_id in fold)
    return [{"train": sorted(set(every) - set(fold)), "val": sorted(fold)} for fold in validated]


def make_shards(cases: Sequence[Case], shards: int, seed: int = 12345) -> list[Split]:
    """Deal the cases to shards by patient: folds that have no case of training in common.

    A model of each, averaged, can forget a case at the cost of one. A fifth of the patients is held
    out of all shards, and each measures on a part of it.

    Args:
        cases: of one data set.
        shards: how many, at least 2 and at most a fifth of the patients.
        seed: of the shuffle.

    Raises:
        ConfigError: more shards than that, or fewer than 2.

    Source: arXiv:1912.03817 (Bourtoule et al., SISA).
    """
    outer = make_splits(cases, 5, seed)[0]
    sides = {side: [c for c in cases if c.case_id in set(outer[side])] for side in ("train", "val")}
    most = len({case.patient_id for case in sides["val"]})
    if not 2 <= shards <= most:
        raise ConfigError("shards", f"from 2 to a fifth of the patients, {most}", shards)
    dealt = {
        side: [f["val"] for f in make_splits(own, shards, seed)] for side, own in sides.items()
    }
    pairs = zip(dealt["train"], dealt["val"], strict=True)
    return [{"train": train, "val": val} for train, val in pairs]


def write_splits(path: str | Path, splits: Sequence[Split]) -> None:
    """Write splits_final.json in nnU-Net's form, whole or not at all."""
    write_json(path, list(splits))


def read_splits(
    path: str | Path, cases: Iterable[Case] | None = None, *, measured: bool = True
) -> list[Split]:
    """Read splits_final.json and check it.

    Args:
        path: the file.
        cases: the data set's; with them, ids are checked to exist and patients to stay whole.
        measured: a fold must hold somebody out; a site of a federation may have nobody to spare.

    Raises:
        FormatError: not JSON.
        ConfigError: not a list of {"train", "val"}, a case twice or unknown, a patient on both
            sides.
    """
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise ConfigError("splits", "a list of at least one fold", repr(content), where=path)
    splits = [_read_fold(fold, f"fold {k}", path, measured) for k, fold in enumerate(content)]
    if cases is not None:
        for _, error in split_faults(splits, cases, path):
            raise error
    return splits


def _read_fold(fold: Any, name: str, path: str | Path, measured: bool) -> Split:
    if not isinstance(fold, dict):
        raise ConfigError(name, 'an object with "train" and "val"', repr(fold), where=path)
    sides = {}
    for side in ("train", "val"):
        ids = fold.get(side)
        empty = not ids and (side == "train" or measured)
        if not isinstance(ids, list) or empty or not all(isinstance(i, str) for i in ids):
            raise ConfigError(f"{name}, {side}", "a list of case ids", repr(ids), where=path)
        sides[side] = ids
    more = fold.get("unlabelled", [])
    if not isinstance(more, list) or not all(isinstance(i, str) for i in more):
        raise ConfigError(f"{name}, unlabelled", "a list of case ids", repr(more), where=path)
    twice = [i for i, n in Counter(sides["train"] + sides["val"] + more).items() if n > 1]
    if twice:
        raise ConfigError(f"{name}, each case", "listed once", twice[0], where=path)
    split: Split = {"train": sides["train"], "val": sides["val"]}
    return {**split, "unlabelled": more} if more else split


def split_faults(
    splits: Sequence[Split], cases: Iterable[Case], where: str | Path | None = None
) -> list[tuple[str, ConfigError]]:
    """List (case id, refusal) of ids that are not in the data set and of patients on both sides.

    Args:
        splits: as read.
        cases: the data set's.
        where: the file that the splits come from, for the sentence.
    """
    patient_of = {case.case_id: case.patient_id for case in cases}
    faults: list[tuple[str, ConfigError]] = []
    for k, fold in enumerate(splits):
        trained_on = (*fold["train"], *fold.get("unlabelled", ()))
        for case_id in (*trained_on, *fold["val"]):
            if case_id not in patient_of:
                error = ConfigError(f"fold {k}, case", "in the data set", case_id, where=where)
                faults.append((case_id, error))
        trained = {patient_of[i]: i for i in trained_on if i in patient_of}
        for case_id in fold["val"]:
            patient = patient_of.get(case_id)
            if patient in trained:
                name = f"fold {k}, patient {patient}"
                got = f"{trained[patient]} in train and {case_id} in val"
                error = ConfigError(name, "on one side only", got, where=where)
                faults.append((case_id, error))
    return faults
