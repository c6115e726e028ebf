"""Orthanc asks our node whether it keeps what it was sent."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("pydicom")
pytest.importorskip("pynetdicom")
pytest.importorskip("sqlalchemy")
pytest.importorskip("dicomweb_client")

from qinjing.serve.catalogue import open_catalogue
from qinjing.serve.node import NodeConfig, node
from tests.clinic.orthanc import Pacs, free_port, started
from tests.serve.dicom import instance


def test_orthanc_s_request_is_answered_by_a_report(tmp_path: Path) -> None:
    port = free_port()
    with started(tmp_path / "orthanc", {"qinjing": ("QINJING", port)}) as pacs:
        pacs.client().store_instances([instance(1, number) for number in range(3)])
        (study,) = ask(pacs, "/studies")
        config = NodeConfig(port=port, callers=(f"ORTHANC@127.0.0.1:{pacs.port}",))
        catalogue = open_catalogue(tmp_path / "studies")
        with node(config, catalogue):
            ask(pacs, "/modalities/qinjing/store", study)
            assert committed(pacs, range(3)) == ("Success", 3, 0)
            assert committed(pacs, range(2, 4)) == ("Failure", 1, 1)


def committed(pacs: Pacs, numbers: range) -> tuple[str, int, int]:
    """What Orthanc was told: its word for it, and how many were here and were not."""
    wanted = [
        {"SOPClassUID": one.SOPClassUID, "SOPInstanceUID": one.SOPInstanceUID}
        for one in (instance(1, number) for number in numbers)
    ]
    body = json.dumps({"DicomInstances": wanted, "Timeout": 10})
    made = ask(pacs, "/modalities/qinjing/storage-commitment", body)
    until = time.monotonic() + 30
    while (said := ask(pacs, made["Path"]))["Status"] == "Pending":
        assert time.monotonic() < until, "no report within half a minute"
        time.sleep(0.05)
    return said["Status"], len(said.get("Success", [])), len(said.get("Failures", []))


def ask(pacs: Pacs, path: str, body: str | None = None) -> Any:
    data = body.encode() if body is not None else None
    with urlopen(Request(f"{pacs.url}{path}", data), timeout=30) as answered:
        return json.loads(answered.read())
