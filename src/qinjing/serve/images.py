"""What people look at: volumes as files that a page can show, and what was drawn on them.

A volume of a study is made from its DICOM instances once; an image of a data set is taken as it
is. Files are named by digests and random numbers of ours, and written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qinjing.config import atomic_path
from qinjing.data.database import Database
from qinjing.data.nifti import read_header
from qinjing.errors import FormatError

if TYPE_CHECKING:
    from sqlalchemy import Table

Kind = Literal["model", "reader", "consensus", "final"]
State = Literal["draft", "submitted", "final"]
KINDS: tuple[Kind, ...] = ("model", "reader", "consensus", "final")
_TABLES_MADE = "SELECT pg_advisory_xact_lock(7161468)"


class StaleError(Exception):
    """A segmentation was changed by another since it was read."""


@dataclass(frozen=True)
class Image:
    """One volume that can be shown.

    Attributes:
        image_id: 32 hexadecimal digits.
        study: StudyInstanceUID, "" for an image of a data set.
        series: SeriesInstanceUID, likewise.
        what: which of the series' volumes it is, "" where there is one.
        name: what it is called, which names no patient.
        modality: as DICOM has it, "" where nobody knows.
        description: of the series.
        shape: voxels along (i, j, k) of the NIfTI file.
        spacing_mm: between them.
        units: of its grey values, "" where nobody knows.
        window: (name, low, high), the one to begin with first.
    """

    image_id: str
    study: str
    series: str
    what: str
    name: str
    modality: str
    description: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    units: str
    window: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Segmentation:
    """What somebody or a model drew on an image.

    Attributes:
        segmentation_id: 32 hexadecimal digits.
        image_id: on which.
        kind: one of `KINDS`.
        author: the model's name, or the person's.
        state: a draft, submitted, or final.
        labels: value → name.
        product_class: of the model that made it; of the service's deployment for a person's.
        made: seconds since 1970.
        confirmed_by: the reader who confirmed what the model says, "" where nobody did.
        confirmed: when, seconds since 1970; 0 where nobody did.
        version: 1 and one more with each change.
        confidence: value → how sure a model of class `diagnosis` is of it, 0 to 1.
        project: in which it was drawn, "" where in none.
    """

    segmentation_id: str
    image_id: str
    kind: Kind
    author: str
    state: State
    labels: Mapping[int, str]
    product_class: str
    made: float
    confirmed_by: str = ""
    confirmed: float = 0.0
    version: int = 1
    confidence: Mapping[int, float] = field(default_factory=dict)
    project: str = ""


@dataclass(frozen=True)
class About:
    """What is known of an image that is taken in; see `Image`."""

    study: str = ""
    series: str = ""
    what: str = ""
    name: str = ""
    modality: str = ""
    description: str = ""
    units: str = ""
    window: tuple[tuple[str, float, float], ...] = field(default=())


class Images:
    """Images and segmentations in a folder and a database.

    Args:
        folder: where files are kept.
        database: in which tables are made where there are none.
        clock: seconds since 1970.
    """

    def __init__(
        self, folder: Path, database: Database, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder, self._database, self._clock = folder, database, clock
        self._images, self._segmentations = _tables()
        with database.writing(_TABLES_MADE) as connection:
            self._images.create(connection, checkfirst=True)
            self._segmentations.create(connection, checkfirst=True)

    def add_image(self, file: Path, about: About) -> Image:
        """Take a NIfTI file in; one that is here already, by what it is, stays as it is.

        Args:
            file: which is copied.
            about: what is known of it.

        Raises:
            FormatError: it is no NIfTI file.
        """
        header = read_header(file)
        known = self.find(about)
        if known is not None:
            return known
        image_id = image_id_of(about)
        image = Image(
            image_id,
            shape=tuple(reversed(header.shape[-3:])),
            spacing_mm=_lengths(header.affine),
            **vars(about),
        )
        place = self.volume(image_id)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_path(place) as temporary:
            _as_gzip(file, temporary)
        t = self._images
        row = asdict(image)
        for name in ("shape", "spacing_mm", "window"):
            row[name] = json.dumps(row[name])
        with self._database.writing() as connection:
            if connection.execute(t.select().where(t.c.image_id == image_id)).first() is None:
                connection.execute(t.insert().values({**row, "made": self._clock()}))
        return image

    def find(self, about: About) -> Image | None:
        """Return the image of a volume, where it was taken in."""
        return self.get(image_id_of(about))

    def get(self, image_id: str) -> Image | None:
        """Return an image by its id."""
        found = self._found(self._images, self._images.c.image_id == image_id)
        return _image(found[0]) if found else None

    def all(self) -> list[Image]:
        """Return every image, in the order in which they came."""
        return [_image(row) for row in self._found(self._images)]

    def of_study(self, study: str) -> list[Image]:
        """Return the images of a study."""
        return [_image(row) for row in self._found(self._images, self._images.c.study == study)]

    def counted(self, studies: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Return how many images, and segmentations of models, each of some studies has."""
        from sqlalchemy import func, select

        i, s = self._images, self._segmentations
        query = (
            select(
                i.c.study,
                func.count(i.c.image_id.distinct()),
                func.count(s.c.segmentation_id.distinct()),
            )
            .join(s, (s.c.image_id == i.c.image_id) & (s.c.kind == "model"), isouter=True)
            .where(i.c.study.in_(list(studies)))
            .group_by(i.c.study)
        )
        with self._database.connected() as connection:
            return {row[0]: (row[1], row[2]) for row in connection.execute(query)}

    def volume(self, image_id: str) -> Path:
        """Return the NIfTI file of an image that is here."""
        return self.folder / "images" / image_id[:2] / image_id / "image.nii.gz"

    def add_segmentation(
        self,
        image_id: str,
        *,
        kind: Kind,
        author: str,
        labels: Mapping[int, str],
        product_class: str,
        content: bytes,
        state: State = "final",
        confidence: Mapping[int, float] | None = None,
        project: str = "",
        after: int | None = None,
    ) -> Segmentation:
        """Keep a segmentation; an author's former one of this kind on this image is replaced.

        The same content again changes nothing, so that a second attempt of a model leaves what a
        reader confirmed.

        Args:
            image_id: of an image that is here.
            kind: see `Segmentation`, as all of these.
            author: likewise.
            labels: likewise.
            product_class: likewise.
            content: a gzipped NIfTI file of labels on the image's grid, which the caller checked.
            state: likewise.
            confidence: likewise.
            project: likewise.
            after: version that was changed, 0 for none; None replaces whatever is there.

        Raises:
            StaleError: another version is there.
        """
        t = self._segmentations
        same = (t.c.image_id == image_id) & (t.c.kind == kind) & (t.c.author == author)
        same &= t.c.project == project
        with self._database.writing("LOCK TABLE segmentation IN EXCLUSIVE MODE") as connection:
            former = connection.execute(t.select().where(same)).first()
            if after is not None and after != (former.version if former else 0):
                raise StaleError
            if former and self._same(_segmentation(former), state, labels, product_class, content):
                return _segmentation(former)
            made = Segmentation(
                former.segmentation_id if former else secrets.token_hex(16),
                image_id, kind, author, state, dict(labels), product_class, self._clock(),
                version=former.version + 1 if former else 1, confidence=dict(confidence or {}),
                project=project,
            )  # fmt: skip
            place = self._file(made)
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_path(place) as temporary:
                temporary.write_bytes(content)
            row = asdict(made)
            for name in ("labels", "confidence"):
                row[name] = json.dumps({str(value): said for value, said in row[name].items()})
            if former:
                connection.execute(t.update().where(same).values(row))
            else:
                connection.execute(t.insert().values(row))
        if former:
            self._file(replace(made, version=former.version)).unlink(missing_ok=True)
        return made

    def segmentation(self, segmentation_id: str) -> Segmentation | None:
        """Return a segmentation by its id."""
        t = self._segmentations
        found = self._found(t, t.c.segmentation_id == segmentation_id)
        return _segmentation(found[0]) if found else None

    def segmentations(self, image_id: str, kind: Kind | None = None) -> list[Segmentation]:
        """Return what was drawn on an image, what was changed last last."""
        t = self._segmentations
        which = [t.c.image_id == image_id, *([t.c.kind == kind] if kind else [])]
        return [_segmentation(row) for row in self._found(t, *which)]

    def of_project(self, project: str) -> list[Segmentation]:
        """Return what was drawn in a project."""
        t = self._segmentations
        return [_segmentation(row) for row in self._found(t, t.c.project == project)]

    def mask(self, segmentation: Segmentation) -> Path:
        """Return the NIfTI file of a segmentation that is here."""
        return self._file(segmentation)

    def confirm(self, segmentation: Segmentation, by: str) -> Segmentation:
        """Record who stands for what a model says; of two at once the first does.

        Args:
            segmentation: of a model, in the version that was looked at.
            by: the reader.
        """
        t = self._segmentations
        same = (t.c.segmentation_id == segmentation.segmentation_id) & (t.c.confirmed_by == "")
        same &= t.c.version == segmentation.version
        with self._database.writing() as connection:
            connection.execute(
                t.update().where(same).values(confirmed_by=by, confirmed=self._clock())
            )
        return self.segmentation(segmentation.segmentation_id) or segmentation

    def _same(
        self, former: Segmentation, state: State, labels: Mapping[int, str],
        product_class: str, content: bytes,
    ) -> bool:  # fmt: skip
        said = (former.state, dict(former.labels), former.product_class)
        return said == (state, dict(labels), product_class) and (
            self._file(former).read_bytes() == content
        )

    def _file(self, segmentation: Segmentation) -> Path:
        name = f"{segmentation.segmentation_id}.{segmentation.version}.nii.gz"
        return self.volume(segmentation.image_id).with_name(name)

    def _found(self, table: Table, *which: Any) -> list[Any]:
        with self._database.connected() as connection:
            return list(connection.execute(table.select().where(*which).order_by(table.c.made)))


