"""Measurements as a structured report (TID 1500), tied to the images and to their segments.

Source: DICOM PS3.16, TID 1500 (measurement report), TID 1411 (volumetric ROI), TID 300; IBSI
(arXiv:1612.07003) for the largest diameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qinjing.data.dicom.codes import ABNORMAL, PRIVATE, Code, Term, find_term
from qinjing.data.dicom.derived import (
    MANUFACTURER,
    Maker,
    finish,
    instances,
    needs,
    patient_and_study,
    quiet,
    save,
    software,
    uids,
)
from qinjing.data.dicom.seg import WrittenSeg
from qinjing.data.dicom.series import DicomVolume
from qinjing.errors import ConfigError

VOLUME = Code("118565006", "SCT", "Volume")
LONG_AXIS = Code("103339001", "SCT", "Long axis")
SHORT_AXIS = Code("103340004", "SCT", "Short axis")
DIAMETER_3D = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
MEAN = Code("373098007", "SCT", "Mean")
DEVIATION = Code("386136009", "SCT", "Standard Deviation")
PERCENTILES = {
    5.0: Code("371888009", "SCT", "5th Percentile Value of population"),
    10.0: Code("371890005", "SCT", "10th Percentile Value of population"),
    50.0: Code("373099004", "SCT", "Median"),
    90.0: Code("371887004", "SCT", "90th Percentile Value of population"),
    95.0: Code("371889001", "SCT", "95th Percentile Value of population"),
}
RECIST = Code("126081", "DCM", "RECIST 1.1")
ML, MM = Code("ml", "UCUM", "ml"), Code("mm", "UCUM", "mm")
# What grey values are and in what unit, by what the volume says of its own.
GREY = {
    "HU": (Code("112031", "DCM", "Attenuation Coefficient"),
           Code("[hnsf'U]", "UCUM", "Hounsfield unit")),
    "SUVbw": (Code("126401", "DCM", "SUVbw"),
              Code("g/ml{SUVbw}", "UCUM", "Standardized Uptake Value body weight")),
}  # fmt: skip
SIGNAL = Code("110852", "DCM", "MR signal intensity")
STORED = Code("GREY", PRIVATE, "Grey value")
UNITLESS = Code("1", "UCUM", "no units")
PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
}
ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")


@dataclass(frozen=True)
class Finding:
    """One organ or lesion with what was measured of it; None is what was not measured.

    Attributes:
        label: its name, which is coded as in the segmentation.
        value: label value in the segmentation, whose segment it is; None without one.
        tracking_id: what a person calls it, the same at each date ("lesion 2"); else the label.
        tracking_uid: the same at each date; else that of its segment, or a new one.
        volume_ml: millilitres.
        volume_bounds_ml: least and most that the volume may be, millilitres.
        long_axis_mm: longest diameter in an axial plane.
        short_axis_mm: longest at a right angle to it, in that plane.
        plane: index d of that plane in the volume.
        diameter_3d_mm: longest between any two points of its surface.
        mean: of grey values.
        sd: their standard deviation.
        percentiles: from 0 to 100 → grey value.
        units: of grey values, as `DicomVolume.units`: "HU", "SUVbw", or another.
    """

    label: str
    value: int | None = None
    tracking_id: str = ""
    tracking_uid: str = ""
    volume_ml: float | None = None
    volume_bounds_ml: tuple[float, float] | None = None
    long_axis_mm: float | None = None
    short_axis_mm: float | None = None
    plane: int | None = None
    diameter_3d_mm: float | None = None
    mean: float | None = None
    sd: float | None = None
    percentiles: Mapping[float, float] = field(default_factory=dict)
    units: str = ""


def write_sr(
    path: str | Path,
    findings: Sequence[Finding],
    source: DicomVolume,
    *,
    seg: WrittenSeg | None = None,
    terms: Mapping[str, Term] | None = None,
    maker: Maker | None = None,
    verified_by: str = "",
    organization: str = "",
) -> Path:
    """Write measurements as a Comprehensive SR after TID 1500, in the series' patient and study.

    Args:
        path: the file to write.
        findings: what was measured, at least one.
        source: the series that it was measured in.
        seg: the segmentation whose segments were measured.
        terms: codes of labels that `codes.find_term` shall not look up.
        maker: who makes it.
        verified_by: the person who answers for the content, "family^given"; without one the report
            is marked as unverified.
        organization: that person's; the scan's institution where "".

    Raises:
        ConfigError: highdicom is not installed, nothing was measured, a number is not finite, or
            a finding names a label that has no segment.
        FormatError: the source's files cannot be read any more.
    """
    maker = maker or Maker()
    if not findings:
        raise ConfigError("findings", "at least one", "none")
    try:
        from highdicom.sr import MeasurementReport
    except ModuleNotFoundError as error:
        raise needs(error.name or "highdicom") from None
    draw = uids(maker, source, "SR")
    with quiet():
        groups = [
            _group(k, one, source, seg, terms or {}, maker, draw) for k, one in enumerate(findings)
        ]
        report = MeasurementReport(
            observation_context=_observers(maker, draw),
            procedure_reported=_concept(PROCEDURES.get(source.modality, ANY_PROCEDURE)),
            imaging_measurements=groups,
        )
        file = _document(report, _evidence(source, seg), maker, draw, verified_by, organization)
    finish(file, maker, draw)
    return save(file, path)


def _institution(evidence: list[Any]) -> str:
    """Where the scan was made; the attribute must not be empty beside a person's name."""
    return str(evidence[0].get("InstitutionName", "") or "not stated")


