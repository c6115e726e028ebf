"""Who a case belongs to: participants.tsv, where there is one."""

from __future__ import annotations

import csv
from pathlib import Path

from qinjing.errors import FormatError, LayoutError


def read_participants(root: Path) -> dict[str, str]:
    """Return participant id → group from ``participants.tsv``; empty where there is no such file.

    Raises:
        FormatError: not tab-separated UTF-8.
        LayoutError: no column participant_id.

    Source: BIDS 1.10, "Participants file"; the column ``group`` is optional.
    """
    path = root / "participants.tsv"
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(text.splitlines(), delimiter="\t", restval=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError("file", "tab-separated text in UTF-8", error, where=path) from None
    if not rows:
        return {}
    if "participant_id" not in rows[0]:
        got = ", ".join(str(name) for name in rows[0])
        raise LayoutError("columns", "ones that include participant_id", got, where=path)
    groups: dict[str, str] = {}
    for row in rows:
        participant = row["participant_id"].strip()
        group = (row.get("group") or "").strip()
        if participant:
            groups[participant] = "" if group == "n/a" else group
    return groups


def find_patient(case_id: str, groups: dict[str, str]) -> tuple[str, str]:
    """Return patient and group of a case.

    The patient is the longest participant id with which the case's id begins, so that
    ``patient001_ED`` and ``patient001_ES`` are one patient and ``patient0011`` is another. A case
    that no participant fits is its own patient.
    """
    fitting = [p for p in groups if case_id.startswith(p) and _ends_a_word(p, case_id)]
    if not fitting:
        return case_id, ""
    patient = max(fitting, key=len)
    return patient, groups[patient]


def _ends_a_word(start: str, text: str) -> bool:
    """Digits must not go on as digits, nor letters as letters."""
    if len(start) == len(text):
        return True
    last, following = start[-1], text[len(start)]
    return not (last.isdigit() and following.isdigit()) and not (
        last.isalpha() and following.isalpha()
    )
