"""Persistence pairs against GUDHI's and shapes whose parts can be counted by eye."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from qinjing.errors import ConfigError, GeometryError
from qinjing.losses.persistence import persistence_pairs
from qinjing.losses.wasserstein import match_diagrams, wasserstein_distance

pytest.importorskip("numba")


def random_image(rng: np.random.Generator, least: int = 1) -> np.ndarray:
    """A small image of one of several kinds, flat ones and ones with few grey levels among them."""
    shape = tuple(rng.integers(least, 10, rng.integers(2, 4)))
    kind = rng.integers(6)
    if kind == 0:
        image = rng.random(shape)
    elif kind == 1:
        image = rng.integers(0, 2, shape).astype(float)
    elif kind == 2:
        image = rng.integers(0, 5, shape) / 4 - 0.5
    elif kind == 3:
        image = np.full(shape, rng.random())
    elif kind == 4:
        image = gaussian_filter(rng.normal(size=shape), 1.0)
    else:
        image = np.round(gaussian_filter(rng.normal(size=shape), 0.7) * 4) / 4
    return image.astype(np.float32) if rng.random() < 0.5 else image


def diagrams(image: np.ndarray, sublevel: bool = False) -> list[np.ndarray]:
    """Our births and deaths, sorted; the death of what never dies is infinite."""
    values = np.append(image.astype(float).ravel(), np.inf if sublevel else -np.inf)
    found = [values[pairs].reshape(-1, 2) for pairs in persistence_pairs(image, sublevel)]
    return [points[np.lexsort(points.T)] for points in found]


def peers_diagrams(image: np.ndarray, sublevel: bool = False) -> list[np.ndarray]:
    """GUDHI's, in the same form."""
    gudhi = pytest.importorskip("gudhi")
    sign = 1.0 if sublevel else -1.0
    cells = gudhi.CubicalComplex(top_dimensional_cells=sign * image.astype(float))
    cells.compute_persistence(homology_coeff_field=2, min_persistence=0)
    found = []
    for dimension in range(3):
        points = sign * cells.persistence_intervals_in_dimension(dimension).reshape(-1, 2)
        points = points[points[:, 0] != points[:, 1]]
        found.append(points[np.lexsort(points.T)])
    return found


def check_against_gudhi(seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        image, sublevel = random_image(rng), bool(seed % 2)
        for own, peer in zip(
            diagrams(image, sublevel), peers_diagrams(image, sublevel), strict=True
        ):
            assert own.shape == peer.shape, (seed, image.shape)
            np.testing.assert_allclose(own, peer, rtol=0, atol=1e-6, err_msg=str(seed))


def test_pairs_equal_gudhis() -> None:
    check_against_gudhi(range(400))


@pytest.mark.slow
def test_pairs_equal_gudhis_on_many_images() -> None:
    check_against_gudhi(range(400, 1400))


@pytest.mark.parametrize("shape", [(24, 25, 26), (1, 90, 80)], ids=["3-D", "one slice"])
@pytest.mark.parametrize("smoothing", [0.0, 1.5])
def test_pairs_equal_gudhis_on_larger_images(shape: tuple[int, ...], smoothing: float) -> None:
    image = gaussian_filter(np.random.default_rng(0).normal(size=shape), smoothing)
    for own, peer in zip(diagrams(image), peers_diagrams(image.squeeze()), strict=True):
        np.testing.assert_allclose(own, peer, rtol=0, atol=1e-6)


def test_places_hold_the_values_of_the_pairs_and_lie_on_different_voxels() -> None:
    image = np.random.default_rng(0).random((6, 7, 8))  # every value once
    components, loops, cavities = persistence_pairs(image)
    assert components[0].tolist() == [image.argmax(), -1]
    for pairs in (components[1:], loops, cavities):
        births, deaths = image.ravel()[pairs].T
        assert len(pairs) and (births > deaths).all()
    # Every voxel of a component's birth is a peak of its 26 neighbours, of a cavity's death a pit.
    from scipy.ndimage import maximum_filter, minimum_filter

    peaks = np.flatnonzero(image == maximum_filter(image, 3))
    assert sorted(components[:, 0]) == peaks.tolist()
    cross = np.abs(np.indices((3, 3, 3)) - 1).sum(0) < 2
    pits = np.flatnonzero(image == minimum_filter(image, footprint=cross, mode="constant", cval=-1))
    assert sorted(cavities[:, 1]) == pits.tolist()


def test_a_ring_has_one_loop() -> None:
    image = np.zeros((7, 7))
    image[1:6, 1:6] = 0.8
    image[2:5, 2:5] = 0.1
    image[1, 3] = 0.6  # where the ring closes last
    components, loops, cavities = persistence_pairs(image)
    assert components.tolist() == [[int(image.argmax()), -1]]
    ((birth, death),) = loops
    assert birth == 1 * 7 + 3 and image.ravel()[death] == 0.1
    assert cavities.shape == (0, 2)
    # The other way round the ground comes in first, itself a loop until the ring's last voxel fills
    # it; then the island, which the ring's weak place joins to it.
    components, loops, _ = persistence_pairs(image, sublevel=True)
    assert image.ravel()[components[1]].tolist() == [0.1, 0.6] and len(components) == 2
    assert len(loops) == 1 and image.ravel()[loops[0]].tolist() == [0, 0.8]


def _distance(*centres: float) -> np.ndarray:
    grid = np.indices((17, 17, 17)) - np.array(centres).reshape(3, 1, 1, 1)
    return np.sqrt((grid**2).sum(0))


@pytest.mark.parametrize(
    ("name", "betti"), [("ball", (1, 0, 0)), ("shell", (1, 0, 1)), ("torus", (1, 1, 0)),
                        ("two balls", (2, 0, 0)), ("hollow torus", (1, 2, 1)),
                        ("nothing", (1, 0, 0))],
)  # fmt: skip
def test_solids(name: str, betti: tuple[int, int, int]) -> None:
    z, y, x = np.indices((17, 17, 17)) - 8
    from_circle = np.hypot(z, np.hypot(y, x) - 5)
    solid = {
        "ball": _distance(8, 8, 8) < 5,
        "shell": np.abs(_distance(8, 8, 8) - 5) < 1.5,
        "torus": from_circle < 2.1,
        "two balls": np.minimum(_distance(4, 8, 8), _distance(12, 8, 8)) < 2.5,
        "hollow torus": np.abs(from_circle - 2.1) < 0.9,
        "nothing": np.zeros((17, 17, 17)) > 1,
    }[name]
    assert tuple(len(pairs) for pairs in persistence_pairs(solid)) == betti


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(GeometryError, match="image must be"):
        persistence_pairs(np.zeros((2, 2, 2, 2)))
    with pytest.raises(GeometryError, match="image must be"):
        persistence_pairs(np.zeros((2, 0)))
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(GeometryError, match="finite values, got NaN or an infinity"):
            persistence_pairs(np.array([[0.0, value]], np.float32))
    for shape in ((405, 405, 405), (4728, 4728)):
        with pytest.raises(GeometryError, match="at most 67108864 voxels"):
            persistence_pairs(np.broadcast_to(np.float32(0), shape))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.float16, np.float64])
