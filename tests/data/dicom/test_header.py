"""Several volumes of a series, multi-frame files, mosaics, against what converters made of them."""

from __future__ import annotations

import contextlib
import zipfile

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")

from qinjing.data.dicom.elements import DamagedError  # noqa: E402
from qinjing.data.dicom.mosaic import read_csa  # noqa: E402
from qinjing.data.dicom.read import read_dicom  # noqa: E402
from qinjing.data.nifti import read_nifti  # noqa: E402
from qinjing.volume import Volume  # noqa: E402
from tests.data.dicom.series import AXIAL, uid, write_series  # noqa: E402

STORED = np.random.default_rng(0).integers(0, 200, (4, 5, 6)).astype(np.int16)


def write_volumes(folder, count, edit):
    """`count` volumes of one series at the same places."""
    for k in range(count):

        def change(file, d, k=k):
            file.SOPInstanceUID = uid(folder, k, d)
            file.InstanceNumber = 100 + k + count * d  # slice by slice, as some scanners count
            return edit(file, k, d)

        write_series(folder, STORED + k, slope=None, names=f"{k}-{{}}.dcm".format, edit=change)


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda f, k, d: setattr(f, "EchoTime", 5 + 10 * k), ["echo 1", "echo 2", "echo 3"]),
        (lambda f, k, d: setattr(f, "DiffusionBValue", 500.0 * k), ["b 0", "b 500", "b 1000"]),
        (
            lambda f, k, d: setattr(f, "TemporalPositionIdentifier", k + 1),
            ["time 1", "time 2", "time 3"],
        ),
        # Each slice has its own time, so that it tells nothing; order does.
        (
            lambda f, k, d: setattr(f, "AcquisitionTime", f"1011{10 * d + k:02d}"),
            ["time 1", "time 2", "time 3"],
        ),
        (
            lambda f, k, d: setattr(f, "ImageType", ["ORIGINAL", "PRIMARY", "MPR"[k]]),
            ["magnitude", "phase", "real"],
        ),
        (lambda f, k, d: setattr(f, "InstanceNumber", 1), ["copy 1", "copy 2", "copy 3"]),
    ],
    ids=["echo", "b-value", "time", "order", "component", "nothing"],
)
def test_several_volumes_of_one_series(tmp_path, edit, names):
    write_volumes(tmp_path, 3, edit)
    reading = read_dicom(tmp_path)
    assert not reading.refused
    assert sorted(one.what for one in reading.volumes) == sorted(names)
    if names[0].startswith("copy"):
        return  # in no order
    for one in reading.volumes:
        k = {"magnitude": 0, "phase": 1, "real": 2}.get(one.what, names.index(one.what))
        np.testing.assert_array_equal(one.volume.voxels, STORED + k)
        assert len({some[0].sop_instance_uid for some in one.planes}) == 4


@pytest.mark.parametrize("lost", [0, 2, 3])
def test_a_time_point_that_lacks_a_slice_is_refused_alone(tmp_path, lost):
    def edit(file, k, d):
        file.TemporalPositionIdentifier = k + 1
        return (k, d) != (1, lost)

    write_volumes(tmp_path, 3, edit)
    reading = read_dicom(tmp_path)
    assert [one.what for one in reading.volumes] == ["time 1", "time 3"]
    (refused,) = reading.refused
    assert refused.reason.startswith("time 2: slices must be") and "3 of 4" in refused.reason


def test_stacks_of_other_directions_are_volumes_of_their_own(tmp_path):
    write_series(tmp_path, STORED, slope=None)
    coronal = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
    names = "c{}.dcm".format

    def edit(file, d):
        file.SOPInstanceUID = uid("coronal", d)

    write_series(tmp_path, STORED[:3], slope=None, directions=coronal, names=names, edit=edit)
    volumes = read_dicom(tmp_path).volumes
    assert [one.what for one in volumes] == ["stack 1", "stack 2"]
    assert sorted(one.volume.shape[0] for one in volumes) == [3, 4]


