"""What runs beside the pages in one process, and how it ends."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qinjing.errors import ConfigError

if TYPE_CHECKING:
    from qinjing.serve.catalogue import Catalogue
    from qinjing.serve.node import NodeConfig
    from qinjing.serve.send import Place
    from qinjing.serve.settings import ServeConfig


class _TerminatedError(Exception):
    """The process was asked to end."""


@contextmanager
def until_terminated() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, with what stands beside, but as no failure.

    A job at hand is finished; who cannot wait for it kills, and its lease goes to another worker.
    """

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise _TerminatedError

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _TerminatedError:
        pass
    finally:
        signal.signal(signal.SIGTERM, former)


def make(folder: Path) -> None:
    """Make a folder for studies, or see that it can be written.

    Raises:
        ConfigError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        rule = "a folder that can be written"
        raise ConfigError("--folder", rule, error.strerror, where=folder) from None


@contextmanager
def taking_in(
    config: ServeConfig,
    kinds: tuple[str, ...],
    said: NodeConfig | None,
    dropped: Path | None,
    place: Place | None,
) -> Iterator[None]:
    """A node, a watched folder, and a worker in this process while the block runs."""
    from qinjing.serve.catalogue import open_catalogue
    from qinjing.serve.node import node
    from qinjing.serve.work import WorkConfig, work

    if config.folder is None:
        raise ConfigError("--folder", "given, where studies are taken in", "none")
    doing = WorkConfig(("show", "release", *kinds), models=config.served, destination=place)
    catalogue, ended = open_catalogue(config.folder, config.catalogue), threading.Event()
    worker = threading.Thread(target=work, args=(catalogue, doing, ended), daemon=True)
    with ExitStack() as beside:
        if said is not None:
            host, port = beside.enter_context(node(said, catalogue))
            say(f"listening as {said.ae_title} on {host}:{port}")
        if dropped is not None:
            beside.enter_context(watching(catalogue, dropped, kinds))
        worker.start()
        try:
            yield
        finally:
            ended.set()
            worker.join()


def destination(
    send_to: str | None, login: Path | None, ca: Path | None, plain: bool
) -> Place | None:
    """Return where results go.

    Raises:
        ConfigError: nobody could send anything there.
    """
    from qinjing.serve.send import Destination

    return Destination.parse(send_to, login=login, ca=ca, plain=plain) if send_to else None


@contextmanager
def watching(
    catalogue: Catalogue, folder: Path, kinds: tuple[str, ...], quiet_s: float = 5.0
) -> Iterator[None]:
    """A watched folder while the block runs, which says how many files came."""
    from qinjing.serve import watch

    watched = watch.Watched(catalogue, folder, quiet_s)
    say(f"watching {folder}")
    counted = "{0.taken} files were taken, {0.refused} refused".format
    with watch.watching(watched, kinds, lambda looked: say(counted(looked))):
        yield


def say(words: str) -> None:
    """Tell a person, beside the result."""
    print(words, file=sys.stderr, flush=True)
