"""Bodies of many parts: taken apart as they come, and put together as they go.

Source: RFC 2046, 5.1; RFC 2387 (multipart/related); DICOM PS3.18, 8.6.1.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Iterator
from email.message import Message

from qinjing.errors import FormatError

_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_MOST_HEAD = 8192  # bytes before the first part, and of a part's headers


class BrokenOffError(FormatError):
    """A body that ends before its last boundary."""


def parts(chunks: Iterable[bytes], content_type: str, most_bytes: int) -> Iterator[bytes]:
    """Yield the content of each part; one part at a time is in memory.

    Args:
        chunks: the body.
        content_type: of the body, with its boundary.
        most_bytes: of one part.

    Raises:
        BrokenOffError: it ends before its last boundary.
        FormatError: it is no such body, or a part is too long.
    """
    mark = b"\r\n--" + _boundary(content_type)
    stream = _Stream(chunks)
    stream.until(mark, _MOST_HEAD, "what stands before the first part")
    while not stream.ends():
        stream.until(b"\r\n\r\n", _MOST_HEAD, "a part's headers")
        yield stream.until(mark, most_bytes, "a part")


def boundary() -> str:
    """Return a boundary that stands in no part, as far as chance can tell."""
    return secrets.token_hex(24)


def joined(contents: Iterable[Iterable[bytes]], mark: str, kind: str) -> Iterator[bytes]:
    """Yield the body of parts.

    Args:
        contents: of each part, in pieces.
        mark: their boundary.
        kind: their content type.
    """
    for content in contents:
        yield _lead(mark, kind)
        yield from content
        yield b"\r\n"
    yield _end(mark)


def joined_length(lengths: Iterable[int], mark: str, kind: str) -> int:
    """Return how many bytes `joined` makes of parts of these lengths."""
    more = len(_lead(mark, kind)) + 2
    return sum(length + more for length in lengths) + len(_end(mark))


def _lead(mark: str, kind: str) -> bytes:
    return f"--{mark}\r\nContent-Type: {kind}\r\n\r\n".encode("ascii")


def _end(mark: str) -> bytes:
    return f"--{mark}--\r\n".encode("ascii")


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type
    found = message.get_param("boundary")
    if message.get_content_maintype() != "multipart" or not isinstance(found, str):
        raise FormatError("answer", "of many parts, multipart/related", "another thing")
    if not _BOUNDARY.fullmatch(found):
        raise FormatError("boundary", "of 1 to 70 letters of RFC 2046", "another")
    return found.encode("ascii")


class _Stream:
    """Chunks, read up to marks."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = bytearray(b"\r\n")  # so that a mark may be the very first

    def until(self, mark: bytes, most: int, what: str) -> bytes:
        """What comes before a mark, which is taken away with it."""
        start = 0
        while (at := self._held.find(mark, start)) < 0:
            start = max(0, len(self._held) - len(mark) + 1)
            if start > most:
                break
            self._more()
        if at < 0 or at > most:
            raise FormatError(what, f"of at most {most} bytes", "more")
        taken = bytes(self._held[:at])
        del self._held[: at + len(mark)]
        return taken

    def ends(self) -> bool:
        """Whether the mark behind us was the last; else its line is gone over."""
        while len(self._held) < 2:
            self._more()
        if self._held.startswith(b"--"):
            return True
        if self.until(b"\r\n", _MOST_HEAD, "a boundary's line").strip(b" \t"):
            raise FormatError("boundary", "alone on its line", "more")
        self._held[:0] = b"\r\n"  # a part without headers begins with the empty line
        return False

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise BrokenOffError("answer", "whole", "one that broke off")
        self._held += chunk
