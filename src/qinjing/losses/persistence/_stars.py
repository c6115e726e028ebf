"""The discrete gradient of an image: which cells of a voxel's star cancel each other.

In the picture used here voxels are the corners of cells (the dual of "voxels are closed cubes").
Every cell belongs to the last of its corners in the order of values, ties broken by place. The
cells of one voxel are its star: up to 27, the bits of one integer; bit 9(z+1) + 3(y+1) + (x+1) is
the cell that reaches from the voxel to its neighbour (z, y, x). A star enters the filtration at
once, so that pairs within it do not live. Six rounds of "join each cell with the one that reaches
one step further in this direction" cancel most of them with a few operations on whole stars; such
a sequence of element matchings is acyclic. What is left is critical.

Source: Robins, Wood and Sheppard 2011, doi:10.1109/TPAMI.2011.95 (stars of voxels); Jonsson 2008,
doi:10.1007/978-3-540-75859-4, lemma 4.1 (element matchings).
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint32, uint64


def compiled(function, inline="never"):
    """Compile for use on threads, and keep the result on disk where there is a place for it."""
    try:
        return njit(nogil=True, cache=True, inline=inline)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(nogil=True, inline=inline)(function)


def inlined(function):
    """Compile as part of whatever calls it."""
    return compiled(function, inline="always")


OUTSIDE = -(2**31)  # the level of what surrounds the image: before all others

# Directions 0 to 5 are -z, +z, -y, +y, -x, +x: `direction ^ 1` is the opposite, `>> 1` the axis.
EDGE_BIT = (4, 22, 10, 16, 12, 14)  # the cell that is one step in that direction
CUBE_BIT = (0, 2, 6, 8, 18, 20, 24, 26)  # octant 4z + 2y + x, 1 where it reaches up
CENTRE = uint32(1 << 13)
EDGES = uint32(0x0415410)
SQUARES = uint32(0x2AA8AAA)
CUBES = uint32(0x5140145)
FLAT_Z, FLAT_Y, FLAT_X = uint32(0x003FE00), uint32(0x0E07038), uint32(0x2492492)

# What an edge can be joined with: the square that spans it and direction 0 to 5, or
VERTEX = 6  # the voxel itself
CRITICAL = 7  # nothing
# The word of a star has eight bits for each direction: three for what the edge is joined with,
# three for its rank (see `describe`) and two that `_pairing` uses.
KNOWN = uint64(1 << 63)


@inlined
def _down(cells, flat, shift):
    """Cells that lie flat and can be joined with the one a step down."""
    return cells & flat & (cells << shift)


@inlined
def _up(cells, flat, shift):
    """Cells that lie flat and can be joined with the one a step up."""
    return cells & flat & (cells >> shift)


@compiled
def remainder(star):
    """Return the cells of a star that no round cancels."""
    cells = uint32(star)
    low = _down(cells, FLAT_Z, uint32(9))
    cells ^= low | (low >> uint32(9))
    low = _up(cells, FLAT_Z, uint32(9))
    cells ^= low | (low << uint32(9))
    low = _down(cells, FLAT_Y, uint32(3))
    cells ^= low | (low >> uint32(3))
    low = _up(cells, FLAT_Y, uint32(3))
    cells ^= low | (low << uint32(3))
    low = _down(cells, FLAT_X, uint32(1))
    cells ^= low | (low >> uint32(1))
    low = _up(cells, FLAT_X, uint32(1))
    cells ^= low | (low << uint32(1))
    return uint32(cells)


@compiled
def find_stars(level, star, critical):
    """Fill in the star of every voxel and its critical cells.

    Args:
        level: (D + 2, H + 2, W + 2) int32, `OUTSIDE` in the outermost layer.
        star: the same shape, uint32; written.
        critical: the same shape, uint32; written.
    """
    depth, height, width = level.shape
    one = uint32(1)
    for z in range(1, depth - 1):
        for y in range(1, height - 1):
            a, b, c = level[z - 1, y - 1], level[z - 1, y], level[z - 1, y + 1]
            d, e, f = level[z, y - 1], level[z, y], level[z, y + 1]
            g, h, i = level[z + 1, y - 1], level[z + 1, y], level[z + 1, y + 1]
            row, left = star[z, y], critical[z, y]
            for x in range(width - 2):
                own = e[x + 1]
                # A tie goes to the later place: neighbours before this one may be equal.
                cells = (
                    uint32(a[x] <= own)
                    | uint32(a[x + 1] <= own) << one
                    | uint32(a[x + 2] <= own) << uint32(2)
                    | uint32(b[x] <= own) << uint32(3)
                    | uint32(b[x + 1] <= own) << uint32(4)
                    | uint32(b[x + 2] <= own) << uint32(5)
                    | uint32(c[x] <= own) << uint32(6)
                    | uint32(c[x + 1] <= own) << uint32(7)
                    | uint32(c[x + 2] <= own) << uint32(8)
                    | uint32(d[x] <= own) << uint32(9)
                    | uint32(d[x + 1] <= own) << uint32(10)
                    | uint32(d[x + 2] <= own) << uint32(11)
                    | uint32(e[x] <= own) << uint32(12)
                    | CENTRE
                    | uint32(e[x + 2] < own) << uint32(14)
                    | uint32(f[x] < own) << uint32(15)
                    | uint32(f[x + 1] < own) << uint32(16)
                    | uint32(f[x + 2] < own) << uint32(17)
                    | uint32(g[x] < own) << uint32(18)
                    | uint32(g[x + 1] < own) << uint32(19)
                    | uint32(g[x + 2] < own) << uint32(20)
                    | uint32(h[x] < own) << uint32(21)
                    | uint32(h[x + 1] < own) << uint32(22)
                    | uint32(h[x + 2] < own) << uint32(23)
                    | uint32(i[x] < own) << uint32(24)
                    | uint32(i[x + 1] < own) << uint32(25)
                    | uint32(i[x + 2] < own) << uint32(26)
                )
                # A cell needs all its corners: along each axis in turn, the flat one below it.
                flat = cells & FLAT_X
                cells &= flat | (flat << one) | (flat >> one)
                flat = cells & FLAT_Y
                cells &= flat | (flat << uint32(3)) | (flat >> uint32(3))
                flat = cells & FLAT_Z
                cells &= flat | (flat << uint32(9)) | (flat >> uint32(9))
                row[x + 1] = cells
                left[x + 1] = remainder(cells)


@compiled
def first_direction(star):
    """Return the direction of the edge that the voxel itself is joined with, or CRITICAL."""
    for direction in range(6):
        if star >> EDGE_BIT[direction] & 1:
            return direction
    return CRITICAL


@compiled
def cube_axis(star, octant):
    """Return the axis along which a cube of a star is joined with a square, or 3 for none."""
    cells, cube = uint32(star), uint32(1) << uint32(CUBE_BIT[octant])
    for direction in range(6):
        low, high = _round(cells, direction)
        if high & cube:
            return direction >> 1
        cells ^= low | high
    return 3


@inlined
def _round(cells, direction):
    """The lower and the upper cells that the round of a direction joins."""
    axis = direction >> 1
    shift = uint32((9, 3, 1)[axis])
    flat = (FLAT_Z, FLAT_Y, FLAT_X)[axis]
    if direction & 1:
        low = _up(cells, flat, shift)
        return uint32(low), uint32(low << shift)
    low = _down(cells, flat, shift)
    return uint32(low), uint32(low >> shift)


@compiled
def describe(star):
    """Return the word of a star: what each edge is joined with, and its rank.

    The rank says where an edge stands among the edges of its star in an order in which the joined
    pairs are neighbours: first the one joined with the voxel, then the critical ones, and an edge
    joined with the square towards direction i after the edge i.
    """
    cells, word = uint32(star), KNOWN
    for direction in range(6):
        word |= uint64(CRITICAL) << uint64(8 * direction)
    for direction in range(6):
        low, high = _round(cells, direction)
        cells ^= low | high
        if low & CENTRE:
            word ^= uint64(CRITICAL ^ VERTEX) << uint64(8 * direction)
        if low & EDGES:
            for other in range(6):
                if low >> uint32(EDGE_BIT[other]) & uint32(1):
                    word ^= uint64(CRITICAL ^ direction) << uint64(8 * other)
    for direction in range(6):
        rank, at = 0, joined_with(word, direction)
        while at < VERTEX:
            rank += 1
            at = joined_with(word, at)
        rank += at == CRITICAL
        word |= uint64(rank) << uint64(8 * direction + 3)
    return word


@inlined
def joined_with(word, direction):
    """Return what the edge in a direction is joined with: a direction, `VERTEX` or `CRITICAL`."""
    return np.int64(word >> uint64(8 * direction) & uint64(7))


@inlined
def rank_of(word, direction):
    """Return the rank of the edge in a direction among the edges of its star."""
    return np.int64(word >> uint64(8 * direction + 3) & uint64(7))
