"""Projects: which images several people label, with which labels, and how far they have come.

What is drawn is kept with the images (`images.Images`): a person's own as kind "reader", what
STAPLE makes of them as "consensus", and what was decided as "final".
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qinjing.data.database import Database

if TYPE_CHECKING:
    from sqlalchemy import Connection

TARGET_KAPPA = 0.85  # the paper's, for labels to be learnt from
_TABLES_MADE = "SELECT pg_advisory_xact_lock(7161469)"


@dataclass(frozen=True)
class Project:
    """What several people label.

    Attributes:
        project_id: 32 hexadecimal digits.
        name: what it is called.
        labels: value → name.
        target_kappa: the agreement that is asked for.
        images: ids, in the order in which they were put in.
        readers: persons.
    """

    project_id: str
    name: str
    labels: Mapping[int, str]
    target_kappa: float
    images: tuple[str, ...]
    readers: tuple[str, ...]


class Projects:
    """The projects in a database.

    Args:
        database: in which tables are made where there are none.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock
        from qinjing.serve.tables import project_tables

        self._projects, self._images, self._readers = project_tables()
        with database.writing(_TABLES_MADE) as connection:
            for table in (self._projects, self._images, self._readers):
                table.create(connection, checkfirst=True)

    def make(
        self,
        name: str,
        labels: Mapping[int, str],
        images: Sequence[str],
        readers: Sequence[str],
        target_kappa: float = TARGET_KAPPA,
    ) -> Project:
        """Make a project; see `Project` for what is given."""
        project_id = secrets.token_hex(16)
        row = {
            "project_id": project_id, "name": name, "target_kappa": target_kappa,
            "labels": json.dumps({str(value): said for value, said in labels.items()}),
            "made": self._clock(),
        }  # fmt: skip
        with self._database.writing() as connection:
            connection.execute(self._projects.insert().values(row))
            self._put(connection, project_id, images, readers)
        made = self.get(project_id)
        assert made is not None
        return made

    def put(self, project_id: str, images: Sequence[str] = (), readers: Sequence[str] = ()) -> None:
        """Put images and readers into a project; those that are in it already stay."""
        with self._database.writing() as connection:
            self._put(connection, project_id, images, readers)

    def remove(self, project_id: str, readers: Sequence[str]) -> None:
        """Take readers out of a project; what they drew stays, and is for them no more."""
        t = self._readers
        which = (t.c.project_id == project_id) & t.c.person.in_(list(readers))
        with self._database.writing() as connection:
            connection.execute(t.delete().where(which))

    def get(self, project_id: str) -> Project | None:
        """Return a project by its id."""
        return next(iter(self._found(self._projects.c.project_id == project_id)), None)

    def of(self, person: str | None) -> list[Project]:
        """Return the projects that name a person, all where None, in the order they were made."""
        from sqlalchemy import select

        if person is None:
            return self._found()
        r = self._readers
        named = select(r.c.project_id).where(r.c.person == person)
        return self._found(self._projects.c.project_id.in_(named))

    def sees(self, person: str, image_id: str) -> bool:
        """Whether a project that names a person holds an image."""
        from sqlalchemy import select

        i, r = self._images, self._readers
        query = (
            select(i.c.image_id)
            .join(r, r.c.project_id == i.c.project_id)
            .where((i.c.image_id == image_id) & (r.c.person == person))
        )
        with self._database.connected() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def _put(
        self, connection: Connection, project_id: str, images: Sequence[str], readers: Sequence[str]
    ) -> None:
        for table, column, values in (
            (self._images, "image_id", images), (self._readers, "person", readers),
        ):  # fmt: skip
            mine = table.c.project_id == project_id
            there = {row[1] for row in connection.execute(table.select().where(mine))}
            rows = [
                {"project_id": project_id, column: value, "place": len(there) + place}
                for place, value in enumerate(dict.fromkeys(values)) if value not in there
            ]  # fmt: skip
            if rows:
                connection.execute(table.insert(), rows)

    def _found(self, *which: Any) -> list[Project]:
        t = self._projects
        with self._database.connected() as connection:
            rows = connection.execute(t.select().where(*which).order_by(t.c.made)).all()
            return [self._project(connection, row) for row in rows]

    def _project(self, connection: Connection, row: Any) -> Project:
        named = []
        for table in (self._images, self._readers):
            mine = table.select().where(table.c.project_id == row.project_id)
            found = connection.execute(mine.order_by(table.c.place))
            named.append(tuple(one[1] for one in found))
        labels = {int(value): said for value, said in json.loads(row.labels).items()}
        return Project(row.project_id, row.name, labels, row.target_kappa, *named)
