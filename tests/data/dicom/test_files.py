"""Places: folders, zips (hostile ones too), DICOMDIRs, single files."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from qinjing.data.dicom import files  # noqa: E402
from qinjing.data.dicom.read import read_dicom, read_series  # noqa: E402
from qinjing.errors import FormatError  # noqa: E402
from tests.data.dicom.series import write_series  # noqa: E402

STORED = np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(np.int16)


def zipped(folder: Path, archive: Path, name="{}".format) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.rglob("*.dcm")):
            packed.write(path, name(path.name))
    return archive


def test_a_mixture_is_sorted_by_uid_and_never_by_name(tmp_path):
    """Two series in one folder, one in a subfolder and one in a zip, names that clash."""
    for k, place in enumerate((tmp_path, tmp_path, tmp_path / "sub")):
        names = f"{'ba'[k % 2]}{{}}.dcm".format
        write_series(place, STORED + k, patient=f"P{k}", names=names)
    write_series(tmp_path / "packed", STORED + 3, patient="P3")
    zipped(tmp_path / "packed", tmp_path / "more.zip")
    shutil.rmtree(tmp_path / "packed")
    (tmp_path / "README.txt").write_text("no DICOM")
    reading = read_dicom(tmp_path)
    assert not reading.refused and len(reading.volumes) == 4
    found = sorted(float(one.volume.voxels.flat[0]) for one in reading.volumes)
    assert found == [float(STORED.flat[0]) - 1024 + k for k in range(4)]


def test_a_copy_of_a_file_is_the_same_image(tmp_path):
    write_series(tmp_path, STORED)
    shutil.copy(tmp_path / "1-002.dcm", tmp_path / "copy.dcm")
    (one,) = read_dicom(tmp_path).volumes
    assert one.volume.shape == STORED.shape


def test_one_bad_series_leaves_the_other(tmp_path):
    write_series(tmp_path / "good", STORED)
    write_series(tmp_path / "bad", STORED, patient="P2")
    path = tmp_path / "bad/1-001.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    (tmp_path / "none.dcm").write_bytes(b"nothing")
    reading = read_dicom(tmp_path)
    assert len(reading.volumes) == 1 and len(reading.refused) == 2
    reasons = {one.path.name: one.reason for one in reading.refused}
    assert "as many as the header promises" in reasons["1-001.dcm"]
    assert "as its name says" in reasons["none.dcm"]


@pytest.mark.parametrize(
    "name", ["../../evil/{}", "/abs/{}", "..\\{}", "C:\\x\\{}", "{}" + "n" * 200]
)
def test_members_of_a_zip_never_leave_its_folder(tmp_path, name, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    write_series(tmp_path / "series", STORED)
    archive = zipped(tmp_path / "series", tmp_path / "a.zip", name.format)
    before = {path for path in tmp_path.rglob("*") if (tmp_path / "tmp") not in path.parents}
    reading = read_dicom(archive)
    (one,) = reading.volumes
    np.testing.assert_array_equal(one.volume.voxels, read_series(tmp_path / "series").voxels)
    assert all(some[0].path.is_relative_to(tmp_path / "tmp") for some in one.planes)
    after = {path for path in tmp_path.rglob("*") if (tmp_path / "tmp") not in path.parents}
    assert before == after
    assert one.planes[0][0].path.is_file()
    del reading  # nobody holds it any more
    assert not list((tmp_path / "tmp").iterdir())


def test_a_zip_that_becomes_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "UNPACKED_BYTES", 3000)
    write_series(tmp_path / "series", STORED)
    reading = read_dicom(zipped(tmp_path / "series", tmp_path / "a.zip"))
    assert any("3000 bytes unpacked" in one.reason for one in reading.refused)
    monkeypatch.setattr(files, "UNPACKED_FILES", 2)
    (refused,) = read_dicom(tmp_path / "a.zip").refused
    assert "at most 2 files" in refused.reason


def test_a_damaged_zip_is_refused(tmp_path):
    write_series(tmp_path / "series", STORED)
    archive = zipped(tmp_path / "series", tmp_path / "a.zip")
    raw = bytearray(archive.read_bytes())
    raw[200:260] = bytes(60)
    archive.write_bytes(raw)
    assert "readable" in read_dicom(archive).refused[0].reason


def test_dicomdir(tmp_path):
    write_series(tmp_path / "series", STORED, edit=lambda file, d: add_names(file))
    from pydicom.fileset import FileSet

    made = FileSet()
    for path in sorted((tmp_path / "series").iterdir()):
        made.add(path)
    made.write(tmp_path / "disc")
    made._stage["t"].cleanup()  # which pydicom leaves to the garbage collector, with a warning
    (one,) = read_dicom(tmp_path / "disc/DICOMDIR").volumes
    np.testing.assert_array_equal(one.volume.voxels, read_series(tmp_path / "series").voxels)
    some = next(
        path
        for path in (tmp_path / "disc").rglob("*")
        if path.is_file() and path.name != "DICOMDIR"
    )
    some.unlink()
    reasons = [one.reason for one in read_dicom(tmp_path / "disc/DICOMDIR").refused]
    assert any("where the DICOMDIR says" in reason for reason in reasons)


def add_names(file):
    file.PatientName, file.StudyDate, file.StudyTime, file.StudyID = "P", "20260101", "101112", "1"
    file.AccessionNumber, file.SeriesNumber = "1", 1


@pytest.mark.filterwarnings("ignore")  # of pydicom, while it writes what it should not
def test_a_dicomdir_points_at_nothing_outside(tmp_path):
    write_series(tmp_path / "secret", STORED)
    (tmp_path / "disc").mkdir()
    record = pydicom.Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.ReferencedFileID = ["..", "secret", "1-001.dcm"]
    file = pydicom.Dataset()
    file.DirectoryRecordSequence = [record]
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.MediaStorageDirectoryStorage
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.save_as(tmp_path / "disc/DICOMDIR", enforce_file_format=True)
    reading = read_dicom(tmp_path / "disc/DICOMDIR")
    assert not reading.volumes and "within the DICOMDIR's folder" in reading.refused[0].reason


def test_other_places_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for name in ("a.txt", "missing"):
        with pytest.raises(FormatError, match=name):
            read_dicom(tmp_path / name)
    assert read_dicom(tmp_path).volumes == []
