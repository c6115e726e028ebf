"""The Medical Segmentation Decathlon's layout: dataset.json that lists "training".

Source: https://doi.org/10.1038/s41467-022-30695-9 and the dataset.json of its ten tasks.
"""

from __future__ import annotations

from pathlib import Path

from qinjing.data.case import Case, Dataset
from qinjing.data.layouts import declaration as declared
from qinjing.data.layouts.patients import find_patient, read_participants
from qinjing.data.readers import stem, suffix
from qinjing.errors import LayoutError


def recognise(root: Path) -> bool:
    """Whether the folder holds a dataset.json with "training" and "labels"."""
    if not (root / "dataset.json").is_file():
        return False
    content = declared.read_object(root / "dataset.json")
    return "training" in content and "labels" in content


def open(root: Path) -> Dataset:
    """Open a folder in MSD's layout; a 4-D image holds one channel per modality.

    nnU-Net's first version declares ``x.nii.gz`` and stores ``x_0000.nii.gz``: those are found too.

    Raises:
        FormatError: dataset.json is not JSON.
        LayoutError: it declares what cannot be.
    """
    where = root / "dataset.json"
    content = declared.read_object(where)
    name, licence = declared.name_and_licence(content, root, where)
    modality = content.get("modality", content.get("channel_names", {"0": "image"}))
    channels = declared.parse_channels(modality, where)
    images, labels = [], []
    for i, entry in enumerate(declared.as_list(content.get("training"), "training", where)):
        if not isinstance(entry, dict):
            raise LayoutError(
                f"training[{i}]", "an object with image and label", entry, where=where
            )
        images.append(declared.path_inside(root, entry.get("image"), f"training[{i}].image", where))
        labels.append(declared.path_inside(root, entry.get("label"), f"training[{i}].label", where))
    groups = read_participants(root)
    cases = []
    ids = declared.unique_ids(images, root, where)
    for case_id, image, label in zip(ids, images, labels, strict=True):
        patient, group = find_patient(case_id, groups)
        files = _stored_files(image, len(channels))
        cases.append(Case(case_id, patient, files, label, group))
    return Dataset(
        name=name,
        root=root,
        layout="msd",
        channel_names=channels,
        labels=declared.parse_labels(content.get("labels"), where),
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
        licence=licence,
        ignored=declared.parse_ignored(content.get("labels"), where),
    )


def _stored_files(image: Path, n_channels: int) -> tuple[Path, ...]:
    """The declared file, or its channels where only those are there."""
    first = image.with_name(f"{stem(image)}_0000{suffix(image)}")
    if image.exists() or not first.exists():
        return (image,)
    return tuple(
        image.with_name(f"{stem(image)}_{c:04d}{suffix(image)}") for c in range(n_channels)
    )
