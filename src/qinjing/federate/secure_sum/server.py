"""The server's part of a secure sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qinjing.errors import InputError
from qinjing.federate.secure_sum import ring, shamir
from qinjing.federate.secure_sum.messages import (
    SecureSumError,
    Stages,
    check_advert,
    check_enough,
    check_signature,
    pack,
    survivors_text,
    unpack,
)
from qinjing.federate.secure_sum.site import pair_mask
from qinjing.federate.secure_sum.terms import Terms


class Server:
    """The server in one sum: its stages are called in the order in which they stand here.

    Each takes the messages of the sites that answered in time, by name. A message that cannot be
    used leaves its site out, as if it had not come, and is named in `refused`. Masked vectors are
    added as they come: the server keeps one vector, however many sites there are.

    Args:
        terms: as the sites hold them.

    Attributes:
        refused: site → why its message was not used.
    """

    def __init__(self, terms: Terms) -> None:
        self.refused: dict[str, str] = {}
        self._terms = terms
        self._stages = Stages("introduce")
        self._keys: dict[str, tuple[bytes, bytes]] = {}
        self._shared: tuple[str, ...] = ()
        self._added: set[str] = set()
        self._sum = ring.zero(terms)

    def introduce(self, adverts: Mapping[str, bytes]) -> bytes:
        """Answer all who advertised with everybody's public keys.

        Raises:
            SecureSumError: they are fewer than the threshold.
        """
        with self._stages.enter("introduce", then="deliver"):

            def read(site: str, message: bytes) -> bytes:
                advert: bytes = self._own(unpack(self._terms, "advert", message)["adverts"], site)
                self._keys[site] = check_advert(self._terms, site, advert)
                return advert

            roster = self._read(adverts, self._terms.sites, read)
            check_enough(self._terms, "advertised sites", len(roster))
            return pack(self._terms, "roster", adverts=roster)

    def deliver(self, shares: Mapping[str, bytes]) -> dict[str, bytes]:
        """Answer each who sent shares with those that the others sealed for it.

        Raises:
            SecureSumError: they are fewer than the threshold.
        """
        with self._stages.enter("deliver", then="add"):

            def read(site: str, message: bytes) -> dict[str, bytes]:
                sealed: dict[str, bytes] = unpack(self._terms, "shares", message)["sealed"]
                if set(sealed) != set(self._keys) - {site}:
                    raise SecureSumError("shares", "for all others of the roster")
                return sealed

            boxes = self._read(shares, self._keys, read)
            check_enough(self._terms, "sites that sent shares", len(boxes))
            self._shared = tuple(sorted(boxes))
            return {
                to: pack(
                    self._terms, "delivery", sealed={of: boxes[of][to] for of in boxes if of != to}
                )
                for to in boxes
            }

    def add(self, site: str, message: bytes | bytearray | memoryview) -> None:
        """Add a site's masked vector; a second one of the same site is passed over.

        Raises:
            SecureSumError: it is too late, or too early.
        """
        with self._stages.enter("add", then="add"):
            if site in self._added:
                return
            try:
                if site not in self._shared:
                    raise ValueError("a site that sent no shares")
                ring.add(self._sum, message, self._terms)
                self._added.add(site)
            except ValueError as error:
                self.refused[site] = str(SecureSumError("masked vector", "of this round", error))

    def survivors(self) -> bytes:
        """Tell all whose vector was added whose were; what comes later is not added.

        Raises:
            SecureSumError: they are fewer than the threshold.
        """
        with self._stages.enter("add", then="request"):
            check_enough(self._terms, "survivors", len(self._added))
            return pack(self._terms, "survivors", survivors=sorted(self._added))

    def request(self, agreements: Mapping[str, bytes]) -> bytes:
        """Ask all who signed the list of survivors for their shares.

        Raises:
            SecureSumError: they are fewer than the threshold.
        """
        with self._stages.enter("request", then="total"):
            survivors = sorted(self._added)

            def read(site: str, message: bytes) -> bytes:
                found = unpack(self._terms, "agreement", message)["signatures"]
                signature: bytes = self._own(found, site)
                check_signature(
                    self._terms, site, signature, survivors_text(self._terms, survivors)
                )
                return signature

            signatures = self._read(agreements, survivors, read)
            check_enough(self._terms, "signatures", len(signatures))
            return pack(
                self._terms, "request", survivors=survivors, dropped=self._dropped(),
                signatures=signatures,
            )  # fmt: skip

    def total(self, answers: Mapping[str, bytes]) -> ring.Total:
        """Take the masks off the sum.

        Raises:
            SecureSumError: the answers are fewer than the threshold, or do not fit together.
        """
        with self._stages.enter("total", then="closed"):
            terms, survivors, dropped = self._terms, sorted(self._added), self._dropped()

            def read(site: str, message: bytes) -> dict[str, dict[str, bytes]]:
                shares = unpack(terms, "answer", message)
                if sorted(shares["seeds"]) != survivors or sorted(shares["keys"]) != dropped:
                    raise SecureSumError("shares", "those that were asked for")
                return shares

            held = self._read(answers, survivors, read)
            check_enough(terms, "answers", len(held))
            masks = []
            for site in survivors:
                seed = self._joined(site, {of: its["seeds"][site] for of, its in held.items()})
                masks.append((terms.derive(seed, "own mask", site), 1))
            for site in dropped:
                secret = self._joined(site, {of: its["keys"][site] for of, its in held.items()})
                key = X25519PrivateKey.from_private_bytes(secret)
                if key.public_key().public_bytes_raw() != self._keys[site][1]:
                    raise SecureSumError(f"shares of the key of {site}", "those that it gave out")
                for other in survivors:
                    # What `other` laid on for `site` is the opposite of what `site` would have.
                    mask, sign = pair_mask(terms, key, site, other, self._keys[other])
                    masks.append((mask, -sign))
            integers = ring.unmasked(self._sum, terms, masks)
            del self._sum
            return ring.Total(integers, terms.step, tuple(survivors))

    def _dropped(self) -> list[str]:
        return [site for site in self._shared if site not in self._added]

    def _read(
        self, messages: Mapping[str, bytes], due: Any, read: Callable[[str, bytes], Any]
    ) -> dict[str, Any]:
        """What could be read, by site; what could not is noted."""
        found = {}
        for site, message in messages.items():
            try:
                if site not in due:
                    raise SecureSumError("message", "of a site that took part in the stage before")
                found[site] = read(site, message)
            except InputError as error:
                self.refused[site] = str(error)
        return found

    @staticmethod
    def _own(entries: Mapping[str, bytes], site: str) -> bytes:
        if set(entries) != {site}:
            raise SecureSumError("message", f"about {site} alone")
        return entries[site]

    def _joined(self, site: str, shares: Mapping[str, bytes]) -> bytes:
        numbered = {
            self._terms.share_number(of): int.from_bytes(share, "big")
            for of, share in shares.items()
        }
        try:
            return shamir.join(numbered, self._terms.needed).to_bytes(32, "big")
        except (ValueError, OverflowError) as error:
            raise SecureSumError(f"shares of {site}", "of one secret", error) from None
