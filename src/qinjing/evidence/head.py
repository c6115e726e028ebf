"""The signed count of a record's lines, without which lines could be cut from its end unseen.

It is there before the first line (counting none) and replaced after each line. A kill can leave it
one line behind; only a hand can take it away from beside a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from qinjing.evidence.digests import HEAD, RECORD
from qinjing.evidence.envelope import (
    HEAD_PAYLOAD,
    STATEMENT_PAYLOAD,
    public_text,
    replace,
    seal,
    sha256,
    unseal,
)


def write_head(folder: Path, key: Ed25519PrivateKey, count: int, last: str | None) -> None:
    """Sign that the record holds `count` lines, the last one of SHA-256 `last`."""
    content = {"count": count, "last": last, "public_key": public_text(key)}
    replace(folder / HEAD, seal(key, HEAD_PAYLOAD, content) + b"\n")


def check_head(folder: Path, lines: Sequence[bytes]) -> tuple[int, str]:
    """Return the number of lines that the head counts and its key id, if `lines` bear it out.

    Raises:
        ValueError: with what does not hold, to follow the head's name.
    """
    try:
        sealed = (folder / HEAD).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"is missing beside {len(lines)} lines") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if not sealed.endswith(b"\n"):
        raise ValueError("is not written as it was signed")
    head, key_id = unseal(sealed[:-1], HEAD_PAYLOAD)
    count, last = head.get("count"), head.get("last")
    if type(count) is not int or count < 0:
        raise ValueError("counts no lines")
    if count > len(lines):
        raise ValueError(f"counts {count} lines, {len(lines)} are there: lines were taken away")
    if last != (sha256(lines[count - 1]) if count else None):
        raise ValueError(f"names another line {count} than {RECORD} holds")
    if len(lines) - count > 1:
        raise ValueError(f"counts {count} lines, {len(lines)} are there")
    # Without this a head made with any key would hide what was cut.
    if lines and unseal(lines[max(count, 1) - 1], STATEMENT_PAYLOAD)[1] != key_id:
        raise ValueError(f"is signed by another key than line {max(count, 1)}")
    return count, key_id
