"""The only door between patients' data and training: who allowed what, and until when.

A store keeps what each patient said about each purpose. Every change is a new row that carries the
SHA-256 of the row before it; the database refuses to change or remove one. The latest row about a
patient and a purpose holds: a permit within its period allows, and nothing else does. A deny holds
from when it is recorded until a later permit, whatever period it names: when in doubt, no.

A public or approved data set declares its basis once, in `consent.json` in its folder; then only
patients with a deny in the store are left out.

The gate is in force where a store is named (`QINJING_CONSENT`, or by the caller) or the folder has
a `consent.json`, or where the caller requires it. Where none of this is so there is no gate, and
the evidence names the data set's licence alone.

What is found: a row changed, removed, or put in between. What cannot be found from the store alone:
rows cut off its end, and a store made anew. So the evidence of a training keeps the store's head,
which `Store.verify` takes as `known`.
"""

from qinjing.data.consent.affected import Seen, affected
from qinjing.data.consent.gate import Declaration, Excluded, Gate, Watch, open_gate
from qinjing.data.consent.record import PURPOSES, Change, Row
from qinjing.data.consent.store import VARIABLE, Store

__all__ = [
    "PURPOSES",
    "VARIABLE",
    "Change",
    "Declaration",
    "Excluded",
    "Gate",
    "Row",
    "Seen",
    "Store",
    "Watch",
    "affected",
    "open_gate",
]
