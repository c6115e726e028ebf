from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qinjing.data.case import Case
from qinjing.data.splits import make_splits, read_splits, split_faults, write_splits
from qinjing.errors import ConfigError, FormatError


def make_cases(n_patients: int, per_patient: int = 2, groups: int = 3) -> list[Case]:
    return [
        Case(f"p{i:03d}_{j}", f"p{i:03d}", (), None, f"g{i % groups}")
        for i in range(n_patients)
        for j in range(per_patient)
    ]


@given(
    n_patients=st.integers(2, 60), folds=st.integers(2, 6), groups=st.integers(1, 5),
    per_patient=st.integers(1, 3), seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_case_once_no_patient_parted_strata_level(
    n_patients, folds, groups, per_patient, seed
):
    cases = make_cases(n_patients, per_patient, groups)
    if folds > n_patients:
        with pytest.raises(ConfigError, match="number of patients"):
            make_splits(cases, folds, seed)
        return
    splits = make_splits(cases, folds, seed)
    assert not split_faults(splits, cases)
    validated = [case_id for fold in splits for case_id in fold["val"]]
    assert sorted(validated) == sorted(case.case_id for case in cases)
    of = {case.case_id: case for case in cases}
    for fold in splits:
        assert set(fold["train"]) | set(fold["val"]) == set(of)
    patients = [{of[i].patient_id for i in fold["val"]} for fold in splits]
    assert max(map(len, patients)) - min(map(len, patients)) <= 1
    for group in {case.group for case in cases}:
        own = {case.patient_id for case in cases if case.group == group}
        counts = [len(own & fold) for fold in patients]
        assert max(counts) - min(counts) <= 1


def test_same_seed_same_folds_in_any_order_of_cases():
    cases = make_cases(30)
    shuffled = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))]
    assert make_splits(cases, seed=3) == make_splits(shuffled, seed=3)
    assert make_splits(cases, seed=3) != make_splits(cases, seed=4)


def test_written_and_read_as_nnunet_does(tmp_path):
    cases = make_cases(10)
    splits = make_splits(cases)
    write_splits(tmp_path / "splits_final.json", splits)
    assert json.loads((tmp_path / "splits_final.json").read_text()) == splits
    assert read_splits(tmp_path / "splits_final.json", cases) == splits


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "at least one fold"),
        ({"train": []}, "at least one fold"),
        ([5], "fold 0 must be an object"),
        ([{"train": ["p000_0"]}], "fold 0, val"),
        ([{"train": [], "val": ["p000_0"]}], "fold 0, train"),
        ([{"train": [1], "val": ["p000_0"]}], "list of case ids"),
        ([{"train": ["p000_0"], "val": ["p000_0"]}], "listed once"),
        ([{"train": ["p000_0"], "val": ["p000_1"]}], "patient p000 must be on one side only"),
        ([{"train": ["p000_0"], "val": ["nobody"]}], "in the data set, got nobody"),
    ],
)
def test_bad_splits_are_refused(tmp_path, content, message):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message) as refusal:
        read_splits(path, make_cases(3))
    assert str(path) in str(refusal.value)


def test_not_json(tmp_path):
    (tmp_path / "s.json").write_text("[{")
    with pytest.raises(FormatError):
        read_splits(tmp_path / "s.json")


def test_acdc_patients_stay_whole_and_groups_level(data_root):
    from qinjing.data.layouts import open_dataset

    root = data_root / "Dataset027_ACDC"
    if not root.is_dir():
        pytest.skip(f"no {root}")
    cases = open_dataset(root).cases
    assert len(cases) == 150 and len({case.patient_id for case in cases}) == 75
    splits = make_splits(cases)
    group = {case.case_id: case.group for case in cases}
    for fold in splits:
        assert len(fold["val"]) == 30
        assert not {i[:10] for i in fold["train"]} & {i[:10] for i in fold["val"]}
        assert set(Counter(group[i] for i in fold["val"]).values()) <= {4, 6, 8}
