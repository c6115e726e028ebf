"""Who looked at what and changed what, as signed statements that follow from one another.

A record a day, so that no line takes longer than the first; `qinjing verify FOLDER/audit` walks
all of them. Patients are named by digests of their studies alone.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qinjing.evidence.record import append
from qinjing.serve.auth import Token


class Audit:
    """The record of a service.

    Args:
        folder: the service's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "audit"
        self._lock = threading.Lock()

    def append(self, who: Token, did: str, **what: Any) -> None:
        """Record one deed; on the disk when this returns.

        Args:
            who: did it.
            did: one word or two: "opened", "confirmed", "annotation submitted".
            what: ids and plain values that name no patient.

        Raises:
            EvidenceError: the record was altered, and nothing may be added.
        """
        day = self.folder / datetime.now(UTC).strftime("%Y-%m-%d")
        said = {"person": who.person, "token": who.token_id, "did": did, **what}
        with self._lock:
            day.mkdir(parents=True, exist_ok=True, mode=0o700)
            append(day, "serve", {}, (), said)
