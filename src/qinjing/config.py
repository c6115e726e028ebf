"""Load, save and check frozen dataclasses as JSON; write files whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar

from qinjing.errors import ConfigError, FormatError

T = TypeVar("T")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block ends well.

    A process killed inside leaves no half file under the final name. The suffix of `path` is
    kept, since writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write a dataclass or plain JSON content atomically, sorted as given, UTF-8."""
    if is_dataclass(content) and not isinstance(content, type):
        content = asdict(content)
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def plain(value: Any) -> Any:
    """JSON content of a result: dataclasses opened, paths as text, NaN as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):  # NumPy and torch, without importing them
        return plain(value.tolist())
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def read_json(path: str | Path) -> Any:
    """Read JSON.

    Raises:
        FormatError: the file is missing, is not UTF-8, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError("file", "there", "nothing", where=path) from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError("file", "JSON in UTF-8", error, where=path) from None


def read_config(path: str | Path, kind: type[T]) -> T:
    """Read a frozen dataclass that `write_json` saved.

    Raises:
        FormatError: not JSON.
        ConfigError: an unknown or missing field, or a value of the wrong type.
    """
    return from_json(read_json(path), kind, where=str(path))


def from_json(content: Any, kind: Any, *, where: str = "configuration") -> Any:
    """Build `kind` (a dataclass, or a type as its fields use) from JSON content, checking types.

    Raises:
        ConfigError: with the dotted place of the first thing that does not fit.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return content
    if origin in (types.UnionType, typing.Union):
        if content is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        for candidate in inner[:-1]:
            try:
                return from_json(content, candidate, where=where)
            except ConfigError:
                continue
        return from_json(content, inner[-1], where=where)
    if origin is typing.Literal:
        if content not in args:
            raise ConfigError(where, f"one of {args}", content)
        return content
    if origin is tuple:
        if not isinstance(content, list | tuple):
            raise ConfigError(where, "a list", content)
        item = args if args[-1] is not Ellipsis else (args[0],) * len(content)
        if len(item) != len(content):
            raise ConfigError(where, f"a list of {len(item)}", content)
        pairs = zip(content, item, strict=True)
        return tuple(from_json(c, k, where=f"{where}[{i}]") for i, (c, k) in enumerate(pairs))
    if origin in (dict, Mapping) or origin is Mapping.__class__:
        if not isinstance(content, dict):
            raise ConfigError(where, "an object", content)
        return {
            (_as_int(k, where) if args[0] is int else k): from_json(
                v, args[1], where=f"{where}.{k}"
            )
            for k, v in content.items()
        }
    if is_dataclass(kind):
        return _dataclass_from_json(content, kind, where)
    if kind is float and isinstance(content, int | float) and not isinstance(content, bool):
        # The upper bound also keeps out integers too long for a float; NaN is below no bound.
        if not abs(content) <= sys.float_info.max:
            raise ConfigError(where, "a finite number", str(content)[:40])
        return float(content)
    if not isinstance(content, kind) or (isinstance(content, bool) and kind is not bool):
        raise ConfigError(where, f"a {kind.__name__}", repr(content))
    return content


def _as_int(key: str, where: str) -> int:
    """JSON has only text as keys; ours are written by `str(int)`."""
    if not (key.isascii() and key.removeprefix("-").isdigit() and len(key) < 20):
        raise ConfigError(f"{where}, each key", "a whole number", repr(key[:40]))
    return int(key)


def _dataclass_from_json(content: Any, kind: Any, where: str) -> Any:
    if not isinstance(content, dict):
        raise ConfigError(where, "an object", content)
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.init}
    for name in content:
        if name not in known:
            raise ConfigError(f"{where}.{name}", f"one of {', '.join(known)}", name)
    for name, field in known.items():
        if name not in content and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where}.{name}", "given", "nothing")
    return kind(**{n: from_json(v, hints[n], where=f"{where}.{n}") for n, v in content.items()})
