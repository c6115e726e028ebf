"""Combining updates so that a few lying sites cannot move the result far.

Every rule takes the sites' updates and their cases and returns one update; it is the `combine` of
a strategy. A site whose update holds a NaN or an infinity is left out by every rule but the mean:
that lie needs no statistics. What no rule can see, none can stop: a lie as small as the honest
sites' differences passes. All look at single updates in the clear, so that none goes with a secure
sum. A site can lie about its cases too, which are the weight of its vote: bound them before.

Work is done in blocks of weights: beyond the updates themselves and the result, a rule needs memory
for some millions of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from qinjing.errors import ConfigError, FormatError
from qinjing.federate.strategies.strategy import weighted_mean

Update = Mapping[str, Tensor]
Rule = Callable[[Tensor, Tensor], Tensor]
_BLOCK = 2**21  # numbers, over all sites


def median(updates: Sequence[Update], cases: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted median of every coordinate.

    Args:
        updates: changes of weights, float32, the same names and shapes at every site.
        cases: n_k of each, above 0. Half of their sum must be honest.

    Returns:
        A new update. Where the halves meet between two values, it is their middle.

    Raises:
        ConfigError: no update is finite, or a number of cases is not above 0.
        FormatError: names or shapes differ.

    Source: arXiv:1803.01498 (Yin et al., algorithm 1, option I).
    """

    def rule(values: Tensor, weights: Tensor) -> Tensor:
        ordered, places = values.sort(dim=0)
        below = weights[places].cumsum(dim=0) * 2
        whole = weights.sum()
        upper = (below > whole).int().argmax(dim=0, keepdim=True)
        lower = (below >= whole).int().argmax(dim=0, keepdim=True)
        return ((ordered.gather(0, lower).double() + ordered.gather(0, upper)) / 2)[0]

    return _by_coordinate(*_sound(updates, cases), rule)


def trimmed_mean(
    updates: Sequence[Update], cases: Sequence[float], share: float = 0.2
) -> dict[str, Tensor]:
    """Return the weighted mean of every coordinate without its largest and smallest values.

    Args:
        updates: as for `median`.
        cases: n_k of each, above 0.
        share: of the sites, rounded down, whose values are left out at either end; 0 to below 0.5.

    Returns:
        A new update.

    Raises:
        ConfigError: a number is out of range, or no update is finite.
        FormatError: names or shapes differ.

    Source: arXiv:1803.01498 (Yin et al., algorithm 1, option II).
    """
    if not 0 <= share < 0.5:
        raise ConfigError("share", "at least 0 and below 0.5", share)
    sound, weights = _sound(updates, cases)
    cut = int(share * len(sound))

    def rule(values: Tensor, weights: Tensor) -> Tensor:
        ordered, places = values.sort(dim=0, stable=True)
        kept = slice(cut, len(values) - cut)
        own = weights[places[kept]]
        return (ordered[kept] * own).sum(dim=0) / own.sum(dim=0)

    return _by_coordinate(sound, weights, rule)


def norm_clipped(
    updates: Sequence[Update], cases: Sequence[float], limit: float | None = None
) -> dict[str, Tensor]:
    """Return the weighted mean of updates that are shortened to a length.

    Args:
        updates: as for `median`.
        cases: n_k of each, above 0.
        limit: the largest Euclidean length over all weights, above 0; the sites' median where None.

    Returns:
        A new update, no longer than `limit`. A liar still moves it by its weight times `limit`.

    Raises:
        ConfigError: a number is out of range, or no update is finite.
        FormatError: names or shapes differ.

    Source: arXiv:1911.07963 (Sun et al., norm thresholding).
    """
    if limit is not None and not 0 < limit < inf:
        raise ConfigError("limit", "above 0 and finite", limit)
    sound, weights = _sound(updates, cases)
    lengths = _products(sound, diagonal=True).sqrt()
    most = lengths.quantile(0.5) if limit is None else torch.tensor(limit).double()
    scales = torch.where(lengths > most, most / lengths, 1.0)
    return _combined(sound, weights / weights.sum() * scales)


def krum(
    updates: Sequence[Update], cases: Sequence[float], liars: int | None = None
) -> dict[str, Tensor]:
    """Return the update that is nearest to those around it.

    Args:
        updates: as for `median`, at least three.
        cases: n_k; not looked at, unless updates are equally near: then their weighted mean counts,
            so that the order of sites is of no matter.
        liars: f, how many there may be: fewer than (K − 2)/2 of K sites; as many as that allows
            where None.

    Returns:
        A new update.

    Raises:
        ConfigError: too few sites for so many liars.
        FormatError: names or shapes differ.

    Source: arXiv:1703.02757 (Blanchard et al., section 4).
    """
    return _nearest(updates, cases, liars, lambda sites, f: 1)


def multi_krum(
    updates: Sequence[Update], cases: Sequence[float], liars: int | None = None
) -> dict[str, Tensor]:
    """Return the weighted mean of the K − f updates that are nearest to those around them.

    Args:
        updates: as for `krum`.
        cases: n_k of each, weights among those that are chosen.
        liars: f, as for `krum`.

    Returns:
        A new update.

    Raises:
        ConfigError: too few sites for so many liars.
        FormatError: names or shapes differ.

    Source: arXiv:1703.02757 (Blanchard et al., section 5).
    """
    return _nearest(updates, cases, liars, lambda sites, f: sites - f)


