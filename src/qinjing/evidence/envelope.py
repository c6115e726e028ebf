"""DSSE envelopes signed with Ed25519, and the key that signs them.

Source: https://github.com/secure-systems-lab/dsse v1.0 (envelope, PAE); RFC 8032 (Ed25519).
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import json
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from qinjing.errors import EvidenceError

KEY_VARIABLE = "QINJING_EVIDENCE_KEY"
STATEMENT_PAYLOAD = "application/vnd.in-toto+json"
HEAD_PAYLOAD = "application/vnd.qinjing.evidence-head+json"


def canonical(content: Any) -> bytes:
    """JSON in one line and one way only: sorted keys, no spaces, ASCII."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """The bytes that DSSE signs: type and payload, each with its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def public_text(key: Ed25519PrivateKey) -> str:
    """The raw public key in base64, as statements carry it."""
    raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def seal(key: Ed25519PrivateKey, payload_type: str, content: Any) -> bytes:
    """Return `content` as a signed envelope: one line of JSON without its line feed."""
    payload = canonical(content)
    signature = {
        "keyid": sha256(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)),
        "sig": base64.b64encode(key.sign(pre_authentication(payload_type, payload))).decode(),
    }
    return canonical(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [signature],
        }
    )


def unseal(line: bytes, payload_type: str) -> tuple[dict[str, Any], str]:
    """Return an envelope's content and its key id, if every byte is as `seal` wrote it.

    The key is the one that the content carries: this shows that whoever holds that key wrote the
    line, not who that is.

    Raises:
        ValueError: with what does not hold, to follow the name of the line.
    """
    try:
        envelope = json.loads(line)
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signature,) = envelope["signatures"]
        key_id, signed = signature["keyid"], base64.b64decode(signature["sig"], validate=True)
        content = json.loads(payload)
        # The DSSE signature covers the payload alone; the rest is held by being written one way.
        same = canonical(envelope) == line and canonical(content) == payload
        encodings = base64.b64encode(payload).decode(), base64.b64encode(signed).decode()
        same &= encodings == (envelope["payload"], signature["sig"])
        same &= set(envelope) == {"payload", "payloadType", "signatures"}
        same &= set(signature) == {"keyid", "sig"} and envelope["payloadType"] == payload_type
        carried = content if payload_type == HEAD_PAYLOAD else content["predicate"]
        raw = base64.b64decode(carried["public_key"], validate=True)
        key = Ed25519PublicKey.from_public_bytes(raw)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError, binascii.Error) as error:
        raise ValueError(f"is not a signed statement ({type(error).__name__})") from None
    if not same:
        raise ValueError("is not written as it was signed")
    if key_id != sha256(raw):
        raise ValueError("names another key than it carries")
    try:
        key.verify(signed, pre_authentication(payload_type, payload))
    except InvalidSignature:
        raise ValueError("does not bear its signature") from None
    return content, key_id


def private_key_path() -> Path:
    """Where this user's key lies: `$QINJING_EVIDENCE_KEY`, else the XDG configuration folder.

    Raises:
        EvidenceError: there is no home folder to put it in.
    """
    if given := os.environ.get(KEY_VARIABLE):
        return Path(given)
    if base := os.environ.get("XDG_CONFIG_HOME"):
        return Path(base) / "qinjing" / "evidence_key.pem"
    home = os.environ.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            raise EvidenceError(
                "home folder", "known", "none", advice=f"set {KEY_VARIABLE} to a key file"
            ) from None
    return Path(home) / ".config" / "qinjing" / "evidence_key.pem"


def load_private_key(path: str | Path | None = None) -> Ed25519PrivateKey:
    """Read the signing key, making it (mode 0600) where there is none yet.

    Raises:
        EvidenceError: it cannot be made or read, or is not an unencrypted Ed25519 key in PEM.
    """
    path = Path(path) if path is not None else private_key_path()
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with locked(path.with_name(f".{path.name}.lock")):
                if not path.exists():
                    made = Ed25519PrivateKey.generate().private_bytes(
                        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
                    )
                    replace(path, made, mode=0o600)
        pem = path.read_bytes()
    except OSError as error:
        raise EvidenceError(
            "evidence key", "a file that can be made and read", error.strerror, where=path,
            advice=f"set {KEY_VARIABLE} to a file in a folder that you can write to",
        ) from None  # fmt: skip
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise EvidenceError("evidence key", "a PEM without a password", where=path) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise EvidenceError("evidence key", "an Ed25519 key", type(key).__name__, where=path)
    return key


def key_id_of(path: str | Path) -> str:
    """Key id (SHA-256 of the raw public key) of a PEM file that holds a public or private key.

    Raises:
        EvidenceError: the file is not an Ed25519 key.
    """
    try:
        pem = Path(path).read_bytes()
        if b"PRIVATE" in pem:
            return sha256(base64.b64decode(public_text(load_private_key(path))))
        key = load_pem_public_key(pem)
    except (OSError, ValueError, UnsupportedAlgorithm):
        raise EvidenceError("trusted key", "an Ed25519 key in PEM", where=path) from None
    if not isinstance(key, Ed25519PublicKey):
        raise EvidenceError("trusted key", "an Ed25519 key", type(key).__name__, where=path)
    return sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Open `path` for appending and hold it alone; yield the descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # let go by the kernel, killed or not
        yield descriptor
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a small file whole or not at all, with `mode` less the umask.

    `config.atomic_path` is a neighbour on this layer, which this room does not see.
    """
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
