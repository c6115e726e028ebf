"""Run lengths against pydicom's decoder, which follows the standard byte by byte."""

from __future__ import annotations

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from pydicom.pixels.decoders.rle import _rle_decode_frame  # noqa: E402

from qinjing.data.dicom.rle import encode  # noqa: E402


def frames():
    rng = np.random.default_rng(0)
    for dtype in (np.uint8, np.uint16):
        for shape in ((1, 1), (33, 25), (3, 127), (3, 128), (3, 129), (2, 257), (7, 1000)):
            yield np.zeros(shape, dtype)
            yield rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
            yield (rng.random(shape) < 0.1).astype(dtype) * 5
            yield np.sort(rng.integers(0, 900 % (np.iinfo(dtype).max + 1), shape), axis=1).astype(
                dtype
            )


@pytest.mark.parametrize("frame", frames(), ids=lambda f: f"{f.dtype} {f.shape}")
def test_unpacks_to_the_same(frame):
    packed = encode(frame)
    assert len(packed) % 2 == 0
    rows, columns = frame.shape
    raw = _rle_decode_frame(packed, rows, columns, 1, 8 * frame.dtype.itemsize)
    back = np.frombuffer(bytes(raw), frame.dtype.newbyteorder("<")).reshape(frame.shape)
    np.testing.assert_array_equal(back, frame)


def test_the_standards_bytes():
    """PS3.5, G.3.1: -n + 1 and a byte for a run, n - 1 and the bytes for the rest."""
    packed = encode(np.array([[7, 7, 7, 9]], np.uint8))
    assert packed[:8] == b"\x01\0\0\0\x40\0\0\0" and packed[64:] == b"\xfe\x07\x00\x09"
    assert len(encode(np.zeros((512, 512), np.uint8))) == 64 + 512 * 4 * 2
