"""What we write goes into a PACS and comes out bit for bit: STOW-RS, QIDO-RS, WADO-RS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")
pytest.importorskip("dicomweb_client")

from qinjing.data.dicom.read_seg import read_seg  # noqa: E402
from qinjing.data.dicom.read_sr import read_sr  # noqa: E402
from qinjing.data.dicom.rtstruct import read_rtstruct, write_rtstruct  # noqa: E402
from qinjing.data.dicom.seg import write_seg  # noqa: E402
from qinjing.data.dicom.sr import Finding, write_sr  # noqa: E402
from tests.data.dicom.derive import plain_volume  # noqa: E402
from tests.data.dicom.series import write_series  # noqa: E402

OBLIQUE = ((0.8, 0.48, 0.36), (-0.6, 0.64, 0.48))
NAMES = {1: "Left kidney", 2: "liver tumour", 5: "Knoten 肝"}
SHAPE = (6, 33, 25)  # a frame that fills no whole number of bytes


def labels() -> np.ndarray:
    coarse = np.random.default_rng(1).choice([0, 0, 1, 2, 5], (6, 7, 5)).astype(np.uint8)
    coarse[[0, 3]] = 0
    return np.kron(coarse, np.ones((1, 5, 5), np.uint8))[:, :33, :25]


@pytest.fixture(scope="module")
def study(pacs, tmp_path_factory):
    """A series in the PACS, read back from it, and the client that reads."""
    folder = tmp_path_factory.mktemp("study")
    stored = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)

    def named(file, d):
        file.SpecificCharacterSet = "ISO_IR 100"
        file.PatientName, file.StudyDate, file.StudyID = "Müller^Jörg", "20200102", "S1"

    write_series(folder / "scanner", stored, directions=OBLIQUE, edit=named)
    client = pacs.client()
    client.store_instances([pydicom.dcmread(file) for file in (folder / "scanner").iterdir()])
    (there,) = client.search_for_studies(search_filters={"PatientID": "P1"})
    uid = there["0020000D"]["Value"][0]
    (series,) = client.search_for_series(uid)
    from_pacs = folder / "pacs"
    from_pacs.mkdir()
    for k, one in enumerate(client.retrieve_series(uid, series["0020000E"]["Value"][0])):
        one.save_as(from_pacs / f"{k}.dcm", enforce_file_format=True)
    source = plain_volume(from_pacs)
    np.testing.assert_array_equal(source.volume.voxels, stored - 1024.0)
    return source, client


def there_and_back(client, file: Path, modality: str) -> Path:
    """Store a file, find it by query, and write what comes back beside it."""
    sent = pydicom.dcmread(file)
    client.store_instances([sent])
    asked = {"Modality": modality, "SOPInstanceUID": sent.SOPInstanceUID}
    (found,) = client.search_for_instances(sent.StudyInstanceUID, search_filters=asked)
    assert found["00080018"]["Value"] == [sent.SOPInstanceUID]
    got = client.retrieve_instance(
        sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID,
        media_types=(("application/dicom", "*"),),
    )  # fmt: skip
    assert got.file_meta.TransferSyntaxUID == sent.file_meta.TransferSyntaxUID
    back = file.with_name(f"back-{file.name}")
    got.save_as(back, enforce_file_format=True)
    if "PixelData" in sent:
        assert got.PixelData == sent.PixelData
    assert got == sent  # every element but those of the file's own head
    return back


@pytest.mark.parametrize("how", ["binary", "fractional", "labelmap"])
def test_segmentation(study, tmp_path, how):
    source, client = study
    grid = source.volume.with_voxels(labels())
    made = write_seg(tmp_path / f"{how}.dcm", grid, source, NAMES, how=how)
    back = read_seg(there_and_back(client, made.path, "SEG"))
    for value, number in made.segments.items():
        np.testing.assert_array_equal(back.mask(number, source).voxels, labels() == value)
    (series,) = client.search_for_series(
        source.study_instance_uid, search_filters={"SeriesInstanceUID": made.series_instance_uid}
    )
    assert series["00080060"]["Value"] == ["SEG"]


def test_frames_one_by_one(study, tmp_path):
    """As a viewer asks for them."""
    source, client = study
    grid = source.volume.with_voxels(labels())
    made = write_seg(tmp_path / "f.dcm", grid, source, NAMES, how="labelmap")
    client.store_instances([pydicom.dcmread(made.path)])
    file = pydicom.dcmread(made.path)
    uids = (file.StudyInstanceUID, file.SeriesInstanceUID, file.SOPInstanceUID)
    frames = client.retrieve_instance_frames(
        *uids, [1, int(file.NumberOfFrames)],
        media_types=(("application/octet-stream", "1.2.840.10008.1.2.1"),),
    )  # fmt: skip
    expected = file.pixel_array
    for frame, pixels in zip(frames, (expected[0], expected[-1]), strict=True):
        np.testing.assert_array_equal(np.frombuffer(frame, np.uint8)[: pixels.size], pixels.ravel())


def test_structures_and_report(study, tmp_path):
    source, client = study
    grid = source.volume.with_voxels(labels())
    seg = write_seg(tmp_path / "seg.dcm", grid, source, NAMES)
    there_and_back(client, seg.path, "SEG")
    drawn = write_rtstruct(tmp_path / "rt.dcm", grid, source, NAMES)
    back = read_rtstruct(there_and_back(client, drawn.path, "RTSTRUCT"))
    np.testing.assert_array_equal(back.mask(2, source).voxels, labels() == 2)
    findings = [Finding("Knoten 肝", 5, volume_ml=3.5, mean=41.0, units="HU")]
    report = write_sr(tmp_path / "sr.dcm", findings, source, seg=seg)
    (group,) = read_sr(there_and_back(client, report, "SR"))
    assert group.tracking_id == "Knoten 肝" and group.seg == (seg.sop_instance_uid, 3)
    assert [one.value for one in group.measured] == [3.5, 41.0]
    # All of it lies in one study of one patient.
    studies = client.search_for_studies(search_filters={"PatientID": "P1"})
    assert len(studies) == 1
    kinds = {
        one["00080060"]["Value"][0] for one in client.search_for_series(source.study_instance_uid)
    }
    assert kinds >= {"CT", "SEG", "RTSTRUCT", "SR"}
    metadata = client.retrieve_instance_metadata(
        source.study_instance_uid, seg.series_instance_uid, seg.sop_instance_uid
    )
    assert metadata["00100010"]["Value"] == [{"Alphabetic": "Müller^Jörg"}]
