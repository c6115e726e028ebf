// Fills a label in between the slices on which it was drawn.
//
// Shape-based interpolation: the signed distances to the outlines of two slices are mixed, and
// where the mixture is inside, the slice between them is. Raya & Udupa 1990, doi:10.1109/42.52980.

import type { Grid } from "../viewer/grid";

const FAR = 1e20;

// Returns how many slices along an axis were filled; `fill` takes each voxel that belongs there.
export function interpolate(
  grid: Grid, voxels: Uint8Array, label: number, axis: number, fill: (index: number) => void,
): number {
  const { shape, spacing } = grid;
  const [u, v] = [0, 1, 2].filter((one) => one !== axis);
  const strides = [1, shape[0], shape[0] * shape[1]];
  const [width, height] = [shape[u], shape[v]];
  const cut = (slice: number) => {
    const inside = new Uint8Array(width * height);
    let any = false;
    for (let row = 0, at = 0; row < height; row += 1) {
      let index = slice * strides[axis] + row * strides[v];
      for (let column = 0; column < width; column += 1, at += 1, index += strides[u]) {
        if (voxels[index] === label) {
          inside[at] = 1;
          any = true;
        }
      }
    }
    return any ? inside : null;
  };
  let filled = 0;
  let last: { slice: number; inside: Uint8Array } | null = null;
  for (let slice = 0; slice < shape[axis]; slice += 1) {
    const inside = cut(slice);
    if (!inside) continue;
    if (last && slice - last.slice > 1) {
      const [before, after] = [last.inside, inside].map((one) =>
        signed(one, width, height, spacing[u], spacing[v]));
      for (let between = last.slice + 1; between < slice; between += 1) {
        const part = (between - last.slice) / (slice - last.slice);
        let any = false;
        for (let at = 0; at < before.length; at += 1) {
          if ((1 - part) * before[at] + part * after[at] <= 0) continue;
          any = true;
          fill(between * strides[axis] + (at % width) * strides[u]
            + Math.floor(at / width) * strides[v]);
        }
        filled += Number(any);
      }
    }
    last = { slice, inside };
  }
  return filled;
}

// Distance to the outline in mm, positive inside.
function signed(inside: Uint8Array, width: number, height: number, du: number, dv: number): Float32Array {
  const outer = distances(inside, 1, width, height, du, dv);
  const inner = distances(inside, 0, width, height, du, dv);
  return outer.map((far, at) => (inside[at] ? Math.sqrt(inner[at]) : -Math.sqrt(far)));
}

// Squared distance to the nearest pixel that is `what`, exactly.
// Felzenszwalb & Huttenlocher 2012, doi:10.4086/toc.2012.v008a019.
function distances(
  inside: Uint8Array, what: number, width: number, height: number, du: number, dv: number,
): Float32Array {
  const grid = Float32Array.from(inside, (one) => (one === what ? 0 : FAR));
  const longest = Math.max(width, height);
  const line = new Float64Array(longest);
  const lowest = new Int32Array(longest);
  const bounds = new Float64Array(longest + 1);
  const pass = (count: number, start: number, step: number, mm: number) => {
    for (let at = 0; at < count; at += 1) line[at] = grid[start + at * step];
    let k = 0;
    lowest[0] = 0;
    [bounds[0], bounds[1]] = [-Infinity, Infinity];
    const meet = (q: number, p: number) =>
      (line[q] - line[p] + mm * mm * (q * q - p * p)) / (2 * mm * mm * (q - p));
    for (let q = 1; q < count; q += 1) {
      let s = meet(q, lowest[k]);
      while (k > 0 && s <= bounds[k]) {
        k -= 1;
        s = meet(q, lowest[k]);
      }
      k += 1;
      lowest[k] = q;
      [bounds[k], bounds[k + 1]] = [s, Infinity];
    }
    k = 0;
    for (let q = 0; q < count; q += 1) {
      while (bounds[k + 1] < q) k += 1;
      grid[start + q * step] = (mm * (q - lowest[k])) ** 2 + line[lowest[k]];
    }
  };
  for (let column = 0; column < width; column += 1) pass(height, column, width, dv);
  for (let row = 0; row < height; row += 1) pass(width, row * width, 1, du);
  return grid;
}
