// One image in a box: planes on a canvas, 3-D beside them, and what the mouse does to both.

import { type Nifti, read, unzipped } from "../nifti";
import * as rest from "../rest";
import type { Image, Triple } from "../rest";
import { el } from "../shared";
import { Grid } from "./grid";
import { type Box, Planes, type Tile, type View } from "./planes";
import type { Solid } from "./solid";

export type { View } from "./planes";

export interface Where {
  mm: Triple;
  voxel: Triple; // of the image's file
  grey: number;
  label: number;
}

// Where the mouse is: in which plane, and at which place in voxels of RAS.
export interface Hit {
  tile: Tile;
  axis: number;
  place: Triple;
  x: number; // pixels of the canvas
  y: number;
}

// What takes the left button instead of the crosshair; false lets the crosshair have it.
export interface Tool {
  down(hit: Hit, event: PointerEvent): boolean;
  move(hit: Hit, event: PointerEvent): void;
  up(event: PointerEvent): void;
  hover(hit: Hit | null, event: PointerEvent): void;
  over(paper: CanvasRenderingContext2D, tile: Tile): void;
}

const STILL_MS = 200; // without a change, after which 3-D is drawn

export class Pane {
  image: Image | null = null;
  nifti: Nifti | null = null;
  planes: Planes | null = null;
  labels = new Uint8Array(0);
  tool: Tool | null = null;
  onMove: (where: Where, byHand: boolean) => void = () => {};
  onWindow: () => void = () => {};
  readonly canvas: HTMLCanvasElement;
  private readonly solidCanvas: HTMLCanvasElement;
  private readonly watcher: ResizeObserver;
  private solid: Solid | null = null;
  private making = 0;
  private hidden: ReadonlySet<number> = new Set();
  private view: View = "planes";
  private opacity = 0.5;
  private frame = 0;
  private still = 0;
  private drag: { kind: "cross" | "pan" | "window" | "tool"; tile: Tile; x: number; y: number } | null = null;

