"""Bodies and scanners, drawn: what a phantom is before it is scanned.

Positions are patient millimetres (LPS), so that one body can be scanned on any grid. Organs are
ellipsoids and tubes seen through a chain of shear waves; a shear wave moves points across its own
direction, its Jacobian determinant is exactly one, so a deformed organ keeps its analytic volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np

from qinjing.errors import ConfigError

LABELS = {0: "background", 1: "liver", 2: "spleen", 3: "kidneys", 4: "aorta", 5: "lesion"}

# Tissue → (label, mean grey, texture as a fraction of the grey). Organs overlap on purpose.
TISSUES: dict[str, tuple[int, float, float]] = {
    "air": (0, 12.0, 0.0),
    "fat": (0, 330.0, 0.05),
    "muscle": (0, 560.0, 0.05),
    "cavity": (0, 490.0, 0.09),
    "bone": (0, 820.0, 0.10),
    "stomach": (0, 620.0, 0.08),
    "bowel": (0, 645.0, 0.12),
    "liver": (1, 610.0, 0.04),
    "spleen": (2, 650.0, 0.03),
    "kidney": (3, 690.0, 0.05),
    "aorta": (4, 730.0, 0.01),
    "lesion": (5, 500.0, 0.05),
}


@dataclass(frozen=True)
class Vendor:
    """How one make of scanner draws the same body.

    Attributes:
        name: an invented name.
        gain: grey values relative to the first vendor.
        noise: standard deviation of the noise in each of the two receiver channels, as a fraction
            of the liver's grey value before `gain`.
        blur_mm: full width at half maximum of the in-plane point spread.
        slice_mm: slice thickness and spacing, a multiple of 0.75.
        pixel_mm: in-plane spacing.
    """

    name: str
    gain: float
    noise: float
    blur_mm: float
    slice_mm: float
    pixel_mm: float


VENDORS: dict[str, Vendor] = {
    "aurora": Vendor("aurora", 1.0, 0.045, 1.8, 1.5, 1.75),
    "borealis": Vendor("borealis", 1.175, 0.065, 2.8, 3.0, 1.75),
}


@dataclass(frozen=True)
class Ellipsoid:
    """One ellipsoid before deformation; an infinite semi-axis makes it a tube.

    Attributes:
        tissue: a name of the tissue table.
        center_mm: (x, y, z), LPS.
        semi_axes_mm: along x, y and z.
    """

    tissue: str
    center_mm: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]

    @property
    def volume_ml(self) -> float:
        """Analytic volume in millilitres, infinite for a tube."""
        a, b, c = self.semi_axes_mm
        return 4.0 / 3.0 * pi * a * b * c / 1000.0


@dataclass(frozen=True)
class ShearWave:
    """A displacement that is constant along itself: volumes are kept exactly.

    Attributes:
        wave_per_mm: (x, y, z) angular wave vector.
        shift_mm: (x, y, z) amplitude, at right angles to `wave_per_mm`.
        phase: radians.
    """

    wave_per_mm: tuple[float, float, float]
    shift_mm: tuple[float, float, float]
    phase: float


@dataclass(frozen=True)
class PhantomParameters:
    """Everything that decides a phantom; `render` draws nothing that is not seeded here.

    Attributes:
        vendor: the scanner.
        structures: painted in order, a later one over an earlier one; a lesion only over liver.
        waves: the deformation, applied one after the other.
        greys: tissue → mean grey value before the vendor's gain.
        texture: scale of every tissue's texture, 1 as usual, 0 for flat organs.
        bias: coefficients of the log bias field over (x, y, z, xy, yz, zx), positions in −1 to 1.
        rotation_deg: rotation of the scan grid about x, y and z.
        seed: of texture and noise.
    """

    vendor: Vendor
    structures: tuple[Ellipsoid, ...]
    waves: tuple[ShearWave, ...]
    greys: dict[str, float]
    texture: float
    bias: tuple[float, ...]
    rotation_deg: tuple[float, float, float]
    seed: int


def draw(rng: np.random.Generator, vendor: str | None = None) -> PhantomParameters:
    """Draw one patient and one scan.

    Args:
        rng: the only source of chance.
        vendor: a name of `VENDORS`; either one where None.

    Raises:
        ConfigError: no such vendor.
    """
    if vendor is not None and vendor not in VENDORS:
        raise ConfigError("vendor", f"one of {', '.join(VENDORS)}", vendor)
    chosen = tuple(VENDORS)[int(rng.integers(len(VENDORS)))]
    structures = _draw_structures(rng)
    greys = {n: grey * float(rng.uniform(0.96, 1.04)) for n, (_, grey, _) in TISSUES.items()}
    greys["lesion"] = greys["liver"] * float(rng.uniform(0.68, 0.78))
    tilt = rng.uniform(-12.0, 12.0, 3) * (rng.random() < 0.35)
    return PhantomParameters(
        vendor=VENDORS[vendor or chosen],
        structures=structures,
        waves=tuple(_draw_wave(rng) for _ in range(4)),
        greys=greys,
        texture=1.0,
        bias=tuple(rng.uniform(-0.07, 0.07, 6).tolist()),
        rotation_deg=(float(tilt[0]), float(tilt[1]), float(tilt[2])),
        seed=int(rng.integers(2**31)),
    )


def _draw_structures(rng: np.random.Generator) -> tuple[Ellipsoid, ...]:
    """Draw body, distractors, organs and lesions in painting order."""
    size = float(rng.uniform(0.93, 1.05))

    def place(
        tissue: str, center: tuple[float, float, float], axes: tuple[float, float, float]
    ) -> Ellipsoid:
        c = size * (np.array(center) + rng.uniform(-2.5, 2.5, 3))
        a = size * np.array(axes) * rng.uniform(0.9, 1.1, 3)
        return Ellipsoid(tissue, (float(c[0]), float(c[1]), float(c[2])), tuple(a.tolist()))

    inf, fat = float("inf"), float(rng.uniform(3.0, 6.0))
    half_x, half_y = 51.0 * size, 43.0 * size
    shells = [("fat", 0.0), ("muscle", fat), ("cavity", fat + 4.0)]
    items = [Ellipsoid(t, (0.0, 0.0, 0.0), (half_x - s, half_y - s, inf)) for t, s in shells]
    items.append(place("bone", (0.0, 29.0, 0.0), (8.5, 8.0, inf)))
    items.append(place("stomach", (18.0, -12.0, 20.0), (13.0, 10.0, 12.0)))
    for _ in range(int(rng.integers(4, 7))):
        x, z = float(rng.uniform(-26.0, 28.0)), float(rng.uniform(-38.0, -22.0))
        items.append(place("bowel", (x, float(rng.uniform(-22.0, -2.0)), z), (7.0, 7.0, 7.0)))
    liver = place("liver", (-19.0, -4.0, 12.0), (20.0, 24.0, 21.0))
    items.append(place("liver", (-2.0, -16.0, 18.0), (17.0, 11.0, 10.0)))
    items.append(liver)
    items.append(place("spleen", (33.0, 12.0, 14.0), (8.5, 13.0, 15.0)))
    items.append(place("kidney", (-23.0, 22.0, -20.0), (7.5, 8.0, 14.0)))
    items.append(place("kidney", (23.0, 22.0, -18.0), (7.5, 8.0, 14.0)))
    items.append(place("aorta", (6.0, 15.0, 0.0), (4.8, 4.8, inf)))
    items.extend(_draw_lesions(rng, liver))
    return tuple(items)


def _draw_lesions(rng: np.random.Generator, organ: Ellipsoid) -> list[Ellipsoid]:
    """Draw 1 to 3 ellipsoids wholly inside `organ`, apart from each other.

    A ball of radius r about c lies inside when |c/a| + r/min(a) ≤ 1.
    """
    axes, middle = np.array(organ.semi_axes_mm), np.array(organ.center_mm)
    found: list[tuple[np.ndarray, float]] = []
    for _ in range(int(rng.integers(1, 4))):
        for _attempt in range(50):
            radii = rng.uniform(4.5, 7.0, 3)
            reach = float(radii.max())
            direction = rng.standard_normal(3)
            direction /= np.linalg.norm(direction)
            room = 1.0 - (reach + 1.0) / float(axes.min())
            center = middle + axes * direction * room * float(rng.random()) ** (1 / 3)
            if all(np.linalg.norm(center - c) > reach + r + 3.0 for c, r in found):
                break
        else:
            continue
        found.append((center, reach))
    return [
        Ellipsoid("lesion", (float(c[0]), float(c[1]), float(c[2])), _jitter(rng, reach))
        for c, reach in found
    ]


def _jitter(rng: np.random.Generator, reach_mm: float) -> tuple[float, float, float]:
    """Draw semi-axes of 75 to 100 % of `reach_mm`."""
    a, b, c = (reach_mm * rng.uniform(0.75, 1.0, 3)).tolist()
    return a, b, c


def _draw_wave(rng: np.random.Generator) -> ShearWave:
    """Draw a wave of 45 to 110 mm length that moves points by up to 1 to 3 mm."""
    wave = rng.standard_normal(3)
    wave *= 2 * pi / float(rng.uniform(45.0, 110.0)) / np.linalg.norm(wave)
    shift = np.cross(wave, rng.standard_normal(3))
    shift *= float(rng.uniform(1.0, 3.0)) / np.linalg.norm(shift)
    k, s = wave.tolist(), shift.tolist()
    return ShearWave((k[0], k[1], k[2]), (s[0], s[1], s[2]), float(rng.uniform(0.0, 2 * pi)))
