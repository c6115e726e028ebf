// Voxels in the order of the file, and in that of RAS, in which planes are shown and drawn on.

import type { Nifti } from "../nifti";
import type { Triple } from "../rest";

export class Grid {
  readonly shape: Triple; // along right, anterior, superior
  readonly spacing: Triple; // mm, likewise
  readonly count: number;
  readonly start: number; // in the file, of RAS (0, 0, 0)
  readonly step: Triple; // in the file, of one voxel along each of RAS
  private readonly fileShape: Triple;
  private readonly affine: number[][]; // RAS voxel → mm
  private readonly inverse: number[][]; // mm → RAS voxel

  constructor({ shape, affine }: Pick<Nifti, "shape" | "affine">) {
    this.fileShape = shape;
    const axes = closest(affine); // for each of RAS: which axis of the file
    const flips = axes.map((axis, ras) => affine[ras][axis] < 0);
    const strides = [1, shape[0], shape[0] * shape[1]];
    this.shape = axes.map((axis) => shape[axis]) as Triple;
    this.step = axes.map((axis, ras) => (flips[ras] ? -1 : 1) * strides[axis]) as Triple;
    this.start = axes.reduce(
      (sum, axis, ras) => sum + (flips[ras] ? (shape[axis] - 1) * strides[axis] : 0), 0);
    this.spacing = axes.map((axis) => Math.hypot(...affine.map((row) => row[axis])) || 1) as Triple;
    this.count = shape[0] * shape[1] * shape[2];
    this.affine = affine.map((row) => {
      const turned = axes.map((axis, ras) => (flips[ras] ? -row[axis] : row[axis]));
      const origin = axes.reduce(
        (sum, axis, ras) => sum + (flips[ras] ? (shape[axis] - 1) * row[axis] : 0), row[3]);
      return [...turned, origin];
    });
    this.inverse = inverted(this.affine);
  }

  index([x, y, z]: Triple): number {
    return x + this.shape[0] * (y + this.shape[1] * z);
  }

  at(index: number): Triple {
    const [nx, ny] = this.shape;
    return [index % nx, Math.floor(index / nx) % ny, Math.floor(index / (nx * ny))];
  }

  within(voxel: Triple): boolean {
    return voxel.every((one, axis) => one >= 0 && one < this.shape[axis]);
  }

  // The voxel nearest to a place that may lie between voxels, or outside.
  nearest(place: Triple): Triple {
    return place.map((one, axis) =>
      Math.max(0, Math.min(this.shape[axis] - 1, Math.round(one)))) as Triple;
  }

  toMm(voxel: Triple): Triple {
    return this.affine.map((row) =>
      row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]) as Triple;
  }

  fromMm(mm: Triple): Triple {
    const [x, y, z] = mm.map((one, at) => one - this.affine[at][3]);
    return this.inverse.map((row) => row[0] * x + row[1] * y + row[2] * z) as Triple;
  }

  // Where a voxel of RAS lies in the file.
  offset([x, y, z]: Triple): number {
    return this.start + x * this.step[0] + y * this.step[1] + z * this.step[2];
  }

  // A voxel of RAS as (i, j, k) of the file.
  native(voxel: Triple): Triple {
    const at = this.offset(voxel);
    const [ni, nj] = this.fileShape;
    return [at % ni, Math.floor(at / ni) % nj, Math.floor(at / (ni * nj))];
  }

  private each(act: (file: number, ras: number) => void): void {
    const [nx, ny, nz] = this.shape;
    const [sx, sy, sz] = this.step;
    let ras = 0;
    for (let z = 0; z < nz; z += 1) {
      for (let y = 0; y < ny; y += 1) {
        let file = this.start + y * sy + z * sz;
        for (let x = 0; x < nx; x += 1, file += sx, ras += 1) act(file, ras);
      }
    }
  }

  toRas(file: Uint8Array, into: Uint8Array): void {
    if (file.length !== this.count) throw new Error("labels lie on another grid than the image");
    this.each((from, to) => { into[to] = file[from]; });
  }

  toFile(ras: Uint8Array): Uint8Array {
    const file = new Uint8Array(ras.length);
    this.each((to, from) => { file[to] = ras[from]; });
    return file;
  }
}

// For right, anterior and superior: the axis of the file that lies nearest, each once.
function closest(affine: number[][]): Triple {
  const orders: Triple[] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
  const lengths = [0, 1, 2].map((axis) => Math.hypot(...affine.map((row) => row[axis])) || 1);
  const fit = (order: Triple) => order.reduce(
    (sum, axis, ras) => sum + Math.abs(affine[ras][axis]) / lengths[axis], 0);
  return orders.reduce((best, order) => (fit(order) > fit(best) + 1e-6 ? order : best));
}

function inverted(m: number[][]): number[][] {
  const minor = (r: number, c: number) => {
    const [a, b] = [0, 1, 2].filter((one) => one !== r);
    const [d, e] = [0, 1, 2].filter((one) => one !== c);
    return m[a][d] * m[b][e] - m[a][e] * m[b][d];
  };
  const sign = (r: number, c: number) => ((r + c) % 2 ? -1 : 1);
  const whole = [0, 1, 2].reduce((sum, c) => sum + sign(0, c) * m[0][c] * minor(0, c), 0);
  return [0, 1, 2].map((r) => [0, 1, 2].map((c) => (sign(c, r) * minor(c, r)) / whole));
}
