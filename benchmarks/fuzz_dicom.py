"""Mutate DICOM files and look at how Qinjing refuses them.

    .venv/bin/python benchmarks/fuzz_dicom.py [--inputs 5000] [--seed 0] [--real FOLDER] [-o FILE]

Each input is a small sound series with something wrong done to one of its files: bits flipped, the
end cut off, pieces overwritten, put in, taken out or repeated, elements swapped, values set to
extremes. Series are made in every transfer syntax that can be written here, single-frame and
multi-frame; with `--real`, files below that folder of at most 400 kB are mutated as well. Each
goes through `read_dicom`. It may be read, or refused with a sentence that names the file; anything
else counts as a traceback, a warning of Python included, more than the time limit as a hang, and
the death of the process (decoders are C) as a crash. A worker process does the reading, so that
one crash is counted and not the end.

Prints one JSON object; exit code 1 where there was any of those.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LIMIT_S = 20
MEMORY_BYTES = 8 << 30  # what lies in a header may ask for more; it must be refused
REAL_BYTES = 400_000
BATCH = 500


class Hang(BaseException):
    """Raised by the alarm; not an Exception, so that nothing in between may swallow it."""


def _ring(*_: object) -> None:
    raise Hang


# -- sound inputs ------------------------------------------------------------------------------


def make_seeds(real: Path | None) -> list[tuple[str, list[bytes]]]:
    """Name and files of small series, one in each transfer syntax, and the real files."""
    import pydicom

    syntaxes = {
        "explicit": pydicom.uid.ExplicitVRLittleEndian,
        "implicit": pydicom.uid.ImplicitVRLittleEndian,
        "big endian": pydicom.uid.ExplicitVRBigEndian,
        "deflated": pydicom.uid.DeflatedExplicitVRLittleEndian,
        "RLE": pydicom.uid.RLELossless,
        "JPEG-LS": pydicom.uid.JPEGLSLossless,
        "JPEG 2000": pydicom.uid.JPEG2000Lossless,
    }
    seeds = []
    for name, syntax in syntaxes.items():
        seeds.append((name, [_slice(d, syntax) for d in range(3)]))
        seeds.append((name + ", multi-frame", [_multi_frame(syntax)]))
    for path in sorted(real.rglob("*")) if real else []:
        if path.is_file() and 200 < path.stat().st_size <= REAL_BYTES:
            content = path.read_bytes()
            if content[128:132] == b"DICM":
                seeds.append((f"real, {path.parent.name}", [content]))
    return seeds


def _common(file: Any) -> None:
    import pydicom

    file.StudyInstanceUID, file.SeriesInstanceUID = "1.2.3.4", "1.2.3.5"
    file.FrameOfReferenceUID, file.PatientID, file.PatientWeight = "1.2.3.6", "P1", 70
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.Rows, file.Columns = 40, 36
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.file_meta = pydicom.dataset.FileMetaDataset()


def _encoded(file: Any, pixels: np.ndarray, syntax: Any) -> bytes:
    import io

    import pydicom

    file.PixelData = pixels.astype("<u2").tobytes()
    native = syntax if not syntax.is_encapsulated else pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.TransferSyntaxUID = native
    file["PixelData"].VR = "OW"
    if syntax.is_encapsulated:
        file.compress(syntax, generate_instance_uid=False)
    elif syntax == pydicom.uid.ExplicitVRBigEndian:
        file.PixelData = pixels.astype(">u2").tobytes()
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _slice(d: int, syntax: Any) -> bytes:
    import pydicom

    file = pydicom.Dataset()
    _common(file)
    file.SOPClassUID, file.Modality = pydicom.uid.PositronEmissionTomographyImageStorage, "PT"
    file.SOPInstanceUID, file.ImageType = f"1.2.3.7.{d}", ["ORIGINAL", "PRIMARY"]
    file.SeriesDate, file.SeriesTime = "20260101", "101112"
    file.Units, file.DecayCorrection = "BQML", "START"
    tracer = pydicom.Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 3e8, 6586.2
    tracer.RadiopharmaceuticalStartTime = "091112"
    file.RadiopharmaceuticalInformationSequence = [tracer]
    file.ImagePositionPatient = [1.5, -2.5, 3.0 * d]
    file.ImageOrientationPatient, file.PixelSpacing = [1, 0, 0, 0, 1, 0], [1.5, 1.25]
    file.RescaleSlope, file.RescaleIntercept = 2.5, 0
    rng = np.random.default_rng(d)
    return _encoded(file, rng.integers(0, 4096, (40, 36)), syntax)


def _multi_frame(syntax: Any) -> bytes:
    import pydicom

    file = pydicom.Dataset()
    _common(file)
    file.SOPClassUID, file.Modality = pydicom.uid.EnhancedMRImageStorage, "MR"
    file.SOPInstanceUID, file.NumberOfFrames = "1.2.3.8", 4
    shared, frames = pydicom.Dataset(), []
    shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [_item(PixelSpacing=[1.5, 1.25], SliceThickness=3)]
    for k in range(4):
        frame = pydicom.Dataset()
        frame.FrameContentSequence = [_item(TemporalPositionIndex=1 + k // 2)]
        frame.PlanePositionSequence = [_item(ImagePositionPatient=[0, 0, 3 * (k % 2)])]
        frame.PixelValueTransformationSequence = [_item(RescaleSlope=2, RescaleIntercept=1)]
        frames.append(frame)
    file.SharedFunctionalGroupsSequence, file.PerFrameFunctionalGroupsSequence = [shared], frames
    return _encoded(file, np.random.default_rng(9).integers(0, 4096, (4, 40, 36)), syntax)


def _item(**fields: Any) -> Any:
    import pydicom

    item = pydicom.Dataset()
    for name, value in fields.items():
        setattr(item, name, value)
    return item


# -- mutations ---------------------------------------------------------------------------------


def mutate(raw: bytes, rng: np.random.Generator) -> bytes:
    """Do one thing wrong, mostly in the header, where there is most to go wrong."""
    data = bytearray(raw)
    reach = len(data) if rng.random() < 0.3 else min(len(data), 3000)
    match int(rng.integers(0, 8)):
        case 0:
            for _ in range(int(rng.integers(1, 9))):
                data[int(rng.integers(reach))] ^= 1 << int(rng.integers(8))
        case 1:
            del data[int(rng.integers(len(data) + 1)) :]
        case 2:
            start = int(rng.integers(reach))
            piece = rng.bytes(int(rng.integers(1, 40)))
            data[start : start + len(piece)] = piece
        case 3:
            start = int(rng.integers(reach))
            data[start:start] = rng.bytes(int(rng.integers(1, 40)))
        case 4:
            start = int(rng.integers(reach))
            del data[start : start + int(rng.integers(1, 200))]
        case 5:
            start = int(rng.integers(reach))
            piece = bytes(data[start : start + int(rng.integers(1, 300))])
            data[start:start] = piece
        case 6:
            _swap_elements(data, rng)
        case _:
            _set_extremes(data, rng)
    return bytes(data)


def _elements(data: bytes) -> list[tuple[int, int]]:
    """Where elements of explicit VR start and end, as far as a plain walk sees them."""
    found = []
    at = 132
    while at + 8 <= len(data):
        vr = bytes(data[at + 4 : at + 6])
        if not (vr.isalpha() and vr.isupper()):
            break
        long = vr in (b"OB", b"OW", b"SQ", b"UN", b"UT")
        head = 12 if long else 8
        if at + head > len(data):
            break
        length = struct.unpack_from("<I" if long else "<H", data, at + 8 if long else at + 6)[0]
        end = at + head + (0 if length == 0xFFFFFFFF else length)
        if end > len(data):
            break
        found.append((at, end))
        at = end
    return found


def _swap_elements(data: bytearray, rng: np.random.Generator) -> None:
    found = _elements(data)
    if len(found) < 3:
        return
    (a, b), (c, d) = sorted(found[int(i)] for i in rng.choice(len(found), 2, replace=False))
    data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _set_extremes(data: bytearray, rng: np.random.Generator) -> None:
    """Set the value, the length or the VR of an element to an extreme."""
    found = _elements(data)
    if not found:
        return
    start, end = found[int(rng.integers(len(found)))]
    match int(rng.integers(0, 3)):
        case 0:
            extremes = (0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)
            struct.pack_into("<H", data, start + 6, extremes[int(rng.integers(len(extremes)))])
        case 1:
            vrs = (b"SQ", b"UN", b"OB", b"DS", b"US", b"FD", b"AT", b"ZZ", b"\0\0")
            data[start + 4 : start + 6] = vrs[int(rng.integers(len(vrs)))]
        case _:
            values = (b"\xff", b"\0", b"9", b"-", b"\\", b"1e400", b"nan", b"inf", b" ")
            value = values[int(rng.integers(len(values)))]
            length = end - start - 8
            data[start + 8 : end] = (value * length)[:length]


# -- trials ------------------------------------------------------------------------------------


def attempt(folder: Path) -> tuple[str, str]:
    """Read a folder; the outcome and, where it is a miss, its detail."""
    from qinjing.data.dicom.read import read_dicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            signal.alarm(LIMIT_S)
            reading = read_dicom(folder)
            signal.alarm(0)
    except Hang:
        return "hang", traceback.format_exc()
    except BaseException:
        signal.alarm(0)
        return "traceback", traceback.format_exc()
    for refusal in reading.refused:
        if "\n" in refusal.reason or str(folder) not in refusal.reason:
            return "unnamed", refusal.reason
    return ("refused", "") if reading.refused else ("read", "")


def _mutants(
    seeds: list[tuple[str, list[bytes]]], first: int, last: int, seed: int
) -> Iterator[tuple[int, str, list[bytes]]]:
    for i in range(first, last):
        rng = np.random.default_rng((seed, i))
        name, files = seeds[i % len(seeds)]
        files = list(files)
        k = int(rng.integers(len(files)))
        for _ in range(int(rng.integers(1, 4))):
            files[k] = mutate(files[k], rng) or b"\0"
        yield i, name, files


def _work(
    pipe: int, seeds: list[tuple[str, list[bytes]]], first: int, last: int, seed: int, where: Path
) -> None:
    """Read mutants and write a line on each before and after."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _ring)
    with os.fdopen(pipe, "w") as out:
        for i, name, files in _mutants(seeds, first, last, seed):
            for k, content in enumerate(files):
                (where / f"{k}.dcm").write_bytes(content)
            print(json.dumps({"start": i, "name": name}), file=out, flush=True)
            outcome, detail = attempt(where)
            print(
                json.dumps({"end": i, "outcome": outcome, "detail": detail}), file=out, flush=True
            )
            for k in range(len(files)):
                (where / f"{k}.dcm").unlink()


