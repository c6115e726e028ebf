// Voxels in the order of the file, and in that of RAS, in which NiiVue draws.

import type { NVImage } from "@niivue/niivue";
import type { Triple } from "../rest";

export class Grid {
  readonly shape: Triple; // along right, anterior, superior
  readonly spacing: Triple; // mm, likewise
  readonly count: number;
  private readonly fileShape: Triple;
  private readonly start: number;
  private readonly step: Triple;

  constructor(volume: NVImage) {
    this.shape = volume.dimsRAS!.slice(1, 4) as Triple;
    this.spacing = volume.pixDimsRAS!.slice(1, 4).map(Math.abs) as Triple;
    this.fileShape = volume.hdr!.dims.slice(1, 4) as Triple;
    this.step = [...volume.img2RASstep!] as Triple;
    this.start = volume.img2RASstart!.reduce((sum, one) => sum + one, 0);
    this.count = this.shape[0] * this.shape[1] * this.shape[2];
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

  // The voxel in which a place lies; frac is from 0 to 1 along each of RAS.
  fromFrac(frac: ArrayLike<number>): Triple {
    return this.shape.map((size, axis) =>
      Math.max(0, Math.min(size - 1, Math.floor(frac[axis] * size)))) as Triple;
  }

  toFrac(voxel: Triple): Triple {
    return voxel.map((one, axis) => (one + 0.5) / this.shape[axis]) as Triple;
  }

  private offset([x, y, z]: Triple): number {
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

  toRas<T extends Uint8Array | Float32Array>(file: T, into: T): void {
    if (file.length !== this.count) throw new Error("labels lie on another grid than the image");
    this.each((from, to) => { into[to] = file[from]; });
  }

  toFile(ras: Uint8Array): Uint8Array {
    const file = new Uint8Array(ras.length);
    this.each((to, from) => { file[to] = ras[from]; });
    return file;
  }
}
