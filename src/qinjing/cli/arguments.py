"""From frozen dataclasses to a command line: one field, one argument."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from qinjing.errors import ConfigError

# What the words below one word are for.
_GROUPS = {
    "data": "read, check, split and fetch data sets",
    "federate": "train with other hospitals, scans staying where they are",
    "consent": "record who permits what, and tell which models saw a case",
}


@dataclass(frozen=True)
class Command:
    """What every command is: its fields are its arguments, its docstring its help."""

    def run(self) -> dict[str, Any]:
        """Do it, by one library call, and return what `--json` prints."""
        raise NotImplementedError

    def text(self, result: Mapping[str, Any]) -> str:
        """Say the result to a person."""
        raise NotImplementedError

    def refusals(self, result: Mapping[str, Any]) -> list[str]:
        """One sentence for each part of the work that was refused; any makes the exit code 2."""
        return []

    def after_stop(self) -> str:
        """Say how things stand after Ctrl-C."""
        return "nothing half-written was left under a final name"


def argument(
    *flags: str,
    help: str,
    metavar: str | None = None,
    parse: Callable[[str], Any] | None = None,
    there: bool = False,
    choices: Sequence[str] | None = None,
) -> Mapping[str, Any]:
    """Describe one argument of a command, as the metadata of its field.

    A field without a default is required.

    Args:
        *flags: "-i", "--input"; none for a positional argument.
        help: one line for `--help`.
        metavar: the word that stands for the value in the help.
        parse: text → value, instead of the field's type.
        there: the path must exist before anything starts.
        choices: the only words that are taken.
    """
    return {
        "flags": flags,
        "help": help,
        "metavar": metavar,
        "parse": parse,
        "there": there,
        "choices": choices,
    }


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one sentence instead of printing the usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        message = message.replace("the following arguments are required:", "missing:")
        raise _misread(message, self.prog)


def _misread(message: str, program: str) -> ConfigError:
    advice = f"see `{program} --help`"
    return ConfigError("command line", "as its help says", message, advice=advice)


class _Version(argparse.Action):
    """Look the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from qinjing import __version__

        print(f"qinjing {__version__}")
        parser.exit()


