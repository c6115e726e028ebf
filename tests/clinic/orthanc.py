"""An Orthanc of our own: a PACS with DICOMweb on free ports, in a folder of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PLUGINS = (Path("/usr/share/orthanc/plugins"), Path("/usr/lib/orthanc"))


@dataclass(frozen=True)
class Pacs:
    """Where it listens.

    Attributes:
        url: of its own REST interface; DICOMweb lies below in `dicom_web`.
        dicom_web: root of QIDO-RS, WADO-RS and STOW-RS.
        port: of DIMSE, on 127.0.0.1.
        aet: its application entity title; any calling title may store, find and move.
        process: to be killed by a test that wants that.
    """

    url: str
    dicom_web: str
    port: int
    aet: str
    process: subprocess.Popen[str]

    def client(self) -> Any:
        """A DICOMweb client of this PACS."""
        api = pytest.importorskip("dicomweb_client.api")
        return api.DICOMwebClient(self.dicom_web)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextmanager
def started(
    folder: Path, modalities: Mapping[str, tuple[str, int]] | None = None, **more: Any
) -> Iterator[Pacs]:
    """Run an Orthanc as long as the block lasts; the test is skipped where there is none.

    Args:
        folder: what it stores goes below; kept, so that another may be started on it.
        modalities: name → AE title and port on 127.0.0.1 of who it may send to by C-STORE.
        more: settings of Orthanc's own.
    """
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    plugins = [p for place in PLUGINS for p in sorted(place.glob("libOrthancDicomWeb*.so"))]
    if not program or not plugins:
        pytest.skip("no Orthanc with DICOMweb (Debian: orthanc, orthanc-dicomweb)")
    http, dimse = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "Name": "Qinjing's tests",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomPort": dimse,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "UnknownSopClassAccepted": True,
        "DicomModalities": {
            name: [aet, "127.0.0.1", port] for name, (aet, port) in (modalities or {}).items()
        },
        "StableAge": 1,
        "Plugins": [str(plugins[-1])],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True},
        **more,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings, indent=1))
    process = subprocess.Popen(
        [program, str(folder / "orthanc.json")], cwd=folder, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    said = []
    assert process.stderr is not None
    for line in process.stderr:  # it says when it is ready: nobody has to wait and ask
        said.append(line)
        if "Orthanc has started" in line:
            break
    else:
        pytest.fail("Orthanc did not start:\n" + "".join(said[-10:]))
    drain = threading.Thread(target=process.stderr.read, daemon=True)
    drain.start()
    url = f"http://127.0.0.1:{http}"
    try:
        yield Pacs(url, f"{url}/dicom-web", dimse, "ORTHANC", process)
    finally:
        process.terminate()
        process.wait(timeout=30)
        drain.join(timeout=30)
        process.stderr.close()
