"""Run lengths, the one packing of pixels that every reader of DICOM undoes.

Written here because GDCM's encoder, which pydicom takes where it finds it, ends the whole process
on frames of odd size, and pydicom's own takes a hundred times as long.

Source: DICOM PS3.5, annex G.
"""

from __future__ import annotations

from typing import Any

import numpy as np

RUN_LENGTHS = "1.2.840.10008.1.2.5"
_LONGEST = 128


def encode(frame: np.ndarray) -> bytes:
    """Pack one frame (rows, columns) of uint8 or uint16.

    Runs end with their row, as the standard asks. A pixel unlike its neighbours takes two bytes, so
    that noise grows; label maps do not.
    """
    planes = [frame] if frame.dtype == np.uint8 else [frame >> 8, frame & 0xFF]
    segments = [_segment(np.ascontiguousarray(plane, dtype=np.uint8)) for plane in planes]
    offsets = np.zeros(16, dtype="<u4")
    offsets[0] = len(segments)
    offsets[1 : len(segments) + 1] = 64 + np.cumsum([0, *map(len, segments[:-1])])
    return offsets.tobytes() + b"".join(segments)


def _segment(plane: np.ndarray) -> bytes:
    changes = np.ones(plane.shape, dtype=bool)
    np.not_equal(plane[:, 1:], plane[:, :-1], out=changes[:, 1:])
    starts = np.flatnonzero(changes)
    lengths = np.diff(starts, append=plane.size)
    # A run is at most 128 long: what is longer is as many whole ones, and the rest.
    pieces = -(-lengths // _LONGEST)
    length = np.full(int(pieces.sum()), _LONGEST)
    length[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    packed = np.empty((len(length), 2), dtype=np.uint8)
    # 257 - n: the byte behind n times; 0: one byte as it is, which is 257 - n for n = 1, cut to 0.
    packed[:, 0] = (257 - length) & 0xFF
    packed[:, 1] = np.repeat(plane.reshape(-1)[starts], pieces)
    found = packed.tobytes()
    return found + b"\0" * (len(found) % 2)


def pack(file: Any) -> None:
    """Pack the pixels of a dataset whose frames lie there as they are.

    Args:
        file: a pydicom dataset of one sample of 8 or 16 bits a pixel, little endian.
    """
    from pydicom.encaps import encapsulate

    shape = (int(file.get("NumberOfFrames") or 1), int(file.Rows), int(file.Columns))
    kind = np.dtype(np.uint8 if file.BitsAllocated == 8 else "<u2")
    size = int(np.prod(shape)) * kind.itemsize
    frames = np.frombuffer(file.PixelData[:size], dtype=kind).reshape(shape)
    file.PixelData = encapsulate([encode(frame) for frame in frames])
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = RUN_LENGTHS
