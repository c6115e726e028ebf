"""Secure sums: exact whoever drops out, and refused when anybody asks for more than the sum."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from qinjing.errors import ConfigError
from qinjing.federate.secure_sum import (
    SecureSumError,
    Server,
    Site,
    Terms,
    Total,
    mean,
    ring,
    shamir,
    weighted,
)
from qinjing.federate.secure_sum.messages import pack, survivors_text, unpack
from qinjing.federate.secure_sum.site import pair_mask

STAGES = ("advertise", "share", "mask", "agree", "unmask")
NEVER = len(STAGES)


class Hospital:
    """A round with seeded secrets, driven stage by stage so that a test can step in."""

    def __init__(self, count: int = 5, length: int = 40, seed: int = 0, **options: Any) -> None:
        draw = random.Random(seed)
        self.keys = {
            f"site {chr(97 + i)}": Ed25519PrivateKey.from_private_bytes(draw.randbytes(32))
            for i in range(count)
        }
        identities = {s: key.public_key().public_bytes_raw() for s, key in self.keys.items()}
        options = {"bound": 4.0, "round_id": "round 1"} | options
        self.terms = Terms(identities=identities, length=length, **options)
        self.sites = {
            name: Site(self.terms, name, key, random=draw.randbytes)
            for name, key in self.keys.items()
        }
        self.server = Server(self.terms)
        rng = np.random.default_rng(seed)
        limit = self.terms.limit
        self.vectors = {
            name: rng.uniform(-limit, limit, length).astype(np.float32) for name in self.sites
        }
        for vector in self.vectors.values():
            vector[:1], vector[1:2] = limit, -limit  # where a sum would wrap first
        self.seen: list[bytes] = []  # all that the server received
        self.boxes: dict[str, bytes] = {}

    def names(self, stage: str, drops: Mapping[str, int]) -> list[str]:
        """Who still takes part in a stage; a site drops out before the one with its number."""
        return [s for s in self.sites if drops.get(s, NEVER) > STAGES.index(stage)]

    def to_delivery(self, drops: Mapping[str, int] | None = None) -> None:
        drops = drops or {}
        adverts = {s: self.sites[s].advertise() for s in self.names("advertise", drops)}
        roster = self.server.introduce(adverts)
        shares = {s: self.sites[s].share(roster) for s in self.names("share", drops)}
        self.boxes = self.server.deliver(shares)
        self.seen += [*adverts.values(), *shares.values()]

    def to_survivors(self, drops: Mapping[str, int] | None = None) -> bytes:
        self.to_delivery(drops)
        for s in self.names("mask", drops or {}):
            message = bytes(self.sites[s].mask(self.boxes[s], self.vectors[s]))
            self.server.add(s, message)
            self.seen.append(message)
        return self.server.survivors()

    def to_request(self, drops: Mapping[str, int] | None = None) -> bytes:
        survivors = self.to_survivors(drops)
        agreed = {s: self.sites[s].agree(survivors) for s in self.names("agree", drops or {})}
        self.seen += agreed.values()
        return self.server.request(agreed)

    def total(self, drops: Mapping[str, int] | None = None) -> Total:
        request = self.to_request(drops)
        answers = {s: self.sites[s].unmask(request) for s in self.names("unmask", drops or {})}
        self.seen += answers.values()
        return self.server.total(answers)

    def exact(self, names: list[str]) -> np.ndarray:
        """The integer sum by hand, in float64 and int64."""
        rounded = [np.rint(self.vectors[s].astype(np.float64) / self.terms.step) for s in names]
        return np.sum(rounded, axis=0).astype(np.int64)


def check(hospital: Hospital, drops: Mapping[str, int]) -> None:
    """The sum is that of those who sent a vector, or there is none below the threshold."""
    needed = hospital.terms.needed
    if any(len(hospital.names(stage, drops)) < needed for stage in STAGES):
        with pytest.raises(SecureSumError, match="at least"):
            hospital.total(drops)
        return
    total = hospital.total(drops)
    stayed = hospital.names("mask", drops)
    assert total.sites == tuple(stayed)
    np.testing.assert_array_equal(total.integers, hospital.exact(stayed))
    truth = np.sum([hospital.vectors[s].astype(np.float64) for s in stayed], axis=0)
    half_a_step_each = len(stayed) * total.step / 2
    rounding = 2.0**-24 * np.abs(truth).max()  # to float32
    assert np.abs(total.values() - truth).max() <= half_a_step_each + rounding


def test_every_pattern_of_dropouts_of_three_sites() -> None:
    for pattern in itertools.product(range(NEVER + 1), repeat=3):
        hospital = Hospital(3, 5)
        check(hospital, dict(zip(hospital.sites, pattern, strict=True)))


def test_every_count_of_dropouts_at_every_stage_of_five_sites() -> None:
    for number, pattern in enumerate(itertools.combinations_with_replacement(range(NEVER + 1), 5)):
        hospital = Hospital(5, 5)
        shuffled = random.Random(number).sample(pattern, 5)
        check(hospital, dict(zip(hospital.sites, shuffled, strict=True)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_dropouts_of_three_to_seven_sites(data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 7))
    hospital = Hospital(
        count,
        data.draw(st.sampled_from([1, 7, 33])),
        bits=data.draw(st.sampled_from([16, 24, 32])),
        bound=data.draw(st.floats(1e-20, 1e30)),
        threshold=data.draw(st.integers(count // 2 + 1, count)),
    )
    stages = st.sampled_from([*range(NEVER), *[NEVER] * 10])
    check(hospital, {s: data.draw(stages) for s in hospital.sites})


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_sums_over_several_blocks_with_two_dropouts_in_the_middle(bits: int) -> None:
    hospital = Hospital(5, 2 * ring._BLOCK + 3, bits=bits)
    check(hospital, {"site b": STAGES.index("mask"), "site e": STAGES.index("mask")})


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.floats(1e-20, 1e30), st.integers(3, 200), st.sampled_from([16, 24, 32]), st.integers(-2, 2)
)
def test_no_bound_lets_a_sum_wrap(bound: float, count: int, bits: int, near: int) -> None:
    """All sites at the bound, also where the bound is next to a power of 2 times the levels."""
    identities = {f"{i:03}": i.to_bytes(32, "big") for i in range(count)}
    if near:
        levels = Terms("r", identities, 1, 1.0, bits).levels
        bound = levels * 2.0**-9 * (1 + near * 1e-12)  # float32 rounds it up or down
    terms = Terms("r", identities, 1, bound, bits)
    vector = np.full(1, terms.limit, np.float32)
    message = ring.masked(vector, terms, [])
    sum_ = ring.zero(terms)
    for _ in range(count):
        ring.add(sum_, message, terms)
    (integer,) = ring.unmasked(sum_, terms, []).tolist()
    assert integer == count * round(terms.limit / terms.step)
    assert 0 < integer < 2 ** (bits - 1)
    assert terms.levels / 2 <= terms.limit / terms.step <= terms.levels


def test_the_mean_is_numpys_weighted_average() -> None:
    hospital = Hospital(5, 31, bound=400.0)
    cases = {s: 20 + 13 * i for i, s in enumerate(hospital.sites)}
    plain = {s: hospital.vectors[s][:30] / 400 for s in hospital.sites}
    hospital.vectors = {s: weighted(plain[s], cases[s]) for s in hospital.sites}
    total = hospital.total({"site c": STAGES.index("mask")})
    stayed = [s for s in hospital.sites if s != "site c"]
    assert total.integers[-1] * total.step == sum(cases[s] for s in stayed)
    expected = np.average([plain[s] for s in stayed], axis=0, weights=[cases[s] for s in stayed])
    np.testing.assert_allclose(mean(total), expected, atol=1e-7)
    with pytest.raises(ConfigError, match="sum of weights must be above 0"):
        mean(Total(np.zeros(4, np.int32), 1.0, ()))


def test_shamir_gives_wikipedias_example() -> None:
    """https://en.wikipedia.org/wiki/Shamir's_secret_sharing: 1234 + 166 x + 94 x² modulo 1613."""
    published = {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
    assert {x: shamir.evaluate([1234, 166, 94], x, 1613) for x in range(1, 7)} == published
    for chosen in itertools.combinations(published, 3):
        assert shamir.join({x: published[x] for x in chosen}, 3, 1613) == 1234
    drawn = iter([(1900).to_bytes(2, "big"), (166).to_bytes(2, "big"), (94).to_bytes(2, "big")])
    assert shamir.split(1234, 3, published, 1613, lambda count: next(drawn)) == published
    with pytest.raises(ValueError, match="2 shares where 3 are needed"):
        shamir.join({1: 1494, 2: 329}, 3, 1613)
    with pytest.raises(ValueError, match="not of one secret"):
        shamir.join(published | {6: 776}, 3, 1613)


def test_shamir_over_its_large_prime_agrees_with_sympy() -> None:
    sympy = pytest.importorskip("sympy")
    from sympy.polys.domains import ZZ
    from sympy.polys.galoistools import gf_eval

    assert sympy.isprime(shamir.PRIME)
    draw = random.Random(3)
    coefficients = [draw.randrange(shamir.PRIME) for _ in range(4)]
    shares = {x: shamir.evaluate(coefficients, x) for x in (1, 2, 50, 99, 100)}
    assert shares == {x: gf_eval(coefficients[::-1], x, shamir.PRIME, ZZ) for x in shares}
    assert shamir.join(shares, 4) == coefficients[0]


def test_fewer_shares_fit_every_secret() -> None:
    """With 2 of 3 shares each secret of the field belongs to exactly one third share."""
    found = {shamir.join({1: 5, 2: 9, 3: third}, 3, 17) for third in range(17)}
    assert found == set(range(17))


def test_a_mask_is_the_published_stream() -> None:
    """AES-256 of 0, 1 and 2 under the key 0: H, E(J0) and the ciphertext of GCM's cases 13 and 14.

    McGrew and Viega, "The Galois/Counter Mode of Operation", appendix B.
    """
    published = (
        "dc95c078a2408989ad48a21492842087530f8afbc74536b9a963b4f1c4cb738b"
        "cea7403d4d606b6e074ec5d3baf39d18"
    )
    terms = Hospital(3, 12).terms
    message = ring.masked(np.zeros(12, np.float32), terms, [(bytes(32), 1)])
    assert message.hex() == terms.tag + published


def test_values_beyond_the_bound_are_refused_before_anything_is_sent() -> None:
    for bad in (4.001, -4.001, np.nan, np.inf):
        hospital = Hospital()
        hospital.to_delivery()
        hospital.vectors["site a"][7] = bad
        with pytest.raises(ConfigError, match=r"within the bound of ±4, got .*; clip it"):
            hospital.sites["site a"].mask(hospital.boxes["site a"], hospital.vectors["site a"])
    hospital = Hospital()
    hospital.to_delivery()
    for bad in (np.zeros(40), np.zeros(39, np.float32), np.zeros((4, 10), np.float32)):
        with pytest.raises(ConfigError, match="float32 of shape"):
            hospital.sites["site a"].mask(hospital.boxes["site a"], bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 2}, "sites must be at least 3"),
        ({"round_id": ""}, "round_id"),
        ({"length": 0}, "length"),
        ({"bound": float("nan")}, "bound"),
        ({"bound": 0.0}, "bound"),
        ({"bits": 20}, "bits must be 16, 24 or 32"),
        ({"threshold": 2}, "threshold must be more than half of 5"),
        ({"threshold": 6}, "threshold"),
    ],
)
def test_unusable_terms_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Hospital(**change)


