"""Phantoms: volumes, vendors, lesions, blur and partial volume against what they must be."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from qinjing.errors import ConfigError
from qinjing.physics.phantom import (
    LABELS,
    VENDORS,
    PhantomParameters,
    draw,
    render,
    write_dataset,
)
from qinjing.volume import Volume


def patient(seed: int, vendor: str = "aurora") -> PhantomParameters:
    return draw(np.random.default_rng(seed), vendor)


def flat(parameters: PhantomParameters, **changes: float) -> PhantomParameters:
    """The same body without noise, texture and shading."""
    vendor = replace(parameters.vendor, noise=0.0, **changes)
    return replace(parameters, vendor=vendor, texture=0.0, bias=(0.0,) * 6)


def ml(label: Volume, value: int) -> float:
    return float((label.voxels == value).sum()) * label.voxel_volume_ml


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vendor", VENDORS)
def test_deformed_organs_keep_their_analytic_volume(seed, vendor):
    # One ellipsoid (spleen) or two that never touch (kidneys), under four shear waves.
    parameters = patient(seed, vendor)
    _, label = render(parameters)
    for tissue, value in (("spleen", 2), ("kidney", 3)):
        truth = sum(s.volume_ml for s in parameters.structures if s.tissue == tissue)
        assert ml(label, value) == pytest.approx(truth, rel=0.04)


def test_lesion_volume_is_analytic_on_a_fine_scan():
    parameters = patient(4)
    vendor = replace(parameters.vendor, slice_mm=0.75, pixel_mm=0.875)
    _, label = render(replace(parameters, vendor=vendor))
    truth = sum(s.volume_ml for s in parameters.structures if s.tissue == "lesion")
    assert ml(label, 5) == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_every_lesion_voxel_was_liver(seed):
    parameters = patient(seed)
    lesions = [s for s in parameters.structures if s.tissue == "lesion"]
    assert 1 <= len(lesions) <= 3
    _, label = render(parameters)
    _, healthy = render(replace(parameters, structures=parameters.structures[: -len(lesions)]))
    lesion = label.voxels == 5
    assert lesion.any()
    assert (healthy.voxels[lesion] == 1).all()
    changed = label.voxels != healthy.voxels
    assert (label.voxels[changed] == 5).all()
    # Wholly inside: its face neighbours are lesion or liver.
    for axis in range(3):
        for shift in (-1, 1):
            near = np.roll(lesion, shift, axis)
            assert np.isin(label.voxels[near], (1, 5)).all()


def test_vendors_differ_in_grey_by_15_to_20_percent():
    parameters = patient(1)
    first, label = render(parameters)
    second, other = render(replace(parameters, vendor=VENDORS["borealis"]))
    ratios = [
        second.voxels[other.voxels == value].mean() / first.voxels[label.voxels == value].mean()
        for value in (1, 2, 3)
    ]
    assert all(1.13 < ratio < 1.20 for ratio in ratios)  # partial volume takes a little
    assert 1.15 <= np.mean(ratios) <= 1.20


def test_thick_slices_are_averages_of_thin_ones():
    thin, _ = render(flat(patient(2), slice_mm=1.5))
    thick, _ = render(flat(patient(2), slice_mm=3.0))
    assert thin.shape[0] == 2 * thick.shape[0]
    assert thick.spacing_mm[0] == pytest.approx(3.0)
    averaged = thin.voxels.reshape(-1, 2, *thin.shape[1:]).mean(axis=1)
    np.testing.assert_allclose(thick.voxels, averaged, rtol=1e-5)
    assert thin.grid_difference(thick) is not None


@pytest.mark.parametrize("blur_mm", [1.8, 2.8, 5.0])
def test_point_spread_equals_a_gaussian_of_that_width(blur_mm):
    ndimage = pytest.importorskip("scipy.ndimage")
    sharp, _ = render(flat(patient(3), blur_mm=0.0))
    blurred, _ = render(flat(patient(3), blur_mm=blur_mm))
    sigma = blur_mm / 1.75 / np.sqrt(8 * np.log(2))
    expected = ndimage.gaussian_filter(sharp.voxels, (0, sigma, sigma), mode="nearest", truncate=6)
    assert np.abs(blurred.voxels - expected).max() < 0.002 * sharp.voxels.max()
    assert np.abs(blurred.voxels - sharp.voxels).max() > 0.03 * sharp.voxels.max()


def test_noise_has_the_vendors_strength():
    # In air the magnitude of two Gaussian channels is Rayleigh: mean σ·√(π/2).
    for name, vendor in VENDORS.items():
        parameters = patient(5, name)
        image, _ = render(replace(parameters, greys={**parameters.greys, "air": 0.0}))
        corner = image.voxels[:, :6, :6]
        sigma = vendor.gain * vendor.noise * parameters.greys["liver"]
        assert corner.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.05)


def test_no_threshold_finds_the_organs():
    # The best single interval of grey values for each organ, chosen with the truth in hand.
    image, label = render(patient(0))
    for value in (1, 2, 3, 4, 5):
        truth = label.voxels == value
        edges = np.quantile(image.voxels[truth], np.linspace(0, 1, 21))
        best = 0.0
        for i, low in enumerate(edges):
            for high in edges[i + 1 :]:
                guess = (image.voxels >= low) & (image.voxels <= high)
                best = max(best, 2 * (guess & truth).sum() / (guess.sum() + truth.sum()))
        assert best < 0.7, LABELS[value]


def test_an_oblique_scan_shows_the_same_body():
    straight = replace(patient(6), rotation_deg=(0.0, 0.0, 0.0))
    image, label = render(replace(straight, rotation_deg=(8.0, -5.0, 10.0)))
    _, reference = render(straight)
    assert np.linalg.det(image.affine[:3, :3]) != 0
    assert not np.allclose(image.affine, np.diag(np.diag(image.affine)))
    assert image.spacing_mm == pytest.approx((1.5, 1.75, 1.75))
    for value in (1, 2, 3):
        places = []
        for volume in (label, reference):
            index = np.argwhere(volume.voxels == value).mean(axis=0)
            places.append((volume.affine @ (*index, 1))[:3])
            assert ml(volume, value) > 3
        np.testing.assert_allclose(places[0], places[1], atol=0.5)


def test_the_same_seed_gives_the_same_bits(tmp_path):
    def digests(folder):
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    first = digests(write_dataset(tmp_path / "a", cases=2, seed=7))
    assert first == digests(write_dataset(tmp_path / "b", cases=2, seed=7))
    longer = digests(write_dataset(tmp_path / "c", cases=3, seed=7))
    images = [name for name in first if name.name.endswith(".nii.gz")]
    assert len(images) == 4
    assert all(longer[name] == first[name] for name in images)
    other = digests(write_dataset(tmp_path / "d", cases=1, seed=8))
    assert all(other[name] != first[name] for name in images if name in other)


def test_a_data_set_on_disk_is_what_was_rendered(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    folder = write_dataset(tmp_path, cases=2, seed=0)
    rows = (folder / "participants.tsv").read_text().splitlines()
    assert [row.split("\t")[1] for row in rows[1:]] == ["aurora", "borealis"]
    for index in range(2):
        name, vendor = f"phantom_{index:03d}", tuple(VENDORS)[index % 2]
        image, label = render(draw(np.random.default_rng((0, index)), vendor))
        stored = nibabel.load(folder / "imagesTr" / f"{name}.nii.gz")
        truth = nibabel.load(folder / "labelsTr" / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(truth.dataobj), label.voxels.T)
        assert np.abs(np.asarray(stored.dataobj) - image.voxels.T).max() <= 0.5
        # One voxel in RAS against the same voxel in LPS.
        ras = stored.affine @ (10, 20, 5, 1)
        lps = image.affine @ (5, 20, 10, 1)
        np.testing.assert_allclose(ras[:3] * (-1, -1, 1), lps[:3], atol=1e-3)
        np.testing.assert_allclose(stored.get_qform(), stored.get_sform(), atol=1e-4)


def test_bad_requests_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="vendor must be one of aurora, borealis"):
        draw(np.random.default_rng(0), "acme")
    with pytest.raises(ConfigError, match="cases must be at least 1"):
        write_dataset(tmp_path, cases=0)
    vendor = replace(VENDORS["aurora"], slice_mm=1.0)
    with pytest.raises(ConfigError, match=r"multiple of 0\.75"):
        render(replace(patient(0), vendor=vendor))
