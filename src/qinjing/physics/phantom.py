"""Generated anatomy with known truth: organs, lesions and two scanners that see them differently.

The scanner averages a fine grid over each voxel (partial volume), blurs in plane, shades with a
bias field and adds Rician noise. What is scanned is drawn in `anatomy.py`.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np

from qinjing.config import atomic_path, write_json
from qinjing.errors import ConfigError
from qinjing.physics.anatomy import (
    LABELS,
    TISSUES,
    VENDORS,
    Ellipsoid,
    PhantomParameters,
    ShearWave,
    draw,
)
from qinjing.volume import Volume

__all__ = ["LABELS", "VENDORS", "PhantomParameters", "draw", "render", "write_dataset"]

FIELD_OF_VIEW_MM = (84.0, 112.0, 112.0)
_FINE_SLICE_MM = 0.75  # every slice thickness is a multiple of this
_IN_PLANE_SAMPLES = 2
_TEXTURE_MM = 0.75
_TEXTURE_SIZE = 128  # the texture repeats every 96 mm, longer than any organ
_NAMES = tuple(TISSUES)


def render(parameters: PhantomParameters) -> tuple[Volume, Volume]:
    """Scan the phantom.

    Returns:
        The image, float32 grey values ≥ 0, and the label, uint8 values of `LABELS`; both
        (84 / slice_mm, 112 / pixel_mm, 112 / pixel_mm) voxels on the same affine. A voxel's label
        is the one that fills most of it.

    Raises:
        ConfigError: the vendor's slice thickness is not a multiple of 0.75 mm.
    """
    vendor = parameters.vendor
    per_slice = round(vendor.slice_mm / _FINE_SLICE_MM)
    if per_slice < 1 or abs(per_slice * _FINE_SLICE_MM - vendor.slice_mm) > 1e-9:
        raise ConfigError("slice_mm", f"a multiple of {_FINE_SLICE_MM}", vendor.slice_mm)
    blocks = (per_slice, _IN_PLANE_SAMPLES, _IN_PLANE_SAMPLES)
    spacing = np.array((vendor.slice_mm, vendor.pixel_mm, vendor.pixel_mm))
    shape = tuple(int(n) for n in np.round(np.array(FIELD_OF_VIEW_MM) / spacing))
    fine_shape = tuple(n * b for n, b in zip(shape, blocks, strict=True))
    directions = _rotation(parameters.rotation_deg)[:, ::-1]  # columns D → z, H → y, W → x
    coarse = _centred_affine(directions, spacing, shape)
    fine = _centred_affine(directions, spacing / blocks, fine_shape)

    points = _deform(_grid(fine, fine_shape), parameters.waves)
    tissue = _paint(parameters, points, fine, fine_shape)
    rng = np.random.default_rng(parameters.seed)
    texture = _sample_texture(_band_limited_noise(rng), points)
    greys = np.array([parameters.greys[n] for n in _NAMES], dtype=np.float32)
    strength = np.array([TISSUES[n][2] * parameters.texture for n in _NAMES], dtype=np.float32)
    signal = greys[tissue] * (1 + strength[tissue] * texture)

    image = _blur(_block_mean(signal, blocks), vendor.blur_mm / vendor.pixel_mm)
    image *= _bias_field(_grid(coarse, shape), parameters.bias)
    sigma = np.float32(vendor.noise * parameters.greys["liver"])
    real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * sigma
    image = np.float32(vendor.gain) * np.hypot(image + real, imaginary)
    label_of = np.array([TISSUES[n][0] for n in _NAMES], dtype=np.uint8)
    label = _majority(label_of[tissue], blocks)
    return Volume(image.astype(np.float32), coarse), Volume(label, coarse)


def _rotation(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotate about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _centred_affine(
    directions: np.ndarray, spacing_mm: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Build index → LPS with the middle of the grid at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _grid(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the voxel centres, (3, D, H, W) float32 in LPS millimetres."""
    points = np.empty((3, *shape), dtype=np.float32)
    d, h, w = (np.arange(n, dtype=np.float32) for n in shape)
    m = affine.astype(np.float32)
    for axis in range(3):
        points[axis] = (m[axis, 0] * d + m[axis, 3])[:, None, None]
        points[axis] += (m[axis, 1] * h)[:, None] + m[axis, 2] * w
    return points


