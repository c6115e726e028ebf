"""The listing of a place, and its volumes as NIfTI that another program reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")
SimpleITK = pytest.importorskip("SimpleITK")

from qinjing.config import read_json  # noqa: E402
from qinjing.data.dicom.convert import convert  # noqa: E402
from tests.data.dicom.series import uid, write_series  # noqa: E402

OBLIQUE = ((0.8, 0.48, 0.36), (-0.6, 0.64, 0.48))


def test_each_series_is_written_as_simpleitk_reads_it_and_the_rest_is_named(tmp_path: Path) -> None:
    place = tmp_path / "place"
    stored = np.random.default_rng(0).integers(-1000, 1000, (5, 7, 9)).astype(np.int16)
    write_series(place / "a", stored, directions=OBLIQUE)
    write_series(place / "b", stored[:, :4], patient="P2", edit=lambda _, d: d != 2)
    (place / "notes.txt").write_text("no DICOM")
    found = convert(place, tmp_path / "out")
    whole, gap = sorted(found["series"], key=lambda one: -len(one["volumes"]))
    assert whole["series"] == uid("P1", "series") and gap["volumes"] == []
    (refused,) = found["refused"]
    assert refused["series"] == uid("P2", "series") and "slice" in refused["reason"]
    (volume,) = whole["volumes"]
    assert volume["shape"] == [5, 7, 9] and volume["units"] == "HU"
    assert volume["spacing_mm"] == pytest.approx([2.0, 0.75, 0.5])
    written = SimpleITK.ReadImage(str(tmp_path / "out" / volume["file"]))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(place / "a")))
    expected = reader.Execute()
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(written), SimpleITK.GetArrayFromImage(expected)
    )
    for name in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(written, name)() == pytest.approx(getattr(expected, name)(), abs=1e-5)
    about = read_json(tmp_path / "out" / volume["file"].replace(".nii.gz", ".json"))
    assert about["series"] == whole["series"] and len(about["sources"]) == 5


def test_without_an_output_nothing_is_written(tmp_path: Path) -> None:
    write_series(tmp_path / "a", np.zeros((3, 4, 4), np.int16))
    before = sorted(tmp_path.rglob("*"))
    (series,) = convert(tmp_path)["series"]
    assert series["volumes"][0]["file"] is None
    assert sorted(tmp_path.rglob("*")) == before
