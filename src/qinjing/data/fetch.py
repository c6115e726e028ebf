"""Download a public data set from its official place: resumed, checked, unpacked whole."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ipaddress
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from qinjing.errors import ConfigError, FormatError, QinjingError

PIECE = 1 << 20
TIMEOUT_S = 30.0
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """Where a data set lies.

    Attributes:
        url: https, of a tar or zip archive whose one folder is the data set.
        digest: "md5:…" or "sha256:…" of the archive, as its publisher gives it.
        licence: of the data.
        n_bytes: size of the archive, 0 where unknown.
    """

    url: str
    digest: str
    licence: str
    n_bytes: int = 0


# The Medical Segmentation Decathlon in the AWS Open Data registry; digests as MONAI pins them.
_DECATHLON = {
    "Task01_BrainTumour": "240a19d752f0d9e9101544901065d872",
    "Task02_Heart": "06ee59366e1e5124267b774dbd654057",
    "Task03_Liver": "a90ec6c4aa7f6a3d087205e23d4e6397",
    "Task04_Hippocampus": "9d24dba78a72977dbd1d2e110310f31b",
    "Task05_Prostate": "35138f08b1efaef89d7424d2bcc928db",
    "Task06_Lung": "8afd997733c7fc0432f71255ba4e52dc",
    "Task07_Pancreas": "4f7080cfca169fa8066d17ce6eb061e4",
    "Task08_HepaticVessel": "641d79e80ec66453921d997fbf12a29c",
    "Task09_Spleen": "410d4a301da4e5b2f6f86ec3ddba524e",
    "Task10_Colon": "bad7a188931dc2f6acf72b08eb6202d0",
}
SOURCES: dict[str, Source] = {
    name: Source(
        url=f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{name}.tar",
        digest=f"md5:{digest}",
        licence="CC-BY-SA 4.0",
    )
    for name, digest in _DECATHLON.items()
}

# What wants a login or an agreement, or is no archive with a published digest (the NIH's images
# come series by series): where it is, and how the folder must look.
BY_HAND: dict[str, str] = {
    "brats2023": "from https://www.synapse.org/Synapse:syn51156910 after signing in and accepting"
    " the terms, and unpacked into a folder of scans such as BraTS-GLI-00000-000/",
    "lits": "from https://competitions.codalab.org/competitions/17094 after signing in, and"
    " unpacked into a folder with volume-0.nii and segmentation-0.nii; its training scans are also"
    " those of Task03_Liver, which needs no login",
    "nih_pancreas": "from https://doi.org/10.7937/K9/TCIA.2016.tNB1kqBU with the NBIA Data"
    " Retriever, and put into one folder with Pancreas-CT/ and TCIA_pancreas_labels-02-05-2017/",
}


def fetch(
    name: str,
    folder: str | Path,
    sources: Mapping[str, Source] = SOURCES,
    progress: Progress | None = None,
    attempts: int = 5,
    wait_s: float = 1.0,
) -> Path:
    """Download and unpack a data set, and return its folder.

    What was downloaded before an interruption is kept as ``.part`` and gone on with. The data set's
    folder appears only when it is complete; where it is already there, nothing is done.

    Args:
        name: a key of `sources`, and the name of the folder that is made.
        folder: where to put it.
        sources: name → place.
        progress: called with (bytes there, bytes in all; 0 where the server does not say).
        attempts: in a row that bring no byte, before giving up.
        wait_s: before the second attempt; doubled before each further one.

    Raises:
        ConfigError: no such name, one that has to be fetched by hand, or an address that is not
            https.
        FormatError: the archive's digest differs, or it would write outside its folder.
        QinjingError: the server cannot be reached, or there is no room.
    """
    if name not in sources and name in BY_HAND:
        raise ConfigError(name, f"fetched by hand {BY_HAND[name]}")
    if name not in sources:
        raise ConfigError("data set", f"one of {', '.join([*sources, *BY_HAND])}", name)
    source, folder = sources[name], Path(folder)
    target = folder / name
    if target.exists():
        return target
    _check_address(source.url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{name}.part"
        resumed = part.exists()
        _download(source, part, progress, attempts, wait_s)
        if resumed and not _matches(part, source.digest):
            # The half from before may be of another version: once more from the start.
            part.unlink()
            _download(source, part, progress, attempts, wait_s)
        if not _matches(part, source.digest):
            got = _digest(part, source.digest.partition(":")[0])
            part.unlink()
            raise FormatError("archive", f"of {source.digest}", got, where=source.url,
                              advice="fetch it again later")  # fmt: skip
        _unpack(part, target, source.url)
        part.unlink()
    except OSError as error:
        raise QinjingError(f"{name} cannot be stored: {error} ({folder})") from None
    return target


def _check_address(url: str) -> None:
    """Only https, but for a server on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        raise ConfigError("address", "https", url) from None
    if parts.scheme == "https" and host:
        return
    with contextlib.suppress(ValueError):
        if parts.scheme == "http" and ipaddress.ip_address(host).is_loopback:
            return
    raise ConfigError("address", "https", url)


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect only to where a request could have gone in the first place."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:  # fmt: skip  # noqa: E501
        """Check the new address, then do as usual."""
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(
    source: Source, part: Path, progress: Progress | None, attempts: int, wait_s: float
) -> None:
    """Fill `part` to its end, going on from its length after each break."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _download_once(source, part, before, progress):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise QinjingError(f"{source.url} answered {error.code} {error.reason}") from None
            problem = f"{error.code} {error.reason}"
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as e:
            problem = str(getattr(e, "reason", e))
        gained = part.exists() and part.stat().st_size > before
        failures = 1 if gained else failures + 1
        if failures >= attempts:
            raise QinjingError(
                f"{source.url} could not be fetched after {attempts} attempts: {problem};"
                " run the command again to go on from here"
            )
        time.sleep(wait_s * 2 ** (failures - 1))


def _download_once(source: Source, part: Path, there: int, progress: Progress | None) -> bool:
    """One request; whether the file is now complete."""
    opener = urllib.request.build_opener(_CheckedRedirects)
    request = urllib.request.Request(source.url, headers={"User-Agent": "qinjing"})  # noqa: S310
    if there:
        request.add_header("Range", f"bytes={there}-")
    try:
        answer = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # Nothing lies beyond what we have: complete, or longer than the file and of no use.
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(there):
            return True
        part.unlink()
        return False
    with answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(
            f"bytes {there}-"
        )
        start = there if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else 0
        with part.open("ab" if goes_on else "wb") as file:
            size = start
            while piece := answer.read(PIECE):
                file.write(piece)
                size += len(piece)
                if progress is not None:
                    progress(size, total)
    return size == total or total == 0


def _digest(path: Path, algorithm: str) -> str:
    if algorithm not in ("md5", "sha256"):
        raise ConfigError("digest", "md5:… or sha256:…", algorithm)
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            hasher.update(piece)
    return f"{algorithm}:{hasher.hexdigest()}"


def _matches(path: Path, digest: str) -> bool:
    return _digest(path, digest.partition(":")[0]) == digest.lower()


def _unpack(archive: Path, target: Path, url: str) -> None:
    """Unpack beside `target`, then rename: no half data set under the final name."""
    temporary = target.with_name(f".partial-{os.getpid()}-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                _extract_zip(packed, temporary, url)
        else:
            with tarfile.open(archive) as packed_tar:
                _extract_tar(packed_tar, temporary, url)
        inside = list(temporary.iterdir())
        whole = inside[0] if len(inside) == 1 and inside[0].is_dir() else temporary
        whole.replace(target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise FormatError("archive", "a sound tar or zip file", error, where=url) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_clutter(name: str) -> bool:
    """Resource forks that a Mac adds to archives: ``._x`` beside each ``x``."""
    return PurePosixPath(name).name.startswith("._")


def _extract_zip(packed: zipfile.ZipFile, folder: Path, url: str) -> None:
    """Extract plain files whose names stay inside the folder."""
    for member in packed.infolist():
        is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
        file = _place(member.filename, folder, url, refused=is_link)
        if not member.is_dir() and not _is_clutter(member.filename):
            _write(packed.open(member), file)


def _extract_tar(packed: tarfile.TarFile, folder: Path, url: str) -> None:
    """Extract plain files whose names stay inside the folder.

    By hand, since `extractall(filter="data")` is missing from Python 3.11 before 3.11.4.
    """
    for member in packed:
        file = _place(member.name, folder, url, refused=not (member.isfile() or member.isdir()))
        content = packed.extractfile(member)
        if content is not None and not _is_clutter(member.name):
            _write(content, file)


def _place(name: str, folder: Path, url: str, refused: bool) -> Path:
    """Where a member goes; refused where it is a link or a device, or would leave the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or refused:
        raise FormatError("archive", "of files inside one folder", name, where=url)
    return folder / path


def _write(content: IO[bytes], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with content, file.open("wb") as out:
        shutil.copyfileobj(content, out, PIECE)
