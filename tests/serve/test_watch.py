"""A folder into which people drop files, whenever they come and we go."""

from __future__ import annotations

import os
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydicom")
pytest.importorskip("sqlalchemy")

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.fileset import FileSet

from qinjing.data.dicom.elements import parse
from qinjing.errors import ConfigError
from qinjing.serve.catalogue import Catalogue, open_catalogue
from qinjing.serve.watch import Looked, Watched, is_whole, watch, watching
from tests.serve.dicom import content, instance


class Killed(BaseException):
    """What no handler may hold."""


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return open_catalogue(tmp_path / "studies")


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    return tmp_path / "drop"


@pytest.fixture
def look(catalogue: Catalogue, drop: Path, clock: Clock) -> Callable[[], Looked]:
    watched = Watched(catalogue, drop, quiet_s=5, clock=clock)

    def later() -> Looked:
        """Look, and once more when all that was there is quiet."""
        watched.look()
        clock.now += 5
        return watched.look()

    return later


def held(catalogue: Catalogue) -> int:
    return sum(one.instances for one in catalogue.studies())


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_what_is_dropped_is_kept_then_moved(
    look: Callable[[], Looked], catalogue: Catalogue, drop: Path
) -> None:
    (drop / "disc" / "DICOM").mkdir(parents=True)
    for number in range(3):
        (drop / "disc" / "DICOM" / f"IM{number}").write_bytes(content(instance(1, number)))
    bare = content(instance(1, 3))[132:]  # as some software leaves them
    (drop / "bare.dcm").write_bytes(bare)
    assert look() == Looked(4, 0)
    assert held(catalogue) == 4
    kept = catalogue.path(instance(1, 3).StudyInstanceUID, instance(1, 3).SOPInstanceUID)
    assert kept.read_bytes() == content(instance(1, 3))
    assert files(drop) == [
        "taken/bare.dcm", "taken/disc/DICOM/IM0", "taken/disc/DICOM/IM1", "taken/disc/DICOM/IM2",
    ]  # fmt: skip
    assert look() == Looked(0, 0)


def test_what_still_grows_is_left_alone(catalogue: Catalogue, drop: Path, clock: Clock) -> None:
    watched, whole = Watched(catalogue, drop, 5, clock), content(instance(1, 0))
    file = drop / "one.dcm"
    for length in range(100, len(whole), 700):
        file.write_bytes(whole[:length])
        assert watched.look() == Looked(0, 0)
        clock.now += 4.9
        assert watched.look() == Looked(0, 0)
    file.write_bytes(whole)
    watched.look()
    clock.now += 5
    assert watched.look() == Looked(1, 0) and held(catalogue) == 1


def test_a_file_that_was_cut_off_is_refused_wherever(
    look: Callable[[], Looked], catalogue: Catalogue, drop: Path
) -> None:
    """And is taken when it comes whole: half of it must not stand in its way."""
    whole = content(instance(1, 0))
    ends = [whole.index(b"\x28\x00\x10\x00US"), parse(whole).at - 12]  # between two elements
    cuts = [*range(1, len(whole) - 2, 157), *ends, len(whole) - 1]
    for number, cut in enumerate(cuts):
        (drop / f"{number}.dcm").write_bytes(whole[:cut])
    assert look() == Looked(0, len(cuts))
    assert held(catalogue) == 0
    (drop / "0.dcm").write_bytes(whole)
    assert look() == Looked(1, 0) and held(catalogue) == 1


def test_packed_pixels_are_whole_when_they_end() -> None:
    pytest.importorskip("openjpeg")
    made = instance(1, 0)
    made.compress("1.2.840.10008.1.2.4.90", encoding_plugin="pylibjpeg")
    whole = content(made)
    assert is_whole(parse(whole), whole)
    start = parse(whole).at
    for cut in range(start, len(whole)):
        assert not is_whole(parse(whole[:cut]), whole[:cut])
    assert not is_whole(parse(whole), whole[:start] + b"x" * 50)
    deflated = Dataset(instance(1, 0))
    deflated.file_meta = instance(1, 0).file_meta
    deflated.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    file = DicomBytesIO()
    deflated.save_as(file, enforce_file_format=True)
    assert is_whole(parse(file.getvalue()), file.getvalue())


