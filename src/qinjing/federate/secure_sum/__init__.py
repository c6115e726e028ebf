"""Sums of vectors of which the server sees nothing but the sum: double masking.

Each site adds to its vector a mask of its own and, for every other site, a mask that this one
subtracts. Masks for pairs cancel in the sum. Own masks, and those for pairs with a site that
dropped out, are taken off by the server, which learns their seeds from shares that the sites hold
of each other: of one site either the one seed or the other, never both.

The stages, whose messages are bytes over any transport that tells the server who sent what (mTLS
does) and keeps the sites' messages from each other's eyes where they differ:

| site | server |
|---|---|
| `advertise()` | `introduce(adverts)`, to all |
| `share(roster)` | `deliver(shares)`, to each its own |
| `mask(delivery, vector)` | `add(site, masked)`, one by one, then `survivors()`, to all |
| `agree(survivors)` | `request(agreements)`, to all |
| `unmask(request)` | `total(answers)` |

Whoever misses a stage is left out of those after it. A vector counts once it was added.

What it holds against: a server that reads, alters, withholds and invents messages and works with
some of the sites, as long as twice the threshold is above the number of sites and of those; and
sites that put together what they see, if fewer than the threshold. What it does not hold against: a
site that sends a wrong vector or wrong shares (the sum is then refused or wrong, but nobody's
vector is seen), and what the sum itself tells, which is much where few sites stay.

A round that was interrupted on the server is begun anew, under another round id.

Source: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", doi:10.1145/3133956.3133982, figure 4 with the steps against an active adversary. The
primitives are those of `cryptography`: X25519, Ed25519, HKDF-SHA-256, AES-256-GCM, AES-256-CTR.
"""

from qinjing.federate.secure_sum.messages import SecureSumError
from qinjing.federate.secure_sum.ring import Total, mean, weighted
from qinjing.federate.secure_sum.server import Server
from qinjing.federate.secure_sum.site import Site
from qinjing.federate.secure_sum.terms import Terms

__all__ = ["SecureSumError", "Server", "Site", "Terms", "Total", "mean", "weighted"]
