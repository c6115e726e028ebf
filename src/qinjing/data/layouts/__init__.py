"""How data sets lie in folders: an ordered table, asked in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Protocol

from qinjing.data.case import Dataset
from qinjing.data.layouts import bids, brats, lits, monai, msd, nih_pancreas, nnunet, plain
from qinjing.data.layouts.discover import count_channels, discover_labels
from qinjing.data.layouts.files import group_channels
from qinjing.data.readers import find_reader
from qinjing.errors import LayoutError


class Layout(Protocol):
    """A module that knows one way to lay out a data set."""

    def recognise(self, root: Path) -> bool:
        """Whether the path looks like this layout; cheap, reads no pixels."""

    def open(self, root: Path) -> Dataset:
        """Open it; undeclared labels and channel names are left empty."""


LAYOUTS: dict[str, Layout] = {
    "nnunet": nnunet,
    "msd": msd,
    "bids": bids,
    "monai": monai,
    "brats": brats,
    "lits": lits,
    "nih_pancreas": nih_pancreas,
    "plain": plain,
}


def open_dataset(path: str | Path, layout: str | None = None) -> Dataset:
    """Open a data set: which cases it declares, not whether they are sound.

    Label values that nothing declares are read from the label maps.

    Args:
        path: a folder, or a MONAI datalist.
        layout: a name in `LAYOUTS`; by default the first that recognises the path.

    Raises:
        FormatError: a declaring file is not what its name says.
        LayoutError: no layout recognises the path, or the declaration cannot be.
    """
    dataset = _open(Path(path), layout)
    if not dataset.labels:
        dataset = replace(dataset, labels=discover_labels(dataset.cases))
    if not dataset.channel_names:
        n = count_channels(dataset.cases)
        names = ("image",) if n == 1 else tuple(f"channel {c}" for c in range(n))
        dataset = replace(dataset, channel_names=names)
    return dataset


def list_images(path: str | Path) -> list[tuple[str, tuple[Path, ...]]]:
    """Return (case id, channel files) of everything to predict on, sorted.

    A file is one case, named by its stem, and so is a folder of one DICOM series (``*.dcm``). Any
    other folder is a data set that `open_dataset` knows; its labels are not looked at. ``a_0000``,
    ``a_0001`` in a folder are channels of case ``a``.

    Raises:
        FormatError: a file that no reader knows.
        LayoutError: a folder without images.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() != ".json":
        find_reader(path)
        return [(case_id, images) for case_id, images in group_channels([path]).items()]
    if next(path.glob("*.dcm"), None) is not None:
        return [(path.resolve().name, (path,))]
    return [(case.case_id, case.images) for case in _open(path, None).cases]


def _open(root: Path, layout: str | None) -> Dataset:
    try:
        there = root.exists()
    except (OSError, ValueError) as error:
        raise LayoutError("data set", "a folder or a datalist", error, where=root) from None
    if not there:
        raise LayoutError("data set", "there", "nothing", where=root)
    if layout is not None and layout not in LAYOUTS:
        raise LayoutError("layout", f"one of {', '.join(LAYOUTS)}", layout)
    for name, candidate in LAYOUTS.items():
        if layout == name or (layout is None and candidate.recognise(root)):
            return candidate.open(root)
    raise LayoutError(
        "data set", f"a folder in one of the layouts {', '.join(LAYOUTS)}",
        "a file" if root.is_file() else "a folder that none of them recognises", where=root,
        advice="put images into images/ and label maps of the same names into labels/",
    )  # fmt: skip
