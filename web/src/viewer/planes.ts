// Three planes of a volume on one canvas, drawn by the processor: as fast without a graphics card,
// on a remote desktop say, as with one. NiiVue draws the fourth picture, 3-D (solid.ts).
//
// As radiologists look: the patient's right is on the left, the nose is on the left, the head up.

import { colour } from "../colours";
import type { Nifti } from "../nifti";
import type { Triple } from "../rest";
import type { Grid } from "./grid";

export type View = "all" | "planes" | "axial" | "coronal" | "sagittal" | "render";

interface Plane {
  axis: number; // that is looked along: 0 right, 1 anterior, 2 superior
  across: number; // the axis of RAS from left to right on the screen
  down: number; // and from top to bottom
  mirrored: boolean; // whether `across` grows to the left
  letters: [string, string]; // left and top
}

const PLANES: Record<"axial" | "coronal" | "sagittal", Plane> = {
  axial: { axis: 2, across: 0, down: 1, mirrored: true, letters: ["R", "A"] },
  coronal: { axis: 1, across: 0, down: 2, mirrored: true, letters: ["R", "S"] },
  sagittal: { axis: 0, across: 1, down: 2, mirrored: true, letters: ["A", "S"] },
};

export interface Tile {
  plane: Plane | null; // null for 3-D
  scale: number; // pixels a mm, before one zooms
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Box {
  from: Triple;
  to: Triple; // included
}

const CROSS = "#5fd0c0";
const GAP = 4;

let card: boolean | null = null;

// Whether a graphics card draws; without one a canvas kept in memory is the faster.
function hasCard(): boolean {
  card ??= Boolean(document.createElement("canvas").getContext("webgl2", {
    failIfMajorPerformanceCaveat: true,
  }));
  return card;
}

// Pixels of the canvas where a common screen has one: letters and lines grow with the page's.
export function unit(): number {
  return (devicePixelRatio || 1) * (parseFloat(getComputedStyle(document.documentElement).fontSize) / 16);
}

export class Planes {
  tiles: Tile[] = [];
  low = 0;
  high = 1;
  opacity = 0.5;
  zoom = 1;
  at: Triple = [0, 0, 0]; // the crosshair
  focus: Triple = [0, 0, 0]; // what lies in the middle of each plane
  smooth = true;
  unit = 1;
  private readonly paper: CanvasRenderingContext2D;
  private readonly greys = new Map<number, Layer>();
  private readonly marks = new Map<number, Layer>();
  private readonly table = new Uint32Array(256);

  constructor(
    readonly canvas: HTMLCanvasElement, readonly grid: Grid, private readonly image: Nifti,
    readonly labels: Uint8Array,
  ) {
    this.paper = canvas.getContext("2d", { alpha: false, willReadFrequently: !hasCard() })!;
    this.at = grid.shape.map((size) => Math.floor(size / 2)) as Triple;
    this.center();
    this.hide(new Set());
  }

  center(): void {
    this.focus = this.grid.shape.map((size) => (size - 1) / 2) as Triple;
    this.zoom = 1;
  }

  hide(hidden: ReadonlySet<number>): void {
    for (let label = 1; label < 256; label += 1) {
      const [r, g, b] = colour(label);
      this.table[label] = hidden.has(label) ? 0 : (255 << 24) | (b << 16) | (g << 8) | r;
    }
    this.forget(false);
  }

  // What was drawn of slices holds no more: of labels, or of greys too.
  forget(greys: boolean): void {
    for (const layer of this.marks.values()) layer.slice = -1;
    if (greys) for (const layer of this.greys.values()) layer.slice = -1;
  }

