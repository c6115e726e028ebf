"""Build a thing from a table of names, outside packages included."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from qinjing.errors import ConfigError

T = TypeVar("T")


def names(table: Mapping[str, Callable[..., T]], kind: str) -> list[str]:
    """Return every name that `build` accepts: the table's own, then entry points.

    Args:
        table: name → constructor, for example `NETS`.
        kind: the singular word for one entry ("net"); outside packages add theirs
            under the entry-point group ``qinjing.<kind>s``.
    """
    outside = [point.name for point in entry_points(group=f"qinjing.{kind}s")]
    return [*table, *(name for name in outside if name not in table)]


def constructor(table: Mapping[str, Callable[..., T]], kind: str, name: str) -> Callable[..., T]:
    """Return what builds the entry called `name`.

    Args:
        table: name → constructor.
        kind: the singular word for one entry, used in messages and entry points.
        name: which entry.

    Raises:
        ConfigError: no such name.
    """
    if name in table:
        return table[name]
    for point in entry_points(group=f"qinjing.{kind}s"):
        if point.name == name:
            found: Callable[..., T] = point.load()
            return found
    known = names(table, kind)
    close = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {close[0]}?" if close else "see `qinjing info`"
    raise ConfigError(kind, f"one of {', '.join(known)}", name, advice=advice)


def build(table: Mapping[str, Callable[..., T]], kind: str, name: str, **options: Any) -> T:
    """Build the entry called `name` with plain keyword arguments.

    Args:
        table: name → constructor.
        kind: the singular word for one entry, used in messages and entry points.
        name: which entry.
        **options: passed to the constructor as they are.

    Raises:
        ConfigError: no such name, or an option that the constructor does not take.
    """
    make = constructor(table, kind, name)
    parameters = inspect.signature(make).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [key for key in options if key not in parameters]
    if unknown and not takes_any:
        raise ConfigError(
            f"{kind} option", f"one of {', '.join(parameters)}", unknown[0], where=name
        )
    return make(**options)
