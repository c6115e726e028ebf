"""Structured reports against highdicom's own reading, dciodvfy, and a report of dcmqi's."""

from __future__ import annotations

import zipfile
from datetime import datetime

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")

from qinjing.data.dicom.codes import Code  # noqa: E402
from qinjing.data.dicom.derived import Maker  # noqa: E402
from qinjing.data.dicom.read_sr import read_sr  # noqa: E402
from qinjing.data.dicom.seg import write_seg  # noqa: E402
from qinjing.data.dicom.sr import GREY, PERCENTILES, Finding, percentile, write_sr  # noqa: E402
from qinjing.errors import ConfigError, FormatError  # noqa: E402
from tests.data.dicom.derive import errors_of, plain_volume  # noqa: E402
from tests.data.dicom.series import write_series  # noqa: E402

NAMES = {1: "Left kidney", 2: "liver tumour", 5: "Knoten 肝"}
SHAPE = (4, 6, 5)
FINDINGS = (
    Finding(
        "Left kidney", 1, volume_ml=151.25, volume_bounds_ml=(149.25, 153.75), long_axis_mm=101.5,
        short_axis_mm=55.0, plane=2, diameter_3d_mm=113.2345678, mean=31.5, sd=12.25,
        percentiles={5: 8.0, 50: 32.0, 95: 51.0, 25: 20.0}, units="HU",
    ),
    Finding("liver tumour", 2, tracking_id="lesion 2", tracking_uid="2.25.7", long_axis_mm=22.0,
            mean=4.5, units="SUVbw"),
    Finding("Knoten 肝", volume_ml=0.0, mean=812.0),
)  # fmt: skip


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "s"
    return plain_volume(
        write_series(
            folder, np.zeros(SHAPE, np.int16), edit=lambda f, d: setattr(f, "PatientName", "Ü^B")
        )
    )


@pytest.fixture
def seg(source, tmp_path):
    found = np.random.default_rng(1).choice([0, 1, 2, 5], SHAPE).astype(np.uint8)
    return write_seg(tmp_path / "seg.dcm", source.volume.with_voxels(found), source, NAMES)


def test_as_highdicom_reads_it(source, seg, tmp_path):
    file = write_sr(tmp_path / "sr.dcm", FINDINGS, source, seg=seg)
    assert errors_of(file) == []
    report = highdicom.sr.srread(file)
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 2
    kidney, tumour = groups
    assert kidney.tracking_identifier == "Left kidney"
    assert kidney.tracking_uid == seg.tracking_uids[1]
    assert tumour.tracking_identifier == "lesion 2" and tumour.tracking_uid == "2.25.7"
    assert kidney.finding_type.value == "64033007" and tumour.finding_type.value == "108369006"
    (site,) = kidney.finding_sites
    assert site.value.value == "64033007" and site.laterality.meaning == "Left"
    assert tumour.finding_sites[0].value.meaning == "Liver"
    for group, number in ((kidney, 1), (tumour, 2)):
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == seg.sop_instance_uid
        assert segment.referenced_segment_numbers == [number]
        assert segment.source_series_for_segmentation.value == source.series_instance_uid
    found = [
        (m.name.meaning, m.value, m.unit.value, m.derivation.meaning if m.derivation else "")
        for m in kidney.get_measurements()
    ]
    attenuation, unit = "Attenuation Coefficient", "[hnsf'U]"
    assert found == [
        ("Volume", 151.25, "ml", ""),
        ("Long axis", 101.5, "mm", ""),
        ("Short axis", 55.0, "mm", ""),
        ("Maximum 3D Diameter of a Mesh", 113.234568, "mm", ""),
        (attenuation, 31.5, unit, "Mean"),
        (attenuation, 12.25, unit, "Standard Deviation"),
        (attenuation, 8.0, unit, "5th Percentile Value of population"),
        (attenuation, 20.0, unit, "Percentile 25 of population"),
        (attenuation, 32.0, unit, "Median"),
        (attenuation, 51.0, unit, "95th Percentile Value of population"),
    ]
    axis, uptake = tumour.get_measurements()
    assert axis.method.meaning == "RECIST 1.1"
    assert (uptake.name.meaning, uptake.unit.value) == ("SUVbw", "g/ml{SUVbw}")
    (knot,) = report.content.get_image_measurement_groups()
    assert [m.value for m in knot.get_measurements()] == [0.0, 812.0]


