// Which voxels a brush, a polygon or a region takes. Places are in voxels of RAS, sizes in mm.

import type { Triple } from "../rest";
import type { Grid } from "../viewer/grid";

type Visit = (index: number) => void;

// A ball around a place; with an axis, the disc of it in the place's own slice.
export function stamp(grid: Grid, place: Triple, radius: number, axis: number | null, visit: Visit): void {
  const { shape, spacing } = grid;
  const half = spacing.map((mm, at) => (at === axis ? 0 : radius / mm));
  const from = place.map((one, at) => Math.max(0, Math.ceil(at === axis ? Math.round(one) : one - half[at])));
  const to = place.map((one, at) =>
    Math.min(shape[at] - 1, Math.floor(at === axis ? Math.round(one) : one + half[at])));
  const near = Math.max(radius * radius, 1e-9);
  const square = (at: number, voxel: number) =>
    (at === axis ? 0 : ((voxel - place[at]) * spacing[at]) ** 2);
  for (let z = from[2]; z <= to[2]; z += 1) {
    for (let y = from[1]; y <= to[1]; y += 1) {
      const rest = square(2, z) + square(1, y);
      if (rest > near) continue;
      for (let x = from[0]; x <= to[0]; x += 1) {
        if (rest + square(0, x) <= near) visit(grid.index([x, y, z]));
      }
    }
  }
  // The smallest brush takes the voxel under it at least.
  const own = place.map(Math.round) as Triple;
  if (grid.within(own)) visit(grid.index(own));
}

// The brush along a way, without gaps.
export function line(
  grid: Grid, from: Triple, to: Triple, radius: number, axis: number | null, visit: Visit,
): void {
  const way = Math.hypot(...from.map((one, at) => (to[at] - one) * grid.spacing[at]));
  const step = Math.max(radius / 2, Math.min(...grid.spacing) / 2);
  const steps = Math.max(1, Math.ceil(way / step));
  for (let at = 1; at <= steps; at += 1) {
    const place = from.map((one, axis_) => one + ((to[axis_] - one) * at) / steps) as Triple;
    stamp(grid, place, radius, axis, visit);
  }
}

// The voxels whose middle lies in a polygon of a slice, by the even-odd rule.
export function polygon(grid: Grid, corners: Triple[], axis: number, visit: Visit): void {
  const [u, v] = [0, 1, 2].filter((one) => one !== axis);
  const slice = Math.round(corners[0][axis]);
  const rows = corners.map((one) => one[v]);
  const first = Math.max(0, Math.ceil(Math.min(...rows)));
  const last = Math.min(grid.shape[v] - 1, Math.floor(Math.max(...rows)));
  for (let row = first; row <= last; row += 1) {
    const cuts: number[] = [];
    corners.forEach((a, at) => {
      const b = corners[(at + 1) % corners.length];
      if ((a[v] <= row) === (b[v] <= row)) return;
      cuts.push(a[u] + ((row - a[v]) / (b[v] - a[v])) * (b[u] - a[u]));
    });
    cuts.sort((one, other) => one - other);
    for (let at = 0; at + 1 < cuts.length; at += 2) {
      const end = Math.min(grid.shape[u] - 1, Math.floor(cuts[at + 1]));
      for (let column = Math.max(0, Math.ceil(cuts[at])); column <= end; column += 1) {
        const voxel: Triple = [0, 0, 0];
        [voxel[axis], voxel[u], voxel[v]] = [slice, column, row];
        visit(grid.index(voxel));
      }
    }
  }
}

// What is connected with a voxel by faces and accepted; with an axis, in its slice alone.
// Null where there is more than `most`.
export function region(
  grid: Grid, seed: Triple, axis: number | null, accept: (index: number) => boolean, most: number,
): Int32Array | null {
  const first = grid.index(seed);
  if (!accept(first)) return new Int32Array(0);
  const { shape } = grid;
  const strides = [1, shape[0], shape[0] * shape[1]];
  const seen = new Uint8Array(grid.count);
  const found: number[] = [first];
  seen[first] = 1;
  for (let next = 0; next < found.length; next += 1) {
    if (found.length > most) return null;
    const index = found[next];
    for (let at = 0; at < 3; at += 1) {
      if (at === axis) continue;
      const own = Math.floor(index / strides[at]) % shape[at];
      for (const by of [-1, 1]) {
        const to = own + by;
        if (to < 0 || to >= shape[at]) continue;
        const neighbour = index + by * strides[at];
        if (seen[neighbour]) continue;
        seen[neighbour] = 1;
        if (accept(neighbour)) found.push(neighbour);
      }
    }
  }
  return Int32Array.from(found);
}
