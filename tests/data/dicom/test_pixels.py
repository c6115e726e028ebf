"""Every common way to store pixels gives the same ones."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from qinjing.data.dicom.elements import DamagedError  # noqa: E402
from qinjing.data.dicom.pixels import _check_codestream  # noqa: E402
from qinjing.data.dicom.read import read_dicom, read_series  # noqa: E402
from tests.data.dicom.series import write_series  # noqa: E402

SHAPE = (3, 40, 36)
NATIVE = ("ImplicitVRLittleEndian", "ExplicitVRBigEndian", "DeflatedExplicitVRLittleEndian")
PACKED = ("RLELossless", "JPEGLSLossless", "JPEG2000Lossless")


def recode(folder, name):
    """Write each file again in another transfer syntax, by pydicom."""
    syntax = getattr(pydicom.uid, name)
    for path in folder.iterdir():
        file = pydicom.dcmread(path)
        if syntax.is_encapsulated:
            try:
                file.compress(syntax, encoding_plugin="", generate_instance_uid=False)
            except RuntimeError as error:
                pytest.skip(str(error).splitlines()[0])
        else:
            pixels = file.pixel_array
            file.file_meta.TransferSyntaxUID = syntax
            order = "<" if syntax.is_little_endian else ">"
            file.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
            file["PixelData"].VR = "OW"
        list(file.iterall())  # decodes what was read in the other byte order
        plain = pydicom.Dataset()
        plain.update(file)
        plain.file_meta = file.file_meta
        buffer = io.BytesIO()
        little = syntax.is_little_endian
        plain.save_as(
            buffer,
            implicit_vr=syntax.is_implicit_VR,
            little_endian=little,
            enforce_file_format=True,
        )
        path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("name", [*NATIVE, *PACKED])
def test_the_same_pixels_in_each_transfer_syntax(tmp_path, name, dtype):
    low = -1000 if dtype is np.int16 else 0
    top = 255 if dtype is np.uint8 else 3000
    stored = np.random.default_rng(0).integers(low, top, SHAPE).astype(dtype)
    write_series(tmp_path, stored, slope=None)
    if dtype is np.uint8 and name == "ExplicitVRBigEndian":
        pytest.skip("8-bit words of other byte order are written by nobody")
    recode(tmp_path, name)
    voxels = read_series(tmp_path).voxels
    assert voxels.dtype == dtype
    np.testing.assert_array_equal(voxels, stored)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("name", ["HTJ2KLossless", "HTJ2K"])
def test_grey_high_throughput_jpeg_2000_as_openjph_packs_it(tmp_path, name, dtype):
    codecs = pytest.importorskip("imagecodecs")
    low = -1000 if dtype is np.int16 else 0
    top = 255 if dtype is np.uint8 else 3000
    stored = np.random.default_rng(0).integers(low, top, SHAPE).astype(dtype)

    def edit(file, d):
        packed = codecs.htj2k_encode(stored[d], reversible=True)
        file.file_meta.TransferSyntaxUID = getattr(pydicom.uid, name)
        file.PixelData = pydicom.encaps.encapsulate([packed])
        file["PixelData"].VR = "OB"

    write_series(tmp_path, stored, slope=None, edit=edit)
    voxels = read_series(tmp_path).voxels
    assert voxels.dtype == dtype
    np.testing.assert_array_equal(voxels, stored)


@pytest.mark.data
def test_real_files_in_nine_transfer_syntaxes(data_root):
    """One Siemens mosaic by DCMTK and GDCM in nine; all of JPEG lossless is there too."""
    archive = data_root / "dicom/transfer_syntaxes_9.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    reading = read_dicom(archive)
    assert len(reading.volumes) == 9 and not reading.refused
    for one in reading.volumes[1:]:
        np.testing.assert_array_equal(one.volume.voxels, reading.volumes[0].volume.voxels)


def test_pixels_below_other_bits(tmp_path):
    """HighBit above BitsStored - 1, as before the standard's third edition of today."""

    def edit(file, d):
        pixels = np.frombuffer(file.PixelData, np.uint16)
        file.PixelData = (pixels << 4 | 0x0009).astype(np.uint16).tobytes()
        file.BitsStored, file.HighBit = 12, 15

    stored = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(np.uint16)
    write_series(tmp_path, stored, slope=None, edit=edit)
    np.testing.assert_array_equal(read_series(tmp_path).voxels, stored)


def test_a_codestream_of_another_size_is_not_decoded():
    huge = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xc3\x00\x0b\x10" + struct.pack(">2H", 65535, 65535)
    large = b"\xff\x4f\xff\x51\x00\x29\x00\x00" + struct.pack(">4I", 2**31, 2**31, 0, 0)
    for packed in (huge + bytes(8), large + bytes(40)):
        with pytest.raises(DamagedError, match="shape"):
            _check_codestream(packed, (40, 36))
    whole = b"\xff\xd8\xff\xf7\x00\x0b\x0c" + struct.pack(">2H", 40, 36) + bytes(20)
    _check_codestream(whole + b"\xff\xd9\0", (40, 36))
    with pytest.raises(DamagedError, match="cut off"):
        _check_codestream(whole, (40, 36))


def test_lossy_jpeg_of_eight_bits_as_pillow_decodes_it(tmp_path):
    image = pytest.importorskip("PIL.Image")
    y, x = np.mgrid[:40, :36]
    stored = np.array([(2 * x + 3 * y + 5 * d) % 256 for d in range(3)]).astype(np.uint8)
    expected = []

    def edit(file, d):
        packed = io.BytesIO()
        image.fromarray(stored[d]).save(packed, "JPEG", quality=90)
        expected.append(np.asarray(image.open(packed)))
        file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        file.PixelData = pydicom.encaps.encapsulate([packed.getvalue()])
        file["PixelData"].VR = "OB"

    write_series(tmp_path, stored, slope=None, edit=edit)
    voxels = read_series(tmp_path).voxels
    assert abs(voxels.astype(int) - np.array(expected)).max() <= 1  # decoders may round
