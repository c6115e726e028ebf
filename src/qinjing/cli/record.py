"""What several commands share: two arguments, progress, the record they leave, refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.cli.arguments import Command, argument

if TYPE_CHECKING:
    from qinjing.evidence import Digested

DATASET = argument("-i", "--input", metavar="DATASET", there=True, help="folder, or MONAI datalist")


def output_argument(metavar: str, text: str) -> Mapping[str, Any]:
    """Declare `-o`."""
    return argument("-o", "--output", metavar=metavar, help=text)


def record(
    command: Command,
    name: str,
    inputs: Mapping[str, Digested],
    outputs: Iterable[Path],
    basis: str = "",
) -> None:
    """Append to the evidence of the folder that holds what the command made of `inputs`."""
    from qinjing import evidence

    output: Path = command.output  # type: ignore[attr-defined]
    folder = output if output.is_dir() else output.parent
    evidence.append(folder, name, inputs, outputs, command, basis=basis or None)


def files_of(role: str, folder: Path, *patterns: str) -> dict[str, Path]:
    """Name each file of a folder that was read, so that verifying names the one that changed."""
    return {
        f"{role}/{path.relative_to(folder).as_posix()}": path
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file() and not path.name.startswith("evidence.")
    }


def refused(result: Mapping[str, Any]) -> list[str]:
    """One sentence for each case that a batch refused."""
    return [f"refused {item['case_id']}: {item['reason']}" for item in result.get("refused", ())]


@contextmanager
def progress(what: str, unit: str = "case") -> Iterator[Callable[..., None]]:
    """Yield a callback of (done, in all, …) that draws a bar with the time left for a person."""
    from tqdm import tqdm

    options = {"unit": unit, "unit_scale": unit == "B", "unit_divisor": 1024}
    with tqdm(desc=what, leave=False, disable=None, file=sys.stderr, **options) as bar:

        def advance(done: int, total: int, *_: object) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        yield advance
