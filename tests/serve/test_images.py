"""Images and what was drawn on them: kept once, found again, replaced by their author alone."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("sqlalchemy")

from qinjing.errors import FormatError
from qinjing.serve.catalogue import open_catalogue
from qinjing.serve.images import About, Images


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return open_catalogue(tmp_path / "clinic").images


def a_file(place: Path) -> Path:
    affine = np.diag([0.5, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), affine), place)
    return place


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_image_is_kept_once_and_as_it_was(images: Images, tmp_path: Path, name: str) -> None:
    file = a_file(tmp_path / name)
    about = About("1.2", "1.2.3", "time 2", "CT chest", "CT", "chest", "HU", (("lung", -1000, 0),))
    image = images.add_image(file, about)
    assert images.add_image(file, about) == image == images.get(image.image_id)
    assert images.all() == images.of_study("1.2") == [image] and images.of_study("1.3") == []
    assert image.shape == (2, 3, 4) and image.spacing_mm == (0.5, 2.0, 3.0)
    kept = nib.load(images.volume(image.image_id))
    assert np.array_equal(kept.get_fdata(), nib.load(file).get_fdata())
    assert np.array_equal(kept.affine, nib.load(file).affine)


def test_what_is_no_image_is_refused_and_leaves_nothing(images: Images, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"no image")
    with pytest.raises(FormatError, match=r"a\.nii\.gz"):
        images.add_image(tmp_path / "a.nii.gz", About(name="a"))
    assert images.all() == [] and not (images.folder / "images").exists()


def test_an_author_replaces_his_own_alone(images: Images, tmp_path: Path) -> None:
    image = images.add_image(a_file(tmp_path / "a.nii"), About(name="a"))

    def add(kind: str, author: str, content: bytes, state: str = "draft") -> str:
        return images.add_segmentation(
            image.image_id, kind=kind, author=author, labels={1: "liver"}, product_class="tool",
            content=content, state=state,
        ).segmentation_id  # fmt: skip

    first = add("reader", "Li", b"one")
    assert add("reader", "Wang", b"two") != first != add("model", "Li", b"three")
    assert add("reader", "Li", b"four", "submitted") == first
    found = images.segmentation(first)
    assert found is not None and (found.version, found.state) == (2, "submitted")
    assert images.mask(found).read_bytes() == b"four" and found.labels == {1: "liver"}
    assert [one.author for one in images.segmentations(image.image_id, "reader")] == ["Wang", "Li"]
    assert sorted(one.read_bytes() for one in images.mask(found).parent.glob("*.nii.gz")) == sorted(
        [b"four", b"two", b"three", images.volume(image.image_id).read_bytes()]
    )


def test_the_first_who_confirms_stands_for_that_version(images: Images, tmp_path: Path) -> None:
    image = images.add_image(a_file(tmp_path / "a.nii"), About(name="a"))
    more = {
        "kind": "model",
        "author": "liver",
        "labels": {1: "liver"},
        "product_class": "diagnosis",
    }
    made = images.add_segmentation(image.image_id, content=b"one", **more)
    again = images.add_segmentation(image.image_id, content=b"two", **more)
    assert images.confirm(made, "Dr. Li").confirmed_by == ""  # it is another now
    assert images.confirm(again, "Dr. Li").confirmed_by == "Dr. Li"
    assert images.confirm(again, "Dr. Wang").confirmed_by == "Dr. Li"
    assert images.add_segmentation(image.image_id, content=b"3", **more).confirmed_by == ""
    (found,) = images.segmentations(image.image_id)
    assert found.confirmed_by == ""
