"""Share a secret so that some of the shares give it back and fewer say nothing.

Source: Shamir 1979, "How to share a secret", doi:10.1145/359168.359176.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache

PRIME = 2**521 - 1  # a Mersenne prime above every secret of 32 bytes
SHARE_BYTES = 66


def split(
    secret: int,
    threshold: int,
    numbers: Iterable[int],
    prime: int = PRIME,
    random: Callable[[int], bytes] = os.urandom,
) -> dict[int, int]:
    """Evaluate a polynomial that is random but for its constant term, the secret.

    Args:
        secret: from 0 to `prime` − 1.
        threshold: shares that give the secret back; one more than the polynomial's degree.
        numbers: where to evaluate, from 1 to `prime` − 1.
        prime: size of the field.
        random: returns that many random bytes.

    Returns:
        Number → share, from 0 to `prime` − 1.
    """
    coefficients = [secret, *(_below(prime, random) for _ in range(threshold - 1))]
    return {number: evaluate(coefficients, number, prime) for number in numbers}


def evaluate(coefficients: list[int], at: int, prime: int = PRIME) -> int:
    """A polynomial's value modulo `prime`; the constant term comes first."""
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * at + coefficient) % prime
    return value


def join(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> int:
    """Give the secret back.

    Args:
        shares: number → share, at least `threshold`; those beyond it are checked against the rest.
        threshold: as it was split with.
        prime: as it was split with.

    Raises:
        ValueError: too few shares, or they are not of one polynomial.
    """
    if len(shares) < threshold:
        raise ValueError(f"{len(shares)} shares where {threshold} are needed")
    numbers = sorted(shares)
    base = {number: shares[number] for number in numbers[:threshold]}
    for number in numbers[threshold:]:
        if _interpolate(base, number, prime) != shares[number]:
            raise ValueError("shares that are not of one secret")
    return _interpolate(base, 0, prime)


def _interpolate(shares: Mapping[int, int], at: int, prime: int) -> int:
    """Lagrange's polynomial through the shares, evaluated."""
    weights = _weights(tuple(shares), at, prime)
    return sum(a * b for a, b in zip(weights, shares.values(), strict=True)) % prime


@lru_cache(maxsize=256)  # many secrets are joined from the same sites' shares
def _weights(numbers: tuple[int, ...], at: int, prime: int) -> tuple[int, ...]:
    weights = []
    for number in numbers:
        above = below = 1
        for other in numbers:
            if other != number:
                above = above * (at - other) % prime
                below = below * (number - other) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return tuple(weights)


def _below(bound: int, random: Callable[[int], bytes]) -> int:
    """A number below `bound`, each as likely as the other: larger ones are drawn again."""
    bits = (bound - 1).bit_length()
    while True:
        drawn = int.from_bytes(random((bits + 7) // 8), "big") & (2**bits - 1)
        if drawn < bound:
            return drawn
