"""Canaries in every element of the dictionary, dicognito's judgement, and real files."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from qinjing.errors import ConfigError, FormatError

pydicom = pytest.importorskip("pydicom")

from pydicom.datadict import DicomDictionary, keyword_for_tag  # noqa: E402
from pydicom.dataelem import DataElement  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402

from qinjing.data.dicom.confidentiality import OPTIONS, clean_words, table  # noqa: E402
from qinjing.data.dicom.deidentify import deidentify, moved, pseudonym  # noqa: E402
from qinjing.data.dicom.deidentify_files import deidentify_files, read_secret  # noqa: E402
from tests.data.dicom.series import CT, write_series  # noqa: E402

SECRET = b"sixteen bytes at least"
ALL = tuple(OPTIONS)
TEXT = ("PN", "LO", "SH", "LT", "ST", "UT", "UC", "UR", "AE")
NEVER_PLANTED = {0x00080005, 0x00080016, 0x00080018}
# What is read and judged by eye: every attribute of text that stays.
KEPT = set(Path(__file__).with_name("kept_attributes.txt").read_text(encoding="utf-8").split())


def canary(tag: int, vr: str) -> str:
    if vr == "UI":
        return f"1.3.6.1.4.1.77777.{tag}.1"
    if vr == "DA":
        return f"{1900 + tag % 99}{1 + tag % 12:02d}{1 + tag % 28:02d}"
    if vr == "DT":
        return f"{canary(tag, 'DA')}{tag % 24:02d}1537.{tag % 9973:06d}"
    if vr == "TM":
        return f"{tag % 24:02d}{tag % 60:02d}{tag // 60 % 60:02d}.{tag % 999983:06d}"
    return f"CANARY{tag:08X}"


def planted(vrs: tuple[str, ...], level: Dataset) -> dict[int, str]:
    """Plant a canary in every element of those representations; tag → canary."""
    found = {}
    for tag, (kinds, *_) in DicomDictionary.items():
        vr = next((kind for kind in kinds.split(" or ") if kind in vrs), None)
        if vr is None or tag >> 16 in (0, 2) or tag in NEVER_PLANTED:
            continue
        found[tag] = canary(tag, vr)
        level.add(DataElement(tag, vr, found[tag]))
    return found


def with_canaries(vrs: tuple[str, ...]) -> tuple[Dataset, dict[int, str]]:
    """At the top, in a sequence that stays, two below it, and in a private group."""
    top, inner, deep = Dataset(), Dataset(), Dataset()
    canaries = planted(vrs, top)
    planted(vrs, inner)
    planted(vrs, deep)
    inner.ReferencedImageSequence = [deep]
    top.SharedFunctionalGroupsSequence = [inner]
    top.add(DataElement(0x00091010, "LO", "CANARYPRIVATE"))
    top.private_block(0x0011, "ACME", create=True).add_new(1, "PN", "CANARYNAMED")
    inner.private_block(0x0013, "ACME", create=True).add_new(1, "UN", b"CANARYUNKNOWN!")
    top.add(DataElement(0x60003000, "OW", b"CANARYOVERLAY!"))
    top.add(DataElement(0x60020022, "LO", "CANARYOVERLAYTEXT"))
    top.add(DataElement(0x50003000, "OW", b"CANARYCURVES"))
    top.add(DataElement(0x00097777, "UN", b"CANARYNOBODYKNOWS!"))
    top.SOPClassUID, top.SOPInstanceUID = CT, "1.3.6.1.4.1.77777.1"
    top.file_meta = FileMetaDataset()
    top.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    top.file_meta.SourceApplicationEntityTitle = "CANARYMETA"
    top.preamble = b"CANARYPREAMBLE".ljust(128)
    return top, canaries


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _quiet():
    """Canaries are too long for some representations; pydicom warns of them."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    yield
    pydicom.config.settings.reading_validation_mode = pydicom.config.WARN
    pydicom.config.settings.writing_validation_mode = None


def survivors(content: bytes, canaries: dict[int, str]) -> set[str]:
    return {
        keyword_for_tag(tag) or f"{tag:08x}"
        for tag, word in canaries.items()
        if word.encode() in content
    }


