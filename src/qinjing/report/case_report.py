"""The report of one case: measurements, changes and key images as HTML and PDF.

What may stand in it follows from the product's class (`product_class`): it is asked before anything
is drawn. The header holds what the caller gives and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import qinjing
from qinjing.config import atomic_path, plain, write_json
from qinjing.errors import ConfigError
from qinjing.report import overlay
from qinjing.report.case_words import LANGUAGES, words
from qinjing.report.change import Change, Changes
from qinjing.report.measure import HOW_UNCERTAIN, Grey, Lesion, Measured, Structure
from qinjing.report.page import render
from qinjing.report.product_class import require
from qinjing.volume import Volume

MOST_PICTURES = 8
MOST_ROWS = 20


@dataclass(frozen=True)
class Finding:
    """A statement on disease, which only a product of class `diagnosis` may make.

    Attributes:
        text: in plain words.
        confidence: 0 to 1.
    """

    text: str
    confidence: float


@dataclass(frozen=True)
class CaseReport:
    """What a report is made of.

    Attributes:
        image: what the pictures show.
        segmentation: (D, H, W) integers on its grid.
        labels: value → name; their order gives the colours.
        product_class: "tool", "analysis" or "diagnosis".
        header: what stands above, such as {"Patient": …, "Study": …}.
        card: of the model: name, version, intended_use, limits (a text or a list).
        measured: None for a tool.
        changes: since an earlier date.
        before_date: of that date, in words.
        findings: of a diagnosis.
        confirmed_by: the reader who confirmed it, "" where nobody did.
        language: "en" or "zh".
    """

    image: Volume
    segmentation: Volume
    labels: Mapping[int, str]
    product_class: str
    header: Mapping[str, str] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured | None = None
    changes: Changes | None = None
    before_date: str = ""
    findings: Sequence[Finding] = ()
    confirmed_by: str = ""
    language: str = "en"


def write_case_report(
    report: CaseReport, output: str | Path, *, pdf: bool = True
) -> dict[str, Any]:
    """Write case.html, case.json with all figures, and case.pdf into a folder.

    The font that comes along has no Chinese characters: a PDF takes them from one of the machine's,
    and is left out where it would be in Chinese and there is none.

    Args:
        report: what it is made of.
        output: the folder.
        pdf: write the PDF as well.

    Returns:
        {"html", "pdf" (None where it was left out), "json", "pictures", "notes"}.

    Raises:
        ConfigError: the class may not put out what is asked for, another language, a confidence
            outside 0 to 1, or fpdf2 is not installed.
        GeometryError: the segmentation lies on another grid than the image.
    """
    content = case_content(report)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    with atomic_path(output / "case.html") as temporary:
        temporary.write_text(render("case.html.j2", {"interval": "", **content}), encoding="utf-8")
    write_json(
        output / "case.json",
        plain({
            "product_class": report.product_class,
            "confirmed_by": report.confirmed_by or None,
            "findings": list(report.findings),
            "measured": report.measured,
            "changes": report.changes,
        }),
    )  # fmt: skip
    made = None
    if pdf:
        from qinjing.report.case_pdf import can_show, write_pdf

        if can_show(content["say"]["title"]):
            made = output / "case.pdf"
            notes += write_pdf(content, made)
        else:
            notes.append("no PDF: this machine has no font with Chinese characters, such as Noto "
                         "Sans CJK (Debian: fonts-noto-cjk)")  # fmt: skip
    return {
        "html": output / "case.html",
        "pdf": made,
        "json": output / "case.json",
        "pictures": len(content["pictures"]),
        "notes": notes,
    }


def case_content(report: CaseReport) -> dict[str, Any]:
    """Put together what both forms of the report show, after asking what the class may put out."""
    require("picture", report.product_class)
    for kind, asked in (("measurement", report.measured), ("change", report.changes),
                        ("finding", report.findings)):  # fmt: skip
        if asked:
            require(kind, report.product_class)
    if report.language not in LANGUAGES:
        raise ConfigError("language", f"one of {', '.join(LANGUAGES)}", report.language)
    for finding in report.findings:
        if not 0 <= finding.confidence <= 1:
            raise ConfigError("confidence of a finding", "from 0 to 1", finding.confidence)
    say = words(report.language)
    reader = say["confirmed"].format(reader=report.confirmed_by)
    content: dict[str, Any] = {
        "say": say,
        "language": report.language,
        "version": qinjing.__version__,
        "product_class": report.product_class,
        "class_words": say[report.product_class],
        "confirmed": reader if report.confirmed_by else say["unconfirmed"],
        "header": [(str(k), str(v)) for k, v in report.header.items()],
        "findings": [
            (one.text, say["confidence"].format(percent=f"{100 * one.confidence:.0f}"))
            for one in report.findings
        ],
        "sentences": _sentences(report, say),
        "structures": _structures(report.measured, say),
        "lesions": _lesions(report.measured, say),
        "changes": _changes(report, say),
        "model": _model(report.card, say),
        "pictures": _pictures(report, say),
        "legend": [
            (name, overlay.color(k))
            for k, name in enumerate(name for value, name in report.labels.items() if value)
            if _told_apart(report.labels)
        ],
    }
    if report.measured is not None:
        border = report.measured.uncertainty == HOW_UNCERTAIN["border"]
        how = say["border"] if border else say["confidence map"]
        content["interval"] = say["interval"].format(how=how)
    return content


def _sentences(report: CaseReport, say: Mapping[str, str]) -> list[str]:
    """The measurements in plain words."""
    found = []
    for one in report.measured.structures if report.measured else ():
        if not one.count:
            found.append(say["absent"].format(name=one.name))
            continue
        pattern = say["one"] if one.count == 1 else say["several"]
        found.append(
            pattern.format(
                name=one.name, count=one.count, volume=number(one.volume.ml),
                low=number(one.volume.low_ml), high=number(one.volume.high_ml),
                diameter=number(max(piece.diameter_mm for piece in one.lesions)),
            )
        )  # fmt: skip
    changes = report.changes
    if changes is not None and changes.targets:
        found.append(
            say["recist"].format(
                count=len(changes.targets), before=number(changes.recist_before_mm),
                after=number(changes.recist_after_mm), percent=_percent(changes.recist_percent),
            )
        )  # fmt: skip
    if changes is not None and changes.one_frame is False:
        found.append(say["frames"])
    return found


def _structures(measured: Measured | None, say: Mapping[str, str]) -> dict[str, Any] | None:
    if measured is None:
        return None
    units = next((s.grey.units for s in measured.structures if s.grey), "")
    columns = ["name", "side", "count", "volume", "axes", "diameter", "grey"]
    shown = [s for s in measured.structures if s.count]
    rows = [_row(s, s.lesions[0] if s.count == 1 else None, say) for s in shown]
    return _table(columns, rows, say, units)


def _row(structure: Structure, lesion: Lesion | None, say: Mapping[str, str]) -> list[str]:
    return [
        structure.name,
        say[structure.side] if structure.side else "–",
        str(structure.count),
        _interval(structure.volume.ml, structure.volume.low_ml, structure.volume.high_ml),
        _axes(lesion) if lesion else "–",
        number(lesion.diameter_mm) if lesion else "–",
        _grey(structure.grey),
    ]


def _lesions(measured: Measured | None, say: Mapping[str, str]) -> dict[str, Any] | None:
    """The pieces of every structure that has several."""
    several = [s for s in measured.structures if s.count > 1] if measured else []
    if not several:
        return None
    units = next((s.grey.units for s in several if s.grey), "")
    rows = [
        [
            f"{s.name} {one.number}",
            say[one.side] if one.side else "–",
            _interval(one.volume.ml, one.volume.low_ml, one.volume.high_ml),
            _axes(one),
            number(one.diameter_mm),
            _grey(one.grey),
        ]
        for s in several
        for one in s.lesions
    ]
    return _table(["name", "side", "volume", "axes", "diameter", "grey"], rows, say, units)


def _changes(report: CaseReport, say: Mapping[str, str]) -> dict[str, Any] | None:
    if report.changes is None:
        return None
    rows = [
        [
            _which(one),
            f"{number(one.before_ml)}" if one.before else "–",
            f"{number(one.after_ml)}" if one.after else "–",
            _percent(one.percent),
            say[one.kind],
        ]
        for one in report.changes.changes
    ]
    table = _table(["name", "before", "after", "percent", "fate"], rows, say, "")
    table["title"] = say["changes"].format(date=report.before_date or say["first date"])
    return table


def _which(one: Change) -> str:
    """The lesion's numbers at the two dates, such as "lesion 1, 2 → 1"."""
    before, after = (", ".join(map(str, side)) for side in (one.before, one.after))
    return f"{one.name} {before or '–'} → {after or '–'}"


