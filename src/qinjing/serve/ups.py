"""Unified procedure steps of a worklist server: search, claim, report and end them by UPS-RS.

Source: DICOM PS3.18, chapter 11; PS3.4, annex CC (states: CC.1.1; what a final state needs:
CC.2.5.1.1); PS3.3, table 10-3b (references to instances and how they are had).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

from qinjing.errors import ConfigError, FormatError
from qinjing.serve.dicomweb import checked_uid, first, values
from qinjing.serve.peer import Caller, RefusedError

if TYPE_CHECKING:
    from pydicom import Dataset

FINAL = ("COMPLETED", "CANCELED")
_PAGE = 50
_KEY = re.compile(r"[\x20-\x7e]{1,64}")
_JSON = {"Content-Type": "application/dicom+json"}
# Where nothing was scheduled by code. Source: PS3.16, CID 9231.
_WORKITEM = ("110001", "DCM", "Image Processing")
_STATION = ("QINJING", "99QINJING", "Qinjing")
# Source: PS3.16, CID 9300.
_DISCONTINUED = ("110513", "DCM", "Discontinued for unspecified reason")
State = Literal["IN PROGRESS", "COMPLETED", "CANCELED"]


@dataclass(frozen=True)
class Wanted:
    """Which steps are ours.

    Attributes:
        label: of the worklist, "" for any.
        station: code of the scheduled station's name, "" for any.

    Raises:
        ConfigError: neither is given, or one is no plain text.
    """

    label: str = ""
    station: str = ""

    def __post_init__(self) -> None:
        if not (self.label or self.station):
            raise ConfigError("--label or --station", "given: not every step is ours", "none")
        for key in filter(None, (self.label, self.station)):
            if not _KEY.fullmatch(key) or set(key) & set("*?\\,"):
                raise ConfigError("--label and --station", "plain text of 64 letters at most", key)


@dataclass(frozen=True)
class Step:
    """A procedure step as the server has it.

    Attributes:
        uid: which it is.
        state: SCHEDULED, IN PROGRESS, COMPLETED or CANCELED.
        ready: whether its input is there.
        label: of its worklist.
        stations: codes of those it is scheduled for.
        inputs: study and series of what it is about, a series of "" for all of them.
        dataset: all of it, in the JSON model.
    """

    uid: str
    state: str
    ready: bool
    label: str
    stations: tuple[str, ...]
    inputs: tuple[tuple[str, str], ...]
    dataset: Mapping[str, Any]

    def is_of(self, wanted: Wanted) -> bool:
        """Whether it is one of these: a server may answer more than it was asked for."""
        labelled = wanted.label in ("", self.label)
        return labelled and (not wanted.station or wanted.station in self.stations)


def search(caller: Caller, wanted: Wanted) -> list[str]:
    """Return UIDs of steps that are scheduled, the first of them.

    Args:
        caller: of the server's root.
        wanted: which.

    Raises:
        QinjingError: the server does not answer, or not as it should.
    """
    query = {"ProcedureStepState": "SCHEDULED"}
    if wanted.label:
        query["WorklistLabel"] = wanted.label
    if wanted.station:
        query["ScheduledStationNameCodeSequence.CodeValue"] = wanted.station
    query["limit"] = str(_PAGE)
    answer = caller.json("GET", f"/workitems?{urlencode(query, quote_via=quote)}")
    found = answer or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise FormatError("worklist", "a list of data sets", "another", where=caller.peer.name)
    return [checked_uid(first(one, "00080018")) for one in found]


def step(caller: Caller, uid: str) -> Step:
    """Return a step.

    Raises:
        RefusedError: the server has none of this UID.
        QinjingError: it does not answer, or not as it should.
    """
    answer = caller.json("GET", f"/workitems/{checked_uid(uid)}")
    one = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(one, dict):
        raise FormatError("procedure step", "a data set", "another", where=caller.peer.name)
    stations = tuple(first(code, "00080100") for code in values(one, "00404025"))
    ready = first(one, "00404041") == "READY"
    state, label = first(one, "00741000"), first(one, "00741202")
    return Step(uid, state, ready, label, stations, tuple(_inputs(one)), one)


def claim(caller: Caller, uid: str, transaction: str) -> bool:
    """Take a step for us; False where it is another's. Once it is ours, asking again says so.

    The server keeps the transaction's UID to itself, and refuses a second claim even of the same:
    whether the first came through before a line broke or we died, only an update can tell.

    Args:
        caller: of the server's root.
        uid: of the step.
        transaction: UID, which nobody else knows.

    Raises:
        QinjingError: the server does not answer.
    """
    try:
        change(caller, uid, transaction, "IN PROGRESS")
    except RefusedError as error:
        if error.status in (401, 403):
            raise
        return _owned(caller, uid, transaction)
    return True


def change(caller: Caller, uid: str, transaction: str, state: State) -> None:
    """Change a step's state.

    Raises:
        RefusedError: it is not ours, or not in a state for that.
        QinjingError: the server does not answer.
    """
    from pydicom import Dataset

    dataset = Dataset()
    dataset.TransactionUID, dataset.ProcedureStepState = transaction, state
    path = f"/workitems/{checked_uid(uid)}/state"
    caller.json("PUT", path, headers=_JSON, content=_encoded(dataset))


def update(caller: Caller, uid: str, transaction: str, dataset: Dataset) -> None:
    """Change attributes of a step that is ours.

    Raises:
        RefusedError: it is not ours, or has come to its end.
        QinjingError: the server does not answer.
    """
    path = f"/workitems/{checked_uid(uid)}?{checked_uid(transaction)}"
    caller.json("POST", path, headers=_JSON, content=_encoded(dataset))


def performed(
    done: Step, begun: datetime, ended: datetime, outputs: Sequence[Path], pacs: str
) -> Dataset:
    """Return what a step needs to be completed.

    Args:
        done: the step.
        begun: when it was taken up.
        ended: when its results were there.
        outputs: DICOM files of its results, which hold one instance at least.
        pacs: root of DICOMweb where they are had.
    """
    from pydicom import Dataset

    one = Dataset()
    one.PerformedStationNameCodeSequence = _codes(done, "00404025", _STATION)
    one.PerformedWorkitemCodeSequence = _codes(done, "00404018", _WORKITEM)
    one.PerformedProcedureStepStartDateTime = _moment(begun)
    one.PerformedProcedureStepEndDateTime = _moment(ended)
    one.OutputInformationSequence = _outputs(outputs, pacs)
    dataset = Dataset()
    dataset.UnifiedProcedureStepPerformedProcedureSequence = [one]
    return dataset


def discontinued(reason: str, moment: datetime) -> Dataset:
    """Return what a step needs to be canceled.

    Args:
        reason: one sentence that names no patient.
        moment: when it was given up.
    """
    from pydicom import Dataset

    one = Dataset()
    one.ProcedureStepCancellationDateTime = _moment(moment)
    one.ReasonForCancellation = reason[:1024]
    one.ProcedureStepDiscontinuationReasonCodeSequence = [_code(*_DISCONTINUED)]
    dataset = Dataset()
    dataset.ProcedureStepProgressInformationSequence = [one]
    return dataset


def _owned(caller: Caller, uid: str, transaction: str) -> bool:
    from pydicom import Dataset

    progress, dataset = Dataset(), Dataset()
    progress.ProcedureStepProgress = "0"
    dataset.ProcedureStepProgressInformationSequence = [progress]
    try:
        # Without a word of which transaction a scheduled step could be changed by anybody.
        if step(caller, uid).state != "IN PROGRESS":
            return False
        update(caller, uid, transaction, dataset)
    except RefusedError as error:
        if error.status in (401, 403):
            raise
        return False
    return True


def _inputs(one: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for item in values(one, "00404021"):
        yield checked_uid(first(item, "0020000D")), first(item, "0020000E")


def _outputs(files: Sequence[Path], pacs: str) -> list[Dataset]:
    from pydicom import Dataset, dcmread

    items: dict[tuple[str, str], Dataset] = {}
    names = ["SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"]
    for file in files:
        found = dcmread(file, stop_before_pixels=True, specific_tags=names)
        study, series = str(found.StudyInstanceUID), str(found.SeriesInstanceUID)
        if (study, series) not in items:
            item, had = Dataset(), Dataset()
            item.TypeOfInstances = "DICOM"
            item.StudyInstanceUID, item.SeriesInstanceUID = study, series
            item.ReferencedSOPSequence = []
            had.RetrieveURL = f"{pacs}/studies/{study}/series/{series}"
            item.WADORSRetrievalSequence = [had]
            items[study, series] = item
        reference = Dataset()
        reference.ReferencedSOPClassUID = found.SOPClassUID
        reference.ReferencedSOPInstanceUID = found.SOPInstanceUID
        items[study, series].ReferencedSOPSequence.append(reference)
    return list(items.values())


def _codes(done: Step, tag: str, otherwise: tuple[str, str, str]) -> list[Dataset]:
    """What was scheduled, as what was done."""
    coded = ("00080100", "00080102", "00080104")
    found = [tuple(first(code, one) for one in coded) for code in values(done.dataset, tag)]
    return [_code(*code) for code in found if all(code)] or [_code(*otherwise)]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom import Dataset

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y%m%d%H%M%S%z")


def _encoded(dataset: Dataset) -> bytes:
    """In an array, as PS3.18, F.2 has it."""
    return json.dumps([dataset.to_json_dict()]).encode()