@pytest.mark.parametrize(
    ("name", "bytes_of", "rule"),
    [
        ("letter.pdf", b"%PDF-1.7", "DICOM, whole and sound, or a zip"),
        ("empty", b"", "DICOM, whole and sound, or a zip"),
        ("no.zip", b"PK\x03\x04 and nothing more", "zip must be whole and sound"),
        ("without.dcm", None, "the UIDs that it must have"),
    ],
)
def test_what_cannot_be_taken_lies_with_a_sentence(
    name: str, bytes_of: bytes | None, rule: str, look: Callable[[], Looked], drop: Path,
    catalogue: Catalogue,
) -> None:  # fmt: skip
    if bytes_of is None:
        made = instance(1, 0)
        del made.StudyInstanceUID
        bytes_of = content(made)
    for _ in range(2):
        (drop / name).write_bytes(bytes_of)
        assert look() == Looked(0, 1)
    stem, dot, suffix = name.partition(".")
    second = f"{stem}-2{dot}{suffix}"
    assert files(drop) == sorted(
        f"refused/{one}" for one in (name, f"{name}.txt", second, f"{second}.txt")
    )
    assert rule in (drop / "refused" / f"{name}.txt").read_text()
    assert (drop / "refused" / second).read_bytes() == bytes_of and held(catalogue) == 0


def test_zips_are_taken_apart(look: Callable[[], Looked], catalogue: Catalogue, drop: Path) -> None:
    def packed(name: str, members: dict[str, bytes]) -> None:
        with zipfile.ZipFile(drop / name, "w", zipfile.ZIP_DEFLATED) as file:
            for member, data in members.items():
                file.writestr(member, data)

    packed("good.zip", {"../../IM0": content(instance(1, 0)), "VIEWER/RUN.EXE": b"MZ",
                        "IM1": content(instance(1, 1))})  # fmt: skip
    packed("some.zip", {"IM0": content(instance(2, 0)), "IM1": content(instance(2, 1))[:900]})
    packed("none.zip", {"readme.txt": b"hello"})
    damaged = (drop / "good.zip").read_bytes()
    (drop / "damaged.zip").write_bytes(damaged[:400] + b"?" + damaged[401:])
    assert look() == Looked(1, 3)
    assert held(catalogue) == 3
    said = {name: (drop / "refused" / f"{name}.txt").read_text()
            for name in ("some.zip", "none.zip", "damaged.zip")}  # fmt: skip
    assert "1 of 2 that are not; the others were taken" in said["some.zip"]
    assert "DICOM files in it" in said["none.zip"]
    assert "whole, sound" in said["damaged.zip"]
    assert (drop / "taken" / "good.zip").is_file()
    assert not [one for one in drop.parent.parent.rglob("IM0") if one.parent == drop.parent]


def test_the_directory_of_a_disc_is_no_instance(
    look: Callable[[], Looked], catalogue: Catalogue, drop: Path, tmp_path: Path
) -> None:
    disc = FileSet()
    for number in range(2):
        disc.add(instance(1, number))
    disc.write(drop / "disc")
    disc._stage["t"].cleanup()  # which pydicom leaves to the garbage collector, with a warning
    assert (drop / "disc" / "DICOMDIR").is_file()
    assert look() == Looked(3, 0) and held(catalogue) == 2


