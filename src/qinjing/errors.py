"""The error tree: who is at fault decides the exit code.

QinjingError                  exit 1, a failure of ours
└── InputError                exit 2, the user's input cannot be used
    ├── FormatError           a file is not what its name says, or is damaged
    ├── GeometryError         shapes, affines or grids that do not fit together
    ├── LabelError            label values that the data set does not declare
    ├── LayoutError           a folder that no layout recognises
    ├── ConfigError           an option or a configuration file
    │   └── UnavailableError  a database or a server that is away just now
    └── EvidenceError         a record that does not verify
"""

from __future__ import annotations

from pathlib import Path


class QinjingError(Exception):
    """A failure of ours; every error that Qinjing raises on purpose derives from it."""

    exit_code = 1


class InputError(QinjingError):
    """Input that cannot be used, said in one sentence.

    Args:
        name: what is wrong, as the user knows it (a field, an option, a file's part).
        rule: what must hold, to follow the words "must be".
        got: what was given instead.
        where: the file or the case, if there is one.
        advice: what to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        name: str,
        rule: str,
        got: object = None,
        *,
        where: str | Path | None = None,
        advice: str | None = None,
    ) -> None:
        sentence = f"{name} must be {rule}"
        if got is not None:
            sentence += f", got {str(got)[:300]}"
        if where is not None:
            sentence += f" ({where})"
        if advice:
            sentence += f"; {advice}"
        super().__init__(" ".join(sentence.split()))
        self.name = name
        self.where = str(where) if where is not None else None


class FormatError(InputError):
    """A file that cannot be read as the format that it claims to be."""


class GeometryError(InputError):
    """Shapes, affines or grids that do not fit together."""


class LabelError(InputError):
    """A label value that the data set does not declare, or one that is missing."""


class LayoutError(InputError):
    """A folder that no data-set layout recognises."""


class ConfigError(InputError):
    """An option or a configuration file that cannot be used."""


class UnavailableError(ConfigError):
    """A database or a server that is named rightly and cannot be reached or used just now."""


class EvidenceError(InputError):
    """An evidence record that does not verify."""