def image_id_of(about: About) -> str:
    """Return the id of an image by what it is, so that a second attempt gives the same."""
    parts = (about.study, about.series, about.what if about.series else about.name)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _lengths(affine: np.ndarray) -> tuple[float, ...]:
    """Spacing along (i, j, k)."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return tuple(round(one, 4) for one in reversed(lengths))


def _as_gzip(file: Path, target: Path) -> None:
    """Copy a NIfTI file, gzipped where it is not: the page asks for one form."""
    from isal import igzip

    if file.name.lower().endswith(".gz"):
        shutil.copyfile(file, target)
    elif file.name.lower().endswith(".nii"):
        with file.open("rb") as source, igzip.open(target, "wb", compresslevel=1) as packed:
            shutil.copyfileobj(source, packed)
    else:
        raise FormatError("image", "a .nii or .nii.gz", file.suffix or "none", where=file)


def _image(row: Any) -> Image:
    values = dict(row._mapping)
    values.pop("made")
    for name in ("shape", "spacing_mm"):
        values[name] = tuple(json.loads(values[name]))
    values["window"] = tuple(tuple(one) for one in json.loads(values["window"]))
    return Image(**values)


def _segmentation(row: Any) -> Segmentation:
    values = dict(row._mapping)
    for name in ("labels", "confidence"):
        values[name] = {int(value): said for value, said in json.loads(values[name]).items()}
    return Segmentation(**values)


def _tables() -> tuple[Table, Table]:
    from sqlalchemy import Column, Float, Index, Integer, MetaData, Table, Text, UniqueConstraint

    def texts(*names: str) -> list[Column[str]]:
        return [Column(name, Text, nullable=False) for name in names]

    images = Table(
        "image", MetaData(),
        Column("image_id", Text, primary_key=True),
        *texts("study", "series", "what", "name", "modality", "description", "shape",
               "spacing_mm", "units", "window"),
        Column("made", Float(53), nullable=False),
    )  # fmt: skip
    Index("image_study", images.c.study)
    segmentations = Table(
        "segmentation", MetaData(),
        Column("segmentation_id", Text, primary_key=True),
        *texts("image_id", "kind", "author", "state", "labels", "product_class", "confirmed_by",
               "confidence", "project"),
        *(Column(name, Float(53), nullable=False) for name in ("made", "confirmed")),
        Column("version", Integer, nullable=False),
        UniqueConstraint("image_id", "kind", "author", "project"),
    )  # fmt: skip
    return images, segmentations
