// NIfTI-1 as the service sends it: read for its voxels and where they lie, written for labels alone.

import type { Triple } from "./rest";

const HEADER = 348;

export type Voxels = Uint8Array | Int8Array | Int16Array | Uint16Array | Int32Array | Uint32Array
  | Float32Array | Float64Array;

const KINDS: Record<number, { new (buffer: ArrayBuffer, offset: number, length: number): Voxels; BYTES_PER_ELEMENT: number }> = {
  2: Uint8Array, 256: Int8Array, 4: Int16Array, 512: Uint16Array, 8: Int32Array, 768: Uint32Array,
  16: Float32Array, 64: Float64Array,
};
const UINT8 = 2;

export interface Nifti {
  file: ArrayBuffer;
  little: boolean;
  shape: Triple;
  voxels: Voxels; // as stored: grey = slope · stored + inter
  slope: number;
  inter: number;
  affine: number[][]; // three rows of four: (i, j, k, 1) → RAS in mm
}

// Unzips an answer while it still comes in, into one piece of the size that its header tells.
export async function unzipped(answer: Response): Promise<ArrayBuffer> {
  const stream = answer.body!.pipeThrough(new DecompressionStream("gzip"));
  const reader = stream.getReader();
  let into = new Uint8Array(1 << 16);
  let size = 0;
  let told = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return size === into.length ? into.buffer : into.slice(0, size).buffer;
    if (size + value.length > into.length) {
      into = grown(into, size, Math.max(size + value.length, told ? 2 * into.length : 0));
    }
    into.set(value, size);
    size += value.length;
    if (!told && size >= HEADER + 4) {
      told = true;
      into = grown(into, size, Math.max(size, sizeOf(new DataView(into.buffer))));
    }
  }
}

function grown(from: Uint8Array<ArrayBuffer>, used: number, to: number): Uint8Array<ArrayBuffer> {
  const into = new Uint8Array(to);
  into.set(from.subarray(0, used));
  return into;
}

// Bytes of a file by its header; 0 where that is none of ours, or tells more than there can be.
function sizeOf(view: DataView): number {
  const little = view.getInt32(0, true) === HEADER;
  const shape = [0, 1, 2, 3].map((at) => Math.max(1, view.getInt16(42 + 2 * at, little)));
  const size = shape.reduce((all, one) => all * one, view.getInt16(72, little) / 8)
    + view.getFloat32(108, little);
  return Number.isInteger(size) && size < 2 ** 31 ? size : 0;
}

export function read(file: ArrayBuffer): Nifti {
  const view = new DataView(file);
  const little = view.getInt32(0, true) === HEADER;
  if (!little && view.getInt32(0, false) !== HEADER) throw new Error("no NIfTI-1 file");
  const size = (at: number) => Math.max(1, view.getInt16(42 + 2 * at, little));
  const shape: Triple = [size(0), size(1), size(2)];
  const kind = KINDS[view.getInt16(70, little)];
  if (!kind) throw new Error(`NIfTI's type ${view.getInt16(70, little)} is not read`);
  const count = shape[0] * shape[1] * shape[2];
  let offset = Math.max(HEADER + 4, view.getFloat32(108, little));
  let buffer = file;
  if (!little) [buffer, offset] = [turned(file, offset, count, kind.BYTES_PER_ELEMENT), 0];
  else if (offset % kind.BYTES_PER_ELEMENT) {
    [buffer, offset] = [file.slice(offset, offset + count * kind.BYTES_PER_ELEMENT), 0];
  }
  const slope = view.getFloat32(112, little);
  return {
    file, little, shape, voxels: new kind(buffer, offset, count),
    slope: slope && Number.isFinite(slope) ? slope : 1,
    inter: slope && Number.isFinite(slope) ? view.getFloat32(116, little) : 0,
    affine: affineOf(view, little),
  };
}

// Values whose bytes stand the other way round, in this machine's order.
function turned(file: ArrayBuffer, offset: number, count: number, size: number): ArrayBuffer {
  const bytes = new Uint8Array(file, offset, count * size);
  const into = new Uint8Array(count * size);
  for (let at = 0; at < bytes.length; at += 1) {
    into[at - (at % size) + size - 1 - (at % size)] = bytes[at];
  }
  return into.buffer;
}

// The sform; without one the qform; without that the spacing alone, as the standard has it.
function affineOf(view: DataView, little: boolean): number[][] {
  const float = (at: number) => view.getFloat32(at, little);
  if (view.getInt16(254, little) > 0) {
    return [280, 296, 312].map((row) => [0, 4, 8, 12].map((at) => float(row + at)));
  }
  const spacing = [80, 84, 88].map(float);
  if (view.getInt16(252, little) <= 0) {
    return spacing.map((mm, row) => [0, 1, 2, 3].map((column) => (row === column ? mm : 0)));
  }
  const [b, c, d] = [256, 260, 264].map(float);
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const handed = float(76) < 0 ? -1 : 1;
  const turn = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  return turn.map((row, at) => [
    row[0] * spacing[0], row[1] * spacing[1], row[2] * spacing[2] * handed, float(268 + 4 * at),
  ]);
}

// The labels of a mask, a byte each; what no byte holds is refused.
export function labelsOf(file: ArrayBuffer): Uint8Array {
  const { voxels } = read(file);
  if (voxels instanceof Uint8Array) return voxels;
  const labels = new Uint8Array(voxels.length);
  for (let at = 0; at < labels.length; at += 1) {
    const value = voxels[at];
    if (value < 0 || value > 255) throw new Error(`label ${value} is above 255`);
    labels[at] = value;
  }
  return labels;
}

// A gzipped file of labels on the grid of an image, whose header it takes.
export async function zippedLabels(image: Nifti, labels: Uint8Array): Promise<Blob> {
  const head = new Uint8Array(HEADER + 4);
  head.set(new Uint8Array(image.file, 0, HEADER));
  const view = new DataView(head.buffer);
  [3, ...image.shape, 1, 1, 1, 1].forEach((size, at) => view.setInt16(40 + 2 * at, size, image.little));
  view.setInt16(70, UINT8, image.little);
  view.setInt16(72, 8, image.little);
  view.setFloat32(108, HEADER + 4, image.little);
  view.setFloat32(112, 1, image.little); // scl_slope
  for (const at of [116, 124, 128]) view.setFloat32(at, 0, image.little); // scl_inter, cal_max, cal_min
  head.fill(0, 148, 252); // description and auxiliary file: not of these labels
  head.set([0x6e, 0x2b, 0x31, 0], 344); // "n+1"
  const whole = new Blob([head, labels as Uint8Array<ArrayBuffer>]);
  return new Response(whole.stream().pipeThrough(new CompressionStream("gzip"))).blob();
}
