"""De-identify a folder of DICOM files into another, going on past what cannot be read."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qinjing.config import atomic_path
from qinjing.data.dicom.deidentify import SECRET_BYTES, deidentify
from qinjing.errors import ConfigError, FormatError, InputError

ENDINGS = (".dcm", ".ima", ".dicom")


@dataclass
class Deidentified:
    """What became of a folder.

    Attributes:
        written: new files.
        patients: pseudonyms.
        left_alone: files that are no DICOM, and DICOMDIRs.
        warnings: sentence → how many files it was said of, and the first of the new ones.
        refused: {"file", "reason"} of each file that could not be done.
    """

    written: int = 0
    patients: set[str] = field(default_factory=set)
    left_alone: int = 0
    warnings: dict[str, tuple[int, Path]] = field(default_factory=dict)
    refused: list[dict[str, str]] = field(default_factory=list)


def deidentify_files(
    place: str | Path,
    out: str | Path,
    options: Collection[str] = (),
    *,
    secret: bytes,
    progress: Callable[[int, int], None] | None = None,
) -> Deidentified:
    """De-identify every DICOM file below a place into OUT/<pseudonym>/<series>/<instance>.dcm.

    No old name of a file or folder is kept, since many hold the patient's.

    Args:
        place: a folder, with all below it, or one file.
        out: where the new files go; not inside `place`.
        options: as of `deidentify`.
        secret: as of `deidentify`.
        progress: called with files done and files in all.

    Raises:
        ConfigError: pydicom is not installed, `out` lies inside `place`, an option is unknown or
            the secret too short.
        FormatError: nothing is at `place`.
    """
    try:
        import pydicom  # noqa: F401  before any file, so that its want is no file's fault
    except ModuleNotFoundError:
        raise ConfigError(
            "pydicom", "installed to read DICOM", advice="pip install 'qinjing[dicom]'"
        ) from None
    place, out = Path(place), Path(out)
    if not place.exists():
        raise FormatError("place", "a file or folder that is there", "nothing", where=place)
    if out.resolve().is_relative_to(place.resolve()):
        raise ConfigError("output", "outside the folder that is read", out)
    files = [place] if place.is_file() else list(_below(place))
    result = Deidentified()
    for done, file in enumerate(files, 1):
        if file.name.upper() == "DICOMDIR" or not _is_dicom(file):
            result.left_alone += 1
        else:
            try:
                _one(file, out, options, secret, result)
            except ConfigError:
                raise
            except InputError as error:
                result.refused.append({"file": str(file), "reason": str(error)})
            except Exception as error:  # pydicom names no common class, and may quote values
                reason = f"not sound DICOM ({type(error).__name__})"
                result.refused.append({"file": str(file), "reason": reason})
        if progress is not None:
            progress(done, len(files))
    return result


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM" or file.suffix.lower() in ENDINGS


def _one(
    file: Path, out: Path, options: Collection[str], secret: bytes, result: Deidentified
) -> None:
    from pydicom import dcmread

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd values, as the file has them
        dataset = dcmread(file, force=file.suffix.lower() in ENDINGS)
        clean, found = deidentify(dataset, options, secret)
        series = str(clean.get("SeriesInstanceUID") or "no_series")
        target = out / str(clean.PatientID) / series / f"{clean.SOPInstanceUID}.dcm"
        if target.exists():
            raise FormatError("instance", "new to the output", "one that is there already")
        with atomic_path(target) as temporary:
            clean.save_as(temporary, enforce_file_format=True)
    result.written += 1
    result.patients.add(str(clean.PatientID))
    for sentence in found:
        count, first = result.warnings.get(sentence, (0, target.relative_to(out)))
        result.warnings[sentence] = (count + 1, first)


def read_secret(file: str | Path) -> tuple[bytes, bool]:
    """Read the secret of pseudonyms, or make one that only its owner may read.

    Args:
        file: its bytes are the secret, without white space at the ends.

    Returns:
        The secret, and whether it was made now.

    Raises:
        ConfigError: others may read the file, it is no file, or it is shorter than 16 bytes.
    """
    file = Path(file)
    made = False
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32) + "\n")
        made = True
    if not file.is_file():
        raise ConfigError("secret", "a file", where=file)
    mode = file.stat().st_mode & 0o777
    if os.name == "posix" and mode & 0o077:
        raise ConfigError("secret", "readable by its owner alone (mode 600)", f"{mode:o}",
                          where=file, advice=f"chmod 600 {file.name}")  # fmt: skip
    content = file.read_bytes().strip()
    if len(content) < SECRET_BYTES:
        raise ConfigError("secret", f"{SECRET_BYTES} bytes or more", len(content), where=file)
    return content, made
