"""Write standing consents as FHIR `Consent` of R4 and R5.

Source: HL7 FHIR R4 (4.0.1) and R5 (5.0.0), resources Consent and Bundle.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from qinjing.data.consent.fhir import ACT_CODE, ACT_REASON, CODES, OWN, SCOPE, Version, models
from qinjing.data.consent.record import Row


def write_resources(rows: Iterable[Row], version: Version) -> dict[str, Any]:
    """Return a Bundle with one `Consent` for each row, checked against the standard.

    Args:
        rows: the latest of each patient and purpose.
        version: R4 or R5.
    """
    make = _r4 if version == "R4" else _r5
    entries = [{"fullUrl": f"urn:qinjing:consent:{row.digest}", "resource": make(row)}
               for row in rows]  # fmt: skip
    bundle: dict[str, Any] = {"resourceType": "Bundle", "type": "collection"}
    if entries:
        bundle["entry"] = entries
    consent, envelope = models(version)
    for entry in entries:
        consent.model_validate(entry["resource"])
    envelope.model_validate(bundle)
    return bundle


def _r4(row: Row) -> dict[str, Any]:
    provision = {"type": row.decision, "purpose": [_coding(row.purpose)]}
    return {
        "resourceType": "Consent",
        "id": row.digest,
        "status": "active",
        "scope": {"coding": [{"system": SCOPE, "code": _scope(row)}]},
        "category": [{"coding": [{"system": ACT_CODE, "code": "IDSCL"}]}],
        "patient": {"reference": f"Patient/{row.patient_id}"},
        "dateTime": _instant(row.decided),
        "policyRule": {"coding": [{"system": ACT_CODE, "code": "OPTOUT"}]},
        "provision": {**_written_period(row), **provision},
    }


def _r5(row: Row) -> dict[str, Any]:
    """R5 has no type in a provision: what is permitted is an exception from a deny."""
    return {
        "resourceType": "Consent",
        "id": row.digest,
        "status": "active",
        "category": [{"coding": [{"system": ACT_CODE, "code": "IDSCL"}]}],
        "subject": {"reference": f"Patient/{row.patient_id}"},
        "date": row.decided.date().isoformat(),
        "decision": "deny" if row.decision == "permit" else "permit",
        "provision": [{**_written_period(row), "purpose": [_coding(row.purpose)]}],
    }


def _scope(row: Row) -> str:
    return {"care": "treatment", "research": "research"}.get(row.purpose, "patient-privacy")


def _coding(purpose: str) -> dict[str, str]:
    if purpose in CODES:
        return {"system": ACT_REASON, "code": CODES[purpose]}
    return {"system": OWN, "code": purpose}


def _written_period(row: Row) -> dict[str, Any]:
    """The period as the standard has it, where its end is its last second."""
    period = {}
    if row.start:
        period["start"] = _instant(row.start)
    if row.end:
        period["end"] = _instant(row.end - timedelta(seconds=1))
    return {"period": period} if period else {}


def _instant(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
