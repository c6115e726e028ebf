"""Who belongs together: a root certificate, invitations, requests and signed answers.

Each paper is one JSON file that may travel by mail. Keys are written once, readable by their owner
alone, and stay in the folder where they were made.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from qinjing import evidence
from qinjing.config import atomic_path, read_config, read_json, write_json
from qinjing.data.splits import read_splits
from qinjing.errors import ConfigError, FormatError
from qinjing.federate.policy import Policy

COORDINATOR = "server"  # the name that NVFlare gives the cell that all others connect to
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ROOT_DAYS, _DAYS = 3650, 730


@dataclass(frozen=True)
class Invitation:
    """What a site must know to ask; nothing of it is secret.

    Attributes:
        project: the federation's name.
        host: where the coordinator is reached, as its certificate says.
        port: the only one that a site connects to.
        fingerprint: SHA-256 of the root certificate; compare it by telephone.
    """

    project: str
    host: str
    port: int
    fingerprint: str


@dataclass(frozen=True)
class Request:
    """What a site sends to the coordinator.

    Attributes:
        project: of the invitation.
        site: the name that it asks for.
        signing_request: PEM, made with the key that stays at the site.
        identity: public Ed25519 key for secure sums, base64; its other half stays too.
    """

    project: str
    site: str
    signing_request: str
    identity: str


@dataclass(frozen=True)
class Signed:
    """What the coordinator sends back.

    Attributes:
        project: as in the request.
        site: as in the request.
        certificate: of the site, PEM.
        root: certificate that signed it, PEM.
    """

    project: str
    site: str
    certificate: str
    root: str


@dataclass(frozen=True)
class Membership:
    """What a site keeps of itself, as `site.json`; the coordinator never sees it.

    Attributes:
        name: of the site.
        dataset: folder of its scans.
        splits: a `splits_final.json`, its first fold; else the first of five by patient.
    """

    name: str
    dataset: str
    splits: str | None = None


def provision(output: Path, name: str, host: str, port: int) -> Invitation:
    """Make a root certificate, the coordinator's own, and the invitation.

    Args:
        output: a new folder; `ca/root.key` in it can sign sites, keep it safe.
        name: of the federation.
        host: name or address under which sites reach this machine.
        port: that they connect to, 1 to 65535.

    Raises:
        ConfigError: a name that cannot stand in a certificate, or a folder that is provisioned.
    """
    _named("name", name)
    if not _HOST.fullmatch(host):
        raise ConfigError("host", "a name or an address, without a port", host)
    if not 1 <= port <= 65535:
        raise ConfigError("port", "1 to 65535", port)
    if (output / "ca").exists():
        raise ConfigError("output", "a new folder", "one that is provisioned", where=output)
    key = _fresh_key()
    root = _certificate(name, name, key, key.public_key(), _ROOT_DAYS, authority=True)
    own = _fresh_key()
    signed = _certificate(COORDINATOR, name, key, own.public_key(), _DAYS, host=host)
    _write_key(output / "ca" / "root.key", key)
    _write_key(output / "coordinator" / "own.key", own)
    _write_text(output / "ca" / "root.pem", _pem(root))
    _write_text(output / "coordinator" / "own.pem", _pem(signed))
    _write_text(output / "coordinator" / "root.pem", _pem(root))
    invitation = Invitation(name, host, port, fingerprint(root))
    write_json(output / "invitation.json", invitation)
    return invitation


def request(
    invitation: Path,
    site: str,
    dataset: Path,
    output: Path,
    policy: Path | None = None,
    splits: Path | None = None,
) -> Path:
    """Make a site's key and what asks for its certificate; return the file to be sent.

    Args:
        invitation: the coordinator's file.
        site: name of letters, digits, "-" and "_".
        dataset: folder of the site's scans; where it lies is written to `site.json` alone.
        output: the site's own new folder.
        policy: what the site allows; the default where there is none.
        splits: which cases it learns from and holds out.

    Raises:
        ConfigError: a name or a policy that cannot be used, or a folder that is in use.
        FormatError: no invitation.
    """
    _named("site", site)
    invited = read_config(invitation, Invitation)
    allowed = read_config(policy, Policy) if policy else Policy()
    if splits:
        read_splits(splits)
    if site == COORDINATOR:
        raise ConfigError("site", "a name that is not the coordinator's", site)
    if (output / "own.key").exists():
        raise ConfigError("output", "a new folder", "one with a key", where=output)
    key = _fresh_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    asked = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    place = str(splits.resolve()) if splits else None
    write_json(output / "site.json", Membership(site, str(dataset.resolve()), place))
    write_json(output / "policy.json", allowed)
    write_json(output / "invitation.json", invited)
    _write_key(output / "own.key", key)
    identity = evidence.load_private_key(output / "identity.pem").public_key().public_bytes_raw()
    path = output / f"{site}.request.json"
    told = base64.b64encode(identity).decode()
    write_json(path, Request(invited.project, site, asked.decode(), told))
    return path


def approve(requests: tuple[Path, ...], provisioned: Path) -> dict[str, Path]:
    """Sign what sites ask for; name of the site → the file to be sent back.

    `identities.json` in the folder names the keys of all that were approved, for secure sums.
    Nothing is signed unless all can be.

    Args:
        requests: the sites' files.
        provisioned: the folder that `provision` made.

    Raises:
        ConfigError: another federation's request, or a name that was given to another key.
        FormatError: a file that is no request, or a request that its key did not sign.
    """
    project = read_config(provisioned / "invitation.json", Invitation).project
    root = _read_certificate(provisioned / "ca" / "root.pem")
    key = _read_key(provisioned / "ca" / "root.key")
    keys: dict[str, rsa.RSAPublicKey] = {}
    identities = {}
    for path in requests:
        asked = read_config(path, Request)
        _named("site", asked.site, where=path)
        if asked.project != project:
            raise ConfigError("project", project, asked.project, where=path)
        own = _asking_key(asked, path)
        earlier = provisioned / "approved" / f"{asked.site}.signed.json"
        if asked.site == COORDINATOR or _other_key(earlier, own) or asked.site in keys:
            raise ConfigError(
                "site", "a name that is free", asked.site, where=path,
                advice="let the site ask under another name",
            )  # fmt: skip
        keys[asked.site], identities[asked.site] = own, asked.identity
    made = {}
    for site, own in keys.items():
        made[site] = provisioned / "approved" / f"{site}.signed.json"
        signed = _certificate(site, project, key, own, _DAYS)
        write_json(made[site], Signed(project, site, _pem(signed), _pem(root)))
    known = provisioned / "identities.json"
    before = read_json(known) if known.exists() else {}
    write_json(known, dict(sorted((before | identities).items())))
    return made


def accept(signed: Path, folder: Path) -> None:
    """Check what came back against what the site asked for, and keep it.

    Args:
        signed: the coordinator's file.
        folder: of the site, as `request` made it.

    Raises:
        ConfigError: another root than the invitation's, another site, another key.
        FormatError: no signed file, or a certificate that the root did not sign.
    """
    invited = read_config(folder / "invitation.json", Invitation)
    member = read_config(folder / "site.json", Membership)
    given = read_config(signed, Signed)
    root, own = (_certificate_of(text, signed) for text in (given.root, given.certificate))
    if fingerprint(root) != invited.fingerprint:
        raise ConfigError(
            "root certificate", f"the invitation's, {invited.fingerprint[:16]}…",
            f"{fingerprint(root)[:16]}…", where=signed,
            advice="ask the coordinator which one is right before you go on",
        )  # fmt: skip
    if given.site != member.name or _common_name(own) != member.name:
        raise ConfigError("site", member.name, f"{given.site}, {_common_name(own)}", where=signed)
    try:
        own.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        raise FormatError("certificate", "signed by the root", "not so", where=signed) from None
    if own.public_key() != _read_key(folder / "own.key").public_key():
        raise ConfigError("certificate", "one for this site's key", "another", where=signed)
    _write_text(folder / "own.pem", given.certificate)
    _write_text(folder / "root.pem", given.root)


def fingerprint(certificate: x509.Certificate) -> str:
    """Return a certificate's SHA-256 as 64 hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _named(what: str, name: str, where: Path | None = None) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(what, "1 to 63 letters, digits, - and _", name, where=where)


