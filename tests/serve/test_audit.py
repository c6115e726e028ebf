"""The audit: what it says follows from one another, over days too."""

from __future__ import annotations

import base64
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qinjing.errors import FormatError
from qinjing.evidence import verify
from qinjing.evidence.digests import RECORD
from qinjing.evidence.envelope import sha256
from qinjing.serve import audit
from qinjing.serve.audit import Audit, missing_days
from qinjing.serve.auth import Token, Tokens

DAYS = ("2026-02-27", "2026-02-28", "2026-03-03")


@pytest.fixture
def who(tmp_path: Path) -> Token:
    return Tokens(tmp_path / "tokens.jsonl").make("reader", name="Dr. Li")[0]


@pytest.fixture
def kept(tmp_path: Path, who: Token, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three days of two lines each, by a service that was started anew on the last."""
    service = Audit(tmp_path)
    for day in DAYS:
        if day == DAYS[-1]:
            service = Audit(tmp_path)
        on(day, monkeypatch)
        service.append(who, "study opened", study="1")
        service.append(who, "confirmed", segmentation="2")
    return service.folder


def on(day: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Then:
            return cls.fromisoformat(f"{day}T12:00:00").replace(tzinfo=tz or UTC)

    monkeypatch.setattr(audit, "datetime", Then)


def said(folder: Path, day: str) -> list[dict[str, Any]]:
    lines = (folder / day / RECORD).read_bytes().splitlines()
    statements = [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in lines]
    return [one["predicate"]["configuration"]["content"] for one in statements]


def test_the_first_line_of_a_day_names_the_last_of_the_day_before(kept: Path) -> None:
    assert sorted(day.name for day in kept.iterdir()) == list(DAYS)
    assert not verify(kept).faults and missing_days(kept) == []
    first = [said(kept, day)[0]["after"] for day in DAYS]
    assert first[0] is None and [one["day"] for one in first[1:]] == list(DAYS[:2])
    for day, one in zip(DAYS, first[1:], strict=False):
        assert one["head"] == sha256((kept / day / RECORD).read_bytes().splitlines()[-1])
    assert all("after" not in said(kept, day)[1] for day in DAYS)


def test_a_day_that_was_taken_away_whole_is_missed(kept: Path) -> None:
    shutil.rmtree(kept / DAYS[1])
    assert not verify(kept).faults  # each of the others holds
    assert missing_days(kept) == [DAYS[1]]
    shutil.rmtree(kept / DAYS[0])
    assert missing_days(kept) == [DAYS[1]]  # who would have missed the other is gone


def test_a_day_that_was_put_back_as_it_was_earlier_is_missed(
    kept: Path, who: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = kept.parent / "earlier"
    shutil.copytree(kept / DAYS[2], earlier)
    Audit(kept.parent).append(who, "confirmed", segmentation="3")
    on("2026-03-04", monkeypatch)
    Audit(kept.parent).append(who, "study opened", study="1")
    assert missing_days(kept) == []
    shutil.rmtree(kept / DAYS[2])
    shutil.copytree(earlier, kept / DAYS[2])
    assert not verify(kept).faults and missing_days(kept) == [DAYS[2]]


def test_a_line_that_came_at_midnight_is_no_fault(
    kept: Path, who: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may still write to a day that the next one has named."""
    on(DAYS[1], monkeypatch)
    Audit(kept.parent).append(who, "study opened", study="1")
    assert not verify(kept).faults and missing_days(kept) == []


def test_a_day_without_a_line_is_passed_over(
    kept: Path, who: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept / "2026-03-04").mkdir()
    (kept / "2026-03-04" / RECORD).write_bytes(b"torn")
    on("2026-03-05", monkeypatch)
    Audit(kept.parent).append(who, "study opened", study="1")
    assert said(kept, "2026-03-05")[0]["after"]["day"] == DAYS[2]
    assert missing_days(kept) == []


def test_what_is_no_statement_is_said(kept: Path) -> None:
    (kept / DAYS[1] / RECORD).write_bytes(b"{}\n")
    with pytest.raises(FormatError, match="first line must be a statement"):
        missing_days(kept)