def _document(
    report: Any, evidence: list[Any], maker: Maker, draw: Any, verified_by: str, organization: str
) -> Any:
    """The file around a report."""
    from highdicom.sr import ComprehensiveSR

    return ComprehensiveSR(
        evidence=evidence,
        content=report,
        series_instance_uid=draw("series"),
        series_number=maker.series_number,
        sop_instance_uid=draw("instance"),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=software(),
        device_serial_number=software(),
        series_description=f"Measurements ({maker.algorithm})"[:64],
        is_complete=True,
        is_verified=bool(verified_by),
        verifying_observer_name=verified_by or None,
        verifying_organization=(organization or _institution(evidence)) if verified_by else None,
    )


def _observers(maker: Maker, draw: Any) -> Any:
    """The person, if one made it, and always the program."""
    from highdicom.sr import (
        DeviceObserverIdentifyingAttributes,
        ObservationContext,
        ObserverContext,
        PersonObserverIdentifyingAttributes,
    )
    from pydicom.sr.codedict import codes

    person = None
    if maker.method != "AUTOMATIC":
        attributes = PersonObserverIdentifyingAttributes(name=maker.creator)
        person = ObserverContext(codes.DCM.Person, attributes)
    device = DeviceObserverIdentifyingAttributes(
        uid=draw("device"),
        name=maker.algorithm[:64],
        manufacturer_name=MANUFACTURER,
        model_name=maker.algorithm[:64],
        serial_number=software(),
    )
    return ObservationContext(
        observer_person_context=person,
        observer_device_context=ObserverContext(codes.DCM.Device, device),
    )


def _group(
    k: int,
    finding: Finding,
    source: DicomVolume,
    seg: WrittenSeg | None,
    terms: Mapping[str, Term],
    maker: Maker,
    draw: Any,
) -> Any:
    """One finding as a measurement group."""
    from highdicom.sr import (
        AlgorithmIdentification,
        FindingSite,
        MeasurementsAndQualitativeEvaluations,
        ReferencedSegment,
        SourceSeriesForSegmentation,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

    term = terms.get(finding.label) or find_term(finding.label)
    segment = None
    if seg is not None and finding.value is not None:
        if finding.value not in seg.segments:
            values = ", ".join(map(str, seg.segments))
            raise ConfigError("label of a finding", f"one of {values}", finding.value)
        segment = ReferencedSegment(
            sop_class_uid=seg.sop_class_uid,
            sop_instance_uid=seg.sop_instance_uid,
            segment_number=seg.segments[finding.value],
            source_series=SourceSeriesForSegmentation(source.series_instance_uid),
        )
    tracked = seg.tracking_uids.get(finding.value or 0) if seg else None
    shared = {
        "tracking_identifier": TrackingIdentifier(
            finding.tracking_uid or tracked or draw("tracking", k),
            (finding.tracking_id or finding.label)[:64],
        ),
        "finding_type": _concept(term.what),
        "finding_category": _concept(term.category),
        "finding_sites": [
            FindingSite(
                _concept(term.site or term.what),
                laterality=_concept(term.side),
                topographical_modifier=_concept(term.part),
            )
        ],
        "measurements": list(_measurements(finding, source, term)),
    }
    if segment is None:
        return MeasurementsAndQualitativeEvaluations(**shared)
    algorithm = AlgorithmIdentification(maker.algorithm, maker.version, manufacturer=MANUFACTURER)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        referenced_segment=segment, algorithm_id=algorithm, **shared
    )


