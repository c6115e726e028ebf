"""SUV by body weight, against figures worked out by hand and the standard's words."""

from __future__ import annotations

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from qinjing.data.dicom.read import read_dicom  # noqa: E402
from tests.data.dicom.series import write_series  # noqa: E402

HALF_LIFE_S = 6586.2


def pet(**changes):
    """A scan an hour after 350 MBq for 70 kg, decay corrected to its start."""

    def edit(file, d):
        file.Modality, file.PatientWeight = "PT", 70
        file.SOPClassUID = pydicom.uid.PositronEmissionTomographyImageStorage
        file.Units, file.DecayCorrection = "BQML", "START"
        file.SeriesDate, file.SeriesTime = "20260101", "101112.000"
        file.AcquisitionDate, file.AcquisitionTime = "20260101", "101512.000"
        tracer = pydicom.Dataset()
        tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 350e6, HALF_LIFE_S
        tracer.RadiopharmaceuticalStartTime = "091112.000"
        file.RadiopharmaceuticalInformationSequence = [tracer]
        file.RescaleSlope, file.RescaleIntercept = 2.0, 0
        for name, value in changes.items():
            target = tracer if name.startswith("Radio") else file
            if value is None:
                delattr(target, name)
            else:
                setattr(target, name, value)

    return edit


def read(folder, **changes):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4) * 100
    write_series(folder, stored, edit=pet(**changes))
    reading = read_dicom(folder)
    assert not reading.refused
    return reading.volumes[0], stored


HOUR = 2 ** (-3600 / HALF_LIFE_S)


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, HOUR),
        ({"DecayCorrection": "ADMIN"}, 1.0),
        # Injected half an hour before midnight, scanned half an hour after.
        ({"SeriesTime": "003000", "AcquisitionTime": "003100",
          "RadiopharmaceuticalStartTime": "233000"}, HOUR),
        ({"RadiopharmaceuticalStartDateTime": "20260101081112"}, HOUR**2),
        # A series copied later: the acquisition's time counts.
        ({"SeriesDate": "20270101", "AcquisitionTime": "101112"}, HOUR),
    ],
    ids=["start", "admin", "midnight", "date and time", "later copy"],
)  # fmt: skip
def test_bq_per_ml(tmp_path, changes, left):
    one, stored = read(tmp_path, **changes)
    assert one.units == "SUVbw" and one.modality == "PT"
    expected = stored * 2.0 * 70_000 / (350e6 * left)
    np.testing.assert_allclose(one.volume.voxels, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"PatientWeight": None}, "lacks weight"),
        ({"RadionuclideTotalDose": None}, "lacks weight, dose"),
        ({"DecayCorrection": "NONE"}, "decay"),
        ({"RadiopharmaceuticalStartTime": None}, "when the dose was given"),
        ({"RadiopharmaceuticalStartDateTime": "20260102101112"}, "two days"),
    ],
)
def test_what_cannot_be_computed_stays_bq_per_ml(tmp_path, changes, why):
    one, stored = read(tmp_path, **changes)
    assert one.units == "Bq/ml" and why in one.notes[0]
    np.testing.assert_array_equal(one.volume.voxels, stored * 2.0)


def test_other_units_keep_their_name(tmp_path):
    assert read(tmp_path / "a", Units="GML")[0].units == "SUVbw"
    assert read(tmp_path / "b", Units="CNTS")[0].units == "counts"
