"""TLS between DICOM nodes: both sides show a certificate, signed by whom the other trusts.

Source: DICOM PS3.15, annex B.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from qinjing.errors import ConfigError


@dataclass(frozen=True)
class Certificates:
    """Who we are to other nodes, and whom of them we believe.

    Attributes:
        chain: our certificate and those that lead to its authority, in PEM.
        key: its private key in PEM, without a password; None where it stands in `chain`.
        authority: certificates in PEM, one of which must have signed theirs.
    """

    chain: Path
    key: Path | None
    authority: Path

    def listening(self) -> ssl.SSLContext:
        """Return a context for who is called.

        Raises:
            ConfigError: the files cannot be used.
        """
        return self._filled(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def calling(self, *, named: bool = True) -> ssl.SSLContext:
        """Return a context for who calls.

        Args:
            named: whether the other's certificate must bear its address; else whom that authority
                signed is believed.

        Raises:
            ConfigError: the files cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = named
        return self._filled(context)

    def _filled(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.chain, self.key, _no_password)
            context.load_verify_locations(self.authority)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                "certificates of the node", "certificates and a key in PEM", error,
                where=self.chain,
            ) from None  # fmt: skip
        return context


def _no_password() -> str:
    raise ConfigError("key of the certificate", "one without a password", "one with a password")