def _measurements(finding: Finding, source: DicomVolume, term: Term) -> Iterator[Any]:
    """What was measured, each in its unit and with how it was derived."""
    from highdicom.sr import Measurement, MeasurementProperties, SourceImageForMeasurement

    grey, unit = GREY.get(finding.units, (SIGNAL if source.modality == "MR" else STORED, UNITLESS))
    if finding.units and finding.units not in GREY:
        unit = Code(finding.units[:16], "UCUM", finding.units[:64])
    images = None
    if finding.plane is not None:
        if not 0 <= finding.plane < len(source.planes):
            rule = f"a slice from 0 to {len(source.planes) - 1}"
            raise ConfigError(f"plane of {finding.label}", rule, finding.plane)
        images = [
            SourceImageForMeasurement(one.sop_class_uid, one.sop_instance_uid,
                                      [one.frame] if one.frame else None)
            for one in source.planes[finding.plane]
        ]  # fmt: skip
    axes = {"method": RECIST if term.category == ABNORMAL else None, "referenced_images": images}
    rows: list[tuple[Code, float | None, Code, dict[str, Any]]] = [
        (VOLUME, finding.volume_ml, ML, {}),
        (LONG_AXIS, finding.long_axis_mm, MM, axes),
        (SHORT_AXIS, finding.short_axis_mm, MM, axes),
        (DIAMETER_3D, finding.diameter_3d_mm, MM, {}),
        (grey, finding.mean, unit, {"derivation": MEAN}),
        (grey, finding.sd, unit, {"derivation": DEVIATION}),
    ]
    if finding.volume_bounds_ml is not None and finding.volume_ml is not None:
        low, high = finding.volume_bounds_ml
        for bound in (low, high):
            _check(finding, "bound of the volume", bound)
        rows[0][3]["properties"] = MeasurementProperties(
            upper_measurement_uncertainty=round(float(high - finding.volume_ml), 6),
            lower_measurement_uncertainty=round(float(finding.volume_ml - low), 6),
        )
    for part, at in sorted(finding.percentiles.items()):
        rows.append((grey, at, unit, {"derivation": percentile(part)}))
    for name, value, of, more in rows:
        if value is not None:
            _check(finding, name.meaning, value)
            options = {k: _concept(v) if isinstance(v, Code) else v for k, v in more.items()}
            made = Measurement(_concept(name), round(float(value), 6), _concept(of), **options)
            for item in made[0].get("ContentSequence") or ():
                if item.RelationshipType == "HAS PROPERTIES":  # highdicom states no unit of errors
                    item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [_concept(of)]
            yield made


def _check(finding: Finding, name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{name} of {finding.label}", "a finite number", value)


def percentile(part: float) -> Code:
    """Return the code of a percentile, a private one where the standard has none."""
    known = PERCENTILES.get(float(part))
    return known or Code(f"P{part:g}"[:16], PRIVATE, f"Percentile {part:g} of population")


def _evidence(source: DicomVolume, seg: WrittenSeg | None) -> list[Any]:
    """What the report rests on: each image, and the segmentation."""
    from pydicom import Dataset

    shared = patient_and_study(source)
    found = []
    for one in instances(source):
        item = Dataset()
        item.update(shared)
        item.SeriesInstanceUID = source.series_instance_uid
        item.SOPClassUID, item.SOPInstanceUID = one.sop_class_uid, one.sop_instance_uid
        found.append(item)
    if seg is not None:
        item = Dataset()
        item.update(shared)
        item.SeriesInstanceUID = seg.series_instance_uid
        item.SOPClassUID, item.SOPInstanceUID = seg.sop_class_uid, seg.sop_instance_uid
        found.append(item)
    return found


def _concept(code: Code | None) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning) if code else None
