"""nnU-Net's raw layout, version 2: imagesTr/x_0000.nii.gz, labelsTr/x.nii.gz, dataset.json.

Source: nnU-Net, documentation/dataset_format.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qinjing.data.case import Case, Dataset
from qinjing.data.layouts import declaration as declared
from qinjing.data.layouts.files import CHANNEL, image_files
from qinjing.data.layouts.patients import find_patient, read_participants
from qinjing.data.readers import FILE_SUFFIXES, stem
from qinjing.errors import LayoutError


def recognise(root: Path) -> bool:
    """Whether the folder holds a dataset.json in nnU-Net's second form."""
    if not (root / "dataset.json").is_file():
        return False
    content = declared.read_object(root / "dataset.json")
    return "file_ending" in content or ("channel_names" in content and "training" not in content)


def open(root: Path) -> Dataset:
    """Open a folder in nnU-Net's raw layout.

    A case is declared by any of its files: one with a label and no image is in the list, for
    `check_dataset` to name.

    Raises:
        FormatError: dataset.json is not JSON.
        LayoutError: it declares what cannot be, or there is no case.
    """
    where = root / "dataset.json"
    content = declared.read_object(where)
    name, licence = declared.name_and_licence(content, root, where)
    channels = declared.parse_channels(content.get("channel_names", content.get("modality")), where)
    ending = declared.as_text(content.get("file_ending", ".nii.gz"), "file_ending", where)
    if ending.lower() not in FILE_SUFFIXES:
        raise LayoutError("file_ending", f"one of {', '.join(FILE_SUFFIXES)}", ending, where=where)
    labels = declared.parse_labels(content.get("labels"), where)
    if isinstance(content.get("dataset"), dict):
        files = _listed(root, content["dataset"], where)
    else:
        files = _found(root, len(channels), ending)
    if not files:
        raise LayoutError("imagesTr", f"a folder of files that end with _0000{ending}", where=root)
    groups = read_participants(root)
    cases = []
    for case_id, (images, label) in sorted(files.items()):
        patient, group = find_patient(case_id, groups)
        cases.append(Case(case_id, patient, images, label, group))
    return Dataset(
        name=name,
        root=root,
        layout="nnunet",
        channel_names=channels,
        labels=labels,
        cases=tuple(cases),
        licence=licence,
        ignored=declared.parse_ignored(content.get("labels"), where),
    )


def _found(root: Path, n_channels: int, ending: str) -> dict[str, tuple[tuple[Path, ...], Path]]:
    """Case id → files, as the names in imagesTr and labelsTr say."""
    images = [f for f in image_files(root / "imagesTr") if f.name.endswith(ending)]
    labels = [f for f in image_files(root / "labelsTr") if f.name.endswith(ending)]
    matches = [CHANNEL.fullmatch(stem(file)) for file in images]
    ids = {match[1] for match in matches if match} | {stem(file) for file in labels}
    return {
        case_id: (
            tuple(root / "imagesTr" / f"{case_id}_{c:04d}{ending}" for c in range(n_channels)),
            root / "labelsTr" / f"{case_id}{ending}",
        )
        for case_id in ids
    }


def _listed(
    root: Path, entries: dict[str, Any], where: Path
) -> dict[str, tuple[tuple[Path, ...], Path]]:
    """Case id → files, as "dataset" in dataset.json lists them."""
    files = {}
    for case_id, entry in entries.items():
        at = f"dataset.{declared.as_text(case_id, 'case id', where)}"
        if not isinstance(entry, dict) or "/" in case_id or len(case_id.encode()) > 200:
            raise LayoutError(at, "a file name with images and label", repr(entry), where=where)
        listed = declared.as_list(entry.get("images"), f"{at}.images", where)
        images = [declared.path_inside(root, image, f"{at}.images", where) for image in listed]
        label = declared.path_inside(root, entry.get("label"), f"{at}.label", where)
        files[case_id] = (tuple(images), label)
    return files
