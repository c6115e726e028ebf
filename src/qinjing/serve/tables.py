"""The tables of a service's database, the same in SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)


def catalogue_tables(about: Iterable[str]) -> tuple[Table, Table]:
    """Return those of instances and of studies.

    Args:
        about: columns of what a study is found by.
    """
    instances = Table(
        "instance", MetaData(),
        Column("instance", Text, primary_key=True),
        *(Column(name, Text, nullable=False) for name in ("class", "series", "study", "sha256")),
        Column("bytes", Integer, nullable=False),
        Column("received", Float(53), nullable=False),
    )  # fmt: skip
    Index("instance_study", instances.c.study)
    studies = Table(
        "study", MetaData(),
        Column("study", Text, primary_key=True),
        Column("key", Text, nullable=False, unique=True),
        Column("instances", Integer, nullable=False),
        Column("queued", Integer, nullable=False),
        Column("first", Float(53), nullable=False),
        Column("last", Float(53), nullable=False),
        *(Column(name, Text, nullable=False) for name in about),
    )  # fmt: skip
    Index("study_patient", studies.c.patient_id)
    Index("study_first", studies.c.first, studies.c.study)
    return instances, studies


def job_table() -> Table:
    """Return that of jobs."""
    table = Table(
        "job", MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=True),
        *(Column(name, Text, nullable=False)
          for name in ("kind", "study", "state", "worker", "reason", "result")),
        Column("revision", Integer, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("due", Float(53), nullable=False),
        UniqueConstraint("kind", "study", "revision"),
    )  # fmt: skip
    Index("job_due", table.c.state, table.c.due)
    # With all that a list asks of a study, so that the rows, results and all, are not read.
    Index("job_of_study", table.c.study, table.c.kind, table.c.revision, table.c.state)
    return table


def step_table() -> Table:
    """Return that of steps taken from worklist servers."""
    return Table(
        "step", MetaData(),
        Column("server", Text, primary_key=True),
        Column("uid", Text, primary_key=True),
        *(Column(name, Text, nullable=False)
          for name in ("transaction", "phase", "study", "reason")),
        Column("tries", Integer, nullable=False),
        *(Column(name, Float(53), nullable=False) for name in ("begun", "due")),
    )  # fmt: skip


def image_tables() -> tuple[Table, Table]:
    """Return those of images and of segmentations."""

    def texts(*names: str) -> list[Column[str]]:
        return [Column(name, Text, nullable=False) for name in names]

    images = Table(
        "image", MetaData(),
        Column("image_id", Text, primary_key=True),
        *texts("study", "series", "what", "name", "modality", "description", "shape",
               "spacing_mm", "units", "instances", "window"),
        Column("made", Float(53), nullable=False),
        Column("former", Boolean, nullable=False),
    )  # fmt: skip
    Index("image_study", images.c.study)
    segmentations = Table(
        "segmentation", MetaData(),
        Column("segmentation_id", Text, primary_key=True),
        *texts("image_id", "kind", "author", "state", "labels", "product_class", "confirmed_by",
               "confidence", "project", "maker"),
        *(Column(name, Float(53), nullable=False) for name in ("made", "confirmed")),
        Column("version", Integer, nullable=False),
        UniqueConstraint("image_id", "kind", "author", "project"),
    )  # fmt: skip
    Index("segmentation_project", segmentations.c.project)
    return images, segmentations


def project_tables() -> tuple[Table, Table, Table]:
    """Return those of projects, of their images and of their readers."""
    projects = Table(
        "project", MetaData(),
        Column("project_id", Text, primary_key=True),
        Column("name", Text, nullable=False),
        Column("labels", Text, nullable=False),
        Column("target_kappa", Float(53), nullable=False),
        Column("made", Float(53), nullable=False),
    )  # fmt: skip
    members = [
        Table(
            f"project_{name}", MetaData(),
            Column("project_id", Text, primary_key=True),
            Column(column, Text, primary_key=True),
            Column("place", Integer, nullable=False),
        )
        for name, column in (("image", "image_id"), ("reader", "person"))
    ]  # fmt: skip
    Index("project_image_image", members[0].c.image_id)
    Index("project_reader_person", members[1].c.person)
    return projects, members[0], members[1]
