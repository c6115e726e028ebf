"""Keys and certificates of a federation, and the files that they stand in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from qinjing.config import atomic_path
from qinjing.errors import FormatError


def fresh_key() -> rsa.RSAPrivateKey:
    """Return a new RSA key of 3072 bits."""
    return rsa.generate_private_key(public_exponent=65537, key_size=3072)


def certificate(
    name: str, project: str, signer: Any, key: Any, days: int, **more: Any
) -> x509.Certificate:
    """Build one as NVFlare does, so that its checks hold.

    Args:
        name: that it is for.
        project: that signs it.
        signer: the project's private key.
        key: the public one that it is for.
        days: that it holds.
        more: `authority=True` for one that signs others, `host` for one that listens there.
    """
    from nvflare.lighter.utils import Identity, generate_cert

    authority = more.get("authority", False)
    extensions: list[tuple[Any, bool]] = []
    if not authority:
        use = dict.fromkeys(
            ("content_commitment", "data_encipherment", "key_agreement", "key_cert_sign",
             "crl_sign", "encipher_only", "decipher_only"), False,
        )  # fmt: skip
        usage = x509.KeyUsage(digital_signature=True, key_encipherment=True, **use)
        sides = x509.oid.ExtendedKeyUsageOID
        purpose = sides.SERVER_AUTH if more.get("host") else sides.CLIENT_AUTH
        basic = x509.BasicConstraints(ca=False, path_length=None)
        extensions = [(basic, True), (usage, True), (x509.ExtendedKeyUsage([purpose]), False)]
    return generate_cert(
        Identity(name), Identity(project), signer, key, days, ca=authority,
        server_default_host=more.get("host"), extra_extensions=extensions or None,
    )  # fmt: skip


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 as 64 hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def common_name(certificate: x509.Certificate) -> str:
    """Return the name that a certificate is for."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def certificate_of(text: str, where: Path) -> x509.Certificate:
    """Return a certificate from PEM.

    Raises:
        FormatError: it is none, naming the file that it came in.
    """
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except ValueError as error:
        raise FormatError("certificate", "PEM", error, where=where) from None


def read_certificate(path: Path) -> x509.Certificate:
    """Read a PEM file.

    Raises:
        FormatError: it is not there, or no certificate.
    """
    try:
        return certificate_of(path.read_text(encoding="ascii"), path)
    except OSError as error:
        raise FormatError("certificate", "there", error.strerror, where=path) from None


def read_key(path: Path) -> rsa.RSAPrivateKey:
    """Read a private key in PEM.

    Raises:
        FormatError: it is not there, has a password or is not RSA.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise FormatError("key", "PEM without a password", error, where=path) from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise FormatError("key", "RSA", type(key).__name__, where=path)
    return key


def pem(certificate: x509.Certificate) -> str:
    """Return a certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def write_text(path: Path, text: str) -> None:
    """Write what is no secret."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="ascii")


def write_key(path: Path, key: rsa.RSAPrivateKey) -> None:
    """Write a key that was not there before, for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = serialization.PrivateFormat.PKCS8
    text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)
