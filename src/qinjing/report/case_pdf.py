"""The report of a case as PDF, the product's class at the foot of every page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qinjing.config import atomic_path
from qinjing.errors import ConfigError

_INK, _SOFT, _LINE = (28, 36, 48), (86, 97, 116), (217, 222, 230)


def write_pdf(content: Mapping[str, Any], path: Path) -> list[str]:
    """Write what `case_content` put together as A4 pages.

    Returns:
        Sentences on what the font could not show.

    Raises:
        ConfigError: fpdf2 is not installed.
    """
    try:
        import fpdf  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            "fpdf2", "installed to write a PDF", advice="pip install 'qinjing[report]'"
        ) from None
    page = _page(content)
    say = content["say"]
    page.say(content["say"]["title"], size=9, colour=_SOFT)
    page.say(content["header"][0][1] if content["header"] else say["case"], size=17, style="B")
    page.say(f"{content['class_words']} {content['confirmed']}", size=9.5, style="B")
    page.say(say["research"], size=9, colour=_SOFT)
    for name, value in content["header"]:
        page.say(f"{name}: {value}", size=9.5)
    for title, lines in (
        ("findings", [f"{text} ({confidence})" for text, confidence in content["findings"]]),
        ("summary", content["sentences"]),
    ):
        if lines:
            page.heading(say[title])
            for line in lines:
                page.say(f"•  {line}", size=9.5)
    if content["pictures"]:
        page.heading(say["pictures"])
        page.legend(content["legend"])
    for one in content["pictures"]:
        page.picture(one)
    for name in ("changes", "structures", "lesions"):
        table = content[name]
        if table:
            page.heading(table.get("title") or say[name])
            page.rows(table)
            if name == "structures":
                page.say(content["interval"], size=8.5, colour=_SOFT)
    page.heading(say["model"])
    for name, value in content["model"]:
        page.say(f"{name}: {value}" if name else value, size=9.5)
    with atomic_path(path) as temporary:
        temporary.write_bytes(bytes(page.output()))
    if page.lacking:  # which ones is not said: they may be of the patient's name
        return [
            f"the PDF's font lacks {len(page.lacking)} characters, shown as □; case.html has them"
        ]
    return []


@lru_cache
def _font(style: str) -> Path:
    """DejaVu Sans as matplotlib brings it along."""
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if style else "DejaVuSans.ttf"
    return Path(get_data_path()) / "fonts" / "ttf" / name


def _page(content: Mapping[str, Any]) -> Any:
    """A document with a foot; its class is made here, since fpdf2 is imported late."""
    from fpdf import FPDF
    from fpdf.fonts import FontFace
    from matplotlib.ft2font import FT2Font

    known = FT2Font(str(_font("")))

    class Page(FPDF):
        lacking: set[str]

        def clean(self, text: str) -> str:
            """Put a box where the font has no letter."""
            missing = {c for c in text if c > " " and not known.get_char_index(ord(c))}
            self.lacking |= missing
            return "".join("□" if c in missing else c for c in text)

        def say(
            self, text: str, *, size: float, style: str = "", colour: tuple[int, int, int] = _INK
        ) -> None:
            self.set_font("DejaVu", style, size)
            self.set_text_color(*colour)
            self.multi_cell(
                0, size * 0.5, self.clean(text), align="L", new_x="LMARGIN", new_y="NEXT"
            )
            self.ln(1)

        def heading(self, text: str) -> None:
            if self.will_page_break(30):
                self.add_page()
            self.ln(3)
            self.say(text, size=12.5, style="B")

        def rows(self, table: Mapping[str, Any]) -> None:
            self.set_font("DejaVu", "", 8)
            self.set_draw_color(*_LINE)
            # An interval in brackets needs room, so that it stays on its line.
            longest = [max(map(len, column)) for column in zip(*table["rows"], strict=True)]
            widths = [30, *(27 if n > 15 else 17 for n in longest[1:])] if longest else [30]
            widths += [17] * (len(table["columns"]) - len(widths))
            head = FontFace(emphasis="BOLD", color=_SOFT)
            align = ["LEFT", *["RIGHT"] * (len(widths) - 1)]
            with self.table(
                col_widths=widths, text_align=align, headings_style=head, line_height=4.6,
                borders_layout="HORIZONTAL_LINES", padding=0.8,
            ) as drawn:  # fmt: skip
                for row in [table["columns"], *table["rows"]]:
                    drawn.row([self.clean(cell) for cell in row])
            self.ln(2)
            if table["more"]:
                self.say(table["more"], size=8.5)

        def legend(self, entries: Sequence[tuple[str, str]]) -> None:
            """Say which colour is whose."""
            self.set_font("DejaVu", "", 8.5)
            self.set_text_color(*_INK)
            for name, colour in entries:
                text = self.clean(name)
                if self.get_x() + self.get_string_width(text) + 9 > self.w - self.r_margin:
                    self.ln(5)
                self.set_fill_color(colour)
                self.rect(self.get_x(), self.get_y() + 0.8, 3, 3, style="F")
                self.set_x(self.get_x() + 4)
                self.cell(self.get_string_width(text) + 5, 4.6, text)
            self.set_fill_color(255)  # else every later table is filled with the last one
            self.ln(7)

        def picture(self, one: Mapping[str, Any]) -> None:
            import struct

            width, height = struct.unpack(">II", one["png"][16:24])
            shown = min(self.epw, 98.0)
            tall = shown * height / width
            if self.will_page_break(tall + 8):
                self.add_page()
            self.image(io.BytesIO(one["png"]), w=shown, h=tall, alt_text=self.clean(one["caption"]))
            self.ln(1)
            self.say(one["caption"], size=8.5, colour=_SOFT)

        def footer(self) -> None:
            self.set_y(-16)
            self.set_font("DejaVu", "", 7.5)
            self.set_text_color(*_SOFT)
            text = f"{content['class_words']} {content['confirmed']}"
            self.multi_cell(0, 3.6, self.clean(text), new_x="LMARGIN", new_y="NEXT")
            self.cell(0, 3.6, f"Qinjing {content['version']} · {self.page_no()}/{{nb}}")

    page = Page(format="A4")
    page.lacking = set()
    page.set_auto_page_break(True, margin=20)
    page.set_margin(15)
    page.set_auto_page_break(True, margin=20)
    for style in ("", "B"):
        page.add_font("DejaVu", style, str(_font(style)))
    page.set_title(content["say"]["title"])
    page.add_page()
    return page
