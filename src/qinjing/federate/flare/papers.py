"""Who belongs together: a root certificate, invitations, requests and signed answers.

Each paper is one JSON file that may travel by mail. Keys are written once, readable by their owner
alone, and stay in the folder where they were made.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from qinjing import evidence
from qinjing.config import read_config, read_json, write_json
from qinjing.data.splits import read_splits
from qinjing.errors import ConfigError, FormatError
from qinjing.federate.flare.certificates import (
    certificate,
    certificate_of,
    common_name,
    fingerprint,
    fresh_key,
    pem,
    read_certificate,
    read_key,
    write_key,
    write_text,
)
from qinjing.federate.policy import Policy

COORDINATOR = "server"  # the name that NVFlare gives the cell that all others connect to
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_ROOT_DAYS, _DAYS = 3650, 730
_PADDING = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


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
        identity_signature: of `identity`, base64, by the key that signed the request: the two
            belong together. That they are this site's, only a comparison by telephone tells.
    """

    project: str
    site: str
    signing_request: str
    identity: str
    identity_signature: str


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
    key = fresh_key()
    root = certificate(name, name, key, key.public_key(), _ROOT_DAYS, authority=True)
    own = fresh_key()
    signed = certificate(COORDINATOR, name, key, own.public_key(), _DAYS, host=host)
    write_key(output / "ca" / "root.key", key)
    write_key(output / "coordinator" / "own.key", own)
    write_text(output / "ca" / "root.pem", pem(root))
    write_text(output / "coordinator" / "own.pem", pem(signed))
    write_text(output / "coordinator" / "root.pem", pem(root))
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
    key = fresh_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    asked = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    place = str(splits.resolve()) if splits else None
    write_json(output / "site.json", Membership(site, str(dataset.resolve()), place))
    write_json(output / "policy.json", allowed)
    write_json(output / "invitation.json", invited)
    write_key(output / "own.key", key)
    identity = evidence.load_private_key(output / "identity.pem").public_key().public_bytes_raw()
    path = output / f"{site}.request.json"
    told = base64.b64encode(identity).decode()
    signature = base64.b64encode(key.sign(told.encode(), _PADDING, hashes.SHA256())).decode()
    write_json(path, Request(invited.project, site, asked.decode(), told, signature))
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
    root = read_certificate(provisioned / "ca" / "root.pem")
    key = read_key(provisioned / "ca" / "root.key")
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
        signed = certificate(site, project, key, own, _DAYS)
        write_json(made[site], Signed(project, site, pem(signed), pem(root)))
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
    root, own = (certificate_of(text, signed) for text in (given.root, given.certificate))
    if fingerprint(root) != invited.fingerprint:
        raise ConfigError(
            "root certificate", f"the invitation's, {invited.fingerprint[:16]}…",
            f"{fingerprint(root)[:16]}…", where=signed,
            advice="ask the coordinator which one is right before you go on",
        )  # fmt: skip
    if given.site != member.name or common_name(own) != member.name:
        raise ConfigError("site", member.name, f"{given.site}, {common_name(own)}", where=signed)
    try:
        own.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        raise FormatError("certificate", "signed by the root", "not so", where=signed) from None
    if own.public_key() != read_key(folder / "own.key").public_key():
        raise ConfigError("certificate", "one for this site's key", "another", where=signed)
    write_text(folder / "own.pem", given.certificate)
    write_text(folder / "root.pem", given.root)


def keep_peers(identities: Path, folder: Path) -> str:
    """Keep all sites' public keys for secure sums; return what to compare with the other sites.

    A coordinator who handed out keys of his own could read every update: he is whom sums are
    hidden from. So the sites compare one number among themselves, as they did with the root.

    Args:
        identities: `identities.json` of the coordinator.
        folder: of the site, as `request` made it.

    Returns:
        SHA-256 of all names and keys, 64 hexadecimal digits, the same at every site.

    Raises:
        FormatError: no such file.
        ConfigError: this site stands in it with another key than its own, or not at all.
    """
    member = read_config(folder / "site.json", Membership)
    known = read_json(identities)
    if not isinstance(known, dict) or not all(isinstance(key, str) for key in known.values()):
        raise FormatError("identities", "base64 by site", type(known).__name__, where=identities)
    own = evidence.load_private_key(folder / "identity.pem").public_key().public_bytes_raw()
    if known.get(member.name) != base64.b64encode(own).decode():
        raise ConfigError(
            "identities", f"with {member.name}'s own key", "another or none", where=identities,
            advice="do not join before you know who changed it",
        )  # fmt: skip
    write_json(folder / "peers.json", known)
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _named(what: str, name: str, where: Path | None = None) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(what, "1 to 63 letters, digits, - and _", name, where=where)


def _asking_key(asked: Request, path: Path) -> rsa.RSAPublicKey:
    try:
        request = x509.load_pem_x509_csr(asked.signing_request.encode())
        sound = request.is_signature_valid
        key = request.public_key()
    except ValueError as error:
        raise FormatError("signing request", "PEM", error, where=path) from None
    if not sound or not isinstance(key, rsa.RSAPublicKey) or key.key_size < 2048:
        raise FormatError("signing request", "signed by its own RSA key", "not so", where=path)
    try:
        signature = base64.b64decode(asked.identity_signature, validate=True)
        key.verify(signature, asked.identity.encode(), _PADDING, hashes.SHA256())
    except (ValueError, InvalidSignature):
        raise FormatError(
            "identity", "signed by the key of the request", "not so", where=path
        ) from None
    return key


def _other_key(path: Path, key: rsa.RSAPublicKey) -> bool:
    """Whether a name was given away, to another key."""
    if not path.exists():
        return False
    given = read_config(path, Signed)
    return certificate_of(given.certificate, path).public_key() != key


def held(folder: Path) -> Mapping[str, str]:
    """Return the paths of a folder's own certificate, key and root, by "own", "key", "root"."""
    names = {"own": "own.pem", "key": "own.key", "root": "root.pem"}
    return {what: str((folder / name).resolve()) for what, name in names.items()}
