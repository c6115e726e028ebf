"""The page and the PDF of one case, read back as a reader sees them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from qinjing.data.nifti import write_nifti
from qinjing.errors import ConfigError, GeometryError
from qinjing.report.case_report import CaseReport, Finding, number, write_case_report
from qinjing.report.change import find_changes
from qinjing.report.measure import measure
from qinjing.volume import Volume

LABELS = {1: "liver", 2: "liver lesion"}
CARD = {"name": "Net", "version": "2", "intended_use": "To outline livers <CT>.",
        "limits": ["Not for children", "Two sites."]}  # fmt: skip


def scan(radius: float) -> tuple[Volume, Volume]:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])[[2, 1, 0, 3]]
    z, y, x = np.meshgrid(*[np.arange(40) * 2.0] * 3, indexing="ij", sparse=True)
    voxels = np.zeros((40, 40, 40), np.uint8)
    voxels[(z - 40) ** 2 + (y - 40) ** 2 + (x - 40) ** 2 < 30**2] = 1
    voxels[(z - 40) ** 2 + (y - 40) ** 2 + (x - 30) ** 2 < radius**2] = 2
    voxels[(z - 40) ** 2 + (y - 40) ** 2 + (x - 54) ** 2 < 4**2] = 2
    grey = np.random.default_rng(0).normal(60, 5, voxels.shape).astype(np.float32)
    return Volume(grey - 90.0 * (voxels == 0), affine), Volume(voxels, affine)


@pytest.fixture(scope="module")
def report() -> CaseReport:
    image, segmentation = scan(12)
    measured = measure(segmentation, LABELS, image, units="HU")
    earlier = scan(8)[1]
    changes = find_changes((earlier, measure(earlier, LABELS)), (segmentation, measured))
    return CaseReport(image, segmentation, LABELS, "analysis", header={"Patient": "Q & A"},
                      card=CARD, measured=measured, changes=changes)  # fmt: skip


class Text(HTMLParser):
    """All text of a page, and its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tag = ""
        self.pictures: list[dict[str, str]] = []

    def handle_data(self, data):
        if self.tag != "style":
            self.words.append(data)

    def handle_starttag(self, tag, attrs):
        assert tag != "script"
        self.tag = tag
        if tag == "img":
            self.pictures.append(dict(attrs))


def page(folder) -> tuple[str, list[dict[str, str]]]:
    parser = Text()
    parser.feed((folder / "case.html").read_text(encoding="utf-8"))
    return " ".join(" ".join(parser.words).split()), parser.pictures


def pdf_text(file) -> list[str]:
    """The text of each page, by poppler."""
    if not shutil.which("pdftotext"):
        pytest.skip("pdftotext of poppler-utils is not on this machine")
    run = subprocess.run(["pdftotext", "-layout", str(file), "-"], capture_output=True, text=True)
    assert run.stderr == ""  # text without a font, say
    return [" ".join(one.split()) for one in run.stdout.split("\f") if one.strip()]


def test_the_page_says_what_was_measured(report, tmp_path):
    pytest.importorskip("fpdf")
    result = write_case_report(report, tmp_path)
    text, pictures = page(tmp_path)
    lesion = report.measured.structures[1]
    assert lesion.count == 2 and result["pictures"] == len(pictures) == 2
    assert f"liver lesion: 2 pieces, together {number(lesion.volume.ml)} ml" in text
    first = lesion.lesions[0]
    assert f"{number(first.long_axis_mm)} × {number(first.short_axis_mm)}" in text
    grown = report.changes.changes[1]
    assert grown.kind == "grown" and f"+{grown.percent:.0f} %" in text and "Mean ± SD, HU" in text
    assert report.changes.recist_before_mm == pytest.approx(16, abs=2)
    sum_mm = number(report.changes.recist_before_mm)
    assert f"Sum of the long axes of 1 target lesions (RECIST 1.1): {sum_mm} mm before" in text
    assert "Product class: analysis." in text and "Not confirmed by a reader." in text
    assert "To outline livers <CT>." in text and "Not for children. Two sites." in text
    assert "Patient Q & A" in text and all(one["alt"] for one in pictures)
    assert json.loads((tmp_path / "case.json").read_text())["changes"]["targets"] == [[2, 1]]


def test_the_pdf_says_the_same_and_its_class_on_every_page(report, tmp_path):
    pytest.importorskip("fpdf")
    many = replace(report, header={f"Field {k}": "x" for k in range(90)})
    result = write_case_report(many, tmp_path)
    pages = pdf_text(result["pdf"])
    assert len(pages) > 2
    for shown in pages:
        assert "Product class: analysis. Measurements for a reader to judge: no diagnosis." in shown
    text = " ".join(pages)
    lesion = report.measured.structures[1]
    assert f"liver lesion: 2 pieces, together {number(lesion.volume.ml)} ml" in text
    assert "Not for children. Two sites." in text and not result["notes"]


def test_a_tool_says_nothing_of_size(report, tmp_path):
    pytest.importorskip("fpdf")
    for asked in ({"measured": report.measured}, {"changes": report.changes},
                  {"findings": (Finding("a tumour", 0.9),)}):  # fmt: skip
        bare = replace(report, product_class="tool", measured=None, changes=None)
        with pytest.raises(ConfigError, match="class tool may put out"):
            write_case_report(replace(bare, **asked), tmp_path)
    assert not list(tmp_path.iterdir())
    result = write_case_report(bare, tmp_path)
    text, pictures = page(tmp_path)
    for words in (text, *pdf_text(result["pdf"])):
        assert not re.search(r"\d\s*(ml|mm|HU|%)", words), words
        assert "Product class: tool." in words
    assert len(pictures) == 2
    written = json.loads((tmp_path / "case.json").read_text())
    assert written == {"product_class": "tool", "confirmed_by": None, "findings": [],
                       "measured": None, "changes": None}  # fmt: skip


