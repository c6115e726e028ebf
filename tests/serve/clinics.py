"""A folder with two studies of one patient, their images, and what models said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qinjing.data.nifti import read_nifti, write_nifti
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.drawn import Image, Segmentation
from qinjing.serve.node import described
from qinjing.serve.volumes import show
from tests.serve.dicom import content, instance

LABELS = {1: "liver", 2: "liver tumor"}


def fill(folder: Path, studies: int = 2, slices: int = 12) -> Catalogue:
    """Studies of one patient, as the node keeps them, shown as images."""
    catalogue = open_catalogue(folder)
    for number in range(studies):
        for n in range(slices):
            date = f"2025010{number + 1}"
            file = content(
                instance(number, n, PatientID="MRN1", StudyDate=date, SeriesDescription="portal")
            )
            catalogue.keep(described(file), file)
        uid = instance(number, 0).StudyInstanceUID
        show(catalogue.place(uid), catalogue.images)
    return catalogue


def labelled(shape: tuple[int, int, int]) -> np.ndarray:
    """A block of label 1 with a block of label 2 in it, (D, H, W)."""
    voxels = np.zeros(shape, np.uint8)
    voxels[2:10, 4:24, 6:26] = 1
    voxels[4:8, 10:14, 12:20] = 2
    return voxels


def packed(catalogue: Catalogue, image: Image, voxels: np.ndarray, scratch: Path) -> bytes:
    """Labels on an image's grid as a gzipped NIfTI file."""
    volume = read_nifti(catalogue.images.volume(image.image_id))
    file = scratch / "labels.nii.gz"
    write_nifti(file, volume.with_voxels(voxels))
    return file.read_bytes()


def say(
    catalogue: Catalogue, image: Image, scratch: Path, product_class: str, author: str = "liver 1"
) -> Segmentation:
    """What a model of a class says of an image."""
    shape = tuple(reversed(image.shape))
    return catalogue.images.add_segmentation(
        image.image_id, kind="model", author=author, labels=LABELS, product_class=product_class,
        content=packed(catalogue, image, labelled(shape), scratch),
        confidence={1: 0.97, 2: 0.81} if product_class == "diagnosis" else None,
    )  # fmt: skip
