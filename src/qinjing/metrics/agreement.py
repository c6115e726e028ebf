"""How far readers agree, and what they say together: kappa, Dice between readers, votes, STAPLE.

Votes of a few readers repeat: three readers of two classes give eight different columns, however
many voxels there are. So each column is counted once, and STAPLE's iterations run over the columns,
not over the voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qinjing.errors import GeometryError, LabelError

_MOST_COLUMNS = 1 << 22  # of a table that is counted straight; beyond it columns are sorted
_CHUNK = 1 << 17  # voxels per pass, so that a cast stays in the cache
_SETTLED = 1e-10  # change of a reader's figures at which binary STAPLE is done; ITK's is 1e-7
_MOST_ITERATIONS = 10_000  # two readers who hardly differ are told apart slowly


@dataclass(frozen=True, eq=False)
class Staple:
    """What STAPLE makes of binary masks.

    Attributes:
        probability: of the foreground, float32 of the masks' shape, 0 to 1.
        sensitivity: of each reader, (R,).
        specificity: of each reader, (R,).
        iterations: until nothing moved.
    """

    probability: np.ndarray
    sensitivity: np.ndarray
    specificity: np.ndarray
    iterations: int


@dataclass(frozen=True, eq=False)
class Consensus:
    """What multi-label STAPLE makes of label maps.

    Attributes:
        labels: the label that wins at each voxel, of the first map's type.
        values: the K label values that occur, in order.
        confusion: (R, K, K), [r, said, true]: how often reader r says one where
            another is true.
        iterations: until nothing moved.
    """

    labels: np.ndarray
    values: tuple[int, ...]
    confusion: np.ndarray
    iterations: int


def cohens_kappa(
    first: np.ndarray, second: np.ndarray, weights: Literal["linear", "quadratic"] | None = None
) -> float:
    """Return Cohen's kappa of two readers, −1 to 1: agreement beyond what chance would give.

    Args:
        first: whole numbers of any shape, a class for each subject.
        second: of the same shape.
        weights: how much a disagreement weighs by how far the classes lie apart in the order of
            those that occur; None counts every disagreement the same.

    Returns:
        Kappa, NaN where both readers use one and the same class alone: chance explains all.

    Raises:
        GeometryError: the shapes differ, or there is no subject.
        LabelError: a rating is missing or no whole number.
        ValueError: another word for weights.

    Source: Cohen 1960, doi:10.1177/001316446002000104; 1968, doi:10.1037/h0026256 (weights).
    """
    values, (a, b) = _classes((first, second))
    size = len(values)
    pairs = a.ravel().astype(np.int64) * size + b.ravel()
    observed = np.bincount(pairs, minlength=size * size).reshape(size, size) / a.size
    chance = np.outer(observed.sum(axis=1), observed.sum(axis=0))
    apart = np.abs(np.subtract.outer(np.arange(size), np.arange(size))).astype(np.float64)
    if weights is None:
        apart = (apart > 0).astype(np.float64)
    elif weights == "quadratic":
        apart **= 2
    elif weights != "linear":
        raise ValueError(f"weights must be linear, quadratic or None, got {weights}")
    expected = float((apart * chance).sum())
    return 1.0 - float((apart * observed).sum()) / expected if expected > 0 else float("nan")


def fleiss_kappa(ratings: Sequence[np.ndarray]) -> float:
    """Return Fleiss' kappa of two or more readers, −1 to 1.

    Args:
        ratings: one array of whole numbers a reader, all of one shape.

    Returns:
        Kappa, NaN where all readers use one class alone.

    Raises:
        GeometryError: fewer than two readers, shapes that differ, or no subject.
        LabelError: a rating is missing or no whole number.

    Source: Fleiss 1971, doi:10.1037/h0031619.
    """
    values, indices = _classes(ratings)
    readers, subjects = len(indices), indices[0].size
    columns, counts = _columns(indices, len(values))
    votes = np.stack([(columns == k).sum(axis=1) for k in range(len(values))], axis=1)
    agreeing = (votes * (votes - 1)).sum(axis=1) / (readers * (readers - 1))
    observed = float((agreeing * counts).sum()) / subjects
    shares = (votes * counts[:, None]).sum(axis=0) / (readers * subjects)
    chance = float((shares**2).sum())
    return (observed - chance) / (1.0 - chance) if len(values) > 1 else float("nan")


def dice_matrix(readers: Sequence[np.ndarray], label: int) -> np.ndarray:
    """Return Dice of one label between every two readers.

    Args:
        readers: label maps of one shape.
        label: the value that is compared.

    Returns:
        (R, R) symmetric; NaN where neither of two readers has the label, as in `overlap`.

    Raises:
        GeometryError: fewer than two readers, shapes that differ, or no voxel.
        LabelError: a value is missing or no whole number.

    Source: Dice 1945, doi:10.2307/1932409.
    """
    masks = [np.asarray(one) == label for one in _checked(readers)]
    common = np.array([[np.count_nonzero(a & b) for b in masks] for a in masks], dtype=np.float64)
    sizes = common.diagonal()[:, None] + common.diagonal()[None]
    return np.divide(2 * common, sizes, out=np.full_like(common, np.nan), where=sizes > 0)


def majority(readers: Sequence[np.ndarray], undecided: int = 0) -> np.ndarray:
    """Return the label that most readers say at each voxel.

    Args:
        readers: label maps of one shape.
        undecided: the value where two labels have as many votes.

    Raises:
        GeometryError: fewer than two readers, shapes that differ, or no voxel.
        LabelError: a value is missing or no whole number, or `undecided` does not fit the type.

    Source: Rohlfing and Maurer 2007, doi:10.1016/j.patrec.2006.03.002 (vote and ties).
    """
    values, indices = _classes(readers)
    columns, _, where = _columns_where(indices, len(values))
    votes = np.stack([(columns == k).sum(axis=1) for k in range(len(values))], axis=1)
    return _winners(votes, values, undecided, where, readers[0])


def staple(masks: Sequence[np.ndarray]) -> Staple:
    """Estimate the true mask and each reader's quality together, by expectation maximisation.

    The prior of the foreground is its share of all votes, the start is the mean of the masks.

    Args:
        masks: booleans, or zeros and ones, of one shape, one a reader.

    Returns:
        Probability and quality. A figure that nothing tells of (sensitivity where nobody marked
        anything, specificity where all marked all) is NaN.

    Raises:
        GeometryError: fewer than two readers, shapes that differ, or no voxel.
        LabelError: a value is missing, or neither 0 nor 1.

    Source: Warfield et al. 2004, doi:10.1109/TMI.2004.828354.
    """
    checked = _checked(masks)
    for mask in checked:
        if mask.dtype != bool and mask.size and not 0 <= int(mask.min()) <= int(mask.max()) <= 1:
            raise LabelError("masks", "of 0 and 1", f"{mask.min()} to {mask.max()}")
    columns, counts, where = _columns_where([m.astype(np.uint8) for m in checked], 2)
    said = columns.astype(bool)
    prior = float((said.mean(axis=1) * counts).sum() / counts.sum())
    truth = said.mean(axis=1)
    p = q = np.full(len(masks), np.nan)
    iterations = 0
    while iterations < _MOST_ITERATIONS:
        iterations += 1
        before = p, q
        p = _rate(truth * counts, said)
        q = _rate((1 - truth) * counts, ~said)
        yes = prior * np.where(said, p, 1 - p).prod(axis=1)
        no = (1 - prior) * np.where(said, 1 - q, q).prod(axis=1)
        # Where one of the two classes never occurs, its figures are NaN and decide nothing.
        yes, no = np.nan_to_num(yes), np.nan_to_num(no)
        truth = np.divide(yes, yes + no, out=np.zeros_like(yes), where=yes + no > 0)
        moved = max(np.nanmax(np.abs(np.nan_to_num(a - b, nan=0.0)))
                    for a, b in zip((p, q), before, strict=True))  # fmt: skip
        if iterations > 1 and moved < _SETTLED:
            break
    return Staple(truth.astype(np.float32)[where].reshape(masks[0].shape), p, q, iterations)


def _rate(weights: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Share of the weight at which each reader was right, (R,)."""
    total = float(weights.sum())
    return weights @ right / total if total > 0 else np.full(right.shape[1], np.nan)


