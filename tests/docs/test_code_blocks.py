"""Every block of bash and Python in the documentation runs, page by page, in an empty folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import GIVEN, PROJECT, REASONS, Page, all_pages, read_page, run_block

PAGES = [page for page in all_pages() if page.blocks]
NOT_RUN_AT_MOST = 6


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of ten generated scans."""
    from qinjing.physics.phantom import write_dataset

    return write_dataset(tmp_path_factory.mktemp("given") / "phantom", cases=10, seed=1)


@pytest.fixture(scope="session")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands of the README were run, with a trained model."""
    folder = tmp_path_factory.mktemp("readme")
    run_page(read_page(PROJECT / "README.md"), folder)
    return folder


@pytest.fixture(scope="session")
def series(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of those scans as a PACS gives it out."""
    pytest.importorskip("highdicom")
    import numpy as np

    from qinjing.data.nifti import read_nifti
    from tests.data.dicom.series import write_series

    image = read_nifti(next(iter(sorted((phantom / "imagesTr").iterdir())))).canonical()
    voxels = np.rint(image.voxels).astype(np.int16)
    folder = tmp_path_factory.mktemp("pacs") / "series"
    origin = image.affine[:3, 3].tolist()
    return write_series(folder, voxels, spacing=image.spacing_mm, origin=origin, intercept=0.0)


def run_page(page: Page, folder: Path) -> None:
    """Run the blocks of a page in their order."""
    for block in page.blocks:
        if block.not_run:
            continue
        run = run_block(block, folder)
        said = f"{page.name}:{block.line}\n{block.code}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
        assert run.returncode == 0, said


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.slow else [])
        for page in PAGES
    ],
)
def test_page_runs(page: Page, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page.name == "README.md":
        request.getfixturevalue("readme")
        return
    for what, name in page.given:
        run = what == "run"
        source = request.getfixturevalue("readme" if run else what) / ("run" if run else "")
        shutil.copytree(source, tmp_path / name)
    run_page(page, tmp_path)


def test_blocks_are_left_out_for_few_reasons_and_seldom() -> None:
    left_out = [(p.name, b.line, b.not_run) for p in PAGES for b in p.blocks if b.not_run]
    assert all(str(why).split(":")[0].split(",")[0] in REASONS for _, _, why in left_out), left_out
    assert len(left_out) <= NOT_RUN_AT_MOST, left_out
    assert all(what in GIVEN for page in PAGES for what, _ in page.given)


def test_a_broken_block_fails_and_comments_are_understood(tmp_path: Path) -> None:
    path = PROJECT / "docs" / "not-written.md"
    text = (
        "<!-- given: phantom as my_scans -->\n```bash\nfalse | true\n```\n\n"
        "<!-- not run: network -->\n```bash\ncurl nowhere\n```\n"
        "1. a list\n\n    ```python\n    print('in a list')\n    ```\n```text\nnot code\n```\n"
    )
    copy = tmp_path / path.name
    copy.write_text(text, encoding="utf-8")
    page = read_page(copy)
    assert [(b.language, b.line, b.not_run) for b in page.blocks] == [
        ("bash", 2, None), ("bash", 7, "network"), ("python", 12, None),
    ]  # fmt: skip
    assert page.given == (("phantom", "my_scans"),)
    assert run_block(page.blocks[0], tmp_path).returncode != 0
    assert run_block(page.blocks[2], tmp_path).stdout == "in a list\n"