def test_no_text_survives_but_what_was_judged():
    dataset, canaries = with_canaries(TEXT)
    before = written(dataset)
    assert survivors(before, canaries) == {keyword_for_tag(t) or f"{t:08x}" for t in canaries}
    assert len(canaries) > 700
    content = written(deidentify(dataset, (), SECRET)[0])
    assert survivors(content, canaries) == KEPT
    for word in (b"CANARYPR", b"CANARYNAMED", b"CANARYUNK", b"CANARYOVER", b"CANARYCUR",
                 b"CANARYNOB", b"CANARYMETA"):  # fmt: skip
        assert word in before and word not in content
    assert written(dataset) == before  # the original is left as it was


@pytest.mark.parametrize("vr", ["DA", "DT", "TM", "UI"])
def test_no_moment_and_no_uid_survives(vr):
    dataset, canaries = with_canaries((vr,))
    content = written(deidentify(dataset, (), SECRET)[0])
    assert len(canaries) > 50 and survivors(content, canaries) == set()


def test_options_keep_only_what_they_name():
    dataset = Dataset()
    canaries = planted(("PN", "LO", "SH", "AE", "UI", "DA", "AS"), dataset)
    nested, _ = with_canaries(("PN",))
    dataset.update(nested)
    dataset.file_meta = nested.file_meta
    basic = survivors(written(deidentify(dataset, (), SECRET)[0]), canaries)
    for option in ALL:
        kept = survivors(written(deidentify(dataset, (option,), SECRET)[0]), canaries) - basic
        named = {
            keyword_for_tag(tag) for tag, (_, cells) in table().items() if cells.get(option) == "K"
        }
        if option == "uids":
            assert {"StudyInstanceUID", "FrameOfReferenceUID"} <= kept
        elif option == "device":
            assert {"DeviceSerialNumber", "StationName"} <= kept <= named
        elif option == "patient":
            assert {"PatientAge", "EthnicGroup"} <= kept <= named
        else:
            assert kept == set(), option  # dates are moved, descriptions cleaned
    strongest = written(deidentify(dataset, ALL, SECRET)[0])
    gone = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "InstitutionName",
            "StudyDescription", "StudyDate", "ReferringPhysicianName", "OperatorsName")  # fmt: skip
    assert not survivors(strongest, canaries) & set(gone)
    assert b"CANARYNAMED" not in strongest and b"CANARYUNK" not in strongest


@pytest.mark.filterwarnings("ignore")  # it looks for times by keywords that the standard has not
def test_what_dicognito_takes_away_goes_here_too():
    anonymizer = pytest.importorskip("dicognito.anonymizer")
    dataset, canaries = with_canaries((*TEXT, "UI", "DA"))
    ours = survivors(written(deidentify(dataset, (), SECRET)[0]), canaries)
    plain = Dataset()  # as it meets them: the nested copies are the same elements
    planted((*TEXT, "UI", "DA"), plain)
    plain.SOPClassUID, plain.SOPInstanceUID, plain.file_meta = CT, "1.2.3", dataset.file_meta
    for keyword in ("PatientSex", "Modality"):
        setattr(plain, keyword, "")
    for tag in list(plain.keys()):  # it parses ages, sizes and dates strictly
        if tag.group in (0x0018, 0x3010, 0x300A, 0x4010, 0x0014):
            del plain[tag]
    here = {tag: word for tag, word in canaries.items() if tag in plain}
    anonymizer.Anonymizer(seed="1").anonymize(plain)
    theirs = survivors(written(plain), here)
    taken = survivors(" ".join(here.values()).encode(), here) - theirs
    assert len(taken) > 60 and not taken & ours


def slices(folder: Path, **fields) -> Path:
    """Three slices of a scan of 2021 with a patient, a station and a reference to the first."""

    def edit(file, d):
        file.PatientName, file.PatientBirthDate, file.PatientSex = "Doe^Jane", "19510203", "F"
        file.StudyDate, file.AcquisitionDate = "20210304", f"2021030{4 + d}"
        file.StudyTime, file.AcquisitionDateTime = "101112", f"2021030{4 + d}101112.5+0100"
        file.StudyDescription = "CT chest Doe 1951 with contrast 3mm"
        file.AccessionNumber, file.StudyID, file.ReferringPhysicianName = "A1", "S1", "Poe^Dr"
        reference = Dataset()
        reference.ReferencedSOPClassUID = file.SOPClassUID
        reference.ReferencedSOPInstanceUID = str(first[0]) if d else file.SOPInstanceUID
        first.append(file.SOPInstanceUID)
        file.ReferencedImageSequence = [reference]
        block = file.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "IS", "1000")
        block.add_new(0x0F, "SH", "PRIVATE")
        for name, value in fields.items():
            setattr(file, name, value)

    first: list[str] = []
    return write_series(folder, np.arange(72, dtype=np.int16).reshape(3, 4, 6), edit=edit)


