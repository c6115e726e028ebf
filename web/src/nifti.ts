// NIfTI-1 as the service sends it: read for its grid and labels, written for labels alone.

import type { Triple } from "./rest";

const HEADER = 348;
const UINT8 = 2;

export interface Header {
  little: boolean;
  shape: Triple;
  type: number;
  offset: number;
}

// Unzips an answer while it still comes in.
export async function unzipped(answer: Response): Promise<ArrayBuffer> {
  if (!answer.body) return new ArrayBuffer(0);
  const stream = answer.body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

export function header(file: ArrayBuffer): Header {
  const view = new DataView(file);
  const little = view.getInt32(0, true) === HEADER;
  if (!little && view.getInt32(0, false) !== HEADER) throw new Error("no NIfTI-1 file");
  const size = (at: number) => Math.max(1, view.getInt16(42 + 2 * at, little));
  return {
    little,
    shape: [size(0), size(1), size(2)],
    type: view.getInt16(70, little),
    offset: Math.max(HEADER + 4, view.getFloat32(108, little)),
  };
}

const BYTES: Record<number, [number, (view: DataView, at: number, little: boolean) => number]> = {
  4: [2, (view, at, little) => view.getInt16(at, little)],
  8: [4, (view, at, little) => view.getInt32(at, little)],
  16: [4, (view, at, little) => view.getFloat32(at, little)],
  64: [8, (view, at, little) => view.getFloat64(at, little)],
  256: [1, (view, at) => view.getInt8(at)],
  512: [2, (view, at, little) => view.getUint16(at, little)],
  768: [4, (view, at, little) => view.getUint32(at, little)],
};

// The labels of a mask, in the file's own order; what no byte holds is refused.
export function labelsOf(file: ArrayBuffer): Uint8Array {
  const { shape, type, offset, little } = header(file);
  const count = shape[0] * shape[1] * shape[2];
  if (type === UINT8) return new Uint8Array(file, offset, count);
  const known = BYTES[type];
  if (!known) throw new Error(`labels of NIfTI's type ${type} are not read`);
  const [size, read] = known;
  const view = new DataView(file, offset);
  const labels = new Uint8Array(count);
  for (let at = 0; at < count; at += 1) {
    const value = read(view, at * size, little);
    if (value < 0 || value > 255) throw new Error(`label ${value} is above 255`);
    labels[at] = value;
  }
  return labels;
}

// A gzipped file of labels on the grid of an image's file, whose header it takes.
export async function zippedLabels(image: ArrayBuffer, labels: Uint8Array): Promise<Blob> {
  const { little, offset: _, ...rest } = header(image);
  const head = new Uint8Array(HEADER + 4);
  head.set(new Uint8Array(image, 0, HEADER));
  const view = new DataView(head.buffer);
  const [x, y, z] = rest.shape;
  [3, x, y, z, 1, 1, 1, 1].forEach((size, at) => view.setInt16(40 + 2 * at, size, little));
  view.setInt16(70, UINT8, little);
  view.setInt16(72, 8, little);
  view.setFloat32(108, HEADER + 4, little);
  view.setFloat32(112, 1, little); // scl_slope
  view.setFloat32(116, 0, little); // scl_inter
  view.setFloat32(124, 0, little); // cal_max
  view.setFloat32(128, 0, little); // cal_min
  head.fill(0, 148, 252); // description and auxiliary file: not of these labels
  head.set([0x6e, 0x2b, 0x31, 0], 344); // "n+1"
  const whole = new Blob([head, labels as Uint8Array<ArrayBuffer>]);
  const stream = whole.stream().pipeThrough(new CompressionStream("gzip"));
  return new Response(stream).blob();
}
