"""What was received: every instance once, by its UID, in a file of ours and a row.

A file is named by digests, so that nothing a sender writes becomes a path. It is on the disk before
its row is, and its row before the sender is told: what was answered with success is not lost.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qinjing.data.database import Database
from qinjing.errors import FormatError
from qinjing.serve.drawn import Segmentation
from qinjing.serve.images import Images
from qinjing.serve.jobs import Queue
from qinjing.serve.projects import Projects

if TYPE_CHECKING:
    from sqlalchemy import Connection

# What is kept of a study to find it by, DICOM attribute → column.
ABOUT = {
    "PatientID": "patient_id", "PatientName": "patient_name", "PatientBirthDate": "birth_date",
    "StudyDate": "study_date", "StudyDescription": "description",
    "AccessionNumber": "accession", "Modality": "modality",
}  # fmt: skip
# What is to be told of a study with several jobs: what is worst, or least far.
StudyState = Literal["received", "done", "waiting", "working", "failed"]
STATES: tuple[StudyState, ...] = ("received", "done", "waiting", "working", "failed")
# Segmentations, structured reports, RT objects and encapsulated documents, by their UIDs' roots.
_DERIVED = tuple(
    f"1.2.840.10008.5.1.4.1.1.{root}" for root in ("66", "88.", "104.", "481.3", "11.")
)
_FOUND_BY = ("patient_id", "patient_name", "accession", "description")
_AT_ONCE = 500  # parameters of a statement: SQLite takes no more than some thousands
_TABLES_MADE = "SELECT pg_advisory_xact_lock(7161467)"


@dataclass(frozen=True)
class Instance:
    """One instance as it was received.

    Attributes:
        sop_instance_uid: which it is.
        sop_class_uid: what it is.
        series_instance_uid: its series.
        study_instance_uid: its study.
        about: the study's attributes, those of `ABOUT`.
    """

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    about: Mapping[str, str]


@dataclass(frozen=True)
class Study:
    """A study that was received.

    Attributes:
        study_instance_uid: which it is.
        instances: how many there are.
        first: when the first came, seconds since 1970.
        last: when the last came.
        about: as its first instance has them, those of `ABOUT`.
        state: how far the work on it is.
    """

    study_instance_uid: str
    instances: int
    first: float
    last: float
    about: Mapping[str, str]
    state: StudyState


class Catalogue:
    """Studies in a folder and a database.

    Args:
        folder: where instances are kept.
        database: in which tables are made where there are none.
        clock: seconds since 1970.

    Attributes:
        folder: likewise.
        database: likewise, in which others keep what must go along with it.
        queue: of work on studies.
        images: that were made of them.
    """

    def __init__(
        self, folder: Path, database: Database, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder, self.database, self._clock = folder, database, clock
        from qinjing.serve.tables import catalogue_tables

        self._instances, self._studies = catalogue_tables(ABOUT.values())
        self.queue, self.images = Queue(database, clock), Images(folder, database, clock)
        self.projects = Projects(database, clock)
        if database.on_sqlite:  # readers and one writer do not wait for each other
            with database.connected() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        with database.writing(_TABLES_MADE) as connection:
            self._instances.create(connection, checkfirst=True)
            self._studies.create(connection, checkfirst=True)

    def keep(self, instance: Instance, content: bytes) -> bool:
        """Keep an instance for good; False where it is here already, which stays as it is.

        Args:
            instance: what `content` says of itself.
            content: a DICOM file.

        Raises:
            OSError: the disk does not take it.
            ConfigError: the database does not.
        """
        digest = hashlib.sha256(content).hexdigest()
        if self.sha256(instance.sop_instance_uid) is not None:
            return False
        _write(self.path(instance.study_instance_uid, instance.sop_instance_uid), content)
        with self.database.writing() as connection:
            return self._record(connection, instance, digest, len(content))

    def sha256(self, sop_instance_uid: str) -> str | None:
        """Return the digest of an instance's file, None where it was never received."""
        from sqlalchemy import select

        c = self._instances.c
        with self.database.connected() as connection:
            return connection.scalar(select(c.sha256).where(c.instance == sop_instance_uid))

    def held(self, sop_instance_uids: Sequence[str]) -> dict[str, str]:
        """Return the SOP classes of those instances that are here, with their files whole."""
        from sqlalchemy import select

        c, found = self._instances.c, {}
        for start in range(0, len(sop_instance_uids), _AT_ONCE):
            some = list(sop_instance_uids[start : start + _AT_ONCE])
            query = select(c.instance, c["class"], c.study, c.bytes).where(c.instance.in_(some))
            with self.database.connected() as connection:
                rows = connection.execute(query).all()
            for instance, kind, study, size in rows:
                path = self.path(study, instance)
                if path.is_file() and path.stat().st_size == size:
                    found[instance] = kind
        return found

    def place(self, study_instance_uid: str) -> Path:
        """Return the folder of a study's instances."""
        name = study_key(study_instance_uid)
        return self.folder / "instances" / name[:2] / name

    def path(self, study_instance_uid: str, sop_instance_uid: str) -> Path:
        """Return the file of an instance."""
        return self.place(study_instance_uid) / f"{_digest(sop_instance_uid)}.dcm"

    def studies(
        self, after: str = "", limit: int = 100, search: str = "", state: StudyState | None = None
    ) -> list[Study]:
        """Return studies, the newest first.

        Args:
            after: begin behind the study of this key.
            limit: no more than these.
            search: a part of the patient's name or id, the accession number or the description.
            state: of these alone.
        """
        from sqlalchemy import select, tuple_

        t, rank = self._studies, self._rank()
        query = select(t, rank.label("rank")).where(*self._found_by(search))
        query = query.order_by(t.c.first.desc(), t.c.study.desc()).limit(limit)
        if state:
            query = query.where(rank == STATES.index(state))
        if after:
            edge = select(t.c.first, t.c.study).where(t.c.key == after)
            query = query.where(tuple_(t.c.first, t.c.study) < edge.scalar_subquery())
        with self.database.connected() as connection:
            return [_study(row) for row in connection.execute(query)]

    def counts(self, search: str = "") -> dict[StudyState, int]:
        """Return how many studies are in each state."""
        from sqlalchemy import func, select

        ranks = select(self._rank().label("rank")).select_from(self._studies)
        ranked = ranks.where(*self._found_by(search)).subquery()
        query = select(ranked.c.rank, func.count()).group_by(ranked.c.rank)
        with self.database.connected() as connection:
            found = {row[0]: row[1] for row in connection.execute(query)}
        return {state: found.get(rank, 0) for rank, state in enumerate(STATES)}

    def study(self, study_instance_uid: str) -> Study | None:
        """Return a study, None where nothing of it was received."""
        return next(iter(self._studies_where(self._studies.c.study == study_instance_uid)), None)

    def study_of(self, key: str) -> Study | None:
        """Return a study by its key."""
        return next(iter(self._studies_where(self._studies.c.key == key)), None)

    def others(self, study: Study) -> list[Study]:
        """Return the other studies of a study's patient, the newest first."""
        patient, t = study.about["PatientID"], self._studies
        if not patient:
            return []
        found = self._studies_where(t.c.patient_id == patient)
        found = [one for one in found if one.study_instance_uid != study.study_instance_uid]
        return sorted(found, key=lambda one: (one.about["StudyDate"], one.first), reverse=True)

    def again(self, study: Study, kinds: Collection[str]) -> int:
        """Let what failed on a study be tried anew, and what is missing be done; how many jobs."""
        with self.database.writing() as connection:
            count = self.queue.again(connection, study.study_instance_uid)
            for kind in kinds:
                count += self.queue.put(connection, kind, study.study_instance_uid, study.instances)
        return count

    def confirm(self, one: Segmentation, by: str, study: str, told: Callable[[], None]) -> bool:
        """Record who stands for what a model says, and let what waited for it be sent.

        Both are done, or neither.

        Args:
            one: in the version that was looked at.
            by: the reader.
            study: whose answer waits for it, "" for none.
            told: writes it into the audit; where that fails, nothing is confirmed.

        Returns:
            False where it is confirmed already, or another now.
        """
        with self.database.writing("LOCK TABLE job IN SHARE ROW EXCLUSIVE MODE") as connection:
            if not self.images.confirm(connection, one, by):
                return False
            if study:
                self.queue.put_next(connection, "release", study)
            told()
        return True

    def _studies_where(self, *which: Any) -> list[Study]:
        from sqlalchemy import select

        query = select(self._studies, self._rank().label("rank")).where(*which)
        with self.database.connected() as connection:
            return [_study(row) for row in connection.execute(query)]

    def _rank(self) -> Any:
        """The place in `STATES` of a row of studies."""
        from sqlalchemy import func, literal

        worst = self.queue.worst(self._studies.c.study, STATES)
        return func.coalesce(worst, literal(0))

    def _found_by(self, search: str) -> list[Any]:
        from sqlalchemy import or_

        if not search:
            return []
        return [or_(*(self._studies.c[name].icontains(search, autoescape=True)
                      for name in _FOUND_BY))]  # fmt: skip

    def queue_quiet(self, quiet_s: float, kinds: Collection[str]) -> int:
        """Put in jobs for studies to which nothing was added for a while; how many studies.

        DICOM has no word for "this study is complete": silence is all there is to go by. What comes
        later makes another revision.

        Args:
            quiet_s: the while, in seconds.
            kinds: of jobs, for each study.
        """
        from sqlalchemy import select

        t = self._studies
        due = select(t.c.study, t.c.instances).where(
            (t.c.instances > t.c.queued) & (t.c.last <= self._clock() - quiet_s)
        )
        if not self.database.on_sqlite:
            due = due.with_for_update(skip_locked=True)
        with self.database.connected() as connection:  # without a lock: mostly there are none
            if connection.execute(due.limit(1)).first() is None:
                return 0
        with self.database.writing() as connection:
            found = connection.execute(due).all()
            for study, instances in found:
                for kind in kinds:
                    self.queue.put(connection, kind, study, instances)
                connection.execute(t.update().where(t.c.study == study).values(queued=instances))
        return len(found)

    def _record(self, connection: Connection, instance: Instance, digest: str, size: int) -> bool:
        """One row for the instance and one more for its study; False where both were there."""
        if self.database.on_sqlite:
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        now, studies = self._clock(), self._studies
        row = {
            "instance": instance.sop_instance_uid, "class": instance.sop_class_uid,
            "series": instance.series_instance_uid, "study": instance.study_instance_uid,
            "sha256": digest, "bytes": size, "received": now,
        }  # fmt: skip
        from sqlalchemy import select

        patient = connection.scalar(
            select(studies.c.patient_id).where(studies.c.study == instance.study_instance_uid)
        )
        if patient not in (None, instance.about.get("PatientID", "")):
            raise FormatError("PatientID", "that of the study's other instances", "another")
        made = connection.execute(insert(self._instances).values(row).on_conflict_do_nothing())
        if not made.rowcount:
            return False
        # What models and people made of a study comes back to it: that is nothing new to answer.
        more = 0 if instance.sop_class_uid.startswith(_DERIVED) else 1
        about = {column: instance.about.get(name, "") for name, column in ABOUT.items()}
        statement = insert(studies).values(
            study=instance.study_instance_uid,
            key=study_key(instance.study_instance_uid),
            instances=1,
            queued=0,
            first=now,
            last=now,
            **about,
        )
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=["study"],
                set_={"instances": studies.c.instances + more, "last": now},
            )
        )
        return True


def open_catalogue(folder: Path, url: str | None = None) -> Catalogue:
    """Open what a folder holds; it is made where there is nothing.

    Args:
        folder: of instances, and of the database where no URL is given.
        url: of PostgreSQL, which several machines share, as they must share the folder.

    Raises:
        ConfigError: the database cannot be reached or used, or a package is missing.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = url or folder / "catalogue.sqlite"
    return Catalogue(folder, Database(place, what="catalogue", extra="serve", create=True))


def _write(path: Path, content: bytes) -> None:
    """Write a file that survives a loss of power, or none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Two associations may send one instance at once: each writes its own file.
    temporary = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        with temporary.open("xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def study_key(study_instance_uid: str) -> str:
    """Return what a study is called in places that others see: 40 hexadecimal digits."""
    return _digest(study_instance_uid)


def _digest(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:40]


def _study(row: Any) -> Study:
    about = {name: getattr(row, column) for name, column in ABOUT.items()}
    return Study(row.study, row.instances, row.first, row.last, about, STATES[row.rank])