def test_findings_are_a_diagnosis_alone(report, tmp_path):
    found = (Finding("A tumour of the liver.", 0.873),)
    with pytest.raises(ConfigError, match="needs the class diagnosis"):
        write_case_report(replace(report, findings=found), tmp_path, pdf=False)
    told = replace(report, findings=found, product_class="diagnosis", confirmed_by="Dr Li")
    write_case_report(told, tmp_path, pdf=False)
    text, _ = page(tmp_path)
    assert "A tumour of the liver. (confidence 87 %)" in text and "Confirmed by Dr Li." in text
    with pytest.raises(ConfigError, match="from 0 to 1"):
        write_case_report(replace(told, findings=(Finding("x", 1.5),)), tmp_path, pdf=False)
    with pytest.raises(ConfigError, match="product class must be one of"):
        write_case_report(replace(report, product_class="toy"), tmp_path)


def test_in_chinese_and_with_chinese_names_without_a_font_of_theirs(report, tmp_path, monkeypatch):
    pytest.importorskip("fpdf")
    monkeypatch.setattr("qinjing.report.case_pdf._font_having", lambda _: None)
    result = write_case_report(replace(report, language="zh"), tmp_path / "zh")
    text, _ = page(tmp_path / "zh")
    assert "产品类别：分析类" in text and "尚未经医师确认" in text and "RECIST 1.1" in text
    assert result["pdf"] is None and "Noto Sans CJK" in result["notes"][0]
    named = replace(report, header={"Patient": "张三"})
    (note,) = write_case_report(named, tmp_path / "en")["notes"]
    assert "lacks 2 characters" in note and "张" not in note
    assert "张三" in page(tmp_path / "en")[0]
    with pytest.raises(ConfigError, match="one of en, zh"):
        write_case_report(replace(report, language="de"), tmp_path)


def test_a_pdf_in_chinese_where_the_machine_has_a_font(report, tmp_path):
    pytest.importorskip("fpdf")
    from qinjing.report.case_pdf import can_show

    if not can_show("产品类别张三"):
        pytest.skip("no font of this machine has Chinese characters")
    named = replace(report, language="zh", header={"Patient": "张三"})
    result = write_case_report(named, tmp_path)
    assert result["notes"] == []
    text = " ".join(pdf_text(result["pdf"]))
    assert (
        "产品类别：分析类" in text and "张三" in text and "□" not in text and "RECIST 1.1" in text
    )


def test_every_word_is_in_both_languages():
    from qinjing.report.case_words import WORDS

    for key, texts in WORDS.items():
        assert set(texts) == {"en", "zh"}, key
        fields = [set(re.findall(r"{\w+}", text)) for text in texts.values()]
        assert fields[0] == fields[1] and all(texts.values()), key


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.01234, "0.0123"), (0.00123, "0.0012"), (1.234, "1.23"), (12.34, "12.3"),
     (1234.5, "1234"), (99.96, "100.0")],
)  # fmt: skip
def test_numbers(value, shown):
    assert number(value) == shown


def test_more_labels_than_colours(report, tmp_path):
    """Then each picture outlines its own label, and no legend gives one colour to two."""
    names = {**LABELS, **{value: f"part {value}" for value in range(3, 12)}}
    many = replace(report, labels=names, measured=None, changes=None)
    write_case_report(many, tmp_path / "many", pdf=False)
    assert "part 9" not in page(tmp_path / "many")[0]
    few = replace(report, measured=None, changes=None)
    write_case_report(few, tmp_path / "few", pdf=False)
    pictures = [page(tmp_path / name)[1][0]["src"] for name in ("many", "few")]
    assert pictures[0] != pictures[1]  # the lesion inside the liver is not drawn


def test_a_segmentation_of_another_grid(report, tmp_path):
    affine = report.segmentation.affine.copy()
    affine[0, 3] += 1.0
    moved = Volume(report.segmentation.voxels, affine)
    with pytest.raises(GeometryError):
        write_case_report(replace(report, segmentation=moved), tmp_path)


def test_the_command(tmp_path, capsys, monkeypatch):
    pytest.importorskip("fpdf")
    from qinjing import evidence
    from qinjing.cli import main

    monkeypatch.setenv("QINJING_EVIDENCE_KEY", str(tmp_path / "key.pem"))
    image, segmentation = scan(12)
    write_nifti(tmp_path / "image.nii.gz", image)
    write_nifti(tmp_path / "now.nii.gz", segmentation)
    write_nifti(tmp_path / "before.nii.gz", scan(8)[1])
    (tmp_path / "labels.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1,
                                                                 "liver lesion": 2}}))  # fmt: skip
    words = ["report-case", "-i", str(tmp_path / "image.nii.gz"), "-s",
             str(tmp_path / "now.nii.gz"), "--labels", str(tmp_path / "labels.json"), "--json",
             "--header", "Patient=Jane Doe"]  # fmt: skip
    before = ["--before", str(tmp_path / "before.nii.gz")]
    told = [*words, *before, "--class", "analysis", "--units", "HU"]
    assert main([*told, "-o", str(tmp_path / "out")]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 2
    assert "grown" in page(tmp_path / "out")[0] and "Jane Doe" in page(tmp_path / "out")[0]
    assert not evidence.verify(tmp_path / "out").faults
    assert "Jane" not in (tmp_path / "out" / "evidence.jsonl").read_text()
    assert main([*words, "-o", str(tmp_path / "tool")]) == 0  # who says no class gets no figure
    assert "ml" not in page(tmp_path / "tool")[0].split()
    assert main([*words, *before, "-o", str(tmp_path / "no")]) == 2
    assert "needs the class analysis" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
