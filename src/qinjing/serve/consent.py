"""Consents over HTTP: look, grant, withdraw, and what follows from it.

A patient is named in bodies alone, so that looking is a POST as well. Every change goes through
`Store.append`, as the command line's does, and its `recorded_by` names the token.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from qinjing.data.consent import PURPOSES, Change, Row, Seen, Store, affected
from qinjing.data.consent.record import now, span_of
from qinjing.errors import ConfigError
from qinjing.serve.auth import Token
from qinjing.serve.guard import Refusal
from qinjing.serve.seen import Owners, merged
from qinjing.serve.session import Who
from qinjing.serve.settings import ServeConfig

router = APIRouter(prefix="/api/consent", tags=["consent"])
_RETRY_S = 2


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("printable text")
    return text


Id = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_printable)]
Part = Annotated[str, Field(max_length=256), AfterValidator(_printable)]
Purpose = Literal["care", "research", "commercial", "federated", "export"]
Purposes = Annotated[list[Purpose], Field(min_length=1, max_length=len(PURPOSES))]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Search(_Asked):
    """Which page of which patients."""

    search: Part = ""
    after: Part = ""
    limit: int = Field(default=25, ge=1, le=100)


class Patient(_Asked):
    """One patient; a patient's own token may leave the id out."""

    patient_id: Id | None = None


class Withdrawal(Patient):
    """What is permitted no more."""

    purposes: Purposes


class Grant(Withdrawal):
    """What is permitted, and when: days, months or years in UTC."""

    start: Part | None = None
    end: Part | None = None


class SeenBy(Patient):
    """Whose models: a patient's, or those of one case."""

    case_id: Id | None = None


class Heads(_Asked):
    """Heads that were noted elsewhere."""

    known: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(default=[], max_length=100)


@router.post("/patients")
def patients(asked: Search, who: Who, request: Request) -> dict[str, Any]:
    """List patients with what stands for each purpose, a page at a time."""
    store = _store(request)
    if not who.may_see_all:
        found = [one for one in [who.patient_id or ""] if asked.search.lower() in one.lower()]
        return {"patients": [_summary(store, one) for one in found], "next": None}
    found = store.patients(asked.search, asked.after, asked.limit + 1)
    page = found[: asked.limit]
    return {
        "patients": [_summary(store, one) for one in page],
        "next": page[-1] if len(found) > len(page) else None,
    }


@router.post("/patient")
def patient(asked: Patient, who: Who, request: Request) -> dict[str, Any]:
    """Tell what stands for each purpose, and all that was ever recorded."""
    return _told(_store(request), _patient(who, asked.patient_id))


@router.post("/grant")
def grant(asked: Grant, who: Who, request: Request) -> dict[str, Any]:
    """Record that a patient permits purposes, within a period."""
    patient_id = _patient(who, asked.patient_id)
    start, end = _moment("start", asked.start, 0), _moment("end", asked.end, 1)
    return _append(request, who, patient_id, "permit", asked.purposes, start, end)


@router.post("/withdraw")
def withdraw(asked: Withdrawal, who: Who, request: Request) -> dict[str, Any]:
    """Record that a patient permits purposes no more, from now on and until a later permit."""
    patient_id = _patient(who, asked.patient_id)
    return _append(request, who, patient_id, "deny", asked.purposes, None, None)


@router.post("/models")
def models(asked: SeenBy, who: Who, request: Request) -> dict[str, Any]:
    """Name the models that saw a patient's cases, or one case."""
    config: ServeConfig = request.app.state.config
    owners: Owners = request.app.state.owners
    found: Iterable[Seen]
    if asked.case_id is not None and asked.patient_id is None and who.may_see_all:
        cases, found = [asked.case_id], _saw(asked.case_id, config)
    elif asked.case_id is None:
        patient_id = _patient(who, asked.patient_id)
        cases = owners.cases(patient_id)
        found = owners.models(patient_id, config.models, sure=not who.may_see_all)
    else:
        raise Refusal(403, "forbidden", "one case must be asked for alone, by who may see all")
    # One look at a time, which reads the weights of trunks; and nobody waits for it, since who
    # waits here holds one of the few threads that answer everybody.
    walking: threading.Lock = request.app.state.walking
    if not walking.acquire(blocking=False):
        sentence = "models are being looked through for somebody else"
        raise Refusal(503, "busy", sentence, {"Retry-After": str(_RETRY_S)})
    try:
        told = merged(found, config.models)
    finally:
        walking.release()
    return {
        "looked": bool(config.models),
        "cases": cases if who.may_see_all else None,
        "models": told,
    }