def parse(words: Sequence[str], commands: Mapping[str, type[Command]]) -> Command:
    """Turn a command line into the command that it names.

    Raises:
        ConfigError: the command line cannot be understood.
        SystemExit: help or the version was asked for and printed.
    """
    parsed = vars(build(commands).parse_args(list(words)))
    kind: type[Command] = parsed["command"]
    (name,) = (name for name, other in commands.items() if other is kind)
    if list(words[: len(name.split())]) != name.split():
        # `serve --port 1 token`: argparse would forget what stands before the last word.
        raise ConfigError("options", f"behind all of `{name}`", "some before")
    values = {item.name: parsed[item.name] for item in fields(kind)}
    missing = [
        "/".join(item.metadata["flags"])
        for item in fields(kind)
        if item.default is MISSING and values[item.name] is None
    ]
    if missing:  # argparse knows it itself, but not of a command that is a group as well
        raise _misread(f"missing: {', '.join(missing)}", f"qinjing {name}")
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def build(commands: Mapping[str, type[Command]]) -> argparse.ArgumentParser:
    """Build the parser of all commands; "data check" becomes a word below `data`."""
    top = _Parser(
        prog="qinjing",
        description="Turn annotated scans into a deployed imaging model, with evidence.",
        epilog="Exit codes: 0 all done; 2 input that cannot be used; 1 a failure of ours.",
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    levels: dict[tuple[str, ...], Any] = {
        (): top.add_subparsers(dest="_word", metavar="COMMAND", required=True)
    }
    for words, kind in commands.items():
        *above, name = words.split()
        for depth, word in enumerate(above, start=1):
            if tuple(above[:depth]) not in levels:
                text = _GROUPS[" ".join(above[:depth])]
                group = levels[tuple(above[: depth - 1])].add_parser(
                    word, help=text, description=text
                )
                levels[tuple(above[:depth])] = group.add_subparsers(
                    dest=f"_word{depth}", metavar="COMMAND", required=True
                )
        parser = _add(levels[tuple(above)], name, kind)
        if any(other.startswith(f"{words} ") for other in commands):  # a command and a group
            for action in parser._actions:
                action.required = False  # of the command alone; `parse` asks for it
            levels[(*above, name)] = parser.add_subparsers(
                dest=f"_word{len(above) + 1}", metavar="[COMMAND]", required=False
            )
    return top


def _add(level: Any, name: str, kind: type[Command]) -> argparse.ArgumentParser:
    text = kind.__doc__ or ""
    parser = level.add_parser(name, help=text.splitlines()[0], description=text)
    parser.set_defaults(command=kind)
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        _add_argument(parser, item, hints[item.name])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _add_argument(parser: argparse.ArgumentParser, item: Field[Any], hint: Any) -> None:
    flags, about = item.metadata["flags"], dict(item.metadata)
    options: dict[str, Any] = {"help": about["help"]}
    if item.default is not MISSING:
        options["default"] = item.default
        if item.default is not None and item.default != ():
            options["help"] += " (default: %(default)s)"
    if hint is bool:
        parser.add_argument(*flags, dest=item.name, action="store_true", **options)
        return
    if flags:
        options |= {"dest": item.name, "required": item.default is MISSING}
    value, many = _value_type(hint)
    if many:
        options["nargs"] = "+" if item.default is MISSING else "*"
    options["type"] = about["parse"] or _converter(flags[-1] if flags else item.name, value)
    options["metavar"] = about["metavar"]
    parser.add_argument(*(flags or (item.name,)), choices=about["choices"], **options)


def _value_type(hint: Any) -> tuple[Any, bool]:
    """The type of one value, and whether the field holds several."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint, *_) = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _converter(name: str, kind: Any) -> Callable[[str], Any]:
    rules = {int: "a whole number", float: "a number", Path: "a path", str: "text"}

    def convert(text: str) -> Any:
        try:
            if kind is Path and (not text or "\0" in text):
                raise ValueError
            return kind(text)
        except ValueError:
            raise ConfigError(name, rules[kind], repr(text)) from None

    return convert


def check_places(command: Command) -> None:
    """Refuse inputs that are not there before anything is imported or started.

    Raises:
        ConfigError: naming the argument and the path.
    """
    for item in fields(command):
        if not item.metadata["there"]:
            continue
        value = getattr(command, item.name)
        name = item.metadata["flags"][-1] if item.metadata["flags"] else item.metadata["metavar"]
        for path in value if isinstance(value, tuple) else (value,):
            if path is not None and not path.exists():
                raise ConfigError(name, "a file or folder that is there", path)


def seconds(text: str) -> float:
    """Read a time such as 90s, 14m, 1.5h as seconds.

    Raises:
        ConfigError: it has no unit, is not a number, or is not positive.
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    try:
        value = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        value = -1.0
    if not 0 < value < 1e9:
        raise ConfigError("--budget", "a time such as 90s, 14m or 2h", repr(text))
    return value


def fold(text: str) -> int | str:
    """Read a fold: its number from 0, or "all".

    Raises:
        ConfigError: neither.
    """
    if text == "all":
        return text
    if not text.isascii() or not text.isdigit():
        raise ConfigError("--fold", "a number from 0, or all", repr(text))
    return int(text)


def named_path(text: str) -> tuple[str, Path]:
    """Read NAME=PATH.

    Raises:
        ConfigError: one of the two is missing, or the path is not there.
    """
    name, _, path = text.partition("=")
    if not name or not path or not Path(path).exists():
        raise ConfigError("--baseline", "NAME=PATH of a file or folder that is there", text)
    return name, Path(path)


def at_least(least: float, name: str, kind: type = int) -> Callable[[str], Any]:
    """Build a reader of numbers that are not below `least`."""
    convert = _converter(name, kind)

    def read(text: str) -> Any:
        value = convert(text)
        if not least <= value < 1e18:
            raise ConfigError(name, f"a number of {least} or more", text)
        return value

    return read