def test_a_site_needs_its_own_key() -> None:
    hospital = Hospital()
    with pytest.raises(ConfigError, match="identity"):
        Site(hospital.terms, "site a", hospital.keys["site b"])


# What a server must not be given.


def edited(message: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = json.loads(message)
    change(content)
    return json.dumps(content).encode()


def swap(text: str, other: str, start: int, stop: int) -> str:
    """Put bytes of another entry into one."""
    raw, from_ = base64.b64decode(text), base64.b64decode(other)
    return base64.b64encode(raw[:start] + from_[start:stop] + raw[stop:]).decode()


@pytest.mark.parametrize(("start", "stop"), [(0, 32), (32, 64), (0, 64), (64, 128), (0, 128)])
def test_a_swapped_key_is_refused(start: int, stop: int) -> None:
    """A server that puts keys of another site, or of its own, before a site is found out."""
    hospital, forged = Hospital(), Hospital(seed=1)
    adverts = {s: site.advertise() for s, site in hospital.sites.items()}
    fake = forged.sites["site b"].advertise()
    roster = hospital.server.introduce(adverts)

    def change(content: dict[str, Any]) -> None:
        b = content["adverts"]["site b"]
        other = json.loads(fake)["adverts"]["site b"]
        content["adverts"]["site b"] = swap(b, other, start, stop)

    with pytest.raises(SecureSumError, match="signature of site b"):
        hospital.sites["site a"].share(edited(roster, change))
    with pytest.raises(SecureSumError, match="own keys as it sent them"):
        hospital.sites["site b"].share(edited(roster, change))
    for site in ("site c", "site d"):  # the roster as it was is good
        hospital.sites[site].share(roster)


def test_a_key_of_another_round_or_given_twice_is_refused() -> None:
    old, hospital = Hospital(round_id="round 0"), Hospital()
    roster = old.server.introduce({s: site.advertise() for s, site in old.sites.items()})
    mine = json.loads(hospital.sites["site a"].advertise())["adverts"]
    replayed = edited(
        roster,
        lambda c: c.update(round=hospital.terms.tag, adverts=c["adverts"] | mine),
    )
    with pytest.raises(SecureSumError, match="signature of site"):
        hospital.sites["site a"].share(replayed)

    hospital = Hospital()
    hospital.sites["site b"]._share_key = hospital.sites["site c"]._share_key
    roster = hospital.server.introduce({s: site.advertise() for s, site in hospital.sites.items()})
    with pytest.raises(SecureSumError, match="public keys must be all different"):
        hospital.sites["site a"].share(roster)


def test_every_stage_of_a_site_refuses_too_few_others() -> None:
    few = ["site a", "site b"]

    def only(field: str) -> Callable[[dict[str, Any]], None]:
        def change(content: dict[str, Any]) -> None:
            of = content[field]
            content[field] = few if isinstance(of, list) else {s: of[s] for s in few if s in of}

        return change

    hospital = Hospital()
    roster = hospital.server.introduce({s: site.advertise() for s, site in hospital.sites.items()})
    with pytest.raises(SecureSumError, match="advertised sites must be at least 3"):
        hospital.sites["site a"].share(edited(roster, only("adverts")))

    hospital = Hospital()
    hospital.to_delivery()
    with pytest.raises(SecureSumError, match="sent shares must be at least 3"):
        hospital.sites["site a"].mask(
            edited(hospital.boxes["site a"], only("sealed")), hospital.vectors["site a"]
        )

    hospital = Hospital()
    survivors = hospital.to_survivors()
    with pytest.raises(SecureSumError, match="survivors must be at least 3"):
        hospital.sites["site a"].agree(edited(survivors, only("survivors")))

    hospital = Hospital()
    request = hospital.to_request()
    with pytest.raises(SecureSumError, match="signatures must be at least 3"):
        hospital.sites["site a"].unmask(edited(request, only("signatures")))


def test_a_server_that_asks_for_more_than_the_sum_is_refused() -> None:
    def both(content: dict[str, Any]) -> None:
        content["dropped"] = ["site b", "site e"]

    def other_survivors(content: dict[str, Any]) -> None:
        content["survivors"] = ["site a", "site b", "site c"]
        content["dropped"] = ["site d", "site e"]

    def dropped_alone(content: dict[str, Any]) -> None:
        content["survivors"] = ["site a", "site c", "site d"]
        content["dropped"] = ["site b"]

    def not_dropped(content: dict[str, Any]) -> None:
        content["dropped"] = []

    def another_signature(content: dict[str, Any]) -> None:
        content["signatures"]["site b"] = content["signatures"]["site c"]

    cases = {
        both: "for one share of a site, got both of site b",
        other_survivors: "the survivors that this site signed",
        dropped_alone: "the survivors that this site signed",
        not_dropped: "the keys of those alone that dropped out",
        another_signature: "signature of site b",
    }
    for change, message in cases.items():
        hospital = Hospital()
        request = hospital.to_request({"site e": STAGES.index("mask")})
        with pytest.raises(SecureSumError, match=message):
            hospital.sites["site a"].unmask(edited(request, change))
        with pytest.raises(SecureSumError, match="stage must be 'closed'"):  # no second try
            hospital.sites["site a"].unmask(request)


def test_a_server_that_shows_sites_different_survivors_gets_no_shares() -> None:
    """The check of consistency: else both shares of one site could be had from two groups."""
    hospital = Hospital()
    survivors = hospital.to_survivors()
    without = edited(survivors, lambda c: c["survivors"].remove("site e"))
    told = dict.fromkeys(hospital.sites, survivors) | {"site c": without, "site d": without}
    agreed = {s: hospital.sites[s].agree(told[s]) for s in hospital.sites}
    signatures = {
        s: unpack(hospital.terms, "agreement", m)["signatures"][s] for s, m in agreed.items()
    }
    for s, dropped in (("site a", ()), ("site c", ("site e",))):
        listed = [x for x in hospital.sites if x not in dropped]
        request = pack(
            hospital.terms, "request", survivors=listed, dropped=dropped,
            signatures={x: signatures[x] for x in listed},
        )  # fmt: skip
        with pytest.raises(SecureSumError, match="signature of site"):
            hospital.sites[s].unmask(request)
    # The server itself keeps to those who signed its list.
    hospital.server.request(agreed)
    assert set(hospital.server.refused) == {"site c", "site d"}


def test_signatures_of_sites_outside_the_list_do_not_count() -> None:
    hospital = Hospital()
    request = hospital.to_request({"site d": 2, "site e": 2})
    text = survivors_text(hospital.terms, ["site a", "site b", "site c"])
    signed = base64.b64encode(hospital.keys["site d"].sign(text)).decode()
    with pytest.raises(SecureSumError, match="signatures must be of survivors"):
        hospital.sites["site a"].unmask(
            edited(request, lambda c: c["signatures"].update({"site d": signed}))
        )


def test_survivors_that_sent_no_shares_or_lack_the_site_are_refused() -> None:
    for wrong in (["site a", "site b", "site e"], ["site b", "site c", "site d"]):
        hospital = Hospital()
        survivors = hospital.to_survivors({"site e": STAGES.index("share")})
        with pytest.raises(SecureSumError, match="others that sent shares"):
            hospital.sites["site a"].agree(
                edited(survivors, lambda c, w=wrong: c.update(survivors=w))
            )


def test_shares_that_were_not_sealed_by_their_sender_are_refused() -> None:
    def exchanged(content: dict[str, Any]) -> None:
        sealed = content["sealed"]
        sealed["site b"], sealed["site c"] = sealed["site c"], sealed["site b"]

    def torn(content: dict[str, Any]) -> None:
        content["sealed"]["site b"] = swap(
            content["sealed"]["site b"], content["sealed"]["site c"], 40, 41
        )

    def reflected(content: dict[str, Any]) -> None:
        own = json.loads(hospital.seen[5])["sealed"]  # what site a sent, after five adverts
        content["sealed"]["site b"] = own["site b"]

    for change in (exchanged, torn, reflected):
        hospital = Hospital()
        hospital.to_delivery()
        box = edited(hospital.boxes["site a"], change)
        with pytest.raises(SecureSumError, match="shares from site b"):
            hospital.sites["site a"].mask(box, hospital.vectors["site a"])


def test_stages_come_once_and_in_order() -> None:
    hospital = Hospital()
    site = hospital.sites["site a"]
    with pytest.raises(SecureSumError, match="stage must be 'advertise', got 'unmask'"):
        site.unmask(b"")
    hospital.to_survivors()
    with pytest.raises(SecureSumError, match="stage must be 'agree', got 'mask'"):
        site.mask(hospital.boxes["site a"], hospital.vectors["site b"])
    with pytest.raises(SecureSumError, match="stage must be 'request', got 'add'"):
        hospital.server.add("site a", b"")


@pytest.mark.parametrize(
    "message",
    [b"", b"{", b"[]", b"7", b"null", b"[" * 100_000, b"\xff", b'{"round": 1}', "text", "names"],
)
def test_damaged_messages_are_refused_in_one_sentence(message: bytes | str) -> None:
    hospital = Hospital()
    adverts = {s: site.advertise() for s, site in hospital.sites.items()}
    if message == "text":
        message = edited(adverts["site a"], lambda c: c["adverts"].update({"site a": "?"}))
    if message == "names":
        message = edited(adverts["site a"], lambda c: c["adverts"].update({"stranger": ""}))
    roster = hospital.server.introduce(adverts | {"site a": message})
    assert "message must be a 'advert' of this round" in hospital.server.refused["site a"]
    assert set(unpack(hospital.terms, "roster", roster)["adverts"]) == set(hospital.sites) - {
        "site a"
    }
    with pytest.raises(SecureSumError, match="message must be a 'roster'"):
        hospital.sites["site b"].share(message)


# What a site may send without harm to the others.


def test_a_message_that_cannot_be_used_leaves_its_site_out() -> None:
    hospital, other = Hospital(), Hospital(bound=5.0)
    hospital.to_delivery()
    other.to_delivery()
    masked = {s: hospital.sites[s].mask(hospital.boxes[s], v) for s, v in hospital.vectors.items()}
    hospital.server.add("site a", masked["site a"][:-1])
    elsewhere = other.sites["site b"].mask(other.boxes["site b"], other.vectors["site b"])
    hospital.server.add("site b", elsewhere)
    hospital.server.add("stranger", masked["site a"])
    for s in ("site c", "site d", "site e", "site e"):  # a second one is passed over
        hospital.server.add(s, masked[s])
    survivors = hospital.server.survivors()
    agreed = {s: hospital.sites[s].agree(survivors) for s in ("site c", "site d", "site e")}
    request = hospital.server.request(agreed)
    total = hospital.server.total({s: hospital.sites[s].unmask(request) for s in agreed})
    np.testing.assert_array_equal(total.integers, hospital.exact(list(agreed)))
    refused = hospital.server.refused
    assert set(refused) == {"site a", "site b", "stranger"}
    assert "191 bytes where 192 are due" in refused["site a"]
    assert "under other terms" in refused["site b"]


def test_a_wrong_share_is_found_out() -> None:
    def wrong(field: str, site: str) -> Callable[[dict[str, Any]], None]:
        def change(content: dict[str, Any]) -> None:
            raw = bytearray(base64.b64decode(content[field][site]))
            raw[-1] ^= 1
            content[field][site] = base64.b64encode(raw).decode()

        return change

    # Of a key the public half is known; of a seed only a fourth share shows that one is wrong.
    for drops, change, message in (
        ({"site d": 2, "site e": 2}, wrong("keys", "site d"), "shares of the key of site d"),
        ({"site e": 2}, wrong("keys", "site e"), "shares of site e"),
        ({"site e": 2}, wrong("seeds", "site b"), "shares of site b must be of one secret"),
    ):
        hospital = Hospital()
        request = hospital.to_request(drops)
        answers = {s: hospital.sites[s].unmask(request) for s in hospital.names("unmask", drops)}
        answers["site a"] = edited(answers["site a"], change)
        with pytest.raises(SecureSumError, match=message):
            hospital.server.total(answers)


# What the server can know.


def reachable(thing: Any, met: set[int] | None = None) -> Iterator[bytes]:
    """Bytes of everything that an object holds, however deep."""
    met = set() if met is None else met
    if id(thing) in met:
        return
    met.add(id(thing))
    if isinstance(thing, np.ndarray):
        yield np.ascontiguousarray(thing).tobytes()
    elif isinstance(thing, bytes | bytearray | memoryview):
        yield bytes(thing)
    elif isinstance(thing, str):
        yield thing.encode()
    elif isinstance(thing, Mapping):
        for part in (*thing.keys(), *thing.values()):
            yield from reachable(part, met)
    elif isinstance(thing, list | tuple | set | frozenset):
        for part in thing:
            yield from reachable(part, met)
    elif is_dataclass(thing) and not isinstance(thing, type):
        for field in fields(thing):
            yield from reachable(getattr(thing, field.name), met)
    if hasattr(thing, "__dict__"):
        yield from reachable(vars(thing), met)


def forms(vector: np.ndarray, step: float) -> Iterator[bytes]:
    """Stretches of 4 values as float and as integers, and in base64."""
    integers = np.rint(vector / step).astype(np.int64)
    for kind in ("<f4", ">f4", "<f8", "<i2", "<i4", ">i4", "<i8"):
        values = (vector if "f" in kind else integers).astype(kind)
        for start in range(0, len(values) - 3, 4):
            yield values[start : start + 4].tobytes()
    low = integers.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3]
    for start in range(0, len(low) - 3, 4):
        yield low[start : start + 4].tobytes()