def geometric_median(
    updates: Sequence[Update],
    cases: Sequence[float],
    smoothing: float = 1e-6,
    steps: int = 1000,
) -> dict[str, Tensor]:
    """Return the point whose weighted sum of distances to the updates is least.

    It is a mean with weights of its own, found from the sites' inner products alone, so that the
    updates are read twice however many steps it takes.

    Args:
        updates: as for `median`.
        cases: n_k of each, above 0. Half of their sum must be honest.
        smoothing: ν, the distance below which an update pulls no harder, as a part of the median
            length.
        steps: of Weiszfeld's iteration, at the most.

    Returns:
        A new update.

    Raises:
        ConfigError: a number is out of range, or no update is finite.
        FormatError: names or shapes differ.

    Source: arXiv:1912.13445 (Pillutla et al., smoothed Weiszfeld, algorithm 2).
    """
    if smoothing <= 0 or steps < 1:
        raise ConfigError("smoothing and steps", "positive", f"{smoothing}, {steps}")
    sound, weights = _sound(updates, cases)
    products = _products(sound)
    squares = products.diagonal()
    least = smoothing * float(squares.sqrt().quantile(0.5)) or smoothing
    parts = weights / weights.sum()
    # From the update in the middle: the mean may be so far off that all distances seem equal.
    apart = _squared_distances(products).sqrt()
    middle = (apart @ parts).argmin()
    near = apart[middle].clone()
    near[middle] = near.quantile(0.5)
    share = parts / near.clamp_min(least)
    share = share / share.sum()
    for _ in range(steps):
        pulled = products @ share
        squared = (share @ pulled - 2 * pulled + squares).clamp_min(0.0)
        after = parts / squared.sqrt().clamp_min(least)
        after = after / after.sum()
        moved, share = float((after - share).abs().max()), after
        if moved < 1e-12:
            break
    return _combined(sound, share)


AGGREGATORS: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "mean": weighted_mean,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "norm_clipped": norm_clipped,
    "krum": krum,
    "multi_krum": multi_krum,
    "geometric_median": geometric_median,
}


def finite(updates: Sequence[Update]) -> list[int]:
    """Return the places of the updates whose numbers are all finite."""
    return [i for i, u in enumerate(updates) if all(bool(v.isfinite().all()) for v in u.values())]


def _sound(updates: Sequence[Update], cases: Sequence[float]) -> tuple[list[Update], Tensor]:
    """The finite updates and their weights, float64 (K,)."""
    if len(updates) != len(cases) or not all(0 < n < inf for n in cases):
        raise ConfigError("cases", "a number above 0 for each update", list(cases))
    kept = finite(updates)
    if not kept:
        raise ConfigError("updates", "finite, one of them at least", f"none of {len(updates)}")
    shapes = {name: value.shape for name, value in updates[kept[0]].items()}
    for i in kept:
        if {name: value.shape for name, value in updates[i].items()} != shapes:
            raise FormatError(f"update {i}", f"of the same weights as update {kept[0]}", "others")
    # Equal values are told apart by their sites' cases, so that the order of sites is of no matter.
    kept.sort(key=lambda i: cases[i])
    return [updates[i] for i in kept], torch.tensor([cases[i] for i in kept]).double()


def _blocks(updates: Sequence[Update], name: str) -> Iterator[tuple[slice, Tensor]]:
    """Pieces of one weight, flat, and all sites' numbers in them, float32 (K, piece)."""
    flat = [update[name].detach().reshape(-1) for update in updates]
    length = max(1, _BLOCK // len(flat))
    for start in range(0, len(flat[0]), length):
        piece = slice(start, start + length)
        yield piece, torch.stack([own[piece].float() for own in flat])


def _by_coordinate(updates: Sequence[Update], weights: Tensor, rule: Rule) -> dict[str, Tensor]:
    """Apply (K, n) float32, (K,) float64 → (n,) to every piece."""
    result = {}
    for name, first in updates[0].items():
        whole = torch.empty(first.numel())
        for piece, values in _blocks(updates, name):
            whole[piece] = rule(values, weights).float()
        result[name] = whole.reshape(first.shape)
    return result


def _combined(updates: Sequence[Update], shares: Tensor) -> dict[str, Tensor]:
    """Σ share_k · update_k, shares (K,) float64."""
    return _by_coordinate(updates, shares, lambda values, own: own @ values.double())


def _products(updates: Sequence[Update], diagonal: bool = False) -> Tensor:
    """Inner products of the sites' updates, float64 (K, K), or of each with itself (K,).

    In float64 a distance between honest updates, which are short, is exact however long a lie is.
    """
    total = torch.zeros(len(updates), *[] if diagonal else [len(updates)], dtype=torch.float64)
    for name in updates[0]:
        for _, values in _blocks(updates, name):
            own = values.double()
            total += own.square().sum(dim=1) if diagonal else own @ own.T
    return total


def _squared_distances(products: Tensor) -> Tensor:
    squares = products.diagonal()
    return (squares[:, None] + squares[None] - products - products.T).clamp_min(0.0)


def _nearest(
    updates: Sequence[Update],
    cases: Sequence[float],
    liars: int | None,
    chosen: Callable[[int, int], int],
) -> dict[str, Tensor]:
    """The weighted mean of the updates with the least sums of squared distances to neighbours."""
    sound, weights = _sound(updates, cases)
    sites = len(sound)
    most = (sites - 3) // 2
    f = max(most, 0) if liars is None else liars
    if f < 0 or f > most:
        raise ConfigError(
            "sites", f"at least {2 * f + 3} for {f} liars", sites,
            advice="use a median, which needs fewer",
        )  # fmt: skip
    products = _products(sound)
    distances = _squared_distances(products).fill_diagonal_(inf)
    scores = distances.sort(dim=1).values[:, : sites - f - 2].sum(dim=1)
    worst = scores.sort().values[chosen(sites, f) - 1]
    # Equals may differ in their last bits.
    slack = 1e-9 * worst + 1e-12 * products.diagonal().quantile(0.5)
    own = weights * (scores <= worst + slack)
    return _combined(sound, own / own.sum())