@router.post("/verify")
def verify(asked: Heads, who: Who, request: Request) -> dict[str, Any]:
    """Walk the store's chain; name every row that is not as it was recorded."""
    if not who.may_see_all:
        raise Refusal(403, "forbidden", "the whole record must be asked for by who may see all")
    store = _store(request)
    faults = store.verify(asked.known)
    rows, head = store.head()
    return {"verified": not faults, "rows": rows, "head": head, "faults": faults}


def _saw(case_id: str, config: ServeConfig) -> Iterator[Seen]:
    """What saw one case, looked for only once it is asked for."""
    yield from affected(case_id, config.models)


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


def _patient(who: Token, asked: str | None) -> str:
    """The patient that a token may look at; the refusal is one whether there is another or not."""
    patient_id = who.confine(asked)
    if patient_id is None and who.may_see_all:
        raise Refusal(422, "invalid", "patient_id must be given, got none")
    if patient_id is None:
        raise Refusal(403, "forbidden", "patient_id must be the token's own, got another")
    return patient_id


def _append(
    request: Request,
    who: Token,
    patient_id: str,
    decision: Literal["permit", "deny"],
    purposes: Iterable[str],
    start: datetime | None,
    end: datetime | None,
) -> dict[str, Any]:
    if not who.may_change:
        raise Refusal(403, "forbidden", f"role must be one that may change, got {who.role}")
    try:
        changes = [
            Change(patient_id, purpose, decision, now(), start, end, recorded_by=who.who)
            for purpose in sorted(set(purposes))
        ]
    except ConfigError as error:
        raise Refusal(422, "period", str(error)) from None
    store = _store(request)
    recorded = store.append(changes)
    rows, head = store.head()
    return {"recorded": recorded, "rows": rows, "head": head, **_told(store, patient_id)}


def _moment(name: str, text: str | None, which: int) -> datetime | None:
    if not text:
        return None
    try:
        return span_of(text)[which]
    except (ValueError, OverflowError):
        raise Refusal(422, "period", f"{name} must be a date such as 2027-12-31") from None


def _summary(store: Store, patient_id: str) -> dict[str, Any]:
    moment, rows = now(), store.current(patient_id=patient_id)
    return {
        "patient_id": patient_id,
        "purposes": {
            purpose: _state(rows.get((patient_id, purpose)), moment) for purpose in PURPOSES
        },
    }


def _told(store: Store, patient_id: str) -> dict[str, Any]:
    """What stands, of the latest rows, and every row, the newest first."""
    history = store.history(patient_id)
    latest = {row.purpose: row for row in history}
    moment = now()
    standing = [
        {"purpose": purpose, "state": _state(latest.get(purpose), moment)}
        | (_row(latest[purpose]) if purpose in latest else {})
        for purpose in PURPOSES
    ]
    return {
        "patient_id": patient_id,
        "standing": standing,
        "history": [_row(row) for row in reversed(history)],
    }


def _state(row: Row | None, at: datetime) -> str:
    """What a row comes to at a moment: permit, deny, later, ended, or none."""
    if row is None:
        return "none"
    if row.decision == "deny":
        return "deny"
    if row.permits(at):
        return "permit"
    return "later" if row.start is not None and at < row.start else "ended"


def _row(row: Row) -> dict[str, Any]:
    last = row.end - timedelta(microseconds=1) if row.end else None
    return {
        "seq": row.seq,
        "purpose": row.purpose,
        "decision": row.decision,
        "first_day": row.start.date().isoformat() if row.start else None,
        "last_day": last.date().isoformat() if last else None,
        "decided": row.decided.isoformat(timespec="seconds"),
        "recorded": row.recorded.isoformat(timespec="seconds"),
        "recorded_by": row.recorded_by,
        "source": row.source,
        "digest": row.digest,
    }
