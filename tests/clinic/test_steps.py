"""A worklist's step: input from Orthanc, results back there, where it says they are."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("httpx2")
pytest.importorskip("pydicom")
pytest.importorskip("pynetdicom")
pytest.importorskip("sqlalchemy")
pytest.importorskip("dicomweb_client")

from qinjing.serve import work as work_of
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.jobs import Job
from qinjing.serve.multipart import parts
from qinjing.serve.peer import Peer
from qinjing.serve.send import Destination, send
from qinjing.serve.steps import KIND, Steps, StepsConfig
from qinjing.serve.ups import Wanted
from qinjing.serve.work import WorkConfig, made_at, work
from tests.clinic.orthanc import Pacs
from tests.serve.dicom import content, instance
from tests.serve.worklist import scheduled, worklist


def test_what_a_completed_step_refers_to_can_be_had(
    pacs: Pacs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = instance(1, 900, SeriesInstanceUID="1.2.826.0.1.3680043.8.498.1.900")

    def predicted(job: Job, catalogue: Catalogue, config: WorkConfig) -> dict[str, Any]:
        out = made_at(catalogue, job.study_instance_uid, job.kind)
        out.mkdir(parents=True)
        (out / "seg.dcm").write_bytes(content(result))
        assert config.destination
        return {"made": ["seg.dcm"], "sent": send([out / "seg.dcm"], config.destination)}

    monkeypatch.setitem(work_of.KINDS, KIND, predicted)
    pacs.client().store_instances([instance(1, number) for number in range(3)])
    catalogue, study = open_catalogue(tmp_path), str(instance(1, 0).StudyInstanceUID)
    with worklist() as listed:
        assert listed.server
        listed.add(scheduled("1.2.1", study))
        config = StepsConfig(
            Peer(listed.server.url), Peer(pacs.dicom_web), Wanted(label="LIVER", station="QJ1")
        )
        steps = Steps(catalogue, config)
        assert steps.look() == 1
        found = catalogue.study(study)
        assert found is not None and found.instances == 3
        ended, model = threading.Event(), type("Model", (), {"name": "m"})()
        doing: Any = {"models": (model,), "destination": Destination.parse(pacs.dicom_web)}
        work(catalogue, WorkConfig((KIND,), **doing), ended, lambda *_: ended.set())
        assert steps.look() == 0
        steps.close()
        assert listed.state("1.2.1") == "COMPLETED"
        (done,) = listed.steps["1.2.1"].UnifiedProcedureStepPerformedProcedureSequence
    (output,) = done.OutputInformationSequence
    url = output.WADORSRetrievalSequence[0].RetrieveURL
    kind = 'multipart/related; type="application/dicom"'
    with urlopen(Request(url, headers={"Accept": kind}), timeout=30) as answered:
        (file,) = parts([answered.read()], answered.headers["Content-Type"], 1 << 30)
    assert file == content(result)