def finds(view: list[bytes], vector: np.ndarray, step: float) -> bool:
    whole = b"|".join([*view, *(base64.b64decode(x + b"===") for x in _quoted(view))])
    return any(form in whole for form in forms(vector, step))


def _quoted(view: list[bytes]) -> Iterator[bytes]:
    for message in view:
        if message.startswith(b"{"):
            yield from (x for x in message.split(b'"') if len(x) > 40)


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_the_server_holds_no_vector_of_a_site(bits: int) -> None:
    hospital = Hospital(5, 400, bits=bits)
    for vector in hospital.vectors.values():
        vector[:2] = 0.5  # the bounds are the same for all sites
    total = hospital.total({"site b": STAGES.index("mask"), "site d": STAGES.index("unmask")})
    view = [*hospital.seen, *reachable(hospital.server), *reachable(total)]
    assert len(view) > 50
    for vector in hospital.vectors.values():
        assert not finds(view, vector, hospital.terms.step)
    # The search finds what is there: the sum, and a vector wherever it were put.
    assert finds(view, total.values(), hospital.terms.step)
    planted = hospital.vectors["site a"]
    for place in (planted, np.rint(planted / hospital.terms.step).astype("<i4")):
        hospital.server.refused["planted"] = {"deep": [place]}  # type: ignore[assignment]
        assert finds(list(reachable(hospital.server)), planted, hospital.terms.step)