def test_links_patient_and_makers(source, seg, tmp_path):
    maker = Maker("net", "2.0", "Li^Wei", "SEMIAUTOMATIC", seed=1, when=datetime(2026, 1, 2))
    options = {"seg": seg, "maker": maker, "verified_by": "Li^Wei", "organization": "Clinic"}
    files = [write_sr(tmp_path / f"{k}.dcm", FINDINGS, source, **options) for k in range(2)]
    assert errors_of(files[0]) == []
    file = pydicom.dcmread(files[0])
    assert str(file.PatientName) == "Ü^B" and file.StudyInstanceUID == source.study_instance_uid
    assert file.VerificationFlag == "VERIFIED"
    assert str(file.VerifyingObserverSequence[0].VerifyingObserverName) == "Li^Wei"
    again = pydicom.dcmread(files[1])
    assert file.SOPInstanceUID == again.SOPInstanceUID
    (study,) = file.CurrentRequestedProcedureEvidenceSequence
    named = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    images = {one.sop_instance_uid for (one,) in source.planes}
    assert named == images | {seg.sop_instance_uid}
    kidney = highdicom.sr.srread(files[0]).content.get_volumetric_roi_measurement_groups()[0]
    for axis in kidney.get_measurements()[1:3]:
        assert axis.method is None  # an organ is no target lesion
        (image,) = axis.referenced_images
        assert image.referenced_sop_instance_uid == source.planes[2][0].sop_instance_uid
    volume = kidney.get_measurements()[0][0]
    errors = [item.MeasuredValueSequence[0] for item in volume.ContentSequence]
    assert [float(one.NumericValue) for one in errors] == [2.5, 2.0]
    assert {one.MeasurementUnitsCodeSequence[0].CodeValue for one in errors} == {"ml"}
    plain = pydicom.dcmread(write_sr(tmp_path / "plain.dcm", FINDINGS, source))
    assert plain.VerificationFlag == "UNVERIFIED" and plain.SOPInstanceUID != file.SOPInstanceUID


def test_ours_back(source, seg, tmp_path):
    kidney, tumour, knot = read_sr(write_sr(tmp_path / "sr.dcm", FINDINGS, source, seg=seg))
    assert kidney.seg == (seg.sop_instance_uid, 1) and knot.seg is None
    assert kidney.side.meaning == "Left" and tumour.side is None
    assert tumour.site.value == "10200004" and tumour.finding.value == "108369006"
    assert kidney.measured[0].value == 151.25 and kidney.measured[4].how.meaning == "Mean"
    assert knot.tracking_id == "Knoten 肝" and knot.finding.scheme == "99QINJING"


def test_codes_are_the_standards():
    from pydicom.sr._concepts_dict import concepts

    for scheme, value, meaning in [
        (c.scheme, c.value, c.meaning)
        for c in (*PERCENTILES.values(), *(one for pair in GREY.values() for one in pair))
    ]:
        meanings = [found[value][0] for found in concepts[scheme].values() if value in found]
        assert meaning in meanings
    assert percentile(2.5) == Code("P2.5", "99QINJING", "Percentile 2.5 of population")


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        ((), "findings must be at least one"),
        ((Finding("Liver", 9, volume_ml=1.0),), "label of a finding must be one of 1, 2, 5, got 9"),
        ((Finding("Liver", 1, mean=float("nan")),), "Grey value of Liver must be a finite number"),
        ((Finding("Liver", 1, long_axis_mm=1.0, plane=4),), "plane of Liver .* from 0 to 3, got 4"),
        ((Finding("Liver", 1, volume_ml=1.0, volume_bounds_ml=(0.0, float("inf"))),), "bound of"),
    ],
)
def test_refused_in_one_sentence(source, seg, tmp_path, findings, message):
    with pytest.raises(ConfigError, match=message):
        write_sr(tmp_path / "sr.dcm", findings, source, seg=seg)
    assert not (tmp_path / "sr.dcm").exists()


def test_what_is_no_report(source, tmp_path):
    with pytest.raises(FormatError, match="structured report, got CT Image"):
        read_sr(source.planes[0][0].path)


@pytest.mark.data
def test_a_report_of_dcmqi(data_root, tmp_path):
    """Values as `dcsrdump` of dicom3tools prints them."""
    archive = data_root / "dicom" / "dicom_seg_pm_sr_rwv.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive.name} in the real data")
    with zipfile.ZipFile(archive) as opened:
        (name,) = [one for one in opened.namelist() if one.endswith("sr-example/sr.dcm")]
        opened.extract(name, tmp_path)
    tumour = read_sr(tmp_path / name)[0]
    assert tumour.tracking_id == "primary tumor" and tumour.finding.value == "M-80003"
    assert tumour.seg == ("1.2.276.0.7230010.3.1.4.8323329.18591.1440001312.777033", 1)
    assert [(one.name.meaning, one.value, one.unit.value) for one in tumour.measured][:5] == [
        ("SUVbw", 6.01529, "{SUVbw}g/ml"), ("SUVbw", 2.91136, "{SUVbw}g/ml"),
        ("SUVbw", 10.3814, "{SUVbw}g/ml"), ("SUVbw", 9.45534, "{SUVbw}g/ml"),
        ("Volume", 33.5824, "ml"),
    ]  # fmt: skip
