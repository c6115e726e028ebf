"""MONAI's datalist: a JSON file that lists {"image": …, "label": …} under "training".

Source: MONAI, ``monai.data.load_decathlon_datalist``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qinjing.data.case import Case, Dataset
from qinjing.data.layouts import declaration as declared
from qinjing.data.layouts.patients import find_patient, read_participants
from qinjing.errors import InputError, LayoutError


def recognise(root: Path) -> bool:
    """Whether this is a datalist, or a folder that holds one."""
    if root.is_file():
        return root.suffix.lower() == ".json"
    return bool(_datalists(root))


def open(root: Path) -> Dataset:
    """Open a datalist, or the only one in a folder; its paths are relative to its own folder.

    Labels without a declared name, and the number of channels, are left for `open_dataset` to find.

    Raises:
        FormatError: not JSON.
        LayoutError: it declares what cannot be, or a folder holds several.
    """
    if root.is_file():
        where = root
    else:
        found = _datalists(root)
        if len(found) != 1:
            got = ", ".join(path.name for path in found) or "none"
            raise LayoutError("folder", "one with one datalist", got, where=root,
                              advice="name the JSON file itself")  # fmt: skip
        where = found[0]
    folder = where.parent
    content = declared.read_object(where)
    name, licence = declared.name_and_licence(content, folder, where)
    entries = declared.as_list(content.get("training"), "training", where)
    files = [_entry(folder, entry, f"training[{i}]", where) for i, entry in enumerate(entries)]
    ids = declared.unique_ids([images[0] for images, _ in files], folder, where)
    groups = read_participants(folder)
    cases = []
    for case_id, (images, label) in zip(ids, files, strict=True):
        patient, group = find_patient(case_id, groups)
        cases.append(Case(case_id, patient, images, label, group))
    channels = content.get("modality", content.get("channel_names"))
    labels = content.get("labels")
    return Dataset(
        name=name,
        root=folder,
        layout="monai",
        channel_names=declared.parse_channels(channels, where)
        if isinstance(channels, dict)
        else (),
        labels=declared.parse_labels(labels, where) if isinstance(labels, dict) else {},
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        licence=licence,
        ignored=declared.parse_ignored(labels, where) if isinstance(labels, dict) else None,
    )


def _datalists(root: Path) -> list[Path]:
    """JSON files of the folder that list "training"; others are somebody else's."""
    found = []
    for path in sorted(root.glob("*.json")):
        try:
            content = declared.read_object(path)
        except InputError:
            continue
        if isinstance(content.get("training"), list):
            found.append(path)
    return found


def _entry(
    folder: Path, entry: Any, name: str, where: Path
) -> tuple[tuple[Path, ...], Path | None]:
    if not isinstance(entry, dict):
        raise LayoutError(name, "an object with image and label", repr(entry), where=where)
    image = entry.get("image")
    listed = declared.as_list(image, f"{name}.image", where) if isinstance(image, list) else [image]
    images = tuple(declared.path_inside(folder, one, f"{name}.image", where) for one in listed)
    if entry.get("label") is None:
        return images, None
    return images, declared.path_inside(folder, entry["label"], f"{name}.label", where)
