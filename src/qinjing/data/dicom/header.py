"""One file's planes: where each lies, what scales it, and what tells it from others of its place.

Place comes from ImagePositionPatient, ImageOrientationPatient and PixelSpacing alone: file names,
InstanceNumber, SliceLocation and SliceThickness are known to lie.

Source: DICOM PS3.3, C.7.6.2 (image plane), C.11.1 (modality LUT), C.7.6.16 (functional groups).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qinjing.data.dicom.apart import Apart, apart
from qinjing.data.dicom.elements import DamagedError, Elements, position, read_elements, vector
from qinjing.data.dicom.mosaic import siemens_tiles, uih_tiles
from qinjing.data.dicom.pixels import Stored, check_length, stored_pixels
from qinjing.data.dicom.scale import Scale, scale
from qinjing.data.dicom.series import Source

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66"
DIRECTORY = "1.2.840.10008.1.3.10"
# Functional groups that hold an image's place; where they are, they alone count.
_PER_FRAME, _SHARED = 0x52009230, 0x52009229
_CONTENT, _POSITION, _ORIENTATION = 0x00209111, 0x00209113, 0x00209116
_MEASURES = 0x00289110
MOST_FRAMES = 1 << 20


@dataclass(frozen=True)
class Identity:
    """Which file of which series this is.

    Attributes:
        path: the file.
        study: StudyInstanceUID.
        series: SeriesInstanceUID.
        sop_class: SOPClassUID.
        instance: SOPInstanceUID.
        modality: "CT", "MR" and so on.
        frame_of_reference: UID, "" where there is none.
        number: SeriesNumber, "" where there is none.
    """

    path: Path
    study: str
    series: str
    sop_class: str
    instance: str
    modality: str
    frame_of_reference: str
    number: str

    @property
    def series_key(self) -> str:
        """What files of one series share: its UID, or where that was emptied, the next best."""
        if self.series:
            return self.series
        return "\0".join((str(self.path.parent), self.number, self.modality, self.study))


@dataclass(frozen=True, eq=False)
class Plane:
    """One plane of pixels in the patient.

    Attributes:
        file: whose it is.
        stored: how the pixels lie there.
        frame: from 0.
        tile: first row and column of a tile in its mosaic, else None.
        single: the file holds one frame, which has no number.
        shape: (rows, columns).
        position: centre of the first voxel, LPS millimetres.
        directions: unit vectors along W (a row) and along H (a column), LPS, (2, 3).
        spacing_mm: along H and W.
        thickness_mm: what a lone slice is thick, 0 where that is not said.
        scale: from stored values to what they mean.
        apart: what tells it from other planes of its place.
    """

    file: Identity
    stored: Stored
    frame: int
    tile: tuple[int, int] | None
    single: bool
    shape: tuple[int, int]
    position: np.ndarray
    directions: np.ndarray
    spacing_mm: np.ndarray
    thickness_mm: float
    scale: Scale
    apart: Apart

    @property
    def source(self) -> Source:
        """What the plane is called outside."""
        number = None if self.single else self.frame + 1
        return Source(self.file.path, self.file.sop_class, self.file.instance, number)


def identify(file: Elements, path: Path) -> Identity:
    """Tell which file this is; where UIDs were emptied, by the file meta information."""
    meta = file.meta or file
    return Identity(
        path,
        file.text(0x0020000D),
        file.text(0x0020000E),
        file.text(0x00080016) or meta.text(0x00020002),
        file.text(0x00080018) or meta.text(0x00020003),
        file.text(0x00080060),
        file.text(0x00200052),
        file.text(0x00200011),
    )


def planes_of(file: Elements, identity: Identity, size: int) -> list[Plane]:
    """Return the planes of one file.

    Args:
        file: its elements.
        identity: which it is.
        size: in bytes.

    Raises:
        DamagedError: it is no image of planes in a patient, or says too little of them.
    """
    if identity.sop_class.startswith(SEGMENTATION):
        raise DamagedError("file must be an image, got a segmentation, a surface or a registration")
    if not file.pixels:
        raise DamagedError(f"file must be an image, got {_kind(identity)} without pixels")
    stored = stored_pixels(file, identity.path)
    check_length(stored, size)
    if stored.n_frames > MOST_FRAMES:
        raise DamagedError(f"NumberOfFrames must be at most {MOST_FRAMES}, got {stored.n_frames}")
    if _PER_FRAME in file:
        return _multi_frame(file, identity, stored)
    if stored.n_frames != 1:
        raise DamagedError(
            f"frames must say where they lie, got {stored.n_frames} frames without their groups"
        )
    if "MOSAIC" in file.words(0x00080008):
        return _tiled(file, identity, stored, *siemens_tiles(file, stored.shape))
    if file.text(0x00650010).startswith("Image Private Header") and 0x00651051 in file:
        return _tiled(file, identity, stored, *uih_tiles(file, stored.shape))
    one = Plane(
        identity, stored, 0, None, True, stored.shape, position(file),
        _directions(file), _spacing(file), _thickness(file), scale(file, file, file),
        apart(file, file, file, ()),
    )  # fmt: skip
    return [one]


def _kind(identity: Identity) -> str:
    return f"an object of modality {identity.modality}" if identity.modality else "an object"


def _directions(file: Elements) -> np.ndarray:
    found = vector(file, 0x00200037, 6, "ImageOrientationPatient").reshape(2, 3)
    squares = (found * found).sum(axis=1)
    if abs(squares - 1).max() > 2e-3 or abs(float(found[0] @ found[1])) > 1e-3:
        rule = "two unit vectors at a right angle"
        raise DamagedError(f"ImageOrientationPatient must be {rule}, got {found.ravel().tolist()}")
    return found / np.sqrt(squares)[:, None]


def _spacing(file: Elements) -> np.ndarray:
    found = vector(file, 0x00280030, 2, "PixelSpacing")
    if found.min() <= 0:
        raise DamagedError(f"PixelSpacing must be positive, got {found.tolist()}")
    return found


def _thickness(file: Elements) -> float:
    for tag in (0x00180088, 0x00180050):
        found = file.number(tag)
        if found is not None and 0 < found < 1e4:
            return found
    return 0.0


def _tiled(
    file: Elements, identity: Identity, stored: Stored, tiles: list[tuple[int, int]],
    shape: tuple[int, int], positions: np.ndarray,
) -> list[Plane]:  # fmt: skip
    """The planes that one mosaic holds."""
    directions, spacing = _directions(file), _spacing(file)
    scaled, told = scale(file, file, file), apart(file, file, file, ())
    return [
        Plane(identity, stored, 0, tile, True, shape, position, directions, spacing,
              _thickness(file), scaled, told)
        for tile, position in zip(tiles, positions, strict=True)
    ]  # fmt: skip


def _multi_frame(file: Elements, identity: Identity, stored: Stored) -> list[Plane]:
    """Planes by the functional groups: a frame's own first, then those that all share."""
    own = file.items(_PER_FRAME)
    if len(own) != stored.n_frames:
        raise DamagedError(f"frames must each have a group, got {len(own)} for {stored.n_frames}")
    shared = (file.items(_SHARED) or [Elements(b"", True, True)])[0]
    pointers = tuple(int(one.number(0x00209165) or 0) for one in file.items(0x00209222))
    planes = []
    for frame, groups in enumerate(own):

        def group(tag: int, groups: Elements = groups) -> Elements:
            found = groups.items(tag) or shared.items(tag)
            return found[0] if found else Elements(b"", True, True)

        measures = group(_MEASURES)
        planes.append(
            Plane(
                identity, stored, frame, None, False, stored.shape,
                position(group(_POSITION)), _directions(group(_ORIENTATION)),
                _spacing(measures), _thickness(measures), scale(file, groups, shared),
                apart(file, groups, shared, pointers),
            )
        )  # fmt: skip
    return planes


def read_planes(path: Path) -> list[Plane]:
    """Read the planes of one file.

    Raises:
        DamagedError: it is not sound, or no image of planes in a patient.
        OSError: the file cannot be read.
    """
    file = read_elements(path)
    return planes_of(file, identify(file, path), path.stat().st_size)
