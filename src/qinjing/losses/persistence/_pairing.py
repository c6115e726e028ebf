"""Persistence pairs from the critical cells of a gradient: forests at both ends, loops between.

The picture is that of `_stars`: voxels are corners of cells, values ascend, and all that surrounds
the image came first. Its lowest pairs (a voxel and the edge that joins its basin to an older one)
are the cavities of the superlevel sets of closed cubes, its highest (a cube and the square that
joins it to one of higher value) their components, and those between (edge and square) their loops.

Source: Guillou, Vidal and Tierny 2022, arXiv:2206.13932 (both ends first, loops by the boundaries
of the squares that are left, expanded along the gradient only as far as needed); Chen and Kerber
2011 (clearing), doi:10.1007/978-3-642-15766-0; Garin et al. 2020, arXiv:2005.04597 (duality).
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint64

from qinjing.losses.persistence._stars import (
    CRITICAL,
    EDGE_BIT,
    OUTSIDE,
    VERTEX,
    compiled,
    cube_axis,
    describe,
    first_direction,
    inlined,
    joined_with,
    rank_of,
)

# A key sorts cells by the level of their owner, then its place, then within the star:
# 32 bits level, 26 bits place, 6 bits inside the star.
PLACE_BITS = 26
PLACE_MASK = uint64((1 << PLACE_BITS) - 1)
# Bits of an edge in the word of its star, beside those of `_stars`.
ODD = uint64(1 << 6)  # the edge is in the chain
WAITING = uint64(1 << 7)  # the edge stands in the heap
BIT_OF = np.zeros(37, np.int64)  # which bit is set, from the remainder of the power of two
for _bit in range(27):
    BIT_OF[(1 << _bit) % 37] = _bit


@inlined
def _key(level, place, inside):
    high = uint64(int64(level[place]) - int64(OUTSIDE)) << uint64(32)
    return high | uint64(place) << uint64(6) | uint64(inside)


@inlined
def _place(key):
    return int64(key >> uint64(6) & PLACE_MASK)


@inlined
def _later(level, one, other):
    return level[one] > level[other] or (level[one] == level[other] and one > other)


@inlined
def _word(star, words, place):
    word = words[place]
    if word == uint64(0):
        word = describe(star[place])
        words[place] = word
    return word


@compiled
def keys_of(level, cells, places, wanted):
    """Return the keys of the critical cells of one dimension, not sorted; inside is the bit."""
    count = 0
    for n in range(places.size):
        rest = uint64(cells[places[n]]) & uint64(wanted)
        while rest:
            count += 1
            rest &= rest - uint64(1)
    keys = np.empty(count, np.uint64)
    count = 0
    for n in range(places.size):
        rest = uint64(cells[places[n]]) & uint64(wanted)
        while rest:
            lowest = rest & ~(rest - uint64(1))
            keys[count] = _key(level, places[n], BIT_OF[lowest % uint64(37)])
            count += 1
            rest ^= lowest
    return keys


@compiled
def _basin(level, star, steps, parent, place):
    """Follow the gradient, then the merged basins, down to the oldest voxel; 0 is outside."""
    root = place
    while True:
        if level[root] == OUTSIDE:
            root = 0
            break
        if parent[root] < 0:
            direction = first_direction(star[root])
            parent[root] = root if direction == CRITICAL else root + steps[direction]
        if parent[root] == root:
            break
        root = parent[root]
    while place != root and level[place] != OUTSIDE:
        place, parent[place] = parent[place], root
    return root


@compiled
def join_basins(level, star, words, steps, keys):
    """Pair each basin's voxel with the edge that joins it to an older one.

    Args:
        level: flat int32, padded.
        star: flat uint32.
        words: flat uint64, 0 where not yet known; filled in. Edges that join are marked in it as
            joined with a voxel: they can close no loop.
        steps: six steps in the flat arrays.
        keys: critical edges, ascending.

    Returns:
        (n, 2) places of the edge and of the voxel.
    """
    parent = np.full(level.size, -1, np.int32)
    parent[0] = 0
    pairs = np.empty((keys.size, 2), np.int64)
    count = 0
    for n in range(keys.size):
        place = _place(keys[n])
        bit = int64(keys[n] & uint64(63))
        direction = 0
        for other in range(6):
            if EDGE_BIT[other] == bit:
                direction = other
        one = _basin(level, star, steps, parent, place)
        other = _basin(level, star, steps, parent, place + steps[direction])
        if one == other:
            continue
        if other != 0 and (one == 0 or _later(level, other, one)):
            one, other = other, one
        parent[one] = other
        pairs[count, 0], pairs[count, 1] = place, one
        count += 1
        word = _word(star, words, place)
        words[place] = word ^ uint64(CRITICAL ^ VERTEX) << uint64(8 * direction)
    return pairs[:count]


@compiled
def _cube(level, steps, base):
    """Return the owner of the cube that begins at a place, and its octant seen from there."""
    owner, corner = base, 0
    for n in range(1, 8):
        place = base + steps[1] * (n >> 2) + steps[3] * (n >> 1 & 1) + steps[5] * (n & 1)
        if _later(level, place, owner):
            owner, corner = place, n
    return owner, 7 ^ corner


@compiled
def _summit(level, star, steps, parent, owners, base):
    """Follow the gradient, then the merged summits, up to the highest cube."""
    root = base
    while True:
        if parent[root] < 0:
            owner, octant = _cube(level, steps, root)
            owners[root] = owner
            axis = cube_axis(star[owner], octant)
            if axis == 3:
                parent[root] = root
            elif octant >> (2 - axis) & 1:
                parent[root] = root + steps[2 * axis]
            else:
                parent[root] = root + steps[2 * axis + 1]
        if parent[root] == root:
            break
        root = parent[root]
    while base != root:
        base, parent[base] = parent[base], root
    return root


@compiled
def join_summits(level, star, steps, keys):
    """Pair each summit's cube with the square that joins it to a higher one.

    Args:
        level: flat int32, padded.
        star: flat uint32.
        steps: six steps in the flat arrays.
        keys: critical squares, ascending.

    Returns:
        (n, 2) places of the cube and of the square; which squares joined nothing.
    """
    parent = np.full(level.size, -1, np.int32)
    owners = np.empty(level.size, np.int32)
    pairs = np.empty((keys.size, 2), np.int64)
    rest = np.zeros(keys.size, np.bool_)
    count = 0
    for n in range(keys.size - 1, -1, -1):
        place = _place(keys[n])
        bit = int64(keys[n] & uint64(63))
        base, away = place, 0
        for axis in range(3):
            offset = bit // (9, 3, 1)[axis] % 3
            if offset == 0:
                base += steps[2 * axis]
            elif offset == 1:
                away = steps[2 * axis]
        one = _summit(level, star, steps, parent, owners, base)
        other = _summit(level, star, steps, parent, owners, base + away)
        if one == other:
            rest[n] = True
            continue
        if _later(level, owners[one], owners[other]):
            one, other = other, one
        parent[one] = other
        pairs[count, 0], pairs[count, 1] = owners[one], place
        count += 1
    return pairs[:count], rest


@inlined
def _heap_push(heap, size, key):
    at = size
    while at > 0:
        above = (at - 1) >> 1
        if heap[above] >= key:
            break
        heap[at] = heap[above]
        at = above
    heap[at] = key


@inlined
def _heap_pop(heap, size):
    """Take the greatest key away; `size` counts it still."""
    size -= 1
    key = heap[size]
    at = 0
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        if below + 1 < size and heap[below + 1] > heap[below]:
            below += 1
        if heap[below] <= key:
            break
        heap[at] = heap[below]
        at = below
    heap[at] = key


@inlined
def _toggle(level, star, words, heap, size, place, direction):
    """Add one edge to the chain modulo 2; return the size of the heap."""
    word = _word(star, words, place)
    if joined_with(word, direction) == VERTEX:  # it can close no loop
        return size
    shift = uint64(8 * direction)
    words[place] = (word ^ ODD << shift) | WAITING << shift
    if word >> shift & WAITING:
        return size
    _heap_push(heap, size, _key(level, place, rank_of(word, direction) << 3 | direction))
    return size + 1


@inlined
def _toggle_between(level, star, words, heap, size, one, direction, step):
    """Add the edge from a place in a direction, whoever owns it; outside there is none."""
    other = one + step
    if _later(level, other, one):
        return _toggle(level, star, words, heap, size, other, direction ^ 1)
    if level[one] == OUTSIDE:
        return size
    return _toggle(level, star, words, heap, size, one, direction)


@compiled
def _toggle_rest(level, star, words, steps, heap, size, place, i, j):
    """Add the square that a place owns and that two directions span, but for the edge j."""
    size = _toggle(level, star, words, heap, size, place, i)
    at = place + steps[i]
    size = _toggle_between(level, star, words, heap, size, at, j, steps[j])
    at = place + steps[j]
    return _toggle_between(level, star, words, heap, size, at, i, steps[i])


@compiled
def _toggle_kept(words, heap, size, kept, start, end):
    """Add a chain that was kept."""
    for n in range(start, end):
        key = kept[n]
        place, shift = _place(key), (key & uint64(7)) << uint64(3)
        word = words[place]
        words[place] = (word ^ ODD << shift) | WAITING << shift
        if not word >> shift & WAITING:
            _heap_push(heap, size, key)
            size += 1
    return size


@compiled
def pair_loops(level, star, words, steps, keys):
    """Pair each square that closes a loop's surface with the edge that opened the loop.

    The boundary of a square is a chain of edges. Its last edge is taken again and again: one that
    is joined with a square is replaced by the rest of that square's boundary, one that an earlier
    square took is cancelled with what was left of that square's chain, and one that is free is the
    answer.

    Args:
        level: flat int32, padded.
        star: flat uint32.
        words: flat uint64, 0 where not yet known, after `join_basins`.
        steps: six steps in the flat arrays.
        keys: critical squares that joined no summits, ascending.

    Returns:
        (n, 2) place of the square, and 8 times that of the edge and its direction.
    """
    taken = np.zeros(8 * level.size, np.int32)  # by which square, counted from 1
    kept = np.empty(4096, np.uint64)
    ends = np.zeros(keys.size + 1, np.int64)
    heap = np.empty(1024, np.uint64)
    pairs = np.empty((keys.size, 2), np.int64)
    for n in range(keys.size):
        place = _place(keys[n])
        i, j = _spanned(int64(keys[n] & uint64(63)))
        size = _toggle(level, star, words, heap, 0, place, j)
        size = _toggle_rest(level, star, words, steps, heap, size, place, i, j)
        owner = direction = int64(-1)
        while size:
            owner, direction = _place(heap[0]), int64(heap[0] & uint64(7))
            shift = uint64(8 * direction)
            word = words[owner]
            words[owner] = word & ~((ODD | WAITING) << shift)
            _heap_pop(heap, size)
            size -= 1
            if not word >> shift & ODD:
                continue
            heap = _room(heap, size, 4)
            partner = joined_with(word, direction)
            if partner != CRITICAL:
                size = _toggle_rest(
                    level, star, words, steps, heap, size, owner, partner, direction
                )
                continue
            column = taken[8 * owner + direction]
            if column == 0:
                taken[8 * owner + direction] = n + 1
                break
            heap = _room(heap, size, ends[column] - ends[column - 1])
            size = _toggle_kept(words, heap, size, kept, ends[column - 1], ends[column])
        pairs[n, 0], pairs[n, 1] = place, 8 * owner + direction
        kept = _room(kept, ends[n], size)
        ends[n + 1] = _keep(heap, size, words, kept, ends[n])
    return pairs


@compiled
def _room(keys, size, more):
    """The same keys with room for some more."""
    if size + more <= keys.size:
        return keys
    larger = np.empty(2 * (size + more), np.uint64)
    larger[:size] = keys[:size]
    return larger


@compiled
def _spanned(bit):
    """Return the two directions that span the square of a star's bit."""
    i = j = -1
    for axis in range(3):
        offset = bit // (9, 3, 1)[axis] % 3
        if offset != 1:
            i, j = j, 2 * axis + (offset == 2)
    return i, j


@compiled
def _keep(heap, size, words, kept, end):
    """Append the chain that the heap holds, clear its marks, and return where it ends."""
    for n in range(size):
        key = heap[n]
        place, shift = _place(key), (key & uint64(7)) << uint64(3)
        if words[place] >> shift & ODD:
            kept[end] = key
            end += 1
        words[place] &= ~((ODD | WAITING) << shift)
    return end
