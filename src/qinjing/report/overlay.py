"""Pictures for a report: label outlines on three planes through the place that matters.

Planes are shown as a radiologist expects them: the patient's right on the left of the picture,
anterior or superior on top. Figures are matplotlib objects without pyplot's global state.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from qinjing.errors import GeometryError
from qinjing.volume import Volume

# Okabe and Ito's colours, told apart with any colour vision; those that read on grey come first.
PALETTE = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#F0E442", "#D55E00", "#0072B2")
# A small structure inside a larger one: what a reader looks for first.
LESION_WORDS = ("lesion", "tumour", "tumor", "cancer", "nodule", "metasta", "infarct", "plaque")
MARGIN_MM = 18.0
NEAR_MM = 5.0
DPI = 110
PAGE_INCHES = 10.6  # as wide as the page at this resolution, so that letters keep their size


@dataclass(frozen=True)
class Plane:
    """One way to cut a canonical (S, P, L) volume.

    Attributes:
        name: as radiologists call it.
        axis: the canonical axis that the cut stands on.
        rows: the axis that runs down the picture, `columns` the one that runs right.
        flip_rows: the axis runs up instead of down.
        marks: patient directions at the left, right, top and bottom of the picture.
    """

    name: str
    axis: int
    rows: int
    columns: int
    flip_rows: bool
    marks: tuple[str, str, str, str]


PLANES = (
    Plane("axial", 0, 1, 2, False, ("R", "L", "A", "P")),
    Plane("coronal", 1, 0, 2, True, ("R", "L", "S", "I")),
    Plane("sagittal", 2, 0, 1, True, ("A", "P", "S", "I")),
)


def color(index: int) -> str:
    """Return the colour of the index-th foreground label, repeating after seven."""
    return PALETTE[index % len(PALETTE)]


def declared(label: Volume, labels: Mapping[int, str]) -> Volume:
    """Return a label map with background where it holds another value, as where it says "ignore".

    Args:
        label: of any shape.
        labels: value → name.
    """
    return label.with_voxels(np.where(np.isin(label.voxels, list(labels)), label.voxels, 0))


def where_labelled(prediction: Volume, truth: Volume, labels: Mapping[int, str]) -> Volume:
    """Return a prediction with background where the truth says nothing, on one grid or as it is."""
    if truth.shape != prediction.shape:
        return prediction
    known = np.isin(truth.voxels, [0, *labels])
    return prediction.with_voxels(np.where(known, prediction.voxels, 0))


def focus(
    truth: Volume, prediction: Volume | None, labels: Mapping[int, str]
) -> tuple[tuple[int, int, int], str]:
    """Choose the voxel that the three planes go through.

    The middle of the largest lesion where a label is named so, else the deepest error of the
    prediction (near the truth where there is one, so that the planes show both), else the deepest
    point of the foreground: "deepest" is farthest from its own surface, in millimetres.

    Args:
        truth: (D, H, W) label values.
        prediction: on the same grid, or None.
        labels: value → name.

    Returns:
        The index (d, h, w) and words for a caption.
    """
    lesions = [v for v, n in labels.items() if v and any(w in n.lower() for w in LESION_WORDS)]
    mask = np.isin(truth.voxels, lesions)
    if lesions and mask.any():
        return _deepest(mask, truth.spacing_mm), f"the {labels[lesions[0]]}"
    if prediction is not None:
        mask = truth.voxels != prediction.voxels
        near = np.zeros_like(mask)
        box = _box(truth.voxels > 0, truth.spacing_mm, NEAR_MM)
        near[box] = mask[box]
        if near.any():
            return _deepest(near, truth.spacing_mm), "the largest error near the labels"
        if mask.any():
            return _deepest(mask, truth.spacing_mm), "the largest error"
    mask = truth.voxels > 0
    if mask.any():
        return _deepest(mask, truth.spacing_mm), "the labelled structures"
    d, h, w = truth.shape
    return (d // 2, h // 2, w // 2), "the middle of the volume"


def _deepest(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Return the voxel of `mask` that lies farthest from its surface, the middle one of equals."""
    from scipy.ndimage import distance_transform_edt

    occupied = np.argwhere(mask)
    low, high = occupied.min(axis=0), occupied.max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    distance = distance_transform_edt(np.pad(mask[box], 1), sampling=spacing_mm)
    equals = np.argwhere(distance >= distance.max() - 1e-6)
    offsets = (equals - equals.mean(axis=0)) * np.array(spacing_mm)
    index = equals[int(np.argmin((offsets**2).sum(axis=1)))]
    d, h, w = (int(i) - 1 + int(a) for i, a in zip(index, low, strict=True))
    return d, h, w


