"""Folders without any declaration: images/ and labels/, or x.nii.gz beside x_label.nii.gz."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from qinjing.data.case import Case, Dataset
from qinjing.data.layouts.files import group_channels, image_files, refuse_twins
from qinjing.data.layouts.patients import find_patient, read_participants
from qinjing.data.readers import find_reader, stem, suffix
from qinjing.errors import InputError, LayoutError

FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
LABEL = re.compile(r"(.+?)_(?:label|seg|mask|lesion|segmentation)s?(?:_.+)?")


def recognise(root: Path) -> bool:
    """Whether there are images in the folder itself or in its images/."""
    return bool(image_files(root)) or any(image_files(root / images) for images, _ in FOLDERS)


def open(root: Path) -> Dataset:
    """Open a folder without declaration; label values are left for `open_dataset` to find.

    In images/ and labels/ the names match (the label's may end with _label, _seg, _mask or
    _lesion). Files side by side belong together where the label's name without its ending begins
    the image's: ``p1_T1``, ``p1_T2`` and ``p1_lesion`` are one case of two channels. Images without
    any label make a data set to predict on.

    Raises:
        FormatError: participants.tsv is not a table.
        LayoutError: a case has several labels, or an image twice.
    """
    pair = next(((i, k) for i, k in FOLDERS if image_files(root / i)), None)
    if pair is not None:
        channels, files = _two_folders(root / pair[0], root / pair[1])
    else:
        channels, files = _side_by_side(root)
    groups = read_participants(root)
    cases = []
    for case_id, (images, label) in sorted(files.items()):
        patient, group = find_patient(case_id, groups)
        cases.append(Case(case_id, patient, images, label, group))
    return Dataset(
        name=root.resolve().name or "data set",
        root=root,
        layout="plain",
        channel_names=channels,
        labels={},
        cases=tuple(cases),
    )


Files = dict[str, tuple[tuple[Path, ...], Path | None]]


def _label_base(file: Path) -> str | None:
    match = LABEL.fullmatch(stem(file))
    return match[1] if match else None


def _labels_by_case(labels: list[Path], ids: set[str]) -> dict[str, Path]:
    """Case id → label; the id is the label's stem, or that without its ending.

    Raises:
        LayoutError: a case has several.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for file in labels:
        base = _label_base(file)
        found[stem(file) if stem(file) in ids or base is None else base].append(file)
    for case_id, several in found.items():
        if len(several) > 1:
            got = ", ".join(file.name for file in several)
            raise LayoutError(f"label of {case_id}", "one file", got, where=several[0].parent,
                              advice="list the cases in a MONAI datalist instead")  # fmt: skip
    return {case_id: several[0] for case_id, several in found.items()}


def _two_folders(images: Path, labels: Path) -> tuple[tuple[str, ...], Files]:
    groups = group_channels(image_files(images))
    by_case = _labels_by_case(image_files(labels), set(groups))
    files: Files = {case_id: (group, by_case.get(case_id)) for case_id, group in groups.items()}
    for case_id, label in by_case.items():
        if case_id not in files:  # a label without an image: declared, for the check to name
            files[case_id] = ((images / f"{case_id}{suffix(label)}",), label)
    return (), files


def _side_by_side(root: Path) -> tuple[tuple[str, ...], Files]:
    every = image_files(root)
    refuse_twins(every)
    labels = _labels_by_case([file for file in every if _label_base(file)], set())
    images = [file for file in every if not _label_base(file)]
    if not labels:
        return (), {case_id: (group, None) for case_id, group in group_channels(images).items()}
    if not images:  # a folder of nothing but segmentations is a folder of images to look at
        return (), {stem(file): ((file,), None) for file in every}
    members: dict[str, dict[str, Path]] = {case_id: {} for case_id in labels}
    files: Files = {}
    for image in images:
        name = stem(image)
        bases = [base for base in labels if name == base or name.startswith(f"{base}_")]
        if bases:
            base = max(bases, key=len)
            members[base][name[len(base) + 1 :]] = image
        else:
            files[name] = ((image,), None)
    channels = _choose_channels(members, labels)
    for case_id, label in labels.items():
        own = members[case_id]
        if "" in own:  # x.nii.gz itself is the image; x_other is a scan of its own
            files[case_id] = ((own.pop(""),), label)
            files.update({stem(image): ((image,), None) for image in own.values()})
        else:
            end = suffix(label)
            names = [root / f"{case_id}_{channel}{end}" for channel in channels]
            found = [own.get(c, name) for c, name in zip(channels, names, strict=True)]
            files[case_id] = (tuple(found) or (root / f"{case_id}{end}",), label)
    return (channels if len(channels) > 1 else ()), files


def _choose_channels(
    members: dict[str, dict[str, Path]], labels: dict[str, Path]
) -> tuple[str, ...]:
    """Endings that lie on the label's grid in at least half of the cases that have them.

    A rescan beside the labelled scan is on another grid, and no channel.
    """
    votes: dict[str, list[bool]] = defaultdict(list)
    for case_id, own in members.items():
        if "" in own:
            continue
        for ending, image in own.items():
            votes[ending].append(_same_grid(image, labels[case_id]))
    chosen = [ending for ending, same in votes.items() if 2 * sum(same) >= len(same)]
    return tuple(sorted(chosen or votes))


def _same_grid(image: Path, label: Path) -> bool:
    """Whether two headers agree; a damaged file is given the benefit of the doubt."""
    try:
        a, b = (find_reader(path).read_header(path) for path in (image, label))
    except InputError:
        return True
    return a.shape[-3:] == b.shape[-3:] and bool(np.allclose(a.affine, b.affine, atol=1e-2))
