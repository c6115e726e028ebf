"""Images and what was drawn on them: kept once, found again, replaced by their author alone."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("sqlalchemy")

from qinjing.errors import FormatError
from qinjing.serve.catalogue import open_catalogue
from qinjing.serve.drawn import About, Segmentation
from qinjing.serve.images import Images


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
    about = About(
        "1.2", "1.2.3", "time 2", "CT chest", "CT", "chest", "HU", "", (("lung", -1000, 0),)
    )
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


def test_the_first_who_confirms_stands_for_that_version(tmp_path: Path) -> None:
    catalogue = open_catalogue(tmp_path / "clinic")
    images, audit = catalogue.images, []
    image = images.add_image(a_file(tmp_path / "a.nii"), About(name="a"))
    more = {"kind": "model", "author": "liver", "labels": {1: "lung"}, "product_class": "diagnosis"}

    def confirm(one: Segmentation, by: str) -> bool:
        return catalogue.confirm(one, by, "1.2", lambda: audit.append(by))

    made = images.add_segmentation(image.image_id, content=b"one", confidence={1: 0.2}, **more)
    again = images.add_segmentation(image.image_id, content=b"two", confidence={1: 0.2}, **more)
    assert not confirm(made, "Dr. Li")  # it is another now
    assert confirm(again, "Dr. Li") and not confirm(again, "Dr. Wang") and audit == ["Dr. Li"]
    same = images.add_segmentation(image.image_id, content=b"two", confidence={1: 0.2}, **more)
    assert same.confirmed_by == "Dr. Li"
    # As sure of it as before no more, or by other weights: nobody has stood for that.
    for changed in ({"confidence": {1: 0.9}}, {"confidence": {1: 0.9}, "maker": "sha256:1"}):
        one = images.add_segmentation(image.image_id, content=b"two", **changed, **more)
        assert one.confirmed_by == "" and confirm(one, "Dr. Wang")
    jobs = [(job.kind, job.state) for job in catalogue.queue.of("1.2")]
    assert jobs == [("release", "waiting")]  # those that waited are done with the last


def test_what_is_confirmed_while_the_first_is_sent_is_sent_too(tmp_path: Path) -> None:
    catalogue = open_catalogue(tmp_path / "clinic")
    images = catalogue.images
    more = {"kind": "model", "labels": {1: "lung"}, "product_class": "diagnosis", "content": b"1"}
    image = images.add_image(a_file(tmp_path / "a.nii"), About(name="a"))
    ones = [images.add_segmentation(image.image_id, author=name, **more) for name in ("a", "b")]
    assert catalogue.confirm(ones[0], "Li", "1.2", lambda: None)
    job = catalogue.queue.take("worker", ["release"])
    assert job is not None and catalogue.queue.done(job, {})
    assert catalogue.confirm(ones[1], "Li", "1.2", lambda: None)
    assert catalogue.queue.take("worker", ["release"]) is not None


def test_nothing_is_confirmed_where_the_record_cannot_be_written(tmp_path: Path) -> None:
    catalogue = open_catalogue(tmp_path / "clinic")
    image = catalogue.images.add_image(a_file(tmp_path / "a.nii"), About(name="a"))
    one = catalogue.images.add_segmentation(
        image.image_id, kind="model", author="a", labels={1: "lung"}, product_class="diagnosis",
        content=b"1",
    )  # fmt: skip

    def fails() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        catalogue.confirm(one, "Li", "1.2", fails)
    found = catalogue.images.segmentation(one.segmentation_id)
    assert found is not None and found.confirmed_by == "" and catalogue.queue.of() == []


def test_two_files_of_one_name_are_two_images(images: Images, tmp_path: Path) -> None:
    first = images.add_image(a_file(tmp_path / "a.nii"), About(name="case0"))
    nib.save(nib.Nifti1Image(np.ones((2, 3, 4), np.int16), np.eye(4)), tmp_path / "b.nii")
    second = images.add_image(tmp_path / "b.nii", About(name="case0"))
    assert first.image_id != second.image_id and len(images.all()) == 2