def overlay_figure(
    image: Volume, layers: Mapping[str, Volume | None], labels: Mapping[int, str],
    center: tuple[int, int, int],
) -> Figure:  # fmt: skip
    """Draw outlines on the image: one row a plane, one column for the image and each layer.

    A single slice has one plane. The first layer is the truth; it returns as a dashed white line
    under each of the others. The pictures are cut around the first two.

    Args:
        image: (D, H, W), or (C, D, H, W) of which the first channel is shown.
        layers: name → label map on the image's grid; None leaves the column out.
        labels: value → name; the order of the foreground values gives the colours.
        center: index (d, h, w) on that grid, where the planes cross.

    Raises:
        GeometryError: a layer lies on another grid.
    """
    shown = {name: layer for name, layer in layers.items() if layer is not None}
    for name, layer in shown.items():
        difference = image.grid_difference(layer)
        if difference is not None:
            raise GeometryError(name, "on the image's grid", difference)
    grey = image.voxels[0] if image.voxels.ndim == 4 else image.voxels
    background = image.with_voxels(grey).canonical()
    maps = {name: layer.canonical().voxels for name, layer in shown.items()}
    marker = np.zeros(image.shape, dtype=bool)
    marker[center] = True
    middle = np.argwhere(image.with_voxels(marker).canonical().voxels)[0]
    # Truth and ours decide what is in the picture; a baseline's stray voxels would only shrink it.
    foreground = np.zeros(background.shape, dtype=bool)
    for labelled in list(maps.values())[:2]:
        foreground |= labelled > 0
    box = _box(foreground, background.spacing_mm, MARGIN_MM)
    low, high = _window(background.voxels[box])
    thick = [n > 1 for n in background.shape]
    planes = [plane for plane in PLANES if thick[plane.rows] and thick[plane.columns]] or PLANES
    cells = [_cell(plane, background, middle, box) for plane in planes]
    figure, axes = _canvas([cell.size_mm for cell in cells], 1 + len(maps))
    truth = next(iter(maps.values()), None)
    values = [value for value in labels if value]
    for row, (plane, cell) in enumerate(zip(planes, cells, strict=True)):
        for column, name in enumerate(["image", *maps]):
            ax = axes[row][column]
            ax.imshow(cell.cut(background.voxels), cmap="gray", vmin=low, vmax=high,
                      extent=cell.extent, interpolation="bilinear")  # fmt: skip
            if column:
                if column > 1 and truth is not None:
                    _outline(ax, cell, truth, values, reference=True)
                _outline(ax, cell, maps[name], values, reference=False)
            ax.set(xlim=cell.extent[:2], ylim=cell.extent[2:])
            _decorate(ax, plane, name if row == 0 else "", column == 0)
    return figure


@dataclass(frozen=True)
class _Cell:
    """One cut through the canonical volume, in millimetres from its corner."""

    index: tuple[Any, ...]
    flip: bool
    size_mm: tuple[float, float]  # height, width

    @property
    def extent(self) -> tuple[float, float, float, float]:
        return 0.0, self.size_mm[1], self.size_mm[0], 0.0

    def cut(self, voxels: np.ndarray) -> np.ndarray:
        plane = voxels[self.index]
        return plane[::-1] if self.flip else plane