def read(folder: Path) -> list[Dataset]:
    found = [pydicom.dcmread(file) for file in sorted(folder.rglob("*.dcm"))]
    return sorted(found, key=lambda file: float(file.ImagePositionPatient[2]))


def test_files_fit_together_under_one_secret(tmp_path):
    place = slices(tmp_path / "Doe_Jane")
    done = deidentify_files(place, tmp_path / "out", secret=SECRET)
    assert done.written == 3 and not done.refused and done.patients == {pseudonym("P1", SECRET)}
    again, other = tmp_path / "again", tmp_path / "other"
    deidentify_files(place, again, secret=SECRET)
    deidentify_files(place, other, secret=SECRET + b"!")
    a, b, c = read(tmp_path / "out"), read(again), read(other)
    assert [f.SOPInstanceUID for f in a] == [f.SOPInstanceUID for f in b]
    assert a[0].PatientID == a[0].PatientName == pseudonym("P1", SECRET) != c[0].PatientID
    assert not {f.SOPInstanceUID for f in a} & {f.SOPInstanceUID for f in c}
    assert len({f.StudyInstanceUID for f in a}) == 1 and len({f.SOPInstanceUID for f in a}) == 3
    for file in a:
        assert file.ReferencedImageSequence[0].ReferencedSOPInstanceUID == a[0].SOPInstanceUID
        assert re.fullmatch(r"2\.25\.[1-9]\d{1,38}", file.SOPInstanceUID)
        assert file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID
        assert file.PatientIdentityRemoved == "YES"
        codes = [code.CodeValue for code in file.DeidentificationMethodCodeSequence]
        assert codes == ["113100"] and file.LongitudinalTemporalInformationModified == "REMOVED"
        assert (0x0019, 0x0010) not in file and file.preamble == bytes(128)
    originals = [pydicom.dcmread(file) for file in place.glob("*.dcm")]
    originals.sort(key=lambda file: float(file.ImagePositionPatient[2]))
    for file, before in zip(a, originals, strict=True):
        np.testing.assert_array_equal(file.pixel_array, before.pixel_array)
        for name in ("ImagePositionPatient", "PixelSpacing", "RescaleIntercept", "Modality"):
            assert file[name].value == before[name].value
    assert not any(
        "Doe" in str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*")
    )


def test_dates_move_by_whole_days_the_same_for_a_patient(tmp_path):
    place = slices(tmp_path / "in")
    deidentify_files(place, tmp_path / "out", ("dates", "patient", "private"), secret=SECRET)
    files = read(tmp_path / "out")
    assert {file.StudyDate for file in files}.isdisjoint({"20210304"})
    gaps = np.diff([np.datetime64(f"{f.AcquisitionDate[:4]}-{f.AcquisitionDate[4:6]}-"
                                  f"{f.AcquisitionDate[6:]}") for f in files])  # fmt: skip
    assert (gaps == np.timedelta64(1, "D")).all() and files[0].StudyDate == files[0].AcquisitionDate
    assert files[0].StudyDate < "20200304"  # never into the future
    assert files[0].AcquisitionDateTime == files[0].AcquisitionDate + "101112.5+0100"
    assert files[0].StudyTime == "101112" and files[0].PatientSex == "F"
    assert not files[0].PatientBirthDate
    assert files[0].LongitudinalTemporalInformationModified == "MODIFIED"
    assert files[0][0x0019, 0x100C].value == 1000 and (0x0019, 0x100F) not in files[0]
    codes = {code.CodeValue for code in files[0].DeidentificationMethodCodeSequence}
    assert codes == {"113100", "113107", "113108", "113111"}


