"""How requests reach sites: strategies know nothing of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol


class Door(Protocol):
    """A way to ask sites."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites that are there now."""

    def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Iterator[tuple[str, bytes]]:
        """Yield (site, answer) as answers come, until all are there or the time is over.

        Args:
            requests: by site.
            deadline_s: wall seconds; who has not answered by then is left out.
        """


class InProcess:
    """Sites in this process, one after the other: for tests and simulations.

    Args:
        answer: by site, request → answer; an OSError stands for a site that is gone.
    """

    def __init__(self, answer: Mapping[str, Callable[[bytes], bytes]]) -> None:
        self._answer = dict(answer)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names, as given."""
        return tuple(self._answer)

    def ask(self, requests: Mapping[str, bytes], deadline_s: float) -> Iterator[tuple[str, bytes]]:
        """Ask each in turn."""
        for site, request in requests.items():
            try:
                yield site, self._answer[site](request)
            except OSError:
                continue