def multi_label_staple(
    readers: Sequence[np.ndarray], undecided: int = 0, tolerance: float = 1e-5
) -> Consensus:
    """Estimate the true label map and each reader's confusions together.

    It starts from the vote; priors are each label's share of all votes.

    Args:
        readers: label maps of one shape.
        undecided: the value where two labels are as probable.
        tolerance: change of a probability at which it is done.

    Raises:
        GeometryError: fewer than two readers, shapes that differ, or no voxel.
        LabelError: a value is missing or no whole number, or `undecided` does not fit the type.

    Source: Rohlfing, Russakoff and Maurer 2004, doi:10.1109/TMI.2004.830803.
    """
    values, indices = _classes(readers)
    size = len(values)
    columns, counts, where = _columns_where(indices, size)
    votes = np.stack([(columns == k).sum(axis=1) for k in range(size)], axis=1)
    prior = (votes * counts[:, None]).sum(axis=0) / (len(readers) * counts.sum())
    # Where the vote is a tie it starts from no label. (ITK 5.4 counts ties into a neighbouring
    # cell of its table, so that its start, and at times its result, differs where there are any.)
    best = votes.max(axis=1, keepdims=True)
    truth = ((votes == best) & ((votes == best).sum(axis=1, keepdims=True) == 1)).astype(float)
    confusion = np.stack([_confusions(truth, columns[:, r], counts, size, 1) for r in
                          range(len(readers))])  # fmt: skip
    iterations = 0
    while iterations < _MOST_ITERATIONS:
        iterations += 1
        truth = _posterior(prior, confusion, columns)
        updated = np.stack([_confusions(truth, columns[:, r], counts, size, 0) for r in
                            range(len(readers))])  # fmt: skip
        moved = float(np.abs(updated - confusion).max())
        confusion = updated
        if moved < tolerance:
            break
    weights = _posterior(prior, confusion, columns)
    labels = _winners(weights, values, undecided, where, readers[0])
    return Consensus(labels, values, confusion, iterations)