  // Labels within a box changed: slices that cut it are patched, not made anew.
  patch({ from, to }: Box): void {
    for (const plane of Object.values(PLANES)) {
      const layer = this.marks.get(plane.axis);
      const slice = this.at[plane.axis];
      if (layer?.slice !== slice || slice < from[plane.axis] || slice > to[plane.axis]) continue;
      const { across, down } = plane;
      this.fillMarks(plane, layer.pixels, from[across], to[across], from[down], to[down]);
      const [nu, nv] = [this.grid.shape[across], this.grid.shape[down]];
      const left = plane.mirrored ? nu - 1 - to[across] : from[across];
      layer.put(left, nv - 1 - to[down], to[across] - from[across] + 1, to[down] - from[down] + 1);
    }
  }

  grey(voxel: Triple): number {
    return this.image.voxels[this.grid.offset(voxel)] * this.image.slope + this.image.inter;
  }

  // The same by a voxel's number in RAS.
  greyAt(index: number): number {
    const { shape, start, step } = this.grid;
    const x = index % shape[0];
    const y = Math.floor(index / shape[0]) % shape[1];
    const z = Math.floor(index / (shape[0] * shape[1]));
    const from = start + x * step[0] + y * step[1] + z * step[2];
    return this.image.voxels[from] * this.image.slope + this.image.inter;
  }

  // Lays the tiles out, each picture as large as its tile lets it; returns that of 3-D.
  layOut(view: View, width: number, height: number): Tile | null {
    this.unit = unit();
    const mm = this.grid.shape.map((size, axis) => size * this.grid.spacing[axis]);
    const tile = (plane: Plane | null, left: number, top: number, right: number, bottom: number): Tile => {
      const [x, y] = [Math.round(left * width), Math.round(top * height)];
      const w = Math.round(right * width) - x - (right < 1 ? GAP : 0);
      const h = Math.round(bottom * height) - y - (bottom < 1 ? GAP : 0);
      const scale = plane ? Math.min(w / mm[plane.across], h / mm[plane.down]) : 1;
      return { plane, x, y, width: w, height: h, scale };
    };
    const { axial, coronal, sagittal } = PLANES;
    const long = width / Math.max(1, height);
    if (view === "render") this.tiles = [tile(null, 0, 0, 1, 1)];
    else if (view !== "all" && view !== "planes") this.tiles = [tile(PLANES[view], 0, 0, 1, 1)];
    else if (long > (view === "all" ? 3.2 : 2.4)) { // one beside the other
      const cells = view === "all" ? [axial, coronal, sagittal, null] : [axial, coronal, sagittal];
      this.tiles = cells.map((plane, at) => tile(plane, at / cells.length, 0, (at + 1) / cells.length, 1));
    } else if (view === "all") {
      this.tiles = [tile(axial, 0, 0, 0.5, 0.5), tile(coronal, 0.5, 0, 1, 0.5),
        tile(sagittal, 0, 0.5, 0.5, 1), tile(null, 0.5, 0.5, 1, 1)];
    } else if (long > 1.15) { // the axial plane large, the others beside it
      this.tiles = [tile(axial, 0, 0, 0.62, 1), tile(coronal, 0.62, 0, 1, 0.5), tile(sagittal, 0.62, 0.5, 1, 1)];
    } else {
      this.tiles = [tile(axial, 0, 0, 1, 0.56), tile(coronal, 0, 0.56, 0.5, 1), tile(sagittal, 0.5, 0.56, 1, 1)];
    }
    return this.tiles.find((one) => !one.plane) ?? null;
  }

  // Pixels a voxel of a plane: across and down.
  private pixels(tile: Tile): [number, number] {
    const { across, down } = tile.plane!;
    const scale = this.perMm(tile);
    return [this.grid.spacing[across] * scale, this.grid.spacing[down] * scale];
  }

  perMm(tile: Tile): number {
    return tile.scale * this.zoom;
  }

  // Where a place lies on the canvas.
  toScreen(tile: Tile, place: Triple): [number, number] {
    const plane = tile.plane!;
    const [w, h] = this.pixels(tile);
    const u = (place[plane.across] - this.focus[plane.across]) * w;
    const v = (place[plane.down] - this.focus[plane.down]) * h;
    return [tile.x + tile.width / 2 + (plane.mirrored ? -u : u), tile.y + tile.height / 2 - v];
  }