def test_moving_a_date():
    """Hand-counted: 2020 has a 29 February."""
    assert moved("20200301", -1) == "20200229" and moved("2020.03.01", -366) == "20190301"
    assert moved("20200301120000.25-0500", -1) == "20200229120000.25-0500"
    assert moved("202003", -1) == "" and moved("", -1) == "" and moved("Monday", -1) == ""


def test_descriptions_keep_words_of_radiology():
    assert clean_words("CT chest Doe 1951 with contrast 3mm") == "CT chest with contrast 3mm"
    assert clean_words("T1_FLAIR_ax_b1000 12/03/45 Smith") == "T1 FLAIR ax b1000"
    assert clean_words("Müller^Hans 4711") == ""


@pytest.mark.parametrize(
    ("fields", "sentence", "removed"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned-in text, which is still there", "NO"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture", "YES"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.4"}, "a secondary capture", "YES"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"}, "an ultrasound image", "YES"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4"}, "a photograph", "YES"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "a picture of a screen", "YES"),
    ],
)
def test_text_in_pixels_is_warned_of(tmp_path, fields, sentence, removed):
    file = pydicom.dcmread(next(slices(tmp_path, **fields).glob("*.dcm")))
    clean, warnings = deidentify(file, (), SECRET)
    assert any(sentence in one for one in warnings) and clean.PatientIdentityRemoved == removed
    plain = pydicom.dcmread(next(slices(tmp_path / "plain").glob("*.dcm")))
    assert deidentify(plain, (), SECRET)[1] == ["private elements were removed"]


def test_a_report_keeps_none_of_its_content():
    report = Dataset()
    report.SOPClassUID, report.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.22", "1.2.3"
    line = Dataset()
    line.ValueType, line.TextValue = "TEXT", "Jane Doe fell"
    report.ContentSequence, report.ValueType = [line], "CONTAINER"
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    clean, warnings = deidentify(report, (), SECRET)
    assert b"Doe" not in written(clean) and warnings == ["the content of the report was removed"]
    assert clean.ContentSequence[0].TextValue == "REMOVED"


def test_who_has_no_id(tmp_path):
    """Two patients without an ID are told apart by their names, else by their studies."""
    for patient, name in (("a", "Doe^Jane"), ("b", "Roe^Jane"), ("c", ""), ("d", "")):
        slices(tmp_path / "in" / patient, PatientID="", PatientName=name,
               StudyInstanceUID=f"1.2.{ord(patient)}",
               SeriesInstanceUID=f"1.3.{ord(patient)}")  # fmt: skip
    done = deidentify_files(tmp_path / "in", tmp_path / "out", secret=SECRET)
    assert done.written == 12 and len(done.patients) == 4


def test_a_folder_goes_on_past_bad_files(tmp_path):
    place = slices(tmp_path / "in")
    (place / "bad.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    (place / "short.dcm").write_bytes(b"no")
    (place / "LICENSE").write_text("CC BY")
    shutil.copy(next(place.glob("1-000.dcm")), place / "zz_copy.dcm")
    (place / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    done = deidentify_files(place, tmp_path / "out", secret=SECRET)
    assert done.written == 3 and done.left_alone == 2
    assert {Path(one["file"]).name for one in done.refused} == {
        "bad.dcm",
        "short.dcm",
        "zz_copy.dcm",
    }
    assert done.warnings["private elements were removed"][0] == 3
    assert len(list((tmp_path / "out").rglob("*"))) == 5  # no half file beside 3 and 2 folders
    with pytest.raises(ConfigError, match="outside the folder"):
        deidentify_files(place, place / "out", secret=SECRET)
    with pytest.raises(FormatError, match="there"):
        deidentify_files(tmp_path / "nowhere", tmp_path / "out", secret=SECRET)
    with pytest.raises(ConfigError, match="16 bytes"):
        deidentify_files(place, tmp_path / "out2", secret=b"short")
    with pytest.raises(ConfigError, match="one of private"):
        deidentify_files(place, tmp_path / "out2", ("names",), secret=SECRET)


def test_the_secret_is_its_owners_alone(tmp_path):
    secret, made = read_secret(tmp_path / "deep" / "secret")
    assert made and len(secret) == 64
    assert (tmp_path / "deep" / "secret").stat().st_mode & 0o777 == 0o600
    assert read_secret(tmp_path / "deep" / "secret") == (secret, False)
    (tmp_path / "deep" / "secret").chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode 600\), got 640"):
        read_secret(tmp_path / "deep" / "secret")
    (tmp_path / "short").write_text("abc")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(ConfigError, match="16 bytes"):
        read_secret(tmp_path / "short")


def test_no_new_fault_for_dciodvfy(tmp_path):
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy of dicom3tools is not on this machine")

    def errors(file: Path) -> set[str]:
        run = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True)
        return {line for line in run.stderr.splitlines() if line.startswith("Error")}

    before = next(slices(tmp_path / "in").glob("*.dcm"))
    deidentify_files(before, tmp_path / "out", secret=SECRET)
    after = next((tmp_path / "out").rglob("*.dcm"))
    assert errors(before) and errors(after) <= errors(before)


