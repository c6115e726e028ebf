"""Image files of a folder, and nnU-Net's ``_0000`` endings that make channels of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from qinjing.data.readers import stem, suffix
from qinjing.errors import LayoutError

CHANNEL = re.compile(r"(.+)_(\d{4})")


def image_files(folder: Path) -> list[Path]:
    """Return the files of a folder that a reader knows, sorted; hidden ones are left out.

    Archives made on a Mac carry a ``._x.nii.gz`` beside each file, which is no image.
    """
    if not folder.is_dir():
        return []
    try:
        found = [p for p in folder.iterdir() if suffix(p) and not p.name.startswith(".")]
        return sorted(p for p in found if not p.is_dir())
    except OSError as error:
        raise LayoutError("folder", "readable", error, where=folder) from None


def refuse_twins(files: Iterable[Path]) -> None:
    """Refuse files that only their endings tell apart: neither is known to be the one meant.

    Raises:
        LayoutError: there are some; the first are named.
    """
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(stem(file), []).append(file)
    for name, twins in by_stem.items():
        if len(twins) > 1:
            raise LayoutError(name, "one file", ", ".join(file.name for file in twins),
                              where=twins[0].parent, advice="take all but one away")  # fmt: skip


def group_channels(files: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Return case id → channel files in order.

    ``a_0000``, ``a_0001`` are two channels of case ``a`` only where every file ends so and numbers
    start from 0000; otherwise ``scan_0001`` is a name like any other, and a case of its own.

    Raises:
        LayoutError: two files that only their endings tell apart.
    """
    files = list(files)
    refuse_twins(files)
    matches = [CHANNEL.fullmatch(stem(file)) for file in files]
    grouped = all(matches) and any(m is not None and m[2] == "0000" for m in matches)
    groups: dict[str, list[Path]] = {}
    for file, match in zip(files, matches, strict=True):
        case_id = match[1] if grouped and match is not None else stem(file)
        groups.setdefault(case_id, []).append(file)
    return {case_id: tuple(sorted(group)) for case_id, group in groups.items()}
