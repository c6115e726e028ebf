"""Append and check statements of what was done: in-toto statements, signed and chained.

A folder's record is `evidence.jsonl`. Each line is a DSSE envelope around an in-toto Statement v1,
signed with Ed25519. A statement names its outputs (`subject`), inputs, configuration and code by
SHA-256, and the SHA-256 of the line before it. `evidence.head.json`, signed too, holds the number
of lines and the last line's digest.

What is found: any changed, added or missing byte of a record or of a file that it names, lines cut
from its end, and either of the two files missing. What cannot be found from the folder alone: a
record and its head both put back to an earlier state or both removed, and a record made anew with
another key. So a record in a sub-folder, which nothing above names, can be removed whole; its files
are then unclaimed, which `verify(strict=True)` faults. Keep the head's digest, or pass
`trusted_key`, where that matters.

Inputs are digested before the work (`digested`) and again after it (`append`), which refuses to
sign what changed meanwhile.

Names are kept few so that they name no patient. An input has the role that the caller gives it
("dataset"), its place only when it lies within the parent of the evidence folder, and a folder's
content goes in as one digest. Outputs keep their relative paths, which hold case ids: those are
pseudonyms by policy. Paths inside a configuration are cut to their last part.
"""

from qinjing.evidence.digests import Digested, digest, digested
from qinjing.evidence.envelope import load_private_key, private_key_path
from qinjing.evidence.record import append, code_digest
from qinjing.evidence.verify import EvidenceFault, Statement, VerifyResult, verify

__all__ = [
    "Digested",
    "EvidenceFault",
    "Statement",
    "VerifyResult",
    "append",
    "code_digest",
    "digest",
    "digested",
    "load_private_key",
    "private_key_path",
    "verify",
]
