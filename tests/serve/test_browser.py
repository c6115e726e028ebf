"""Where there is no browser, it is said that the page was not tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.serve.browser import MISSING

ROOT = Path(__file__).parents[2]


def test_without_chromium_the_page_is_said_to_be_untested(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pytest", "tests/serve/test_page.py", "-p", "no:cacheprovider"]
    bare = {**os.environ, "PATH": str(tmp_path)}
    run = subprocess.run(words, cwd=ROOT, env=bare, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and " skipped" in run.stdout and MISSING in run.stdout
