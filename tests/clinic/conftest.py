"""A PACS for the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clinic.orthanc import Pacs, started


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """An Orthanc that the tests of one file share."""
    with started(tmp_path_factory.mktemp("orthanc")) as running:
        yield running