  // The tile under a point of the canvas.
  tileAt(x: number, y: number): Tile | null {
    return this.tiles.find((tile) => tile.plane && x >= tile.x && y >= tile.y
      && x < tile.x + tile.width && y < tile.y + tile.height) ?? null;
  }

  // The place under a point, in voxels; along the tile's own axis it is the crosshair's.
  fromScreen(tile: Tile, x: number, y: number): Triple {
    const plane = tile.plane!;
    const [w, h] = this.pixels(tile);
    const u = (x - tile.x - tile.width / 2) / w;
    const place = [...this.at] as Triple;
    place[plane.across] = this.focus[plane.across] + (plane.mirrored ? -u : u);
    place[plane.down] = this.focus[plane.down] - (y - tile.y - tile.height / 2) / h;
    return place;
  }

  draw(over?: (paper: CanvasRenderingContext2D, tile: Tile) => void): void {
    const { paper } = this;
    paper.fillStyle = "#000";
    paper.fillRect(0, 0, this.canvas.width, this.canvas.height);
    for (const tile of this.tiles) {
      if (!tile.plane) continue;
      paper.save();
      paper.beginPath();
      paper.rect(tile.x, tile.y, tile.width, tile.height);
      paper.clip();
      this.drawTile(tile, tile.plane);
      over?.(paper, tile);
      paper.restore();
    }
  }

  private drawTile(tile: Tile, plane: Plane): void {
    const { paper } = this;
    const [w, h] = this.pixels(tile);
    const [nu, nv] = [this.grid.shape[plane.across], this.grid.shape[plane.down]];
    // Voxel centres are whole numbers: the picture begins half a voxel before the first.
    const corner = [...this.at] as Triple;
    corner[plane.across] = plane.mirrored ? nu - 0.5 : -0.5;
    corner[plane.down] = nv - 0.5;
    const [x, y] = this.toScreen(tile, corner);
    paper.imageSmoothingEnabled = this.smooth;
    paper.drawImage(this.greyLayer(plane), x, y, nu * w, nv * h);
    if (this.opacity > 0) {
      paper.imageSmoothingEnabled = false;
      paper.globalAlpha = this.opacity;
      paper.drawImage(this.markLayer(plane), x, y, nu * w, nv * h);
      paper.globalAlpha = 1;
    }
    this.drawCross(tile, plane);
  }

  private drawCross(tile: Tile, plane: Plane): void {
    const { paper } = this;
    const dpr = this.unit;
    const [x, y] = this.toScreen(tile, this.at).map((one) => Math.round(one) + 0.5);
    const gap = 14 * dpr;
    paper.strokeStyle = CROSS;
    paper.globalAlpha = 0.75;
    paper.lineWidth = Math.max(1, Math.round(dpr));
    paper.beginPath();
    for (const [a, b, c, d] of [
      [tile.x, y, x - gap, y], [x + gap, y, tile.x + tile.width, y],
      [x, tile.y, x, y - gap], [x, y + gap, x, tile.y + tile.height],
    ]) {
      paper.moveTo(a, b);
      paper.lineTo(c, d);
    }
    paper.stroke();
    paper.globalAlpha = 1;
    paper.fillStyle = "#d8e2e4";
    paper.font = `${Math.round(13 * dpr)}px system-ui, sans-serif`;
    paper.textBaseline = "middle";
    paper.textAlign = "left";
    paper.fillText(plane.letters[0], tile.x + 5 * dpr, tile.y + tile.height / 2 + 14 * dpr);
    paper.textAlign = "center";
    paper.fillText(plane.letters[1], tile.x + tile.width / 2 + 14 * dpr, tile.y + 12 * dpr);
    paper.textAlign = "right";
    paper.textBaseline = "bottom";
    paper.fillStyle = "#a5b5bb";
    paper.fillText(`${this.at[plane.axis] + 1} / ${this.grid.shape[plane.axis]}`,
      tile.x + tile.width - 6 * dpr, tile.y + tile.height - 4 * dpr);
  }