def _table(
    columns: Sequence[str], rows: list[list[str]], say: Mapping[str, str], units: str
) -> dict[str, Any]:
    heads = [say[name] + (f", {units}" if name == "grey" and units else "") for name in columns]
    left, rows = len(rows) - MOST_ROWS, rows[:MOST_ROWS]
    told = [k for k in range(len(columns)) if not rows or any(row[k] != "–" for row in rows)]
    return {
        "columns": [heads[k] for k in told],
        "rows": [[row[k] for k in told] for row in rows],
        "more": say["more"].format(count=left) if left > 0 else "",
    }


def _model(card: Mapping[str, Any], say: Mapping[str, str]) -> list[tuple[str, str]]:
    name = " ".join(str(card[key]) for key in ("name", "version") if card.get(key))
    limits = card.get("limits") or say["unstated"]
    if not isinstance(limits, str):
        limits = " ".join(str(one).rstrip(".") + "." for one in limits)
    rows = [(say["intended use"], str(card.get("intended_use") or say["unstated"])),
            (say["limits"], limits)]  # fmt: skip
    return [("", name), *rows] if name else rows


def _pictures(report: CaseReport, say: Mapping[str, str]) -> list[dict[str, Any]]:
    """For each label the axial slice in which it is largest, without and with the outline."""
    image, labelled = report.image.canonical(), report.segmentation.canonical()
    found: list[dict[str, Any]] = []
    for value, name in report.labels.items():
        area = (labelled.voxels == value).sum(axis=(1, 2)) if value else np.zeros(1)
        if not area.any() or len(found) == MOST_PICTURES:
            continue
        d = int(area.argmax())
        cut, outline = (_slice(volume, d) for volume in (image, labelled))
        if not _told_apart(report.labels):
            outline = outline.with_voxels(np.where(outline.voxels == value, value, 0))
        _, h, w = np.argwhere(outline.voxels == value)[0].tolist()
        figure = overlay.overlay_figure(cut, {"outline": outline}, report.labels, (0, h, w))
        caption = say["picture"].format(name=name)
        found.append({"png": overlay.to_png(figure), "caption": caption})
    for one in found:
        one["uri"] = overlay.data_uri(one["png"])
    return found


def _told_apart(labels: Mapping[int, str]) -> bool:
    """Whether each label has a colour of its own; else a picture outlines its own label alone."""
    return sum(value != 0 for value in labels) <= len(overlay.PALETTE)


def _slice(volume: Volume, d: int) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 0] * d
    return Volume(volume.voxels[..., d : d + 1, :, :], affine, volume.frame_of_reference)


def number(value: float) -> str:
    """Print a measured value with three digits that mean something: 0.0123, 1.23, 12.3, 1230."""
    if value == 0:
        return "0"
    digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{min(digits, 4)}f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{number(value)} ({number(low)}–{number(high)})"


def _axes(one: Lesion) -> str:
    return f"{number(one.long_axis_mm)} × {number(one.short_axis_mm)}"


def _grey(grey: Grey | None) -> str:
    return "–" if grey is None else f"{grey.mean:.4g} ± {grey.sd:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.0f} %".replace("-", "−")
