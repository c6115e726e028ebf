"""A PACS that is asked by DICOMweb: Orthanc finds, gives and takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2")
pytest.importorskip("pydicom")
pytest.importorskip("pynetdicom")
pytest.importorskip("sqlalchemy")
pytest.importorskip("dicomweb_client")

from pydicom import dcmread

from qinjing.errors import FormatError, QinjingError
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.dicomweb import Found, find_studies
from qinjing.serve.fetch import fetch
from qinjing.serve.peer import Caller, Peer, RefusedError
from qinjing.serve.send import Destination, send
from tests.clinic.orthanc import Pacs, started
from tests.serve.dicom import content, instance
from tests.serve.dicom import instance as made_up

JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return open_catalogue(tmp_path / "studies")


@pytest.fixture(scope="module")
def filled(pacs: Pacs) -> Pacs:
    """Five CT studies of two slices on five days, one MR study, one chest."""
    client = pacs.client()

    def instance(*args: Any, **more: Any) -> Any:
        made = made_up(*args, **more)
        made.preamble = b"\0" * 128
        return made

    for number in range(5):
        more = {"StudyDate": f"2025010{number + 1}"}
        if number == 4:
            more["StudyDescription"] = "Thorax, contrast"
        client.store_instances([instance(number, plane, **more) for plane in range(2)])
    client.store_instances([instance(9, 0, Modality="MR", StudyDate="20250103")])
    return pacs


def uid(number: int) -> str:
    return str(instance(number, 0).StudyInstanceUID)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, {0, 1, 2, 3, 4, 9}),
        ({"page": 1}, {0, 1, 2, 3, 4, 9}),
        ({"modality": "MR"}, {9}),
        ({"modality": "CT", "page": 2}, {0, 1, 2, 3, 4}),
        ({"dates": "20250103"}, {2, 9}),
        ({"dates": "20250104-"}, {3, 4}),
        ({"dates": "20250102-20250103", "modality": "CT"}, {1, 2}),
        ({"description": "thorax"}, {4}),
        ({"description": "ax, con"}, {4}),
        ({"modality": "US"}, set()),
    ],
)
def test_studies_are_found(filled: Pacs, options: dict[str, Any], numbers: set[int]) -> None:
    with Caller(Peer(filled.dicom_web)) as caller:
        found = list(find_studies(caller, **options))
    assert [one.study_instance_uid for one in found] == list(
        dict.fromkeys(one.study_instance_uid for one in found)
    )
    assert {one.study_instance_uid for one in found} == {uid(number) for number in numbers}


def test_a_study_is_told_as_the_pacs_has_it(filled: Pacs) -> None:
    with Caller(Peer(filled.dicom_web)) as caller:
        (found,) = find_studies(caller, description="Thorax")
    assert found == Found(uid(4), "20250105", "Thorax, contrast", ("CT",), 2)


def test_a_study_comes_as_the_peer_s_client_has_it(filled: Pacs, catalogue: Catalogue) -> None:
    with Caller(Peer(filled.dicom_web)) as caller:
        fetched = fetch(caller, catalogue, uid(1))
        assert (fetched.kept, fetched.known, fetched.refused) == (2, 0, 0)
        assert fetch(caller, catalogue, uid(1)).known == 2
        assert fetch(caller, catalogue, uid(2), str(instance(2, 0).SeriesInstanceUID)).kept == 2
        with pytest.raises((FormatError, RefusedError)):
            fetch(caller, catalogue, "1.2.3")
    there = {str(one.SOPInstanceUID): one for one in filled.client().retrieve_study(uid(1))}
    for sop, dataset in there.items():
        file = catalogue.path(uid(1), sop)
        assert dcmread(file) == dataset


def test_what_was_stored_without_a_preamble_gets_one(pacs: Pacs, catalogue: Catalogue) -> None:
    pacs.client().store_instances([instance(40, 0)])  # the peer writes none
    with Caller(Peer(pacs.dicom_web)) as caller:
        assert fetch(caller, catalogue, uid(40)).kept == 1
    kept, made = dcmread(catalogue.path(uid(40), instance(40, 0).SOPInstanceUID)), instance(40, 0)
    assert {one.tag: one.value for one in kept} == {one.tag: one.value for one in made}


def test_a_packed_instance_stays_packed_to_the_byte(
    pacs: Pacs, catalogue: Catalogue, tmp_path: Path
) -> None:
    pytest.importorskip("openjpeg")
    made = instance(20, 0)
    made.compress(JPEG_2000_LOSSLESS, encoding_plugin="pylibjpeg", generate_instance_uid=False)
    file = tmp_path / "packed.dcm"
    made.save_as(file, enforce_file_format=True)
    assert send([file], Destination.parse(pacs.dicom_web)) == 1
    with Caller(Peer(pacs.dicom_web)) as caller:
        fetch(caller, catalogue, uid(20))
    kept = dcmread(catalogue.path(uid(20), made.SOPInstanceUID))
    assert (
        kept.file_meta.TransferSyntaxUID == JPEG_2000_LOSSLESS and kept.PixelData == made.PixelData
    )


def test_results_are_stored_and_come_back(pacs: Pacs, tmp_path: Path) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(content(instance(30, number)))
    for _ in range(2):
        assert send(files, Destination.parse(pacs.dicom_web)) == 3
    there = pacs.client().retrieve_study(uid(30))
    assert len(there) == 3
    for dataset in there:
        made = instance(30, int(dataset.InstanceNumber))
        assert {one.tag: one.value for one in dataset} == {one.tag: one.value for one in made}
    damaged = tmp_path / "damaged.dcm"
    damaged.write_bytes(b"\0" * 500)
    with pytest.raises(QinjingError, match=r"took|HTTP"):
        send([files[0], damaged], Destination.parse(pacs.dicom_web))


def test_only_who_gives_the_password_comes_in(tmp_path: Path, catalogue: Catalogue) -> None:
    # Without TLS, by which Debian's Orthanc 1.10.1 dies: tests/serve/test_peer.py has that.
    login, file = tmp_path / "login", tmp_path / "one.dcm"
    file.write_bytes(content(instance(1, 0)))
    settings = {"AuthenticationEnabled": True, "RegisteredUsers": {"qinjing": "a:b c"}}
    with started(tmp_path / "orthanc", **settings) as pacs:
        login.write_text("qinjing:a:b c\n")
        peer = Destination.parse(pacs.dicom_web, login=login)
        assert send([file], peer) == 1
        with Caller(Peer(pacs.dicom_web, login)) as caller:
            assert fetch(caller, catalogue, uid(1)).kept == 1
        login.write_text("qinjing:wrong")
        with pytest.raises(QinjingError, match="does not let us in: HTTP 401"):
            send([file], peer)


def test_no_log_names_a_study(
    filled: Pacs, catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with Caller(Peer(filled.dicom_web)) as caller:
        list(find_studies(caller, description="Abdomen"))
        fetch(caller, catalogue, uid(3))
    for word in (uid(3), "Canary", "MRN0", "Abdomen"):
        assert word not in caplog.text
