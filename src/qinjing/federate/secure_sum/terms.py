"""What all sites and the server must hold alike before a sum is made."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from qinjing.errors import ConfigError
from qinjing.evidence.envelope import canonical

PROTOCOL = "qinjing secure sum 1"
BITS = (16, 24, 32)


@dataclass(frozen=True)
class Terms:
    """The terms of one sum; a site makes its own and takes no identity from the server.

    Two parties whose terms differ in anything refuse each other's messages.

    Attributes:
        round_id: never used before between these sites.
        identities: site → its raw Ed25519 public key, 32 bytes, as provisioned; at least 3. All
            that may take part, whether they will or not.
        length: values of a vector.
        bound: the largest absolute value allowed, public. A site whose vector exceeds it raises
            an error and is out of the round: nothing is clipped.
        bits: of a value on the wire, 16, 24 or 32. Sums are made modulo 2^bits.
        threshold: sites without which there is no sum, more than half; the fewest that do so
            where None, which leaves no site free to work with the server.
    """

    round_id: str
    identities: Mapping[str, bytes]
    length: int
    bound: float
    bits: int = 32
    threshold: int | None = None

    def __post_init__(self) -> None:
        count = len(self.identities)
        if count < 3:
            raise ConfigError("sites", "at least 3, or the sum tells a site of the other", count)
        if any(len(key) != 32 for key in self.identities.values()):
            raise ConfigError("identities", "raw Ed25519 public keys of 32 bytes")
        if len(set(self.identities.values())) < count:
            raise ConfigError("identities", "different keys")
        if not self.round_id:
            raise ConfigError("round_id", "a text that was never used before", "none")
        if self.length < 1:
            raise ConfigError("length", "at least 1", self.length)
        if not 1e-20 <= self.bound <= 1e30:
            raise ConfigError("bound", "from 1e-20 to 1e30", self.bound)
        if self.bits not in BITS:
            raise ConfigError("bits", "16, 24 or 32", self.bits)
        if not count < 2 * self.needed <= 2 * count:
            raise ConfigError("threshold", f"more than half of {count} sites", self.threshold)
        if self.levels < 1:
            raise ConfigError("bits", f"enough for a sum over {count} sites", self.bits)

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The names in the order by which shares are numbered and masks are signed."""
        return tuple(sorted(self.identities))

    @property
    def needed(self) -> int:
        """Sites without which there is no sum."""
        return len(self.identities) // 2 + 1 if self.threshold is None else self.threshold

    @property
    def levels(self) -> int:
        """The largest integer of one site; all sites' together stay below half the ring."""
        return (2 ** (self.bits - 1) - 1) // len(self.identities)

    @cached_property
    def limit(self) -> float:
        """The bound as float32, which a vector that was clipped to it reaches and never exceeds."""
        return float(np.float32(self.bound))

    @cached_property
    def step(self) -> float:
        """What an integer of 1 stands for: a power of 2, so that multiplying by it is exact."""
        # Above `limit / levels`, and at most twice as large.
        return 2.0 ** math.frexp(self.limit / self.levels)[1]

    @cached_property
    def tag(self) -> str:
        """SHA-256 over all terms, in hex; it goes into every message, signature and key."""
        keys = {site: base64.b64encode(key).decode() for site, key in self.identities.items()}
        content = [PROTOCOL, self.round_id, keys, self.length, float(self.bound), self.bits]
        return hashlib.sha256(canonical([*content, self.needed])).hexdigest()

    def share_number(self, site: str) -> int:
        """Where the secrets' polynomials are evaluated for a site: 1 for the first name."""
        return self.sites.index(site) + 1

    def derive(self, secret: bytes, purpose: str, *names: str) -> bytes:
        """A key of 32 bytes for one purpose between these names in this round.

        Source: RFC 5869 (HKDF) with SHA-256.
        """
        info = canonical([PROTOCOL, self.tag, purpose, *names])
        return HKDF(SHA256(), 32, salt=None, info=info).derive(secret)