  private layer(of: Map<number, Layer>, plane: Plane, fill: (pixels: Uint32Array) => void): HTMLCanvasElement {
    let layer = of.get(plane.axis);
    const slice = this.at[plane.axis];
    if (layer?.slice === slice) return layer.canvas;
    layer ??= new Layer(this.grid.shape[plane.across], this.grid.shape[plane.down]);
    of.set(plane.axis, layer);
    layer.slice = slice;
    fill(layer.pixels);
    layer.put();
    return layer.canvas;
  }

  private greyLayer(plane: Plane): HTMLCanvasElement {
    return this.layer(this.greys, plane, (pixels) => {
      const { voxels, slope, inter } = this.image;
      const factor = (255 * slope) / Math.max(1e-9, this.high - this.low);
      const shift = (255 * (inter - this.low)) / Math.max(1e-9, this.high - this.low);
      const [nu, nv] = [this.grid.shape[plane.across], this.grid.shape[plane.down]];
      const { base, along, row } = this.walk(plane, this.grid.start, this.grid.step);
      for (let v = 0, to = 0; v < nv; v += 1) {
        for (let u = 0, from = base + v * row; u < nu; u += 1, from += along, to += 1) {
          const grey = Math.max(0, Math.min(255, voxels[from] * factor + shift)) | 0;
          pixels[to] = (255 << 24) | (grey << 16) | (grey << 8) | grey;
        }
      }
    });
  }

  private markLayer(plane: Plane): HTMLCanvasElement {
    return this.layer(this.marks, plane, (pixels) => this.fillMarks(
      plane, pixels, 0, this.grid.shape[plane.across] - 1, 0, this.grid.shape[plane.down] - 1));
  }

  // Colours of a part of a slice, whose bounds are voxels of RAS and included.
  private fillMarks(plane: Plane, pixels: Uint32Array, u0: number, u1: number, v0: number, v1: number): void {
    const [nx, ny] = this.grid.shape;
    const [nu, nv] = [this.grid.shape[plane.across], this.grid.shape[plane.down]];
    const { base, along, row } = this.walk(plane, 0, [1, nx, nx * ny]);
    const [left, right] = plane.mirrored ? [nu - 1 - u1, nu - 1 - u0] : [u0, u1];
    for (let v = nv - 1 - v1; v <= nv - 1 - v0; v += 1) {
      let from = base + v * row + left * along;
      for (let u = left, to = v * nu + left; u <= right; u += 1, from += along, to += 1) {
        pixels[to] = this.table[this.labels[from]];
      }
    }
  }

  // How to go through a slice as the screen does, from its left top.
  private walk(plane: Plane, start: number, step: Triple): { base: number; along: number; row: number } {
    const [nu, nv] = [this.grid.shape[plane.across], this.grid.shape[plane.down]];
    const along = plane.mirrored ? -step[plane.across] : step[plane.across];
    const corner = (plane.mirrored ? (nu - 1) * step[plane.across] : 0) + (nv - 1) * step[plane.down];
    return { base: start + this.at[plane.axis] * step[plane.axis] + corner, along, row: -step[plane.down] };
  }
}

// A slice as a picture of a pixel a voxel.
class Layer {
  readonly canvas = document.createElement("canvas");
  readonly pixels: Uint32Array;
  slice = -1;
  private readonly data: ImageData;
  private readonly paper: CanvasRenderingContext2D;

  constructor(width: number, height: number) {
    this.canvas.width = width;
    this.canvas.height = height;
    this.paper = this.canvas.getContext("2d", { willReadFrequently: true })!;
    this.data = this.paper.createImageData(width, height);
    this.pixels = new Uint32Array(this.data.data.buffer);
  }

  put(x = 0, y = 0, width = this.canvas.width, height = this.canvas.height): void {
    this.paper.putImageData(this.data, 0, 0, x, y, width, height);
  }
}
