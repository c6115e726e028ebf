"""From the names that people give to labels to codes that other hospitals' systems know.

Source: DICOM PS3.16, context groups 7150 and 7151 (segmented property categories and types), 244
(laterality); SNOMED CT. What has no code gets a private one with its name as the meaning.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qinjing.config import read_json
from qinjing.errors import ConfigError

PRIVATE = "99QINJING"


@dataclass(frozen=True)
class Code:
    """One coded concept.

    Attributes:
        value: at most 16 characters.
        scheme: "SCT" (SNOMED CT), "DCM", "UCUM", or a private one that begins with 99.
        meaning: for people, at most 64 characters.
    """

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Term:
    """What a label stands for.

    Attributes:
        what: the structure or the finding itself.
        category: of what kind it is.
        side: left, right or both, where the body has two.
        part: which part of it (anterior, posterior).
        site: where a finding lies; None for anatomy, which is its own site.
    """

    what: Code
    category: Code
    side: Code | None = None
    part: Code | None = None
    site: Code | None = None


ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
TISSUE = Code("85756007", "SCT", "Tissue")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
SIDES = {
    "left": Code("7771000", "SCT", "Left"),
    "right": Code("24028007", "SCT", "Right"),
    "both": Code("51440002", "SCT", "Bilateral"),
}
PARTS = {
    "anterior": Code("255549009", "SCT", "Anterior"),
    "posterior": Code("255551008", "SCT", "Posterior"),
}
# Name in lower case → SNOMED CT value and the meaning that the standard prints beside it.
STRUCTURES = {
    "adrenal gland": ("23451007", "Adrenal gland"), "amygdala": ("4958002", "Amygdala"),
    "aorta": ("15825003", "Aorta"), "bladder": ("89837001", "Bladder"),
    "brain": ("12738006", "Brain"), "brainstem": ("119238007", "Brain Stem"),
    "caudate": ("11000004", "Caudate Nucleus"), "colon": ("71854001", "Colon"),
    "cortex": ("40146001", "Cerebral cortex"), "duodenum": ("38848004", "Duodenum"),
    "esophagus": ("32849002", "Esophagus"), "femur": ("71341001", "Femur"),
    "gallbladder": ("28231008", "Gallbladder"), "heart": ("80891009", "Heart"),
    "hepatic vein": ("8993003", "Hepatic vein"), "hippocampus": ("5366008", "Hippocampus"),
    "humerus": ("85050009", "Humerus"), "inferior vena cava": ("64131007", "Inferior vena cava"),
    "kidney": ("64033007", "Kidney"), "left atrium": ("82471001", "Left atrium"),
    "left ventricle": ("87878005", "Left ventricle"), "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"), "lymph node": ("59441001", "Lymph Node"),
    "myocardium": ("49848007", "Left Ventricle Myocardium"), "pancreas": ("15776009", "Pancreas"),
    "portal vein": ("32764006", "Portal vein"), "prostate": ("41216001", "Prostate"),
    "rectum": ("34402009", "Rectum"), "rib": ("113197003", "Rib"),
    "right atrium": ("73829009", "Right atrium"),
    "right ventricle": ("53085002", "Right ventricle"),
    "sacrum": ("54735007", "Sacrum"), "scapula": ("79601000", "Scapula"),
    "spinal cord": ("2748008", "Spinal cord"), "spine": ("421060004", "Spine"),
    "spleen": ("78961009", "Spleen"), "stomach": ("69695003", "Stomach"),
    "superior vena cava": ("48345005", "Superior vena cava"), "thyroid": ("69748006", "Thyroid"),
    "trachea": ("44567001", "Trachea"), "vertebra": ("51282000", "Vertebra"),
    "vessel": ("59820001", "Blood Vessel"),
}  # fmt: skip
# Of these there is a left and a right one; "left liver" is a part of one, and no code of ours.
PAIRED = (
    "adrenal gland", "amygdala", "caudate", "cortex", "femur", "hippocampus", "humerus", "kidney",
    "lung", "lymph node", "rib", "scapula", "vessel",
)  # fmt: skip
TISSUES = {
    "cerebral white matter": ("68523003", "Cerebral White Matter"),
    "gray matter": ("389081007", "Gray Matter"),
    "spinal cord gray matter": ("12958003", "Spinal cord gray matter"),
    "spinal cord white matter": ("27088001", "Spinal cord white matter"),
    "white matter": ("389080008", "White Matter"),
}
FINDINGS = {
    "cyst": ("367643001", "Cyst"), "edema": ("79654002", "Edema"),
    "hematoma": ("35566002", "Hematoma"), "hemorrhage": ("50960005", "Hemorrhage"),
    "lesion": ("52988006", "Lesion"), "mass": ("4147007", "Mass"),
    "metastasis": ("14799000", "Neoplasm, Secondary"), "necrosis": ("6574001", "Necrosis"),
    "nodule": ("27925004", "Nodule"), "tumor": ("108369006", "Neoplasm"),
}  # fmt: skip
# Other spellings of single words.
WORDS = {
    "grey": "gray", "tumour": "tumor", "neoplasm": "tumor", "cancer": "tumor", "oedema": "edema",
    "oesophagus": "esophagus", "haematoma": "hematoma", "haemorrhage": "hemorrhage",
    "kidneys": "kidney", "lungs": "lung", "lesions": "lesion", "tumors": "tumor",
    "hepatic": "liver", "renal": "kidney", "vessels": "vessel", "l": "left", "r": "right",
    "gm": "gray matter", "wm": "white matter", "lv": "left ventricle", "rv": "right ventricle",
    "la": "left atrium", "ra": "right atrium", "myo": "myocardium",
}  # fmt: skip


def find_term(name: str) -> Term:
    """Return what a label's name stands for; a private code where nothing better is known.

    "kidney_left", "Left kidney" and "L Kidney" are one; "liver tumour" is a neoplasm in the liver.
    """
    words = [w for w in re.split(r"[\s_\-/.,()]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name)) if w]
    words = " ".join(WORDS.get(word.lower(), word.lower()) for word in words).split()
    term = _known(words)
    if term is not None:
        return term
    sides = [word for word in words if word in ("left", "right")]
    parts = [word for word in words if word in PARTS]
    rest = [word for word in words if word not in (*sides, *parts)]
    bare = _known(rest)
    paired = [STRUCTURES[structure][0] for structure in PAIRED]
    if bare is None or len(sides) > 1 or len(parts) > 1:
        return private_term(name)
    if sides and (bare.site or bare.what).value not in paired and bare.category != ABNORMAL:
        return private_term(name)
    if sides and bare.site and bare.site.value not in paired:
        return private_term(name)
    side = SIDES[sides[0]] if sides else None
    return replace(bare, side=side, part=PARTS[parts[0]] if parts else None)


def _known(words: list[str]) -> Term | None:
    """Look a name up that says nothing of sides."""
    name = " ".join(words)
    for table, category in ((STRUCTURES, ANATOMY), (TISSUES, TISSUE), (FINDINGS, ABNORMAL)):
        if name in table:
            return Term(_snomed(table[name]), category)
    if len(words) > 1 and words[-1] in FINDINGS and " ".join(words[:-1]) in STRUCTURES:
        site = _snomed(STRUCTURES[" ".join(words[:-1])])
        return Term(_snomed(FINDINGS[words[-1]]), ABNORMAL, site=site)
    return None


def _snomed(entry: tuple[str, str]) -> Code:
    return Code(entry[0], "SCT", entry[1])


def private_term(name: str) -> Term:
    """Return a code of our own for a name: the same name has the same code everywhere."""
    value = hashlib.sha256(name.encode()).hexdigest()[:12].upper()
    return Term(Code(value, PRIVATE, name[:64]), TISSUE)


def read_terms(path: Path) -> tuple[dict[int, str], dict[str, Term]]:
    """Read `parse_terms`' object from a JSON file, where it may stand under "labels".

    Raises:
        ConfigError: naming the entry that cannot be used.
        FormatError: the file is missing or no JSON.
    """
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        content = content["labels"]
    return parse_terms(content, str(path))


def parse_terms(content: Any, where: str) -> tuple[dict[int, str], dict[str, Term]]:
    """Read which value is which label, and a user's own codes for some of them.

    Args:
        content: JSON, ``{"1": "Liver", "2": {"name": "Node 4R", "code": ["59441001", "SCT",
            "Lymph Node"], "side": "right"}}``; beside `code` stand `category`, `part` and `site`,
            each three texts, and `side`: left, right or both. nnU-Net's ``{"Liver": 1}`` is read
            as well; value 0 is the background and left out.
        where: the file that it comes from.

    Returns:
        names by value; terms by name, of those that have a code of their own.

    Raises:
        ConfigError: naming the entry that cannot be used.
    """
    if not isinstance(content, dict) or not content:
        raise ConfigError("labels", "an object of value and name", str(content)[:80], where=where)
    names: dict[int, str] = {}
    terms: dict[str, Term] = {}
    for key, entry in content.items():
        if isinstance(entry, int) and not isinstance(entry, bool):
            key, entry = str(entry), key
        own = entry if isinstance(entry, dict) else {"name": entry}
        name = own.get("name")
        if not (key.isascii() and key.isdigit() and int(key) < 65536):
            raise ConfigError("label value", "a whole number from 0 to 65535", key, where=where)
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"name of label {key}", "text", name, where=where)
        if int(key) == 0:
            continue
        names[int(key)] = name.strip()
        if "code" in own:
            terms[name.strip()] = _parse_term(own, f"label {key}", where)
    if not names:
        raise ConfigError("labels", "more than the background", "none", where=where)
    return dict(sorted(names.items())), terms


def _parse_term(own: Mapping[str, Any], label: str, where: str) -> Term:
    known = ("name", "code", "category", "side", "part", "site")
    for key in own:
        if key not in known:
            raise ConfigError(f"{label}, each key", f"one of {', '.join(known)}", key, where=where)

    def code(key: str) -> Code | None:
        entry = own.get(key)
        if entry is None:
            return None
        fits = (
            isinstance(entry, list) and len(entry) == 3 and all(isinstance(t, str) for t in entry)
        )
        if not fits or not all(entry) or len(entry[0]) > 16 or len(entry[1]) > 16:
            rule = "a list of value and scheme (up to 16 characters each) and meaning"
            raise ConfigError(f"{key} of {label}", rule, entry, where=where)
        return Code(entry[0], entry[1], entry[2][:64])

    side = own.get("side")
    if side is not None and side not in SIDES:
        raise ConfigError(f"side of {label}", "left, right or both", side, where=where)
    what = code("code")
    if what is None:
        raise ConfigError(f"code of {label}", "given", "nothing", where=where)
    return Term(
        what, code("category") or ANATOMY, SIDES.get(side or ""), code("part"), code("site")
    )
