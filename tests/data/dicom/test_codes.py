"""Codes against the tables of the standard that pydicom carries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qinjing.data.dicom.codes import (
    ABNORMAL,
    ANATOMY,
    FINDINGS,
    PAIRED,
    PARTS,
    SIDES,
    STRUCTURES,
    TISSUE,
    TISSUES,
    WORDS,
    Code,
    Term,
    find_term,
    parse_terms,
    read_terms,
)
from qinjing.errors import ConfigError

pytest.importorskip("pydicom")


def test_every_code_is_the_standards():
    from pydicom.sr._concepts_dict import concepts

    meanings: dict[str, set[str]] = {}
    for found in concepts["SCT"].values():
        for value, (meaning, _) in found.items():
            meanings.setdefault(value, set()).add(meaning.lower())
    pairs = [*STRUCTURES.values(), *TISSUES.values(), *FINDINGS.values()]
    pairs += [(code.value, code.meaning) for code in (*SIDES.values(), *PARTS.values())]
    pairs += [(code.value, code.meaning) for code in (ANATOMY, TISSUE, ABNORMAL)]
    for value, meaning in pairs:
        assert meaning.lower() in meanings[value], (value, meaning, meanings[value])
    assert set(PAIRED) <= set(STRUCTURES)
    known = {*STRUCTURES, *TISSUES, *FINDINGS, "left", "right", "gray"}
    assert set(WORDS.values()) <= known


KIDNEY = Code("64033007", "SCT", "Kidney")


@pytest.mark.parametrize(
    "name", ["Left kidney", "kidney_left", "LeftKidney", "L. Kidney", "KIDNEY-L"]
)
def test_names_of_one_thing(name):
    assert find_term(name) == Term(KIDNEY, ANATOMY, side=SIDES["left"])


@pytest.mark.parametrize(
    ("name", "value", "side", "part", "site"),
    [
        ("left ventricle", "87878005", None, None, None),
        ("LV", "87878005", None, None, None),
        ("Myocardium", "49848007", None, None, None),
        ("Spinal cord grey matter", "12958003", None, None, None),
        ("Anterior hippocampus", "5366008", None, "255549009", None),
        ("hippocampus_posterior_right", "5366008", "24028007", "255551008", None),
        ("liver tumour", "108369006", None, None, "10200004"),
        ("right lung nodule", "27925004", "24028007", None, "39607008"),
        ("left lesion", "52988006", "7771000", None, None),
    ],
)
def test_names(name, value, side, part, site):
    term = find_term(name)
    codes = (term.what, term.side, term.part, term.site)
    assert [code and code.value for code in codes] == [value, side, part, site]
    assert term.category == (ABNORMAL if name.split()[-1] in ("tumour", "nodule", "lesion") else
                             TISSUE if "matter" in name else ANATOMY)  # fmt: skip


@pytest.mark.parametrize("name", ["Anterior", "left liver", "left right kidney", "肝脏", "label 4"])
def test_what_has_no_code_gets_a_private_one(name):
    term = find_term(name)
    assert term.what.scheme == "99QINJING" and term.what.meaning == name
    assert term == find_term(name) and term.what.value != find_term(name + "x").what.value
    assert len(term.what.value) <= 16 and term.side is None


def test_a_users_own_codes():
    names, terms = parse_terms(
        {
            "0": "background",
            "7": "Liver",
            "2": {"name": "Node 4R", "code": ["59441001", "SCT", "Lymph Node"], "side": "right",
                  "site": ["51185008", "SCT", "Thorax"]},
        },
        "labels.json",
    )  # fmt: skip
    assert names == {2: "Node 4R", 7: "Liver"} and list(names) == [2, 7]
    node, thorax = Code("59441001", "SCT", "Lymph Node"), Code("51185008", "SCT", "Thorax")
    assert terms == {"Node 4R": Term(node, ANATOMY, side=SIDES["right"], site=thorax)}
    assert parse_terms({"background": 0, "Liver": 1}, "dataset.json")[0] == {1: "Liver"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "an object of value and name"),
        ({}, "an object of value and name"),
        ({"one": "Liver"}, "label value must be a whole number .* got one"),
        ({"1": ""}, "name of label 1"),
        ({"1": {"code": ["1", "SCT", "x"]}}, "name of label 1"),
        ({"0": "background"}, "more than the background"),
        ({"1": {"name": "a", "code": ["1", "SCT"]}}, "code of label 1"),
        ({"1": {"name": "a", "code": ["1" * 17, "SCT", "b"]}}, "code of label 1"),
        ({"1": {"name": "a", "code": ["1", "SCT", "b"], "side": "up"}}, "side of label 1"),
        ({"1": {"name": "a", "code": ["1", "SCT", "b"], "sid": "left"}}, "one of name, code"),
        ({"1": {"name": "a", "code": None}}, "code of label 1 must be given"),
    ],
)
def test_refused_in_one_sentence(content, message):
    with pytest.raises(ConfigError, match=rf"{message}.*labels\.json"):
        parse_terms(content, "labels.json")


def test_labels_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    for content in ({"1": "liver", "2": "spleen"}, {"background": 0, "liver": 1, "spleen": 2},
                    {"labels": {"0": "background", "2": "spleen", "1": "liver"}}):  # fmt: skip
        file.write_text(json.dumps(content))
        assert read_terms(file) == ({1: "liver", 2: "spleen"}, {})
    for content in ([1], {"liver": "spleen"}, {}, {"0": "background"}):
        file.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match=r"label.*labels\.json"):
            read_terms(file)