CHI_SQUARE_999 = 330.5  # 255 degrees of freedom: a uniform source exceeds it once in 1,000


def chi_square(content: bytes | bytearray | np.ndarray) -> float:
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_masked_vectors_look_uniform_whatever_they_hold(bits: int) -> None:
    hospital = Hospital(3, 50_000, seed=bits, bits=bits)
    hospital.vectors["site b"][:] = 0
    hospital.vectors["site c"][:] = 4
    hospital.to_survivors()
    sent = [message[32:] for message in hospital.seen[-3:]]
    for message in sent:
        assert chi_square(message) < CHI_SQUARE_999
    for one, other in itertools.combinations(sent, 2):  # no mask is used twice
        difference = np.frombuffer(one, np.uint8) - np.frombuffer(other, np.uint8)
        assert chi_square(difference) < CHI_SQUARE_999
    bare = ring.masked(hospital.vectors["site a"], hospital.terms, [])[32:]
    assert chi_square(bare) > 10 * CHI_SQUARE_999


def test_each_of_the_two_masks_hides_a_vector_alone() -> None:
    """Either seed of a site, which the server learns, leaves the other mask over its vector.

    A survivor's own mask is taken off by its seed. A site that was given up and whose vector comes
    late has its masks for pairs taken off by its key. Both together bare the vector: this is why
    no site gives out both shares.
    """
    hospital = Hospital(4, 50_000)
    hospital.to_survivors()
    terms, site = hospital.terms, hospital.sites["site b"]
    sent = hospital.seen[-3]
    own = [(terms.derive(site._seed, "own mask", "site b"), 1)]
    pairs = [
        pair_mask(terms, site._mask_key, "site b", other, site._peers[other])
        for other in ("site a", "site c", "site d")
    ]

    def bared(masks: list[tuple[bytes, int]]) -> np.ndarray:
        sum_ = ring.zero(terms)
        ring.add(sum_, sent, terms)
        return ring.unmasked(sum_, terms, masks)

    assert chi_square(bared(own)) < CHI_SQUARE_999
    assert chi_square(bared(pairs)) < CHI_SQUARE_999
    assert chi_square(bared(pairs[:2] + own)) < CHI_SQUARE_999  # a peer that does not collude
    np.testing.assert_array_equal(bared(own + pairs), hospital.exact(["site b"]))


def test_no_key_of_one_round_is_one_of_another() -> None:
    """Even with the same secrets, as a broken source of randomness would give them."""
    first, second = Hospital(round_id="round 1"), Hospital(round_id="round 2")
    for hospital in (first, second):
        hospital.to_survivors()
    assert first.sites["site a"]._seed == second.sites["site a"]._seed
    for one, other in zip(first.seen[-5:], second.seen[-5:], strict=True):
        same = np.frombuffer(one, np.uint8) == np.frombuffer(other, np.uint8)
        assert same.mean() < 0.1


def test_real_secrets_are_fresh() -> None:
    hospital = Hospital()
    sites = [Site(hospital.terms, "site a", hospital.keys["site a"]) for _ in range(2)]
    assert sites[0].advertise() != sites[1].advertise()
    assert sites[0]._seed != sites[1]._seed