def test_links_devices_and_hidden_files_are_not_followed(
    look: Callable[[], Looked], catalogue: Catalogue, drop: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(content(instance(1, 0)))
    (drop / "link.dcm").symlink_to(secret)
    os.mkfifo(drop / "pipe")
    (drop / ".hidden.dcm").write_bytes(secret.read_bytes())
    (drop / "scan.dcm.part").write_bytes(secret.read_bytes())
    (drop / "results").mkdir()
    (drop / "results" / "seg.dcm").write_bytes(secret.read_bytes())
    (drop / "away").symlink_to(tmp_path)
    assert look() == Looked(0, 2)
    assert held(catalogue) == 0 and secret.is_file()
    assert (drop / "scan.dcm.part").is_file() and (drop / "results" / "seg.dcm").is_file()


@pytest.mark.parametrize("step", ["keep", "rename"])
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_whoever_dies_loses_nothing_and_makes_nothing_twice(
    step: str, done: bool, catalogue: Catalogue, drop: Path, clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """At every file, before or after it was kept or moved, one process after the other."""
    Watched(catalogue, drop)
    for number in range(6):
        (drop / f"{number}.dcm").write_bytes(content(instance(1, number)))
    (drop / "no.txt").write_bytes(b"no")
    whose: Any = {"keep": Catalogue, "rename": Path}[step]
    real, armed = getattr(whose, step), False

    def dying(self: Any, *words: Any) -> Any:
        if not armed:
            return real(self, *words)
        if done:
            real(self, *words)
        raise Killed

    monkeypatch.setattr(whose, step, dying)
    deaths = 0
    for life in range(40):
        watched, armed = Watched(catalogue, drop, 5, clock), life % 2 == 0
        try:
            watched.look()
            clock.now += 5
            watched.look()
        except Killed:
            deaths += 1
        armed = False
        if deaths and not life % 2:
            continue
        if not [one for one in drop.iterdir() if one.is_file()]:
            break
    assert deaths
    assert held(catalogue) == 6
    assert files(drop / "taken") == [f"{number}.dcm" for number in range(6)]
    assert files(drop / "refused") == ["no.txt", "no.txt.txt"]


def test_a_full_disk_leaves_the_files_where_they_are(
    look: Callable[[], Looked], catalogue: Catalogue, drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (drop / "one.dcm").write_bytes(content(instance(1, 0)))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qinjing.serve.catalogue.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            look()
    assert files(drop) == ["one.dcm"]
    look()
    assert files(drop) == ["taken/one.dcm"] and held(catalogue) == 1


def test_empty_folders_go_when_nobody_copies_into_them(
    look: Callable[[], Looked], drop: Path
) -> None:
    (drop / "old" / "deep").mkdir(parents=True)
    (drop / "new").mkdir()
    for one in ("old/deep", "old"):
        os.utime(drop / one, (time.time() - 100,) * 2)
    look()
    assert sorted(one.name for one in drop.iterdir()) == ["new", "old", "refused", "taken"]
    os.utime(drop / "old", (time.time() - 100,) * 2)
    look()
    assert sorted(one.name for one in drop.iterdir()) == ["new", "refused", "taken"]


def test_the_folder_must_be_apart_from_ours(catalogue: Catalogue, tmp_path: Path) -> None:
    for place in (catalogue.folder, catalogue.folder / "instances", tmp_path):
        with pytest.raises(ConfigError, match="a folder apart"):
            Watched(catalogue, place)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="can be written"):
        Watched(catalogue, tmp_path / "file")


def test_what_came_is_queued_once_it_is_complete(catalogue: Catalogue, drop: Path) -> None:
    (drop / "one").mkdir(parents=True)
    for number in range(2):
        (drop / "one" / f"{number}.dcm").write_bytes(content(instance(1, number)))
    with watching(Watched(catalogue, drop, quiet_s=0.05), ("show",)):
        until = time.monotonic() + 30
        while not catalogue.queue.of():
            assert time.monotonic() < until
            time.sleep(0.02)
    (job,) = catalogue.queue.of()
    assert (job.kind, job.revision) == ("show", 2)


def test_the_loop_tells_of_what_came_and_no_names(
    catalogue: Catalogue, drop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    watched, ended, said = Watched(catalogue, drop, quiet_s=0.01), threading.Event(), []
    (drop / "Canary Kanarie.dcm").write_bytes(content(instance(1, 0)))

    def tell(looked: Looked) -> None:
        said.append(looked)
        ended.set()

    watch(watched, ended, ("show",), 0.01, tell)
    assert said == [Looked(1, 0)]
    for word in ("Canary", "MRN", instance(1, 0).StudyInstanceUID):
        assert word not in caplog.text
