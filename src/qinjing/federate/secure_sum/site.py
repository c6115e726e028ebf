"""A site's part of a secure sum."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qinjing.errors import ConfigError
from qinjing.federate.secure_sum import shamir
from qinjing.federate.secure_sum.messages import (
    SecureSumError,
    Stages,
    advert_text,
    check_advert,
    check_enough,
    check_signature,
    pack,
    survivors_text,
    unpack,
)
from qinjing.federate.secure_sum.ring import masked
from qinjing.federate.secure_sum.shamir import SHARE_BYTES
from qinjing.federate.secure_sum.terms import Terms


class Site:
    """One site in one sum: its stages are called in the order in which they stand here.

    A stage that raises ends the sum for this site; to the others it dropped out. The secrets lie in
    memory only.

    Args:
        terms: made by the site itself.
        name: the site's own, as in the terms.
        identity: the key whose public half the terms hold for it.
        random: returns that many random bytes; the system's, but in tests.
    """

    def __init__(
        self,
        terms: Terms,
        name: str,
        identity: Ed25519PrivateKey,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if terms.identities.get(name) != identity.public_key().public_bytes_raw():
            raise ConfigError("identity", f"the key that the terms hold for {name!r}")
        self.name = name
        self._terms = terms
        self._identity = identity
        self._random = random
        self._stages = Stages("advertise")
        self._share_key = X25519PrivateKey.from_private_bytes(random(32))
        self._mask_key = X25519PrivateKey.from_private_bytes(random(32))
        self._seed = random(32)
        self._advert = b""
        self._peers: dict[str, tuple[bytes, bytes]] = {}
        self._held: dict[str, bytes] = {}  # site → our share of its key, then of its seed
        self._survivors: tuple[str, ...] = ()

    def advertise(self) -> bytes:
        """Send two signed public keys: for shares, and for masks."""
        with self._stages.enter("advertise", then="share"):
            keys = b"".join(
                key.public_key().public_bytes_raw() for key in (self._share_key, self._mask_key)
            )
            self._advert = keys + self._identity.sign(advert_text(self._terms, self.name, keys))
            return pack(self._terms, "advert", adverts={self.name: self._advert})

    def share(self, roster: bytes) -> bytes:
        """Send every other site, sealed, its shares of this one's two secrets.

        Raises:
            SecureSumError: too few sites, a key that was not signed by its site or is there twice,
                or this site's own was changed.
        """
        with self._stages.enter("share", then="mask"):
            terms = self._terms
            adverts = unpack(terms, "roster", roster)["adverts"]
            check_enough(terms, "advertised sites", len(adverts))
            if adverts.get(self.name) != self._advert:
                raise SecureSumError("roster", "one with this site's own keys as it sent them")
            self._peers = {site: check_advert(terms, site, it) for site, it in adverts.items()}
            keys = {key for pair in self._peers.values() for key in pair}
            if len(keys) < 2 * len(adverts):
                raise SecureSumError("public keys", "all different")
            secrets = (self._mask_key.private_bytes_raw(), self._seed)
            numbers = [terms.share_number(site) for site in self._peers]
            of_key, of_seed = (
                shamir.split(
                    int.from_bytes(secret, "big"), terms.needed, numbers, random=self._random
                )
                for secret in secrets
            )
            sealed = {}
            for site in self._peers:
                number = terms.share_number(site)
                both = b"".join(of[number].to_bytes(SHARE_BYTES, "big") for of in (of_key, of_seed))
                if site == self.name:
                    self._held[site] = both
                    continue
                nonce = self._random(12)
                sealed[site] = nonce + self._seal(self.name, site).encrypt(nonce, both, None)
            return pack(terms, "shares", sealed=sealed)

    def mask(self, delivery: bytes, vector: np.ndarray) -> bytearray:
        """Send the vector, hidden; with the sites whose shares came it shares masks.

        Args:
            delivery: what the server answers to the shares.
            vector: (length,) float32, weighted already, within the bound.

        Returns:
            32 bytes and bits / 8 bytes a value.

        Raises:
            ConfigError: the vector is not as the terms say.
            SecureSumError: too few sites sent shares, or what came was not sealed for this site.
        """
        terms = self._terms
        if vector.dtype != np.float32 or vector.shape != (terms.length,):
            raise ConfigError(
                "vector", f"float32 of shape ({terms.length},)", f"{vector.dtype} {vector.shape}"
            )
        with self._stages.enter("mask", then="agree"):
            sealed = unpack(terms, "delivery", delivery)["sealed"]
            check_enough(terms, "sites that sent shares", len(sealed) + 1)
            if self.name in sealed or not set(sealed) <= set(self._peers):
                raise SecureSumError("shares", "from other sites of the roster", ", ".join(sealed))
            masks = [(terms.derive(self._seed, "own mask", self.name), 1)]
            for site, box in sealed.items():
                try:
                    self._held[site] = self._seal(site, self.name).decrypt(box[:12], box[12:], None)
                except InvalidTag:
                    raise SecureSumError(
                        f"shares from {site}", "sealed by it for this site"
                    ) from None
                masks.append(pair_mask(terms, self._mask_key, self.name, site, self._peers[site]))
            return masked(vector, terms, masks)

    def agree(self, survivors: bytes) -> bytes:
        """Sign the list of the sites whose vectors are in the sum.

        Raises:
            SecureSumError: it is below the threshold, lacks this site, or has one that sent no
                shares.
        """
        with self._stages.enter("agree", then="unmask"):
            self._survivors = unpack(self._terms, "survivors", survivors)["survivors"]
            check_enough(self._terms, "survivors", len(self._survivors))
            if self.name not in self._survivors or not set(self._survivors) <= set(self._held):
                raise SecureSumError("survivors", "this site and others that sent shares")
            signature = self._identity.sign(survivors_text(self._terms, self._survivors))
            return pack(self._terms, "agreement", signatures={self.name: signature})

    def unmask(self, request: bytes) -> bytes:
        """Send shares: of a survivor's seed, of the key of one that dropped out. Secrets are gone.

        Raises:
            SecureSumError: too few sites signed the list that this one signed, or something is
                asked for that does not follow from it, such as both shares of one site.
        """
        with self._stages.enter("unmask", then="closed"):
            terms = self._terms
            asked = unpack(terms, "request", request)
            twice = ", ".join(sorted(set(asked["survivors"]) & set(asked["dropped"])))
            if twice:
                raise SecureSumError("request", "for one share of a site", f"both of {twice}")
            if asked["survivors"] != self._survivors:
                raise SecureSumError("request", "for the survivors that this site signed")
            if set(asked["dropped"]) != set(self._held) - set(self._survivors):
                raise SecureSumError("request", "for the keys of those alone that dropped out")
            check_enough(terms, "signatures", len(asked["signatures"]))
            if not set(asked["signatures"]) <= set(self._survivors):
                raise SecureSumError("signatures", "of survivors")
            for site, signature in asked["signatures"].items():
                check_signature(terms, site, signature, survivors_text(terms, self._survivors))
            seeds = {site: self._held[site][SHARE_BYTES:] for site in asked["survivors"]}
            keys = {site: self._held[site][:SHARE_BYTES] for site in asked["dropped"]}
            self._held.clear()
            del self._share_key, self._mask_key, self._seed
            return pack(terms, "answer", seeds=seeds, keys=keys)

    def _seal(self, sender: str, receiver: str) -> AESGCM:
        """The cipher for shares from one site to another, one of them this: a key each way."""
        other = receiver if sender == self.name else sender
        secret = exchange(self._share_key, self._peers[other][0])
        return AESGCM(self._terms.derive(secret, "shares", sender, receiver))


def exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    """The secret that two keys share.

    Raises:
        SecureSumError: the public key is one of those that make no secret.

    Source: RFC 7748 (X25519).
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise SecureSumError("public key", "one that makes a secret") from None


def pair_mask(
    terms: Terms, private: X25519PrivateKey, own: str, other: str, public: tuple[bytes, bytes]
) -> tuple[bytes, int]:
    """Key and sign of the mask that `own` lays on for `other`, who lays on its opposite."""
    first, second = sorted((own, other))
    key = terms.derive(exchange(private, public[1]), "pair mask", first, second)
    return key, 1 if own == first else -1