def _posterior(prior: np.ndarray, confusion: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Probability of each label for each column of votes, (P, K)."""
    weights = np.repeat(prior[None], len(columns), axis=0)
    for reader, table in enumerate(confusion):
        weights *= table[columns[:, reader]]
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


def _confusions(
    truth: np.ndarray, said: np.ndarray, counts: np.ndarray, size: int, axis: int
) -> np.ndarray:
    """(said, true) of one reader, each sum along `axis` 1 where there is anything."""
    table = np.zeros((size, size))
    np.add.at(table, said, truth * counts[:, None])
    total = table.sum(axis=axis, keepdims=True)
    return np.divide(table, total, out=np.zeros_like(table), where=total > 0)


def _winners(
    weights: np.ndarray, values: tuple[int, ...], undecided: int, where: np.ndarray,
    like: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The value of the largest weight of each column, put back on the voxels."""
    kind = np.asarray(like).dtype if np.asarray(like).dtype != bool else np.dtype(np.uint8)
    limits = np.iinfo(kind)
    if not limits.min <= undecided <= limits.max:
        raise LabelError("undecided", f"a value of the type {kind}", undecided)
    best = weights.max(axis=1, keepdims=True)
    won = np.asarray(values)[weights.argmax(axis=1)]
    won = np.where((weights == best).sum(axis=1) == 1, won, undecided).astype(kind)
    return won[where].reshape(np.asarray(like).shape)


def _checked(readers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Arrays of whole numbers of one shape, one a reader."""
    arrays = [np.asarray(one) for one in readers]
    if len(arrays) < 2:
        raise GeometryError("readers", "two or more", len(arrays))
    for number, one in enumerate(arrays, 1):
        if one.shape != arrays[0].shape or not one.size:
            raise GeometryError(
                f"ratings of reader {number}", f"of shape {arrays[0].shape}, not empty", one.shape
            )
        missing = one.dtype == object or (one.dtype.kind == "f" and bool(np.isnan(one).any()))
        if missing:
            raise LabelError(
                f"ratings of reader {number}", "complete: one for every subject", "missing ones",
                advice="leave out the subjects that a reader did not rate",
            )  # fmt: skip
        if one.dtype.kind not in "uib":
            raise LabelError(f"ratings of reader {number}", "whole numbers", one.dtype)
    return arrays


def _classes(readers: Sequence[np.ndarray]) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """The values that occur, in order, and each reader's ratings as positions in them."""
    arrays = [one.astype(np.uint8) if one.dtype == bool else one for one in _checked(readers)]
    low = min(int(one.min()) for one in arrays)
    high = max(int(one.max()) for one in arrays)
    if high - low < 1 << 16:
        seen = np.zeros(high - low + 1, dtype=bool)
        for one in arrays:
            seen[one.ravel().astype(np.int64) - low] = True
        values = np.flatnonzero(seen) + low
        kind = np.uint8 if len(values) < 1 << 8 else np.uint16
        position = (np.cumsum(seen) - 1).astype(kind)
        return tuple(values.tolist()), [position[one.astype(np.int64) - low] for one in arrays]
    values = np.unique(np.concatenate([np.unique(one) for one in arrays]))
    return tuple(values.tolist()), [np.searchsorted(values, one) for one in arrays]


def _columns(indices: Sequence[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    columns, counts, _ = _columns_where(indices, size)
    return columns, counts


def _columns_where(
    indices: Sequence[np.ndarray], size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different columns of votes (P, R), how often each occurs, and which a voxel has."""
    readers = len(indices)
    if size**readers > _MOST_COLUMNS:
        stacked = np.stack([one.ravel() for one in indices], axis=1)
        columns, where, counts = np.unique(stacked, axis=0, return_inverse=True, return_counts=True)
        return columns.astype(np.int64), counts, where.ravel()
    flat = [one.ravel() for one in indices]
    kind = np.uint8 if size**readers <= 1 << 8 else np.int32
    code = np.empty(flat[0].size, dtype=kind)
    totals = np.zeros(size**readers, dtype=np.int64)
    for start in range(0, code.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        mixed = flat[0][part].astype(kind)
        for one in flat[1:]:
            mixed = np.multiply(mixed, size, dtype=kind, casting="unsafe")
            mixed = np.add(mixed, one[part], dtype=kind, casting="unsafe")
        code[part] = mixed
        totals += np.bincount(mixed, minlength=size**readers)
    there = np.flatnonzero(totals)
    columns = np.stack([there // size ** (readers - 1 - r) % size for r in range(readers)], axis=1)
    position = np.zeros(size**readers, dtype=np.intp)
    position[there] = np.arange(len(there))
    return columns, totals[there], position[code]