def test_pairs_do_not_hang_on_the_type_of_the_values(kind: type) -> None:
    image = np.random.default_rng(0).integers(0, 2 if kind is bool else 100, (4, 5, 6))
    for sublevel in (False, True):
        own = persistence_pairs(image.astype(kind), sublevel)
        for pairs, same in zip(own, persistence_pairs(image, sublevel), strict=True):
            np.testing.assert_array_equal(pairs, same)


def test_without_a_compiler_one_sentence_says_what_to_install(monkeypatch) -> None:
    import sys

    from qinjing.losses import persistence

    for name in ("_stars", "_pairing"):
        monkeypatch.delitem(sys.modules, f"qinjing.losses.persistence.{name}", raising=False)
        monkeypatch.delattr(persistence, name, raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ConfigError, match=r"numba must be .*; pip install 'qinjing\[topology\]'"):
        persistence_pairs(np.zeros((2, 2)))


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("inner_norm", [1.0, 2.0, np.inf])
def test_wasserstein_equals_gudhis(order: float, inner_norm: float) -> None:
    peer = pytest.importorskip("gudhi.wasserstein").wasserstein_distance
    rng = np.random.default_rng(0)
    for _ in range(25):
        one, other = (np.sort(rng.random((rng.integers(0, 9), 2)))[:, ::-1] for _ in range(2))
        if rng.random() < 0.4:  # a binary image's: one point again and again
            other = np.repeat([[1.0, 0.0]], len(other), axis=0)
        # Ours are of superlevel sets, birth above death; GUDHI wants birth first and below.
        expected = peer(1 - one, 1 - other, order=order, internal_p=inner_norm)
        own = wasserstein_distance(one, other, order, inner_norm)
        assert own == pytest.approx(expected, abs=1e-6)


def test_wasserstein_of_a_thousand_images_equals_gudhis() -> None:
    peer = pytest.importorskip("gudhi.wasserstein").wasserstein_distance
    compared = 0
    for seed in range(500):
        rng = np.random.default_rng((1, seed))
        one, other = random_image(rng, least=5), random_image(rng, least=5)
        order, norm = (1.0, 2.0, 3.0)[seed % 3], (1.0, 2.0, np.inf)[seed // 3 % 3]
        # Each distance has diagrams of its own: pairs and matching are compared as one.
        own = zip(diagrams(one), diagrams(other), strict=True)
        theirs = zip(peers_diagrams(one), peers_diagrams(other), strict=True)
        for mine, peers in zip(own, theirs, strict=True):
            (a, b), (c, d) = ([p[np.isfinite(p).all(1)] for p in pair] for pair in (mine, peers))
            # Ours are of superlevel sets, birth above death; GUDHI wants birth first and below.
            expected = peer(-c, -d, order=order, internal_p=norm)
            found = wasserstein_distance(a, b, order, norm)
            assert found == pytest.approx(expected, rel=0, abs=1e-6), seed
            compared += bool(len(a) and len(b))
    assert compared > 500  # and not one empty diagram with another


def test_matching_by_hand() -> None:
    points = np.array([[0.9, 0.1], [0.6, 0.5], [0.8, 0.0]])
    # To (1, 0) the first costs 0.02, the third 0.04; to the diagonal 0.32 of each, 0.5 of (1, 0).
    assert match_diagrams(points, np.array([[1.0, 0.0]])).tolist() == [0, -1, -1]
    assert wasserstein_distance(points, np.array([[1.0, 0.0]])) ** 2 == pytest.approx(
        0.02 + 0.005 + 0.32
    )


def test_nothing_fails_where_compiled_code_cannot_be_kept() -> None:
    import os
    import subprocess
    import sys

    code = "import qinjing.losses.persistence._pairing as p; print(p.pair_loops._cache.__class__)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        # The only place that is left is IPython's, which there is none of.
        env={**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "IPythonCacheLocator",
             "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert run.returncode == 0 and "NullCache" in run.stdout, run.stderr