def _deform(points: np.ndarray, waves: tuple[ShearWave, ...]) -> np.ndarray:
    """Move `points` (3, D, H, W) in place through each wave."""
    for wave in waves:
        kx, ky, kz = (np.float32(k) for k in wave.wave_per_mm)
        swing = np.sin(kx * points[0] + ky * points[1] + kz * points[2] + np.float32(wave.phase))
        for axis, shift in enumerate(wave.shift_mm):
            points[axis] += np.float32(shift) * swing
    return points


def _paint(
    parameters: PhantomParameters, points: np.ndarray, affine: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the tissue index of each fine voxel, uint8."""
    tissue = np.zeros(shape, dtype=np.uint8)
    liver = _NAMES.index("liver")
    slack = sum(float(np.linalg.norm(w.shift_mm)) for w in parameters.waves) + 1.0
    inverse = np.linalg.inv(affine)
    for item in parameters.structures:
        box = _index_box(item, slack, inverse, shape)
        local = points[(slice(None), *box)]
        distance = np.zeros(local.shape[1:], dtype=np.float32)
        for axis in range(3):
            scale = np.float32(1.0 / item.semi_axes_mm[axis])
            distance += ((local[axis] - np.float32(item.center_mm[axis])) * scale) ** 2
        inside = distance <= 1
        if item.tissue == "lesion":
            inside &= tissue[box] == liver
        tissue[box][inside] = _NAMES.index(item.tissue)
    return tissue


def _index_box(
    item: Ellipsoid, slack_mm: float, inverse: np.ndarray, shape: tuple[int, ...]
) -> tuple[slice, ...]:
    """Return slices that surely hold the deformed `item`."""
    reach = np.minimum(np.array(item.semi_axes_mm) + slack_mm, 1e4)
    signs = np.array(list(product((-1, 1), repeat=3)))
    corners = np.array(item.center_mm) + signs * reach
    index = corners @ inverse[:3, :3].T + inverse[:3, 3]
    low = np.floor(index.min(axis=0)).astype(int)
    high = np.ceil(index.max(axis=0)).astype(int) + 1
    return tuple(
        slice(max(0, a), max(0, min(n, b))) for a, b, n in zip(low, high, shape, strict=True)
    )


def _band_limited_noise(rng: np.random.Generator) -> np.ndarray:
    """Return a periodic cube of noise with wavelengths about 4 to 12 mm, mean 0, deviation 1."""
    n = _TEXTURE_SIZE
    spectrum = np.fft.rfftn(rng.standard_normal((n, n, n), dtype=np.float32))
    full, half = np.fft.fftfreq(n, _TEXTURE_MM), np.fft.rfftfreq(n, _TEXTURE_MM)
    squared = full[:, None, None] ** 2 + full[:, None] ** 2 + half**2
    spectrum *= np.exp(-squared * 6.0**2) - np.exp(-squared * 18.0**2)
    noise = np.fft.irfftn(spectrum, s=(n, n, n), axes=(0, 1, 2))
    return (noise / noise.std()).astype(np.float32)


def _sample_texture(cube: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Look the texture up at the nearest lattice point, so that it moves with the anatomy."""
    scale = np.float32(1 / _TEXTURE_MM)
    flat = np.zeros(points.shape[1:], dtype=np.int32)
    for axis in range(3):
        flat *= _TEXTURE_SIZE
        flat += np.rint(points[axis] * scale).astype(np.int32) & (_TEXTURE_SIZE - 1)
    return cube.reshape(-1)[flat]


def _block_mean(values: np.ndarray, blocks: tuple[int, int, int]) -> np.ndarray:
    """Average over each voxel's fine samples: the slice profile and the partial volume."""
    d, h, w = (n // b for n, b in zip(values.shape, blocks, strict=True))
    total = np.zeros((d, h, w), dtype=np.float32)
    for i, j, k in product(*(range(b) for b in blocks)):
        total += values[i :: blocks[0], j :: blocks[1], k :: blocks[2]]
    return total / np.float32(np.prod(blocks))


def _majority(labels: np.ndarray, blocks: tuple[int, int, int]) -> np.ndarray:
    """Return the label that most fine samples of each voxel have.

    A tie goes to the label of the voxel's first sample, so that organs neither grow nor shrink.
    """
    first = labels[:: blocks[0], :: blocks[1], :: blocks[2]]
    best = np.full(first.shape, -1.0, dtype=np.float32)
    winner = np.zeros(first.shape, dtype=np.uint8)
    for value in range(len(LABELS)):
        share = _block_mean(labels == value, blocks) + np.float32(1e-3) * (first == value)
        more = share > best
        winner[more] = value
        np.maximum(best, share, out=best)
    return winner


def _blur(image: np.ndarray, width_voxels: float) -> np.ndarray:
    """Blur (D, H, W) in plane with a Gaussian of `width_voxels` full width at half maximum."""
    if width_voxels <= 0:
        return image
    sigma = width_voxels / 2.3548200450309493
    radius = int(np.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    for axis in (1, 2):
        pad = [(0, 0)] * 3
        pad[axis] = (radius, radius)
        padded = np.pad(image, pad, mode="edge")
        n = image.shape[axis]
        image = np.zeros_like(image)
        for i, weight in enumerate(kernel):
            image += weight * (padded[:, i : i + n] if axis == 1 else padded[:, :, i : i + n])
    return image


def _bias_field(points: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    """Return the multiplicative shading, smooth and near one."""
    half = np.array(FIELD_OF_VIEW_MM[::-1], dtype=np.float32) / 2
    x, y, z = (points[i] / half[i] for i in range(3))
    log = np.zeros(points.shape[1:], dtype=np.float32)
    for coefficient, term in zip(coefficients, (x, y, z, x * y, y * z, z * x), strict=True):
        log += np.float32(coefficient) * term
    return np.exp(log)


def write_dataset(folder: str | Path, cases: int = 24, seed: int = 0) -> Path:
    """Write labelled phantoms in the layout of the Medical Segmentation Decathlon.

    Vendors take turns. Each case has its own random stream, so a longer data set begins with the
    cases of a shorter one. `participants.tsv` names the vendor of each case, also
    as the group that splits are stratified by.

    Args:
        folder: made where it is not there.
        cases: how many, at least 1.
        seed: of the whole data set.

    Returns:
        `folder`.

    Raises:
        ConfigError: `cases` is below 1.
    """
    if cases < 1:
        raise ConfigError("cases", "at least 1", cases)
    folder = Path(folder)
    rows = ["participant_id\tvendor\tgroup\tslice_mm\tlesions"]
    training = []
    for index in range(cases):
        name = f"phantom_{index:03d}"
        vendor = tuple(VENDORS)[index % len(VENDORS)]
        parameters = draw(np.random.default_rng((seed, index)), vendor)
        image, label = render(parameters)
        # Grey values are whole numbers, as a scanner stores them.
        stored = np.clip(np.rint(image.voxels), 0, 32767).astype(np.int16)
        _write_nifti(folder / "imagesTr" / f"{name}.nii.gz", image.with_voxels(stored))
        _write_nifti(folder / "labelsTr" / f"{name}.nii.gz", label)
        lesions = sum(item.tissue == "lesion" for item in parameters.structures)
        rows.append(f"{name}\t{vendor}\t{vendor}\t{parameters.vendor.slice_mm}\t{lesions}")
        training.append(
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        )
    with atomic_path(folder / "participants.tsv") as temporary:
        temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    description = {
        "name": "Phantom",
        "description": "generated abdomens with known truth, two vendors",
        "reference": "Qinjing, physics/phantom.py",
        "licence": "CC0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "MRI"},
        "labels": {str(value): name for value, name in LABELS.items()},
        "numTraining": cases,
        "numTest": 0,
        "training": training,
        "test": [],
    }
    write_json(folder / "dataset.json", description)
    return folder


def _write_nifti(path: Path, volume: Volume) -> None:
    """Write one NIfTI file; the room of readers and writers lies above this one."""
    import nibabel

    affine = np.diag((-1.0, -1.0, 1.0, 1.0)) @ volume.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.voxels).T, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)
