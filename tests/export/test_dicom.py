"""From a label map and a folder of DICOM to objects in its study, by hand and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")

from tests.data.dicom.derive import errors_of  # noqa: E402
from tests.data.dicom.series import uid, write_series  # noqa: E402

from qinjing import cli  # noqa: E402
from qinjing.config import write_json  # noqa: E402
from qinjing.data.dicom.read import read_dicom  # noqa: E402
from qinjing.data.dicom.read_seg import read_seg  # noqa: E402
from qinjing.data.dicom.read_sr import read_sr  # noqa: E402
from qinjing.data.dicom.rtstruct import read_rtstruct  # noqa: E402
from qinjing.data.nifti import write_nifti  # noqa: E402
from qinjing.errors import (  # noqa: E402
    ConfigError,
    GeometryError,
    InputError,
    LabelError,
)
from qinjing.export.dicom import maker_of, place, write_objects  # noqa: E402
from qinjing.volume import Volume  # noqa: E402

OBLIQUE = ((0.8, 0.48, 0.36), (-0.6, 0.64, 0.48))
SHAPE = (5, 12, 10)


def labels() -> np.ndarray:
    """An organ in two pieces, and two lesions of 27 and 8 voxels."""
    found = np.zeros(SHAPE, np.uint8)
    found[:, 0, :], found[:, 11, :4] = 1, 1
    found[1:4, 3:6, 2:5], found[2:4, 8:10, 7:9] = 2, 2
    return found


@pytest.fixture
def series(tmp_path) -> Path:
    stored = np.full(SHAPE, 1024, np.int16)  # 0 HU
    stored[labels() == 2] += 40
    return write_series(
        tmp_path / "series", stored, directions=OBLIQUE, spacing=(2.0, 1.0, 1.0),
        edit=lambda file, d: setattr(file, "PatientName", "A^B"),
    )  # fmt: skip


@pytest.fixture
def mine(series, tmp_path):
    """The label map as another program stores it: rows the other way, floats."""
    grid = read_dicom(series).volumes[0].volume
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, 1] * (SHAPE[1] - 1)
    affine[:3, 1] *= -1
    file = tmp_path / "mine.nii.gz"
    write_nifti(file, Volume(np.ascontiguousarray(labels()[:, ::-1]).astype(np.float32), affine))
    return file


@pytest.fixture
def named(tmp_path) -> Path:
    file = tmp_path / "labels.json"
    write_json(file, {"0": "background", "1": "Liver", "2": "liver tumour"})
    return file


def test_axes_that_run_the_other_way(series, mine, named, tmp_path):
    placed = place(mine, series, named)
    np.testing.assert_array_equal(placed.segmentation.voxels, labels())
    made = write_objects(placed, tmp_path / "out")
    assert set(made) == {"seg", "rtstruct"}
    for file in made.values():
        assert errors_of(file) == []
    seg = read_seg(made["seg"])
    np.testing.assert_array_equal(seg.labels(placed.source).voxels, labels())
    assert [one.name for one in seg.segments] == ["Liver", "liver tumour"]
    tumour = read_rtstruct(made["rtstruct"]).mask(2, placed.source)
    np.testing.assert_array_equal(tumour.voxels, labels() == 2)
    numbers = [pydicom.dcmread(file).SeriesNumber for file in made.values()]
    assert len(set(numbers)) == 2


def test_the_command(series, mine, named, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(tmp_path / "key.pem"))
    out = tmp_path / "out"
    words = ["export", "dicom", "-i", str(mine), "--source", str(series), "-o", str(out)]
    words += ["--labels", str(named), "--as", "seg", "rtstruct", "sr", "--json"]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["files"]) == ["seg", "rtstruct", "sr"]
    assert result["labels"] == {"1": "Liver", "2": "liver tumour 1", "3": "liver tumour 2"}
    for file in out.glob("*.dcm"):
        assert errors_of(file) == []
    seg = read_seg(out / "seg.dcm")
    assert [one.term.what.meaning for one in seg.segments] == ["Liver", "Neoplasm", "Neoplasm"]
    liver, large, small = read_sr(out / "sr.dcm")
    for group, number, voxels in ((liver, 1, 70), (large, 2, 27), (small, 3, 8)):
        assert group.seg == (seg.sop_instance_uid, number)
        assert group.tracking_uid == seg.segments[number - 1].tracking_uid
        assert np.count_nonzero(seg.mask(number).voxels) == voxels
        volume = group.measured[0]
        assert (volume.name.meaning, volume.unit.value) == ("Volume", "ml")
        assert volume.value == pytest.approx(voxels * 2.0 / 1000)
    assert large.site.meaning == "Liver" and large.tracking_id == "liver tumour 1"
    told = {(one.name.meaning, one.how and one.how.meaning): one for one in large.measured}
    assert told["Attenuation Coefficient", "Mean"].value == 40.0
    assert told["Attenuation Coefficient", "Mean"].unit.value == "[hnsf'U]"
    # Three voxels of 1 mm from border to border, and the cube of 3, 3 and 6 mm.
    assert 3.0 <= told["Long axis", None].value <= np.sqrt(18) + 1e-6
    assert told["Maximum 3D Diameter of a Mesh", None].value > told["Long axis", None].value
    assert "Long axis" not in [one.name.meaning for one in liver.measured]
    patients = {str(pydicom.dcmread(file).PatientName) for file in out.glob("*.dcm")}
    assert patients == {"A^B"}
    assert cli.main(["verify", str(out)]) == 0
    assert "A^B" not in (out / "evidence.jsonl").read_text()


def test_fractions(series, tmp_path, named):
    grid = read_dicom(series).volumes[0].volume
    chances = np.random.default_rng(0).random((2, *SHAPE)).astype(np.float32)
    write_nifti(tmp_path / "p.nii.gz", grid.with_voxels(chances))
    placed = place(tmp_path / "p.nii.gz", series, named)
    made = write_objects(placed, tmp_path / "out", ["seg"], how="fractional")
    back = read_seg(made["seg"]).mask(2, placed.source).voxels
    np.testing.assert_allclose(back, chances[1], atol=0.5 / 255 + 1e-6)


def test_which_series(series, mine, tmp_path):
    """Of several the one whose grid it is; of two on one grid the user says which."""
    both = tmp_path / "both"
    both.mkdir()
    for file in series.iterdir():
        one = pydicom.dcmread(file)
        one.save_as(both / f"a-{file.name}")
        one.SeriesInstanceUID, one.SOPInstanceUID = "1.2.3", uid(one.SOPInstanceUID)
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.save_as(both / f"b-{file.name}")
    for file in write_series(tmp_path / "o", np.zeros((4, 6, 6), np.int16), patient="P1").iterdir():
        one = pydicom.dcmread(file)
        one.SeriesInstanceUID = "1.2.4"
        one.save_as(both / f"c-{file.name}")
    with pytest.raises(ConfigError, match=r"several lie on one grid.*--series"):
        place(mine, both)
    assert place(mine, both, series="1.2.3").source.series_instance_uid == "1.2.3"
    with pytest.raises(GeometryError, match="on the grid of a series of its source"):
        place(mine, both, series="1.2.4")
    with pytest.raises(ConfigError, match="no such series"):
        place(mine, both, series="1.2.9")


def test_names_without_a_file(series, mine, tmp_path):
    assert place(mine, series).names == {1: "label 1", 2: "label 2"}
    run = tmp_path / "run"
    (run / "fold_0").mkdir(parents=True)
    write_json(run / "dataset.json", {"name": "Livers", "labels": {"1": "Liver", "2": "lesion"}})
    write_json(run / "fold_0" / "model.json", {"net": "unet", "options": {}})
    (run / "fold_0" / "weights.safetensors").write_bytes(b"weights")
    assert place(mine, series, model=run).names == {1: "Liver", 2: "lesion"}
    makers = [maker_of(folder, "Li^Wei") for folder in (run, run / "fold_0")]
    assert {maker.algorithm for maker in makers} == {"Qinjing Livers unet"}
    assert makers[0].version.startswith("sha256:") and makers[0].creator == "Li^Wei"
    (run / "fold_0" / "weights.safetensors").write_bytes(b"others")
    assert maker_of(run).version != makers[0].version
    with pytest.raises(ConfigError, match="finished fold"):
        maker_of(tmp_path)


def bad(kind):
    """A label map that cannot be used."""

    def write(grid, folder):
        voxels = labels()
        if kind == "halves":
            voxels = voxels + np.float32(0.5)
        if kind == "empty":
            voxels = voxels * 0
        if kind == "moved":
            grid = Volume(grid.voxels, grid.affine + np.eye(4)[:, [0]] * np.eye(4)[[3]] * 5)
        write_nifti(folder / "bad.nii.gz", grid.with_voxels(voxels))
        return folder / "bad.nii.gz"

    return write


@pytest.mark.parametrize(
    ("write", "kind", "message"),
    [
        (bad("halves"), LabelError, "whole numbers"),
        (bad("empty"), LabelError, "background alone"),
        (bad("moved"), GeometryError, "a corner by 5 mm"),
    ],
    ids=["halves", "empty", "moved"],
)
def test_refused_in_one_sentence(series, tmp_path, write, kind, message, capsys, monkeypatch):
    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(tmp_path / "key.pem"))
    grid = read_dicom(series).volumes[0].volume
    file = write(grid, tmp_path)
    with pytest.raises(kind, match=message):
        place(file, series)
    out = tmp_path / "out"
    words = ["export", "dicom", "-i", str(file), "--source", str(series), "-o", str(out)]
    assert cli.main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not list(out.glob("*.dcm"))


def test_a_source_that_is_none(mine, tmp_path, series):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        place(mine, tmp_path / "empty")
    placed = place(mine, series)
    with pytest.raises(ConfigError, match="findings must be given"):
        write_objects(placed, tmp_path / "out", ["sr"])
    with pytest.raises(ConfigError, match="one of seg, rtstruct, sr"):
        write_objects(placed, tmp_path / "out", ["mesh"])


def test_export_alone_still_asks_for_its_model(tmp_path, capsys):
    assert cli.main(["export", "-o", str(tmp_path / "bundle")]) == 2
    assert "missing: -m/--model; see `qinjing export --help`" in capsys.readouterr().err
    assert cli.main(["export", "dicom", "-o", str(tmp_path / "out")]) == 2
    assert "missing: -i/--input, --source" in capsys.readouterr().err
