"""DICOMweb where the other side answers oddly; tests/clinic has a real PACS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("httpx2")
pytest.importorskip("pydicom")
pytest.importorskip("sqlalchemy")

from qinjing.errors import ConfigError, FormatError, QinjingError
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.dicomweb import find_studies, retrieve, store
from qinjing.serve.fetch import fetch
from qinjing.serve.multipart import joined
from qinjing.serve.peer import Caller, Peer
from qinjing.serve.send import Destination, send
from tests.serve.answering import Answer, Server, answering
from tests.serve.dicom import content, instance

STUDY = instance(1, 0).StudyInstanceUID
PARTS = {"Content-Type": "multipart/related; boundary=edge"}


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    yield open_catalogue(tmp_path / "studies")


def no_wait(_: float) -> None: ...


def parts_of(*contents: bytes) -> bytes:
    return b"".join(joined([[one] for one in contents], "edge", "application/dicom"))


def found(server: Server, **options: Any) -> list[str]:
    with Caller(Peer(server.url), no_wait) as caller:
        return [one.study_instance_uid for one in find_studies(caller, **options)]


def study(uid: str) -> dict[str, Any]:
    return {"0020000D": {"vr": "UI", "Value": [uid]}}


@pytest.mark.parametrize("most", [1, 3, 100])
def test_pages_are_read_to_the_end_however_short(most: int) -> None:
    uids = [f"1.2.{number}" for number in range(7)]

    def decide(_: str, path: str, __: bytes) -> Answer:
        asked = parse_qs(urlsplit(path).query)
        start, count = int(asked["offset"][0]), min(most, int(asked["limit"][0]))
        page = [study(uid) for uid in uids[start : start + count]]
        return (200, {}, json.dumps(page).encode()) if page else (204, {}, b"")

    with answering(decide=decide) as server:
        assert found(server, page=5) == uids


def test_a_server_that_knows_no_pages_ends_too() -> None:
    with answering((200, {}, json.dumps([study("1.2.3"), study("1.2.4")]).encode())) as server:
        assert found(server) == ["1.2.3", "1.2.4"]
    assert len(server.asked) == 2


def test_what_is_asked_for_is_named_as_the_standard_names_it() -> None:
    with answering((204, {}, b"")) as server:
        found(server, dates="20250101-", description="Abdomen & more")
    asked = parse_qs(urlsplit(server.asked[0][1]).query)
    assert "=*Abdomen*&" in server.asked[0][1]
    assert asked == {
        "StudyDate": ["20250101-"], "limit": ["100"],
        "StudyDescription": ["*Abdomen*"], "includefield": ["StudyDescription"],
        "offset": ["0"],
    }  # fmt: skip
    for dates in ("2025", "-", "20250101-20250102-", "*"):
        with pytest.raises(ConfigError, match="YYYYMMDD"):
            found(server, dates=dates)


@pytest.mark.parametrize(
    "answer",
    [{}, [1], [{}], [study("../../x")], [study("1.2/../3")], [study("1." * 40 + "1")],
     [{"0020000D": "1.2.3"}], [{"0020000D": {"Value": {}}}], [{"0020000D": {"Value": [None]}}]],
)  # fmt: skip
def test_answers_of_another_form_are_refused(answer: Any) -> None:
    with (
        answering((200, {}, json.dumps(answer).encode())) as server,
        pytest.raises(FormatError) as said,
    ):
        found(server)
    assert "x" not in str(said.value).split("(")[0].replace("expected", "")


def test_no_uid_leads_elsewhere() -> None:
    with answering((200, {}, b"")) as server, Caller(Peer(server.url)) as caller:
        for uid in ("", "..", "1.2/../../x", "1.2?x", "01.2", "1.2 "):
            with pytest.raises(FormatError, match="numbers and dots"):
                list(retrieve(caller, uid))
            with pytest.raises(FormatError, match="numbers and dots"):
                list(retrieve(caller, "1.2", uid or ".."))
    assert server.asked == []


def test_what_broke_off_is_fetched_again_and_kept_once(catalogue: Catalogue) -> None:
    files = [content(instance(1, number)) for number in range(3)]
    whole = parts_of(*files)
    cut = len(parts_of(*files[:2])) + 50
    with answering(
        (200, {**PARTS, "Content-Length": str(len(whole))}, whole[:cut]),  # the line broke
        (200, PARTS, whole[:cut]),  # the server lost its source, and ended politely
        (200, PARTS, whole),
    ) as server, Caller(Peer(server.url), no_wait) as caller:  # fmt: skip
        fetched = fetch(caller, catalogue, STUDY)
    assert (fetched.kept, fetched.known, fetched.refused) == (3, 0, 0)
    assert len(server.asked) == 3 and catalogue.studies()[0].instances == 3
    for number, file in enumerate(files):
        kept = catalogue.path(STUDY, instance(1, number).SOPInstanceUID)
        assert kept.read_bytes() == file  # the very bytes that came


def test_of_what_came_only_sound_instances_of_that_study_are_kept(catalogue: Catalogue) -> None:
    sound, other = content(instance(1, 0)), content(instance(2, 0))
    body = parts_of(sound, other, b"<html>", sound[:200], b"")
    with answering((200, PARTS, body)) as server, Caller(Peer(server.url)) as caller:
        fetched = fetch(caller, catalogue, STUDY)
        assert (fetched.kept, fetched.known, fetched.refused) == (1, 0, 4)
        again = fetch(caller, catalogue, STUDY)
        assert (again.kept, again.known, again.refused) == (0, 1, 4)
        with pytest.raises(FormatError, match="at least one sound instance"):
            fetch(caller, catalogue, "1.2.3")
    assert [one.study_instance_uid for one in catalogue.studies()] == [STUDY]


def test_one_instance_is_in_memory_at_a_time(catalogue: Catalogue) -> None:
    import tracemalloc

    size = 1024  # 2 MiB each
    first = content(instance(1, 0, size))
    files = [first] + [content(instance(1, number, size)) for number in range(1, 12)]
    with answering((200, PARTS, parts_of(*files))) as server, Caller(Peer(server.url)) as caller:
        tracemalloc.start()
        try:
            assert fetch(caller, catalogue, STUDY).kept == 12
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert most < 6 * len(first), f"{most / len(first):.1f} instances"


def answer_to_store(stored: int, failed: list[int]) -> bytes:
    answer: dict[str, Any] = {"00081199": {"vr": "SQ", "Value": [{}] * stored}}
    if failed:
        reasons = [{"00081197": {"vr": "US", "Value": [one]}} for one in failed]
        answer["00081198"] = {"vr": "SQ", "Value": reasons}
    return json.dumps(answer).encode()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (202, answer_to_store(1, [0xA700]), r"took 1 of 2 instances \(0xA700\)"),
        (200, answer_to_store(1, []), "took 1 of 2 instances$"),
        (409, answer_to_store(0, [0x0110] * 2), "took none of 2 instances"),
        (413, b"", "HTTP 413"),
        (200, b"[]", "a data set in JSON"),
    ],
)
def test_all_are_stored_or_it_is_said(
    status: int, body: bytes, message: str, tmp_path: Path
) -> None:
    files = []
    for number in range(2):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(content(instance(1, number)))
    with answering((status, {}, body)) as server, pytest.raises(QinjingError, match=message):
        store(files, Peer(server.url), no_wait)


def test_storing_is_tried_again_whole_and_in_portions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qinjing.serve.dicomweb._AT_ONCE", len(content(instance(1, 0))) + 100)
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(content(instance(1, number)))
    with answering((503, {}, b""), (200, {}, answer_to_store(1, []))) as server:
        assert store(files, Peer(server.url), no_wait) == 3
    bodies = [body for _, _, _, body in server.asked]
    assert len(bodies) == 4
    assert len(bodies[0]) == len(bodies[1])  # the boundary alone is another
    for body, file in zip(bodies[1:], files, strict=True):
        assert file.read_bytes() in body
    assert all("chunked" not in headers.get("transfer-encoding", "")
               for _, _, headers, _ in server.asked)  # fmt: skip


def test_a_destination_may_be_a_server_or_a_folder(tmp_path: Path) -> None:
    login = tmp_path / "login"
    assert Destination.parse("https://pacs/dicom-web/", login=login, ca=login) == Peer(
        "https://pacs/dicom-web", login, login
    )
    with pytest.raises(ConfigError, match="of https"):
        Destination.parse("http://pacs/dicom-web")
    out, files = tmp_path / "out", []
    with pytest.raises(ConfigError, match="a folder that is there"):
        Destination.parse(str(out))
    out.mkdir()
    for number in range(2):
        files.append(tmp_path / f"{number}.dcm")
        with pytest.warns(UserWarning, match="Invalid value"):
            files[-1].write_bytes(content(instance(1, number, Modality="../..")))
    for _ in range(2):
        assert send(files, Destination.parse(str(out))) == 2
    written = [one for one in out.rglob("*") if one.is_file()]
    assert sorted(one.read_bytes() for one in written) == sorted(one.read_bytes() for one in files)
    assert len({one.parent for one in written}) == 1
    assert "MRN" not in str(written) and STUDY not in str(written)