def item(**fields):
    made = pydicom.Dataset()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_multi_frame_places_each_frame_by_its_own_group(tmp_path):
    """Frames out of order, two echoes, a scale of each, direction and spacing shared."""

    def edit(file, d):
        order = [5, 2, 0, 7, 1, 3, 6, 4]
        frames = []
        for n in order:
            d, echo = n % 4, n // 4
            place = [-20, -30, 100 + 2.5 * d]
            frames.append(
                item(
                    PlanePositionSequence=[item(ImagePositionPatient=place)],
                    MREchoSequence=[item(EffectiveEchoTime=5.0 + 10 * echo)],
                    PixelValueTransformationSequence=[
                        item(RescaleSlope=1 + echo, RescaleIntercept=d)
                    ],
                )
            )
        shared = item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[*AXIAL[0], *AXIAL[1]])],
            PixelMeasuresSequence=[item(PixelSpacing=[0.75, 0.5], SliceThickness=9)],
        )
        file.SOPClassUID, file.Modality = pydicom.uid.EnhancedMRImageStorage, "MR"
        file.NumberOfFrames = 8
        file.PerFrameFunctionalGroupsSequence = frames
        file.SharedFunctionalGroupsSequence = [shared]
        # What a single-frame file would say there must count for nothing.
        file.ImagePositionPatient, file.PixelSpacing = [0, 0, 0], [9, 9]
        stacked = np.stack([STORED[n % 4] + 1000 * (n // 4) for n in order])
        file.PixelData = stacked.tobytes()

    write_series(tmp_path, STORED[:1], slope=None, edit=edit)
    first, second = read_dicom(tmp_path).volumes
    for echo, one in enumerate((first, second)):
        assert one.what == f"echo {echo + 1}"
        d = np.arange(4)[:, None, None]
        np.testing.assert_array_equal(one.volume.voxels, (STORED + 1000 * echo) * (1 + echo) + d)
        assert one.volume.spacing_mm == pytest.approx((2.5, 0.75, 0.5))
        np.testing.assert_allclose(one.volume.affine[:3, 3], [-20, -30, 100])
    assert [some[0].frame for some in first.planes] == [3, 5, 2, 6]


def test_philips_floating_point_values(tmp_path):
    """Chenevert et al.: (stored × RS + RI) / (RS × SS)."""

    def edit(file, d):
        file.Modality, file.Manufacturer = "MR", "Philips Medical Systems"
        block = file.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
        block.add_new(0x0E, "FL", 0.25)
        file.RescaleSlope, file.RescaleIntercept = 2.0, 10.0

    write_series(tmp_path, STORED, edit=edit)
    (one,) = read_dicom(tmp_path).volumes
    np.testing.assert_allclose(one.volume.voxels, (STORED * 2.0 + 10) / (2.0 * 0.25), rtol=1e-6)
    assert "floating-point" in one.notes[0]


@pytest.mark.parametrize("raw", [b"", b"SV10", b"SV10\4\3\2\1" + b"\xff" * 100, bytes(90)])
def test_a_damaged_csa_header(raw):
    with contextlib.suppress(DamagedError):
        assert read_csa(raw) == {}


REFERENCES = {
    "enhanced_multiframe.zip": [
        ("In/Philips/", ["Philips_WIP_B0_NS_801_e1", "Philips_WIP_B0_NS_801_e2_fieldmaphz"]),
        ("In/Siemens/", ["Siemens_REST1_w_SMS_PF7-8_6"]),
    ],
    "ge_fmri_4d.zip": [("In/", ["DCM2NIIX_regression_test_4"])],
    "siemens_mosaic_orient_and_compressed.zip": [
        ("Orientation/ax/", ["ax_asc_35sl_6"]),
        ("Orientation/cor/", ["cor_asc_35sl_16"]),
        ("Orientation/sag/", ["sag_asc_35sl_22"]),
        ("axmb/AxAsc36mb2a/", ["fMRI_MB_asc_25"]),
        ("axmb/AxInt36mb/", ["fMRI_MB_int_26"]),
    ],
    "siemens_mosaic_pe4.zip": [
        ("mr_0003/", ["EPI_PE=AP_3"]),
        ("mr_0004/", ["EPI_PE=PA_4"]),
        ("mr_0005/", ["EPI_PE=RL_5"]),
        ("mr_0006/", ["EPI_PE=LR_6"]),
    ],
    "transfer_syntaxes_9.zip": [("In/", ["1"])],
    "uih_dti_grid.zip": [("In/", ["dti_tra_dir16_AP_9_134431"])],
}


@pytest.mark.data
@pytest.mark.parametrize("name", REFERENCES)
def test_real_series_as_the_converter_beside_them(data_root, tmp_path, name):
    """dcm2niix's NIfTI. Its 16 bits a Philips map was rounded to are the only tolerance."""
    archive = data_root / "dicom" / name
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    for part, references in REFERENCES[name]:
        (place,) = [p for p in tmp_path.rglob("*") if p.is_dir() and f"{p}/".endswith(part)]
        reading = read_dicom(place)
        assert not reading.refused
        expected = []
        for reference in references:
            (path,) = tmp_path.rglob(f"{reference}.nii")
            found = read_nifti(path)
            channels = found.voxels if found.voxels.ndim == 4 else found.voxels[None]
            expected += [Volume(voxels, found.affine).canonical() for voxels in channels]
        if name.startswith("transfer"):
            expected *= 9
        assert len(reading.volumes) == len(expected)
        for one, other in zip(reading.volumes, expected, strict=True):
            volume = one.volume.canonical()
            np.testing.assert_allclose(volume.affine, other.affine, atol=1e-3)
            if one.notes:
                np.testing.assert_allclose(volume.voxels, other.voxels, rtol=2e-7, atol=0.01)
            else:
                np.testing.assert_array_equal(volume.voxels, other.voxels)