@pytest.mark.data
def test_nothing_of_real_patients_survives(data_root, tmp_path):
    """Names, IDs, UIDs, dates and accession numbers of the real files, searched for in bytes."""
    folder = data_root / "dicom"
    if not folder.is_dir():
        pytest.skip(f"no real DICOM at {folder}")
    for archive in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if 0 < m.file_size < 200_000 and not m.is_dir()]
            for member in members[:: max(1, len(members) // 4)]:
                opened.extract(member, tmp_path / "in" / archive.stem)
    done = deidentify_files(tmp_path / "in", tmp_path / "out", secret=SECRET)
    assert done.written > 15
    for file in (tmp_path / "in").rglob("*"):
        if file.is_file():
            _assert_gone(file, tmp_path / "out")


def _assert_gone(file: Path, out: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(file)
            words = set(_telling(dataset))
        except Exception:
            return  # refused as well
    instance = dataset.get("SOPInstanceUID") or dataset.file_meta.get("MediaStorageSOPInstanceUID")
    from qinjing.data.dicom.deidentify import _other_uid

    for clean in out.rglob(f"{_other_uid(SECRET, str(instance))}.dcm"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            left = pydicom.dcmread(clean)
            left.pop("PixelData", None)
            content = written(left)
        found = {
            word
            for word in words - {"REMOVED", "QIICR"}
            if word.encode("latin-1", "ignore") in content
        }
        assert not found, (file.name, found)


def _telling(dataset: Dataset):
    for element in dataset.iterall():  # "QIICR" is the manufacturer as well
        values = element.value if isinstance(element.value, list | tuple) else [element.value]
        for value in map(str, [] if element.value is None else values):
            if element.VR == "UI" and not value.startswith("1.2.840.10008.") and len(value) > 12:
                yield value
            elif element.VR in ("DA", "DT") and len(value) >= 8 and value[:8] != "19000101":
                yield value[:8]
            elif element.VR == "PN" or element.keyword in ("PatientID", "AccessionNumber"):
                yield from (
                    part
                    for part in re.split(r"[\^ =]", value)
                    if len(part) > (6 if part.isdigit() else 4)
                )


def test_the_command(tmp_path, capsys, monkeypatch):
    import json

    from qinjing import evidence
    from qinjing.cli import main

    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(tmp_path / "key.pem"))
    place = slices(tmp_path / "Doe_Jane")
    (place / "bad.dcm").write_bytes(b"no")
    words = ["data", "deidentify", "-i", str(place), "-o", str(tmp_path / "out"), "--json"]
    secret = ["--secret", str(tmp_path / "secret")]
    assert main([*words, *secret, "--keep", "dates", "patient"]) == 2
    result = json.loads(capsys.readouterr().out)
    assert result["written"] == 3 and result["patients"] == 1 and result["secret_made"]
    assert [Path(one["file"]).name for one in result["refused"]] == ["bad.dcm"]
    assert not evidence.verify(tmp_path / "out").faults
    assert b"Doe" not in (tmp_path / "out" / "evidence.jsonl").read_bytes()
    assert (tmp_path / "secret").read_text().strip() not in capsys.readouterr().out
    assert main([*words, "--secret", str(tmp_path / "out" / "secret")]) == 2
    assert "given away" in capsys.readouterr().err
