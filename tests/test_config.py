from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import pytest

from qinjing.config import atomic_path, from_json, read_config, write_json
from qinjing.errors import ConfigError, FormatError


@dataclass(frozen=True)
class Inner:
    patch: tuple[int, int, int] = (1, 2, 3)
    names: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    rate: float
    precision: Literal["fp32", "bf16"] = "fp32"
    budget_s: float | None = None
    inner: Inner = Inner()


def test_round_trip(tmp_path):
    config = Outer(0.5, "bf16", 3.0, Inner((4, 5, 6), {1: "a", 20: "b"}))
    write_json(tmp_path / "c.json", config)
    assert read_config(tmp_path / "c.json", Outer) == config
    assert from_json({"rate": 2}, Outer) == Outer(2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": 10**400}, "rate must be a finite number"),
        ({"rate": float("nan")}, "rate must be a finite number"),
        ({"budget_s": float("inf")}, "budget_s must be a finite number"),
        ({"rate": True}, "rate must be a float"),
        ({"rate": "1"}, "rate must be a float"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"inner": {"names": {"one": "a"}}}, "each key must be a whole number"),
        ({"inner": {"names": {"1.5": "a"}}}, "each key must be a whole number"),
        ({"inner": {"names": {"1": 2}}}, "names.1 must be a str"),
        ({"inner": {"patch": [1, 2]}}, "patch must be a list of 3"),
        ({"inner": {"patch": [1, 2, 3.5]}}, r"patch\[2\] must be a int"),
        ({"inner": 3}, "inner must be an object"),
        ({"speed": 3}, "speed must be one of rate"),
    ],
)
def test_the_first_thing_that_does_not_fit_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        from_json({**asdict(Outer(0.5)), **change}, Outer)


def test_missing_field():
    with pytest.raises(ConfigError, match="rate must be given"):
        from_json({}, Outer)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_not_json(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"c\.json"):
        read_config(tmp_path / "c.json", Outer)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "c.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "c.json", {"a": float("nan")})
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "c.json") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "c.json").read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
