"""Tokens, sessions, and the brake on guessing."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import get_args

import pytest

from qinjing.cli import serve as cli_serve
from qinjing.errors import ConfigError, FormatError
from qinjing.serve.auth import RIGHTS, ROLES, Right, Role, Sessions, Throttle, Tokens, person_of
from qinjing.serve.settings import ServeConfig, tokens_file


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "store" / "tokens.jsonl")


def test_a_token_opens_and_only_its_hash_is_kept(tokens: Tokens) -> None:
    kept, text = tokens.make("ethics", name="Dr. Li")
    _, other = tokens.make("reader")
    assert tokens.check(text) == kept and kept.who == f"Dr. Li (ethics, token {kept.token_id})"
    secret = text.split("_", 2)[2]
    written = tokens.path.read_text()
    assert secret not in written and len(secret) == 43  # 256 bits
    assert tokens.path.stat().st_mode & 0o077 == 0
    salts = [json.loads(line)["made"]["salt"] for line in written.splitlines()]
    assert len(set(salts)) == 2
    crossed = f"qj_{kept.token_id}_{other.split('_', 2)[2]}"
    for wrong in (
        "",
        "qj",
        "qj__",
        text[:-1],
        text + "x",
        text.upper(),
        crossed,
        "\ud800",
        "qj_é_é",
    ):
        assert tokens.check(wrong) is None
    assert Tokens(tokens.path).check(text) == kept


def test_a_token_ends_and_can_be_taken_back(tokens: Tokens) -> None:
    kept, text = tokens.make("ethics", days=1)
    past = datetime.now(UTC) - timedelta(seconds=1)
    ended = replace(kept, expires=past.isoformat(timespec="seconds"))
    assert kept.holds and not ended.holds
    tokens.path.write_text(json.dumps({"made": vars(ended)}) + "\n")
    assert tokens.check(text) is None and tokens.find(kept.token_id) is None
    kept, text = tokens.make("ethics")
    elsewhere = Tokens(tokens.path)
    assert elsewhere.check(text)
    tokens.revoke(kept.token_id)
    assert elsewhere.check(text) is None and elsewhere.find(kept.token_id) is None
    with pytest.raises(ConfigError, match="token must be one that was made here"):
        tokens.revoke("00000000")


@pytest.mark.parametrize("line", ["{", "[]", '{"made": {}}', '{"revoked": "x"}', "null"])
def test_a_damaged_file_lets_nobody_in(tokens: Tokens, line: str) -> None:
    _, text = tokens.make("ethics")
    with tokens.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(FormatError, match="line 2 must be a token"):
        tokens.check(text)


def test_a_token_that_is_written_in_part_leaves_the_file_as_it_was(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, text = tokens.make("ethics")
    before, write = tokens.path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[: len(line) // 2]))
    with pytest.raises(ConfigError, match=r"tokens must be a file that can be written, got No sp"):
        tokens.make("reader")
    with pytest.raises(ConfigError, match="nothing was changed"):
        tokens.revoke(kept.token_id)
    monkeypatch.undo()
    assert tokens.path.read_bytes() == before and tokens.check(text) == kept
    assert tokens.check(tokens.make("reader")[1]) and tokens.check(text)


def test_who_may_do_what() -> None:
    assert set(RIGHTS) == set(ROLES) and set(RIGHTS["admin"]) == set(get_args(Right))
    assert RIGHTS["annotator"] == ("annotate",) and RIGHTS["patient"] == ()
    assert "confirm" in RIGHTS["reader"] and "consent.change" not in RIGHTS["reader"]


def test_tokens_of_one_name_are_one_person(tokens: Tokens) -> None:
    made = [tokens.make("reader", name=name)[0] for name in ("Dr. Li", "Dr. Li", "", "")]
    assert made[0].person == made[1].person == "Dr. Li"
    assert len({one.person for one in made}) == 3


def test_a_person_is_written_in_one_way(tokens: Tokens) -> None:
    # UAX 15: e and U+0301 compose to U+00E9; so do Hangul letters to U+AC00.
    assert person_of("  Rene\u0301 ") == "Ren\u00e9" and person_of("\u1100\u1161") == "\uac00"
    assert person_of("秦 越人") == "秦 越人" and person_of("Token") == "Token"
    assert person_of("a" * 64) == "a" * 64
    decomposed, composed = (
        tokens.make("reader", name=one)[0] for one in (" Rene\u0301", "Ren\u00e9")
    )
    assert decomposed.person == composed.person == "Ren\u00e9"
    assert tokens.all()[decomposed.token_id].name == "Ren\u00e9"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "printable"),
        (" \t", "printable"),
        ("a\nb", "printable"),
        ("a\u202eb", "printable"),  # what follows reads backwards
        ("a\u200bb", "printable"),  # of no width
        ("Li\\Wei", "without"),
        ("Li^Wei", "without"),
        ("Li=Wei", "without"),
        ("token 1a2b3c4d", "another than"),
        (" TOKEN 1a2b3c4d", "another than"),
        ("a" * 65, "printable text of 1 to 64"),
    ],
)
def test_who_is_no_person(tokens: Tokens, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        person_of(text)
    if text:
        with pytest.raises(ConfigError, match=f"--name must be {reason}"):
            tokens.make("reader", name=text)
    assert not tokens.path.exists()


def test_where_no_file_can_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "tokens.jsonl", Path("/proc/none/tokens.jsonl")):
        with pytest.raises(ConfigError, match="tokens must be a file that can be written"):
            Tokens(place).make("reader")


def test_the_roles_are_the_same_everywhere() -> None:
    assert ROLES == get_args(Role) == cli_serve.ROLES
    words = (resources.files("qinjing.serve") / "static" / "words.js").read_text()
    for table in re.findall(r"\broles: \{(.*?)\}", words, re.DOTALL):
        assert tuple(re.findall(r"(\w+): \"", table)) == ROLES
    assert words.count("roles: {") == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"role": "boss"},
            "--role must be one of ethics, reader, patient, .*, got boss",
        ),
        ({"role": "patient"}, "--patient must be given for the role patient"),
        ({"role": "ethics", "patient_id": "p"}, "for no other"),
        ({"role": "patient", "patient_id": ""}, "printable"),
        ({"role": "reader", "name": "a\nb"}, "--name must be printable"),
        ({"role": "reader", "days": 0}, "--days must be"),
        ({"role": "reader", "days": 10**6}, "--days must be"),
    ],
)
def test_what_makes_no_token(tokens: Tokens, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tokens.make(**options)  # type: ignore[arg-type]
    assert not tokens.path.exists()


def test_whom_a_token_may_look_at(tokens: Tokens) -> None:
    anna, _ = tokens.make("patient", patient_id="anna")
    staff, _ = tokens.make("reader")
    assert [anna.confine(one) for one in (None, "anna", "bela", "Anna", "")] == [
        "anna", "anna", None, None, None,
    ]  # fmt: skip
    assert [staff.confine(one) for one in (None, "anna")] == [None, "anna"]
    assert anna.may_change and not anna.may_see_all
    assert staff.may_see_all and not staff.may_change


def test_sessions_end_when_idle_when_old_and_when_closed() -> None:
    clock = Clock()
    sessions = Sessions(idle_s=10, longest_s=25, most=2, clock=clock)
    one = sessions.begin("t")
    for clock.now in (9.0, 18.0):
        assert sessions.token_of(one) == "t"
    clock.now = 26.0  # not idle, but old
    assert sessions.token_of(one) is None
    two = sessions.begin("t")
    clock.now = 37.0
    assert sessions.token_of(two) is None and sessions.token_of("") is None
    three = sessions.begin("t")
    sessions.end(three)
    assert sessions.token_of(three) is None
    first, second = sessions.begin("a"), sessions.begin("b")
    assert sessions.token_of(first) == "a"
    third = sessions.begin("c")
    assert [sessions.token_of(s) for s in (first, second, third)] == ["a", None, "c"]


def test_who_comes_in_again_and_again_signs_nobody_else_out() -> None:
    sessions = Sessions(idle_s=10, longest_s=25)
    other = sessions.begin("other")
    own = [sessions.begin("own") for _ in range(10)]
    assert sessions.token_of(own[0]) == "own"  # so that the second is silent longest
    own += [sessions.begin("own") for _ in range(1000)]
    assert sessions.token_of(other) == "other"
    assert [n for n, one in enumerate(own) if sessions.token_of(one)] == list(range(1000, 1010))
    few = Sessions(idle_s=10, longest_s=25, most_each=2)
    one, two = few.begin("own"), few.begin("own")
    assert few.token_of(one) and few.begin("own")
    assert few.token_of(one) and few.token_of(two) is None


def test_guessing_is_slowed_down_by_address() -> None:
    clock = Clock()
    throttle = Throttle(failures=3, window_s=60, most=2, clock=clock)
    for clock.now in (0.0, 1.0, 2.0):
        assert throttle.attempt("10.0.0.1") == 0
    clock.now = 10.0
    assert throttle.attempt("10.0.0.1") == 50 and throttle.attempt("10.0.0.2") == 0
    clock.now = 60.5  # the first failure is forgotten, and one attempt goes through
    assert throttle.attempt("10.0.0.1") == 0 and throttle.attempt("10.0.0.1") > 0
    for _ in range(10):  # who succeeds is not slowed down
        assert throttle.attempt("10.0.0.2") == 0
        throttle.succeeded("10.0.0.2")
    # One holder of addresses chooses among a /64 of them.
    other = Throttle(failures=1, clock=clock)
    assert other.attempt("2001:db8::1") == 0 and other.attempt("2001:db8::ffff:2") > 0
    assert other.attempt("2001:db8:0:1::1") == 0 and other.attempt("no address") == 0


def test_where_tokens_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QINJING_CONSENT", raising=False)
    assert tokens_file(str(tmp_path / "c"), None) == tmp_path / "c.tokens.jsonl"
    with pytest.raises(ConfigError, match="consent store must be named"):
        tokens_file(None, None)
    with pytest.raises(ConfigError, match="--tokens must be a file") as refusal:
        tokens_file("postgresql://me:secret@db/x", None)
    assert "secret" not in str(refusal.value)
    monkeypatch.setenv("QINJING_CONSENT", "place")
    assert tokens_file(None, None) == Path("place.tokens.jsonl")
    assert tokens_file("postgresql://db/x", tmp_path) == tmp_path


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "hospital", "127.0.0.1.example"])
def test_without_tls_only_this_machine_is_served(host: str) -> None:
    with pytest.raises(ConfigError, match=r"--host must be .* got .*; give --tls-cert"):
        ServeConfig("c", host=host)
    ServeConfig("c", host=host, tls_cert=Path("c"), tls_key=Path("k"))


def test_settings_that_do_not_fit() -> None:
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert not ServeConfig("c", host=host).tls
    with pytest.raises(ConfigError, match="given together, got --tls-cert alone"):
        ServeConfig("c", tls_cert=Path("c"))
    with pytest.raises(ConfigError, match="--port must be"):
        ServeConfig("c", port=70000)
    with pytest.raises(ConfigError, match="idle_s must be greater than 0"):
        ServeConfig("c", idle_s=0)
