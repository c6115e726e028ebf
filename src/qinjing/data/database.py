"""A database that records are kept in: a SQLite file, or PostgreSQL by URL, opened the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qinjing.errors import ConfigError, QinjingError, UnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_WAIT_S = 30  # for another process that writes


class Database:
    """Connections to one database, whose errors name no value that lies in it.

    Args:
        place: a file, or a URL of SQLite or PostgreSQL.
        what: it is to the user, for messages: "consent store".
        extra: of Qinjing, that brings what is needed.
        create: make the file where there is none.

    Attributes:
        engine: SQLAlchemy's, on which every statement stands for itself.
        name: the file, or the URL without its password.

    Raises:
        ConfigError: nothing is there, it is no such place, or a package is missing.
    """

    def __init__(self, place: str | Path, *, what: str, extra: str, create: bool = False) -> None:
        self.what = what
        self.engine, self.name = _open(place, what, extra, create)

    @property
    def on_sqlite(self) -> bool:
        """Whether it is a file of this machine."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """A connection on which every statement stands for itself; its errors in our words."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self.engine.connect() as connection:
                yield connection
        except QinjingError:
            raise
        except (SQLAlchemyError, ValueError) as error:
            # Messages of databases repeat values, patients' among them: the kind must do.
            cause = getattr(error, "orig", None) or error
            raise UnavailableError(
                self.what, "a database that can be reached and used", type(cause).__name__,
                where=self.name,
            ) from None  # fmt: skip

    @contextmanager
    def writing(self, lock: str = "") -> Iterator[Connection]:
        """A connection whose statements all stay, or none; on SQLite it alone may write.

        Args:
            lock: what PostgreSQL is told first, to keep others out: SQLite needs no word for it.
        """
        with self.connected() as connection:
            begin = ["BEGIN IMMEDIATE"] if self.on_sqlite else ["BEGIN", lock]
            for line in filter(None, begin):
                connection.exec_driver_sql(line)
            try:
                yield connection
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

    def close(self) -> None:
        """Let go of it."""
        self.engine.dispose()


def _open(place: str | Path, what: str, extra: str, create: bool) -> tuple[Engine, str]:
    """The engine of a place, and its name without a password."""
    try:
        from sqlalchemy import URL, create_engine, make_url
        from sqlalchemy.exc import ArgumentError
    except ImportError:
        raise missing(what, "SQLAlchemy", extra) from None
    try:
        url = make_url(str(place)) if "://" in str(place) else URL.create("sqlite")
    except ArgumentError:  # which repeats the URL, and so perhaps a password
        raise ConfigError(what, "a file or a URL", "another thing") from None
    kind = url.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise ConfigError(what, "of SQLite or PostgreSQL", kind)
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "hide_parameters": True}
    if kind == "postgresql":
        try:
            url = url.set(drivername="postgresql+psycopg")
            engine = create_engine(url, pool_pre_ping=True, **options)
        except ImportError:
            raise missing(what, "psycopg", extra) from None
        return engine, url.render_as_string(hide_password=True)
    file = Path(url.database or "") if "://" in str(place) else Path(place)
    if not file.name:
        raise ConfigError(what, "a file", "none")
    if not file.is_file():
        if not create:
            raise ConfigError(what, "there", "nothing", where=file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # patients' ids lie in it
    url = URL.create("sqlite", database=str(file.resolve()))
    return create_engine(url, connect_args={"timeout": _WAIT_S}, **options), str(file)


def missing(what: str, package: str, extra: str) -> ConfigError:
    """Return the refusal of a database whose package is not there."""
    advice = f"pip install 'qinjing[{extra}]'"
    return ConfigError(what, f"read with {package}", "no such package", advice=advice)
