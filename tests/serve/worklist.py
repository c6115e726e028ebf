"""A worklist server for the tests, and ours: no free PACS at hand here serves UPS-RS.

It keeps to the text of the standard, as far as a performer can see it: PS3.18, 11.4 (create), 11.5
(retrieve), 11.6 (update), 11.7 (change state) and 11.9 (search), with the table of states of PS3.4,
CC.1.1-2, and the codes of the final state of CC.2.5-3: X, P and R. Data sets are read and written
by pydicom, whose dictionary then stands between us and a tag that is misspelt on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydicom import Dataset
from pydicom.uid import UID

from tests.serve.answering import Answer, Server, answering

FINAL = ("COMPLETED", "CANCELED")


def code(value: str, scheme: str = "99TEST", meaning: str = "Test") -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = value, scheme, meaning
    return made


def scheduled(uid: str, study: str, series: str = "", **more: Any) -> Dataset:
    """A step as a RIS makes it; what PS3.4, CC.2.5-3 wants of N-CREATE, as far as we read it."""
    item = Dataset()
    item.TypeOfInstances, item.StudyInstanceUID = "DICOM", study
    if series:
        item.SeriesInstanceUID = series
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = "1.2.840.10008.5.1.4.34.6.1", uid
    one.ProcedureStepState, one.InputReadinessState = "SCHEDULED", "READY"
    one.ScheduledProcedureStepPriority = "MEDIUM"
    one.WorklistLabel, one.ProcedureStepLabel = "LIVER", "Liver volume"
    one.ScheduledStationNameCodeSequence = [code("QJ1")]
    one.ScheduledWorkitemCodeSequence = [code("110004", "DCM", "Computer Aided Detection")]
    one.PatientName, one.PatientID = "Canary^Kanarie", "MRN1"
    one.InputInformationSequence = [item]
    one.ProcedureStepProgressInformationSequence = []
    one.UnifiedProcedureStepPerformedProcedureSequence = []
    for name, value in more.items():
        setattr(one, name, value)
    return one


@dataclass
class Worklist:
    """Steps by UID, the transactions that hold them, and every state that each was in."""

    steps: dict[str, Dataset] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    history: dict[str, list[str]] = field(default_factory=dict)
    ignores_keys: bool = False
    server: Server | None = None

    def add(self, one: Dataset) -> None:
        self.steps[one.SOPInstanceUID] = one
        self.history[one.SOPInstanceUID] = ["SCHEDULED"]

    def state(self, uid: str) -> str:
        return str(self.steps[uid].ProcedureStepState)

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        parts = urlsplit(path)
        words = parts.path.removeprefix("/dicom-web").strip("/").split("/")
        if words[0] != "workitems":
            return 404, {}, b""
        if len(words) == 1:
            return self._search(parse_qsl(parts.query)) if method == "GET" else (405, {}, b"")
        if words[1] not in self.steps:
            return 404, {}, b""
        if method == "GET" and len(words) == 2:
            return 200, {}, _json([self.steps[words[1]]])
        sent = Dataset.from_json(json.loads(body)[0])
        if method == "PUT" and words[2:] == ["state"]:
            return self._change(words[1], sent)
        if method == "POST" and len(words) == 2:
            return self._update(words[1], unquote(parts.query), sent)
        return 405, {}, b""

    def _search(self, query: list[tuple[str, str]]) -> Answer:
        keys = [(name, value) for name, value in query if name not in ("limit", "offset")]
        found = []
        for one in self.steps.values():
            if self.ignores_keys or all(_matches(one, name, value) for name, value in keys):
                brief = Dataset()  # return keys of type 1, no more
                for name in ("SOPClassUID", "SOPInstanceUID", "ProcedureStepState"):
                    setattr(brief, name, one[name].value)
                found.append(brief)
        limit = int(dict(query).get("limit", 100))
        return (200, {}, _json(found[:limit])) if found else (204, {}, b"")

    def _change(self, uid: str, sent: Dataset) -> Answer:
        """PS3.4, table CC.1.1-2."""
        one, now, then = self.steps[uid], self.state(uid), sent.get("ProcedureStepState")
        transaction = sent.get("TransactionUID")
        if not transaction or not UID(transaction).is_valid or set(sent.dir()) != {
            "TransactionUID", "ProcedureStepState",
        }:  # fmt: skip
            return _no(400, "The Transaction UID is missing.")
        if then == "IN PROGRESS":
            if now != "SCHEDULED":  # C302, C300 or C301: of the same transaction too
                return _no(409, "The submitted request is inconsistent with the state.")
            self.held[uid] = transaction
        elif then in FINAL:
            if self.held.get(uid) != transaction:
                return _no(400, "The Transaction UID is incorrect.")
            if now == then:
                return 200, {"Warning": f"299 test: already in the requested state of {then}."}, b""
            if now != "IN PROGRESS" or not _complete(one, then):
                return _no(409, "The submitted request is inconsistent with the state.")
        else:
            return _no(400, "SCHEDULED is for N-CREATE alone.")
        one.ProcedureStepState = then
        self.history[uid].append(then)
        return 200, {}, b""

    def _update(self, uid: str, transaction: str, sent: Dataset) -> Answer:
        now = self.state(uid)
        if now in FINAL or "ProcedureStepState" in sent or "TransactionUID" in sent:
            return _no(400, "The submitted request is inconsistent with the state.")
        if (self.held[uid] if now == "IN PROGRESS" else "") != transaction:
            return _no(400, "The Transaction UID is incorrect.")
        self.steps[uid].update(sent)
        return 200, {}, b""


def _complete(one: Dataset, state: str) -> bool:
    """Codes X and P of PS3.4, table CC.2.5-3: what must have a value before a final state."""
    needs = {
        "CANCELED": {"ProcedureStepProgressInformationSequence": (
            "ProcedureStepCancellationDateTime", "ProcedureStepDiscontinuationReasonCodeSequence",
        )},
        "COMPLETED": {"UnifiedProcedureStepPerformedProcedureSequence": (
            "PerformedStationNameCodeSequence", "PerformedProcedureStepStartDateTime",
            "PerformedWorkitemCodeSequence", "PerformedProcedureStepEndDateTime",
            "OutputInformationSequence",
        )},
    }  # fmt: skip
    ((sequence, names),) = needs[state].items()
    items = one.get(sequence) or []
    return bool(items) and all(item.get(name) for item in items for name in names)


def _matches(one: Dataset, name: str, value: str) -> bool:
    """A key by keyword, of a sequence's items with a dot between."""
    lead, _, rest = name.partition(".")
    if rest:
        return any(_matches(item, rest, value) for item in one.get(lead) or [])
    return str(one.get(lead, "")) == value


def _no(status: int, why: str) -> Answer:
    return status, {"Warning": f"299 test: {why}"}, b""


def _json(found: list[Dataset]) -> bytes:
    shown = [one.to_json_dict() for one in found]
    assert not any("00081195" in one for one in shown)  # 11.5.2: it is a lock, and stays unsaid
    return json.dumps(shown).encode()


@contextmanager
def worklist() -> Iterator[Worklist]:
    """Run a worklist while the block runs."""
    made = Worklist()
    with answering(decide=made.answer) as server:
        made.server = server
        yield made
