"""What people look at: volumes as files that a page can show, and what was drawn on them.

A volume of a study is made from its DICOM instances once; an image of a data set is taken as it
is. Files are named by digests and random numbers of ours, and written whole or not at all.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qinjing.config import atomic_path
from qinjing.data.database import Database
from qinjing.data.nifti import read_header
from qinjing.errors import FormatError
from qinjing.evidence.digests import digest
from qinjing.serve.drawn import (
    About,
    Image,
    Kind,
    Segmentation,
    StaleError,
    State,
    image_id_of,
    image_of,
    row_of,
    segmentation_of,
)

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

_AT_ONCE = 500  # ids in one query
_ATTEMPTS = 3
_TABLES_MADE = "SELECT pg_advisory_xact_lock(7161468)"


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
        from qinjing.serve.tables import image_tables

        self._images, self._segmentations = image_tables()
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
        if not about.instances:  # two data sets may call two images alike
            about = replace(about, instances=digest(file))
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
                more = {"made": self._clock(), "former": False}
                connection.execute(t.insert().values(row | more))
        return image

    def find(self, about: About) -> Image | None:
        """Return the image of a volume, where it was taken in."""
        return self.get(image_id_of(about))

    def get(self, image_id: str) -> Image | None:
        """Return an image by its id."""
        found = self._found(self._images, self._images.c.image_id == image_id)
        return image_of(found[0]) if found else None

    def all(self) -> list[Image]:
        """Return every image, in the order in which they came."""
        return [image_of(row) for row in self._found(self._images)]

    def some(self, image_ids: Sequence[str]) -> dict[str, Image]:
        """Return images by their ids, of those that are here."""
        found: dict[str, Image] = {}
        for start in range(0, len(image_ids), _AT_ONCE):
            part = list(image_ids[start : start + _AT_ONCE])
            rows = self._found(self._images, self._images.c.image_id.in_(part))
            found |= {row.image_id: image_of(row) for row in rows}
        return found

    def of_study(self, study: str) -> list[Image]:
        """Return the images of a study as it is now: those of fewer instances are left out."""
        t = self._images
        return [image_of(row) for row in self._found(t, (t.c.study == study) & ~t.c.former)]

    def keep_alone(self, study: str, image_ids: Sequence[str]) -> None:
        """Say which images a study has now; others were made of fewer of its instances."""
        t = self._images
        with self._database.writing() as connection:
            former = (t.c.study == study) & t.c.image_id.not_in(list(image_ids))
            connection.execute(t.update().where(former).values(former=True))

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
            .where(i.c.study.in_(list(studies)) & ~i.c.former)
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
        maker: str = "",
        after: int | None = None,
    ) -> Segmentation:
        """Keep a segmentation; an author's former one of this kind on this image is replaced.

        The same again changes nothing, so that a second attempt of a model leaves what a reader
        confirmed. What is final is replaced by who decided it alone.

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
            maker: likewise.
            after: version that was changed, 0 for none; None replaces whatever is there.

        Raises:
            StaleError: another version is there, or what is final is another's.
        """
        made = Segmentation(
            secrets.token_hex(16), image_id, kind, author, state, dict(labels), product_class,
            self._clock(), confidence=dict(confidence or {}), project=project, maker=maker,
        )  # fmt: skip
        return self._put(made, content, after)

    def _put(self, made: Segmentation, content: bytes, after: int | None) -> Segmentation:
        t = self._segmentations
        same = (t.c.image_id == made.image_id) & (t.c.kind == made.kind)
        same &= t.c.project == made.project
        if made.kind in ("model", "reader"):
            same &= t.c.author == made.author
        with self._database.writing("LOCK TABLE segmentation IN EXCLUSIVE MODE") as connection:
            row = connection.execute(t.select().where(same)).first()
            former = segmentation_of(row) if row else None
            theirs = former and former.kind == "final" and former.author != made.author
            if theirs or (after is not None and after != (former.version if former else 0)):
                raise StaleError
            if former:
                if self._is_same(former, made, content):
                    return former
                made = replace(
                    made, segmentation_id=former.segmentation_id, version=former.version + 1
                )
            place = self.mask(made)
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic_path(place) as temporary:
                temporary.write_bytes(content)
            if former:
                connection.execute(t.update().where(same).values(row_of(made)))
            else:
                connection.execute(t.insert().values(row_of(made)))
        if former:
            self.mask(former).unlink(missing_ok=True)
        return made

    def segmentation(self, segmentation_id: str) -> Segmentation | None:
        """Return a segmentation by its id."""
        t = self._segmentations
        found = self._found(t, t.c.segmentation_id == segmentation_id)
        return segmentation_of(found[0]) if found else None

    def segmentations(self, image_id: str, kind: Kind | None = None) -> list[Segmentation]:
        """Return what was drawn on an image, what was changed last last."""
        t = self._segmentations
        which = [t.c.image_id == image_id, *([t.c.kind == kind] if kind else [])]
        return [segmentation_of(row) for row in self._found(t, *which)]

    def of_project(self, project: str) -> list[Segmentation]:
        """Return what was drawn in a project."""
        t = self._segmentations
        return [segmentation_of(row) for row in self._found(t, t.c.project == project)]

    def mask(self, segmentation: Segmentation) -> Path:
        """Return the NIfTI file of a segmentation that is here."""
        name = f"{segmentation.segmentation_id}.{segmentation.version}.nii.gz"
        return self.volume(segmentation.image_id).with_name(name)

    def content(self, segmentation: Segmentation) -> tuple[Segmentation, bytes]:
        """Return a segmentation as it is now with its file, though it is replaced meanwhile."""
        for _ in range(_ATTEMPTS):
            try:
                return segmentation, self.mask(segmentation).read_bytes()
            except FileNotFoundError:
                segmentation = self.segmentation(segmentation.segmentation_id) or segmentation
        return segmentation, self.mask(segmentation).read_bytes()

    def confirm(self, connection: Connection, segmentation: Segmentation, by: str) -> bool:
        """Record who stands for what a model says; False where it is confirmed, or another now.

        Args:
            connection: of the transaction of what follows from it.
            segmentation: of a model, in the version that was looked at.
            by: the reader.
        """
        t = self._segmentations
        same = (t.c.segmentation_id == segmentation.segmentation_id) & (t.c.confirmed_by == "")
        same &= t.c.version == segmentation.version
        said = t.update().where(same).values(confirmed_by=by, confirmed=self._clock())
        return bool(connection.execute(said).rowcount)

    def _is_same(self, former: Segmentation, made: Segmentation, content: bytes) -> bool:
        """Whether nothing but the moment would change."""
        names = ("author", "state", "labels", "product_class", "confidence", "maker")
        if any(getattr(former, name) != getattr(made, name) for name in names):
            return False
        return self.mask(former).read_bytes() == content

    def _found(self, table: Table, *which: Any) -> list[Any]:
        with self._database.connected() as connection:
            return list(connection.execute(table.select().where(*which).order_by(table.c.made)))


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