def _fresh_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=3072)


def _certificate(
    name: str, project: str, signer: Any, key: Any, days: int, **more: Any
) -> x509.Certificate:
    """Build one as NVFlare does, so that its checks hold."""
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


def _asking_key(asked: Request, path: Path) -> rsa.RSAPublicKey:
    try:
        request = x509.load_pem_x509_csr(asked.signing_request.encode())
        sound = request.is_signature_valid
        key = request.public_key()
    except ValueError as error:
        raise FormatError("signing request", "PEM", error, where=path) from None
    if not sound or not isinstance(key, rsa.RSAPublicKey) or key.key_size < 2048:
        raise FormatError("signing request", "signed by its own RSA key", "not so", where=path)
    return key


def _other_key(path: Path, key: rsa.RSAPublicKey) -> bool:
    """Whether a name was given away, to another key."""
    if not path.exists():
        return False
    given = read_config(path, Signed)
    return _certificate_of(given.certificate, path).public_key() != key


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _certificate_of(text: str, where: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(text.encode())
    except ValueError as error:
        raise FormatError("certificate", "PEM", error, where=where) from None


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return _certificate_of(path.read_text(encoding="ascii"), path)
    except OSError as error:
        raise FormatError("certificate", "there", error.strerror, where=path) from None


def _read_key(path: Path) -> rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise FormatError("key", "PEM without a password", error, where=path) from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise FormatError("key", "RSA", type(key).__name__, where=path)
    return key


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="ascii")


def _write_key(path: Path, key: rsa.RSAPrivateKey) -> None:
    """Write a key that was not there before, for its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = serialization.PrivateFormat.PKCS8
    text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(text)


def held(folder: Path) -> Mapping[str, str]:
    """Return the paths of a folder's own certificate, key and root, by "own", "key", "root"."""
    names = {"own": "own.pem", "key": "own.key", "root": "root.pem"}
    return {what: str((folder / name).resolve()) for what, name in names.items()}