def run(inputs: int, seed: int, real: Path | None = None) -> dict[str, Any]:
    """Try mutants; how many had which outcome, and the misses."""
    seeds = make_seeds(real)
    counts: Counter[str] = Counter()
    by_name: dict[str, Counter[str]] = {}
    misses: list[dict[str, Any]] = []
    next_input = 0
    while next_input < inputs:
        last = min(inputs, next_input + BATCH)
        read_end, write_end = os.pipe()
        with tempfile.TemporaryDirectory() as folder:
            child = os.fork()
            if child == 0:
                os.close(read_end)
                code = 1
                try:
                    _work(write_end, seeds, next_input, last, seed, Path(folder))
                    code = 0
                finally:
                    os._exit(code)
            os.close(write_end)
            name, done = "", next_input
            with os.fdopen(read_end) as lines:
                for line in lines:
                    said = json.loads(line)
                    name = said.get("name", name)
                    if "end" in said:
                        done = said["end"] + 1
                        counts[said["outcome"]] += 1
                        by_name.setdefault(name, Counter())[said["outcome"]] += 1
                        if said["outcome"] not in ("read", "refused"):
                            misses.append({"input": said["end"], "seed": name, **said})
            _, status = os.waitpid(child, 0)
        if done < last:
            how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"{status}"
            counts["crash"] += 1
            misses.append({"input": done, "seed": name, "outcome": "crash", "detail": how})
            done += 1
        next_input = done
    return {
        "inputs": inputs, "seed": seed, "seeds": len(seeds), **counts,
        "by_seed": {name: dict(count) for name, count in sorted(by_name.items())},
        "misses": misses[:50],
    }  # fmt: skip


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=Path, help="folder of real DICOM files")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    result = run(options.inputs, options.seed, options.real)
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    return 1 if result["misses"] else 0


if __name__ == "__main__":
    sys.exit(main())
