"""The report of a case as PDF, the product's class at the foot of every page."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from qinjing.config import atomic_path
from qinjing.errors import ConfigError

_HAIR = "\u200a"  # the narrowest space
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
    page = _Paper(content)
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
        if content["legend"]:
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
        temporary.write_bytes(bytes(page.pdf.output()))
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


@lru_cache(maxsize=4096)
def _font_having(letter: str) -> Path | None:
    """A font of this machine that has a letter, as that of a Chinese name; None where none has."""
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    for path in sorted(findSystemFonts(), key=lambda one: (Path(one).name, one)):
        try:
            font = FT2Font(path)
        except (OSError, RuntimeError):  # what FreeType cannot read
            continue
        if font.scalable and font.get_char_index(ord(letter)):  # no pictures of letters
            return Path(path)
    return None


def can_show(text: str) -> bool:
    """Whether this machine has a font for every letter of a text."""
    from matplotlib.ft2font import FT2Font

    own = FT2Font(str(_font("")))
    return all(own.get_char_index(ord(c)) or _font_having(c) for c in text if c > " ")


class _Paper:
    """A document of A4 pages, written from top to bottom."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        from fpdf import FPDF
        from matplotlib.ft2font import FT2Font

        self.known = [FT2Font(str(_font("")))]
        self.lacking: set[str] = set()
        self.pdf: Any = FPDF(format="A4")
        self.pdf.set_margin(15)
        self.pdf.set_auto_page_break(True, margin=20)
        for style in ("", "B"):
            self.pdf.add_font("DejaVu", style, str(_font(style)))
        self.pdf.set_title(content["say"]["title"])
        foot = f"{content['class_words']} {content['confirmed']}"
        program = f"Qinjing {content['version']}"
        self.pdf.footer = lambda: self._foot(foot, program)  # type: ignore[method-assign]
        self.pdf.add_page()

    def clean(self, text: str) -> str:
        """Put a box where no font of this machine has the letter."""
        missing = {c for c in text if c > " " and not self._has(c)}
        self.lacking |= missing
        shown = "".join("□" if c in missing else c for c in text)
        # fpdf2 2.8.9 forgets the font of later lines where a text begins with a borrowed letter.
        borrowed = shown[:1] > " " and not self.known[0].get_char_index(ord(shown[0]))
        return f"{_HAIR}{shown}" if borrowed else shown

    def _has(self, letter: str) -> bool:
        from matplotlib.ft2font import FT2Font

        if any(font.get_char_index(ord(letter)) for font in self.known):
            return True
        path = _font_having(letter)
        if path is None:
            return False
        name = f"Fallback{len(self.known)}"
        self.pdf.add_font(name, "", str(path))
        self.known.append(FT2Font(str(path)))
        names = [f"Fallback{number}" for number in range(1, len(self.known))]
        self.pdf.set_fallback_fonts(names, exact_match=False)  # for bold letters too
        return True

    def say(
        self, text: str, *, size: float, style: str = "", colour: tuple[int, int, int] = _INK
    ) -> None:
        self.pdf.set_font("DejaVu", style, size)
        self.pdf.set_text_color(*colour)
        text = self.clean(text)
        self.pdf.multi_cell(0, size * 0.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
        self.pdf.ln(1)

    def heading(self, text: str) -> None:
        if self.pdf.will_page_break(30):
            self.pdf.add_page()
        self.pdf.ln(3)
        self.say(text, size=12.5, style="B")

    def rows(self, table: Mapping[str, Any]) -> None:
        from fpdf.fonts import FontFace

        self.pdf.set_font("DejaVu", "", 8)
        self.pdf.set_draw_color(*_LINE)
        # An interval in brackets needs room, so that it stays on its line.
        longest = [max(map(len, column)) for column in zip(*table["rows"], strict=True)]
        widths = [30, *(27 if n > 15 else 17 for n in longest[1:])] if longest else [30]
        widths += [17] * (len(table["columns"]) - len(widths))
        head = FontFace(emphasis="BOLD", color=_SOFT)
        align = ["LEFT", *["RIGHT"] * (len(widths) - 1)]
        with self.pdf.table(
            col_widths=widths, text_align=align, headings_style=head, line_height=4.6,
            borders_layout="HORIZONTAL_LINES", padding=0.8,
        ) as drawn:  # fmt: skip
            for row in [table["columns"], *table["rows"]]:
                drawn.row([self.clean(cell) for cell in row])
        self.pdf.ln(2)
        if table["more"]:
            self.say(table["more"], size=8.5)

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """Say which colour is whose."""
        pdf = self.pdf
        pdf.set_font("DejaVu", "", 8.5)
        pdf.set_text_color(*_INK)
        for name, colour in entries:
            text = self.clean(name)
            if pdf.get_x() + pdf.get_string_width(text) + 9 > pdf.w - pdf.r_margin:
                pdf.ln(5)
            pdf.set_fill_color(colour)
            pdf.rect(pdf.get_x(), pdf.get_y() + 0.8, 3, 3, style="F")
            pdf.set_x(pdf.get_x() + 4)
            pdf.cell(pdf.get_string_width(text) + 5, 4.6, text)
        pdf.set_fill_color(255)  # else every later table is filled with the last one
        pdf.ln(7)

    def picture(self, one: Mapping[str, Any]) -> None:
        width, height = struct.unpack(">II", one["png"][16:24])
        shown = min(self.pdf.epw, 98.0)
        tall = shown * height / width
        if self.pdf.will_page_break(tall + 8):
            self.pdf.add_page()
        caption = self.clean(one["caption"])
        self.pdf.image(io.BytesIO(one["png"]), w=shown, h=tall, alt_text=caption)
        self.pdf.ln(1)
        self.say(one["caption"], size=8.5, colour=_SOFT)

    def _foot(self, words: str, program: str) -> None:
        self.pdf.set_y(-16)
        self.pdf.set_font("DejaVu", "", 7.5)
        self.pdf.set_text_color(*_SOFT)
        self.pdf.multi_cell(0, 3.6, self.clean(words), new_x="LMARGIN", new_y="NEXT")
        self.pdf.cell(0, 3.6, f"{program} · {self.pdf.page_no()}/{{nb}}")