def _cell(plane: Plane, volume: Volume, middle: np.ndarray, box: tuple[slice, ...]) -> _Cell:
    index: list[Any] = list(box)
    index[plane.axis] = int(middle[plane.axis])
    lengths = [s.stop - s.start for s in box]
    height = lengths[plane.rows] * volume.spacing_mm[plane.rows]
    width = lengths[plane.columns] * volume.spacing_mm[plane.columns]
    return _Cell(tuple(index), plane.flip_rows, (height, width))


def _box(mask: np.ndarray, spacing_mm: Sequence[float], margin_mm: float) -> tuple[slice, ...]:
    """Return the box around `mask` with a margin, the whole volume where it is empty."""
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    box = []
    for axis, (n, spacing) in enumerate(zip(mask.shape, spacing_mm, strict=True)):
        there = np.flatnonzero(mask.any(axis=tuple(i for i in range(3) if i != axis)))
        margin = int(np.ceil(margin_mm / spacing))
        box.append(slice(max(0, int(there[0]) - margin), min(n, int(there[-1]) + 1 + margin)))
    return tuple(box)


def _window(voxels: np.ndarray) -> tuple[float, float]:
    """Return the grey values shown as black and white."""
    finite = voxels[np.isfinite(voxels)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, (1, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def _canvas(
    sizes_mm: Sequence[tuple[float, float]], columns: int
) -> tuple[Figure, list[list[Any]]]:
    """Lay out rows whose heights follow the millimetres that they show."""
    cell = min(3.05, PAGE_INCHES / columns)
    width = cell * columns
    widest = max(w for _, w in sizes_mm)
    ratios = [max(h / widest, 0.25) for h, _ in sizes_mm]
    height = cell * sum(ratios) + 0.3
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        len(sizes_mm), columns, height_ratios=ratios, hspace=0.02, wspace=0.02,
        left=0.004, right=0.996, top=1 - 0.28 / height, bottom=0.004,
    )  # fmt: skip
    axes = [[figure.add_subplot(grid[r, c]) for c in range(columns)] for r in range(len(sizes_mm))]
    return figure, axes


def _outline(
    ax: Any, cell: _Cell, voxels: np.ndarray, values: Sequence[int], *, reference: bool
) -> None:
    """Draw each label's border half-way between its voxels and their neighbours."""
    labels = cell.cut(voxels)
    step = [size / n for size, n in zip(cell.size_mm, labels.shape, strict=True)]
    y, x = ((np.arange(-1, n + 1) + 0.5) * s for n, s in zip(labels.shape, step, strict=True))
    for index, value in enumerate(values):
        mask = np.pad(labels == value, 1).astype(np.float32)
        if not mask.any():
            continue
        if reference:
            ax.contour(x, y, mask, [0.5], colors="black", linewidths=1.6, alpha=0.5)
            ax.contour(x, y, mask, [0.5], colors="white", linewidths=1.0, linestyles="dashed")
        else:
            style = "solid" if index < len(PALETTE) else "dashed"
            ax.contour(x, y, mask, [0.5], colors=color(index), linewidths=1.5, linestyles=style)


def _decorate(ax: Any, plane: Plane, title: str, named: bool) -> None:
    """Write the patient's directions, and the plane's name on the first column."""
    ax.set_axis_off()
    ax.set_facecolor("black")
    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"),
              (0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))  # fmt: skip
    halo = [withStroke(linewidth=2.0, foreground="black")]
    words = list(zip(plane.marks, places, strict=True))
    if named:
        words.append((plane.name, (0.02, 0.98, "left", "top")))
    for mark, (x, y, horizontal, vertical) in words:
        ax.text(x, y, mark, transform=ax.transAxes, color="white", fontsize=8, ha=horizontal,
                va=vertical, path_effects=halo)  # fmt: skip
    if title:
        ax.set_title(title, color="white", fontsize=10, pad=4, parse_math=False)


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """Return an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
