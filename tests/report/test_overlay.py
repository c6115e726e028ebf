"""Pictures: where the planes go, which way is up, and that the same input gives the same bytes."""

from itertools import permutations, product

import numpy as np
import pytest

from qinjing.errors import GeometryError
from qinjing.report.overlay import (
    PALETTE,
    PLANES,
    _cell,
    color,
    data_uri,
    focus,
    overlay_figure,
    to_png,
)
from qinjing.volume import Volume

AFFINE = np.array([[0, 0, 1.0, 0], [0, 1.5, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
LABELS = {0: "background", 1: "liver", 2: "Liver tumour"}


def volume(voxels: np.ndarray) -> Volume:
    return Volume(voxels, AFFINE)


def boxes(**places: tuple[slice, slice, slice]) -> Volume:
    voxels = np.zeros((12, 20, 24), dtype=np.uint8)
    for name, place in places.items():
        voxels[place] = int(name[1:])
    return volume(voxels)


def test_the_lesion_comes_first():
    truth = boxes(v1=np.s_[1:11, 2:18, 2:22], v2=np.s_[3:6, 4:9, 6:11])
    center, words = focus(truth, boxes(), LABELS)
    assert center == (4, 6, 8) and "tumour" in words


def test_else_the_deepest_error_in_millimetres():
    truth = boxes(v1=np.s_[1:11, 2:18, 2:22])
    # A long thin error and a short thick one: the thick one is deeper though it is smaller.
    guess = boxes(v1=np.s_[1:11, 2:18, 2:21])
    guess.voxels[2:7, 5:10, 5:10] = 0
    center, words = focus(truth, guess, {0: "background", 1: "liver"})
    assert words == "the largest error near the labels"
    assert center == (4, 7, 7)


def test_a_far_error_counts_where_there_is_none_near():
    truth = boxes(v1=np.s_[1:4, 2:5, 2:5])
    near, far = np.s_[2:3, 4:6, 2:4], np.s_[8:12, 14:20, 16:22]
    guess = boxes(v1=np.s_[1:4, 2:5, 2:5])
    guess.voxels[far] = 1
    center, words = focus(truth, guess, {1: "liver"})
    assert words == "the largest error" and center[0] >= 8
    guess.voxels[near] = 0
    center, words = focus(truth, guess, {1: "liver"})
    assert words == "the largest error near the labels" and center[0] == 2


def test_else_the_middle_of_what_is_labelled():
    truth = boxes(v1=np.s_[3:8, 4:13, 6:17])
    assert focus(truth, truth, {1: "liver"})[0] == (5, 8, 11)
    assert focus(boxes(), None, {1: "liver"})[0] == (6, 10, 12)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3)))
def test_right_is_on_the_left_and_superior_on_top_however_it_is_stored(order, flips):
    # One bright voxel far to the patient's right, front and top (LPS: −x, −y, +z).
    voxels = np.zeros((8, 10, 12), dtype=np.float32)
    stored = volume(voxels)
    corner = (7, 0, 0)  # D runs up, H backwards, W to the left
    voxels[corner] = 1
    affine = AFFINE[:, [*order, 3]].copy()
    moved = voxels.transpose(order)
    for axis, flip in enumerate(flips):
        if flip:
            affine[:, 3] += affine[:, axis] * (moved.shape[axis] - 1)
            affine[:, axis] *= -1
            moved = np.flip(moved, axis)
    turned = Volume(moved, affine).canonical()
    np.testing.assert_allclose(turned.affine, stored.affine, atol=1e-9)
    middle = np.argwhere(turned.voxels)[0]
    box = tuple(slice(0, n) for n in turned.shape)
    for plane in PLANES:
        cell = _cell(plane, turned, middle, box)
        assert cell.cut(turned.voxels)[0, 0] == 1  # top left of every plane
        heights = {"axial": (15.0, 12.0), "coronal": (24.0, 12.0), "sagittal": (24.0, 15.0)}
        assert cell.size_mm == pytest.approx(heights[plane.name])
        left, _, top, _ = plane.marks
        assert (left, top) == {"axial": ("R", "A"), "coronal": ("R", "S"),
                               "sagittal": ("A", "S")}[plane.name]  # fmt: skip


def test_a_layer_on_another_grid_is_refused():
    image = volume(np.random.default_rng(0).random((12, 20, 24)))
    moved = Volume(boxes().voxels, AFFINE + np.diag([0, 0, 0.5, 0]))
    with pytest.raises(GeometryError, match="ours must be on the image's grid"):
        overlay_figure(image, {"ours": moved}, LABELS, (1, 1, 1))


def test_a_single_slice_has_one_plane():
    rng = np.random.default_rng(0)
    for shape, rows in (((1, 20, 24), 1), ((12, 1, 24), 1), ((12, 20, 24), 3)):
        image = volume(rng.random(shape))
        truth = volume((rng.random(shape) > 0.5).astype(np.uint8))
        figure = overlay_figure(image, {"truth": truth}, LABELS, tuple(n // 2 for n in shape))
        assert len(figure.axes) == 2 * rows


def test_outlines_have_the_labels_colours_and_the_bytes_repeat():
    image = volume(np.random.default_rng(0).random((2, 12, 20, 24)))
    truth = boxes(v1=np.s_[2:9, 4:15, 5:18], v2=np.s_[4:6, 6:9, 8:11])
    layers = {"truth": truth, "ours": boxes(v1=np.s_[2:9, 5:16, 5:18]), "absent": None}

    def draw() -> bytes:
        return to_png(overlay_figure(image, layers, LABELS, (5, 7, 9)))

    png = draw()
    assert png == draw() and png.startswith(b"\x89PNG")
    assert data_uri(png).startswith("data:image/png;base64,iVBOR")
    Image = pytest.importorskip("PIL.Image")
    import io

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    third = pixels.shape[1] // 3
    columns = [pixels[:, i * third : (i + 1) * third] for i in range(3)]

    def has(column: np.ndarray, code: str) -> bool:
        wanted = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)])
        return bool((np.abs(column - wanted).max(axis=-1) < 12).any())

    assert [has(column, color(0)) for column in columns] == [False, True, True]
    assert [has(column, color(1)) for column in columns] == [False, True, False]


def test_the_palette_is_told_apart_without_red_or_green():
    # Viénot's deuteranope and protanope in linear RGB: no two of the seven colours fall together.
    codes = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in PALETTE]) / 255
    linear = np.where(codes <= 0.04045, codes / 12.92, ((codes + 0.055) / 1.055) ** 2.4)
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    for matrix in (deutan, protan):
        seen = linear @ matrix.T
        gaps = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
        assert gaps[~np.eye(len(seen), dtype=bool)].min() > 0.04
