"""A PACS for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clinic.orthanc import Pacs, started


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """An Orthanc that the tests of one file share."""
    with started(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small scans with labels."""
    from tests.clinic.answering import write_dataset

    return write_dataset(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="session")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learnt from them."""
    from tests.clinic.answering import trained

    return trained(dataset, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def study(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the scans as DICOM, and a localiser."""
    from tests.clinic.answering import write_study

    return write_study(dataset, tmp_path_factory.mktemp("study"))