  constructor(readonly host: HTMLElement, label: string) {
    this.canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": label });
    this.solidCanvas = el("canvas", { "aria-hidden": "true" });
    host.append(this.canvas, el("div", { class: "solid", hidden: "" }, this.solidCanvas));
    this.watcher = new ResizeObserver(() => this.layOut());
    this.watcher.observe(host);
    host.addEventListener("contextmenu", (event) => event.preventDefault());
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.moved(event));
    for (const name of ["pointerup", "pointercancel"] as const) {
      this.canvas.addEventListener(name, (event) => this.up(event));
    }
    this.canvas.addEventListener("pointerleave", (event) => this.tool?.hover(null, event));
    this.canvas.addEventListener("wheel", (event) => this.wheeled(event), { passive: false });
  }

  get grid(): Grid | null {
    return this.planes?.grid ?? null;
  }

  // Fetches an image and shows its planes.
  async open(image: Image): Promise<void> {
    const mine = ++this.making;
    const nifti = read(await unzipped(await rest.volume(image.image)));
    if (mine !== this.making) return;
    this.dropSolid();
    const grid = new Grid(nifti);
    this.image = image;
    this.nifti = nifti;
    this.labels = new Uint8Array(grid.count);
    this.planes = new Planes(this.canvas, grid, nifti, this.labels);
    const [, low, high] = image.window[0] ?? ["", 0, 1];
    [this.planes.low, this.planes.high] = [low, high];
    this.planes.opacity = this.opacity;
    this.layOut();
    this.flush();
    this.tell(false);
  }

  // Labels in the order of the file, or none.
  show(labels: Uint8Array | null): void {
    if (!this.planes) return;
    if (labels) this.planes.grid.toRas(labels, this.labels);
    else this.labels.fill(0);
    this.changed();
  }

  hide(hidden: ReadonlySet<number>): void {
    this.hidden = new Set(hidden);
    this.planes?.hide(this.hidden);
    this.changed();
  }

  // What changed in `labels`, within a box where one is known, is seen with the next frame.
  changed(box?: Box): void {
    if (box) this.planes?.patch(box);
    else this.planes?.forget(false);
    this.redraw();
    this.later(() => this.solid?.labelled(this.hidden, this.opacity));
    this.tell(false);
  }

  redraw(): void {
    this.frame ||= requestAnimationFrame(() => this.flush());
  }

  flush(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.planes?.draw((paper, tile) => this.tool?.over(paper, tile));
  }

  // 3-D is dear without a graphics card: it follows when nothing else happens.
  private later(act: () => void): void {
    clearTimeout(this.still);
    if (this.solid) this.still = window.setTimeout(act, STILL_MS);
  }

  // Turns 3-D; false where there is none.
  turn(about: number, up: number): boolean {
    this.solid?.turn(about, up);
    return this.solid !== null;
  }

  private layOut(): void {
    const dpr = devicePixelRatio || 1;
    const [width, height] = [this.host.clientWidth, this.host.clientHeight];
    if (!width || !height) return;
    this.canvas.width = Math.round(width * dpr);
    this.canvas.height = Math.round(height * dpr);
    const tile = this.planes?.layOut(this.view, this.canvas.width, this.canvas.height) ?? null;
    const box = this.solidCanvas.parentElement!;
    box.hidden = !tile || !this.solid;
    if (tile) {
      for (const [name, value] of [["left", tile.x], ["top", tile.y], ["width", tile.width], ["height", tile.height]] as const) {
        box.style[name] = `${value / dpr}px`;
      }
      void this.makeSolid();
    }
    this.flush();
  }

  private async makeSolid(): Promise<void> {
    if (this.solid || !this.nifti || !this.planes) return;
    const mine = ++this.making;
    const { Solid: Maker } = await import("./solid");
    if (mine !== this.making || !this.nifti || !this.planes) return;
    this.solidCanvas.parentElement!.hidden = false;
    try {
      const solid = await Maker.make(
        this.solidCanvas, this.nifti.file, [this.planes.low, this.planes.high], this.labels);
      if (mine !== this.making) return solid.close();
      this.solid = solid;
      solid.labelled(this.hidden, this.opacity);
      solid.goTo(this.where().mm);
    } catch { // no WebGL: the planes are there
      this.setView("planes");
    }
  }

  private dropSolid(): void {
    clearTimeout(this.still);
    this.solid?.close();
    if (this.solid) this.solidCanvas.parentElement!.hidden = true;
    this.solid = null;
  }

  setView(view: View): void {
    this.view = view;
    this.planes?.center();
    this.layOut();
  }

  getView(): View {
    return this.view;
  }

  setWindow(low: number, high: number): void {
    if (!this.planes || !(high > low)) return;
    [this.planes.low, this.planes.high] = [low, high];
    this.planes.forget(true);
    this.redraw();
    this.later(() => this.solid?.window(low, high));
  }

  window(): [number, number] {
    return this.planes ? [this.planes.low, this.planes.high] : [0, 1];
  }

  setOpacity(part: number): void {
    this.opacity = part;
    if (this.planes) this.planes.opacity = part;
    this.redraw();
    this.later(() => this.solid?.labelled(this.hidden, part));
  }

  where(): Where {
    const { planes } = this;
    if (!planes) return { mm: [0, 0, 0], voxel: [0, 0, 0], grey: 0, label: 0 };
    return {
      mm: planes.grid.toMm(planes.at), voxel: planes.grid.native(planes.at),
      grey: planes.grey(planes.at), label: this.labels[planes.grid.index(planes.at)],
    };
  }

  // Moves the crosshair; the picture follows.
  goTo(mm: Triple): void {
    if (this.planes) this.put(this.planes.grid.fromMm(mm), false);
  }

  put(place: Triple, byHand: boolean): void {
    const { planes } = this;
    if (!planes) return;
    planes.at = planes.grid.nearest(place);
    if (planes.zoom > 1 && !byHand) planes.focus = [...planes.at];
    this.redraw();
    this.later(() => this.solid?.goTo(this.where().mm));
    this.tell(byHand);
  }

  // Steps through slices of a plane (0 sagittal, 1 coronal, 2 axial).
  step(axis: number, by: number): void {
    if (!this.planes) return;
    const place = [...this.planes.at] as Triple;
    place[axis] += by;
    this.put(place, true);
  }

  private tell(byHand: boolean): void {
    if (this.planes) this.onMove(this.where(), byHand);
  }

  // Zooms; what lies at `around` stays where it is, else the crosshair comes to the middle.
  zoom(factor: number, around?: Hit): void {
    const { planes } = this;
    if (!planes) return;
    planes.zoom = Math.max(1, Math.min(20, planes.zoom * factor));
    if (planes.zoom === 1) planes.center();
    else if (around) {
      const now = planes.fromScreen(around.tile, around.x, around.y);
      for (const axis of [0, 1, 2]) {
        if (axis !== around.axis) planes.focus[axis] += around.place[axis] - now[axis];
      }
    } else planes.focus = [...planes.at];
    this.redraw();
  }

  hit(event: MouseEvent, tile?: Tile): Hit | null {
    const box = this.canvas.getBoundingClientRect();
    const dpr = this.canvas.width / Math.max(1, box.width);
    const [x, y] = [(event.clientX - box.left) * dpr, (event.clientY - box.top) * dpr];
    const found = tile ?? this.planes?.tileAt(x, y);
    if (!found?.plane || !this.planes) return null;
    return { tile: found, axis: found.plane.axis, place: this.planes.fromScreen(found, x, y), x, y };
  }

  private down(event: PointerEvent): void {
    const hit = this.hit(event);
    if (!hit || this.drag) return;
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    const left = event.button === 0;
    let kind: "cross" | "pan" | "window" | "tool" = left ? "cross" : event.button === 2 ? "window" : "pan";
    if (left && this.tool?.down(hit, event)) kind = "tool";
    else if (left && event.shiftKey) kind = "pan";
    this.drag = { kind, tile: hit.tile, x: hit.x, y: hit.y };
    if (kind === "cross") this.put(hit.place, true);
    event.preventDefault();
  }

  private moved(event: PointerEvent): void {
    const { drag, planes } = this;
    if (!drag || !planes) {
      this.tool?.hover(this.hit(event), event);
      return;
    }
    // A fast hand comes in fewer events than the mouse had places.
    const steps = drag.kind === "tool" ? event.getCoalescedEvents?.() ?? [] : [];
    for (const each of steps.length ? steps : [event]) {
      const hit = this.hit(each, drag.tile);
      if (hit) this.dragged(drag, hit, each);
    }
  }

  private dragged(drag: NonNullable<Pane["drag"]>, hit: Hit, event: PointerEvent): void {
    const planes = this.planes!;
    if (drag.kind === "tool") this.tool?.move(hit, event);
    else if (drag.kind === "cross") this.put(hit.place, true);
    else if (drag.kind === "pan") {
      const from = planes.fromScreen(hit.tile, drag.x, drag.y);
      for (const axis of [0, 1, 2]) {
        if (axis !== hit.axis) planes.focus[axis] += from[axis] - hit.place[axis];
      }
      this.redraw();
    } else {
      const width = planes.high - planes.low;
      const by = Math.max(width, 1e-6) / 300;
      const [dx, dy] = [(hit.x - drag.x) * by, (hit.y - drag.y) * by];
      const middle = (planes.low + planes.high) / 2 - dy;
      const half = Math.max(width / 200, width / 2 + dx);
      this.setWindow(middle - half, middle + half);
    }
    [drag.x, drag.y] = [hit.x, hit.y];
  }

  private up(event: PointerEvent): void {
    const kind = this.drag?.kind;
    this.drag = null;
    if (kind === "tool") this.tool?.up(event);
    if (kind === "window") this.onWindow();
  }

  private wheeled(event: WheelEvent): void {
    event.preventDefault();
    const hit = this.hit(event);
    if (!hit || !event.deltaY) return;
    if (event.ctrlKey || event.metaKey) this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, hit);
    else this.step(hit.axis, (event.deltaY < 0 ? 1 : -1) * (event.shiftKey ? 5 : 1));
  }

  close(): void {
    this.making += 1;
    cancelAnimationFrame(this.frame);
    this.watcher.disconnect();
    this.dropSolid();
    this.host.replaceChildren();
  }
}
