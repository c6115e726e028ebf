"""What travels between sites and server, and the order in which it may.

All but the masked vector is canonical JSON, bytes in base64.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from qinjing.errors import InputError
from qinjing.evidence.envelope import canonical
from qinjing.federate.secure_sum.shamir import SHARE_BYTES
from qinjing.federate.secure_sum.terms import PROTOCOL, Terms

NAMES = 0
ADVERT = 32 + 32 + 64  # key for shares, key for masks, signature
SEALED = 12 + 2 * SHARE_BYTES + 16  # nonce, two shares, tag

# Stage → field → bytes of each site's entry, or NAMES for a sorted list of sites.
FIELDS: Mapping[str, Mapping[str, int]] = {
    "advert": {"adverts": ADVERT},
    "roster": {"adverts": ADVERT},
    "shares": {"sealed": SEALED},
    "delivery": {"sealed": SEALED},
    "survivors": {"survivors": NAMES},
    "agreement": {"signatures": 64},
    "request": {"survivors": NAMES, "dropped": NAMES, "signatures": 64},
    "answer": {"seeds": SHARE_BYTES, "keys": SHARE_BYTES},
}


class SecureSumError(InputError):
    """A message of a secure sum that must not be acted on, or too few sites for a sum."""


def pack(terms: Terms, stage: str, **content: Mapping[str, bytes] | Sequence[str]) -> bytes:
    """Write a message of one stage, with the fields that `FIELDS` lists."""
    written: dict[str, Any] = {"round": terms.tag, "stage": stage}
    for field, value in content.items():
        if isinstance(value, Mapping):
            written[field] = {k: base64.b64encode(v).decode() for k, v in value.items()}
        else:
            written[field] = sorted(value)
    return canonical(written)


def unpack(terms: Terms, stage: str, message: bytes) -> dict[str, Any]:
    """Read a message of one stage.

    Returns:
        Field → site → bytes, or field → names in order.

    Raises:
        SecureSumError: it is not such a message of this round, or names a site that is not in
            the terms.
    """
    fields = FIELDS[stage]
    try:
        content = json.loads(message)
        if set(content) != {"round", "stage", *fields}:
            raise ValueError("other fields")
        if content["round"] != terms.tag or content["stage"] != stage:
            raise ValueError(f"a {str(content['stage'])[:20]!r} or other terms")
        return {name: _field(content[name], size, terms) for name, size in fields.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SecureSumError("message", f"a {stage!r} of this round", error) from None


def _field(value: Any, size: int, terms: Terms) -> Any:
    if not set(value) <= set(terms.sites):
        raise ValueError("a site that is not in the terms")
    if size == NAMES:
        if not isinstance(value, list) or value != sorted(set(value)):
            raise ValueError("names that are not sorted")
        return tuple(value)
    entries = {site: base64.b64decode(text, validate=True) for site, text in value.items()}
    if any(len(entry) != size for entry in entries.values()):
        raise ValueError(f"an entry that is not of {size} bytes")
    return entries


def advert_text(terms: Terms, site: str, keys: bytes) -> bytes:
    """What a site signs of its two public keys."""
    return canonical([PROTOCOL, terms.tag, "advert", site, base64.b64encode(keys).decode()])


def survivors_text(terms: Terms, survivors: Sequence[str]) -> bytes:
    """What a site signs of the list of those whose vectors are in the sum."""
    return canonical([PROTOCOL, terms.tag, "survivors", *survivors])


def check_signature(terms: Terms, site: str, signature: bytes, text: bytes) -> None:
    """Hold a signature against the site's identity.

    Raises:
        SecureSumError: it is another's or for another text.
    """
    try:
        Ed25519PublicKey.from_public_bytes(terms.identities[site]).verify(signature, text)
    except InvalidSignature:
        raise SecureSumError(
            f"signature of {site}", "by its identity over this round's content"
        ) from None


def check_advert(terms: Terms, site: str, advert: bytes) -> tuple[bytes, bytes]:
    """Return the two public keys that a site advertises: for shares, and for masks.

    Raises:
        SecureSumError: it did not sign them.
    """
    keys = advert[:64]
    check_signature(terms, site, advert[64:], advert_text(terms, site, keys))
    return keys[:32], keys[32:]


def check_enough(terms: Terms, what: str, count: int) -> None:
    """Hold a number of sites against the threshold.

    Raises:
        SecureSumError: they are too few.
    """
    if count < terms.needed:
        raise SecureSumError(what, f"at least {terms.needed}, the threshold", count)


class Stages:
    """Which stage comes next; each comes once, and one that failed is the last."""

    def __init__(self, first: str) -> None:
        self.next = first

    @contextmanager
    def enter(self, stage: str, then: str) -> Iterator[None]:
        """Run one stage.

        Raises:
            SecureSumError: it is not its turn.
        """
        if stage != self.next:
            raise SecureSumError("stage", repr(self.next), repr(stage))
        self.next = "closed"
        yield
        self.next = then
