// One image on a canvas: three planes and 3-D, its grey window, and labels above it.
//
// Labels are shown by NiiVue's drawing layer, a byte a voxel in the order of RAS, for a mask that
// is only looked at as for one that is drawn. Only the box that changed goes to the card again.

import { DRAG_MODE, MULTIPLANAR_TYPE, Niivue, NVImage, SHOW_RENDER, SLICE_TYPE } from "@niivue/niivue";
import { table } from "../colours";
import { unzipped } from "../nifti";
import type { Image, Triple } from "../rest";
import * as rest from "../rest";
import { el } from "../shared";
import { Grid } from "./grid";

export type View = "all" | "planes" | "axial" | "coronal" | "sagittal" | "render";

export interface Box {
  from: Triple;
  to: Triple; // included
}

export interface Where {
  mm: Triple;
  voxel: Triple; // of the image's file
  grey: number;
  label: number;
}

const KINDS: Record<Exclude<View, "all" | "planes">, SLICE_TYPE> = {
  axial: SLICE_TYPE.AXIAL, coronal: SLICE_TYPE.CORONAL, sagittal: SLICE_TYPE.SAGITTAL,
  render: SLICE_TYPE.RENDER,
};
const DRAWING_UNIT = 33991; // TEXTURE7, where NiiVue keeps its drawing

export class Pane {
  readonly canvas: HTMLCanvasElement;
  readonly nv: Niivue;
  image: Image | null = null;
  file: ArrayBuffer | null = null; // of the image, for its header
  grid: Grid | null = null;
  labels = new Uint8Array(0);
  onMove: (where: Where, byHand: boolean) => void = () => {};
  private hidden = new Set<number>();
  private view: View = "planes";
  private frame = 0;
  private queued: Box | null = null;
  private moving = false;

  constructor(readonly host: HTMLElement, label: string) {
    this.canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": label });
    host.append(this.canvas);
    this.nv = new Niivue({
      logLevel: "silent", loadingText: "", dragAndDropEnabled: false, backColor: [0, 0, 0, 1],
      crosshairColor: [0.35, 0.85, 0.75, 0.9], crosshairWidth: 0.2,
      crosshairWidthUnit: "percent", crosshairGap: 12,
      fontColor: [0.75, 0.82, 0.84, 1], fontSizeScaling: 0.3, isRadiologicalConvention: true,
      sagittalNoseLeft: true, multiplanarLayout: MULTIPLANAR_TYPE.AUTO, multiplanarPadPixels: 4,
      multiplanarShowRender: SHOW_RENDER.NEVER, isNearestInterpolation: false, show3Dcrosshair: true,
      viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
    });
    this.nv.opts.mouseEventConfig = {
      leftButton: { primary: DRAG_MODE.crosshair, withShift: DRAG_MODE.pan, withCtrl: DRAG_MODE.measurement },
      rightButton: DRAG_MODE.windowing, centerButton: DRAG_MODE.pan,
    };
    this.nv.onLocationChange = () => {
      if (!this.moving) this.tell(true);
    };
    host.addEventListener("contextmenu", (event) => event.preventDefault());
    host.addEventListener("wheel", (event) => this.wheeled(event), { capture: true, passive: false });
    // NiiVue's own keys would do other things than this page's list says.
    host.addEventListener("keydown", (event) => {
      if (event.target === this.canvas && event.key !== "Tab") {
        event.stopPropagation();
        document.body.dispatchEvent(new KeyboardEvent("keydown", event));
        event.preventDefault();
      }
    }, { capture: true });
  }

  async start(): Promise<void> {
    await this.nv.attachToCanvas(this.canvas, false);
  }

  // Fetches an image and shows its planes; 3-D follows when they stand.
  async open(image: Image): Promise<void> {
    const file = await unzipped(await rest.volume(image.image));
    const [, low, high] = image.window[0] ?? ["", NaN, NaN];
    const volume = await NVImage.loadFromUrl({
      url: file, name: "image.nii", cal_min: low, cal_max: high, trustCalMinMax: false,
      colorbarVisible: false,
    });
    if (this.nv.volumes.length) this.nv.removeVolume(this.nv.volumes[0]);
    this.nv.closeDrawing();
    this.file = file;
    this.image = image;
    this.grid = new Grid(volume);
    this.nv.addVolume(volume);
    this.nv.createEmptyDrawing();
    this.labels = this.nv.drawBitmap as Uint8Array<ArrayBuffer>;
    this.nv.drawScene();
    this.tell(false);
  }

  // Labels in the order of the file, or none.
  show(labels: Uint8Array | null): void {
    if (!this.grid) return;
    if (labels) this.grid.toRas(labels, this.labels);
    else this.labels.fill(0);
    this.changed(null);
  }

  hide(hidden: Set<number>): void {
    this.hidden = hidden;
    this.nv.drawLut = { lut: table(hidden), labels: [] };
    this.nv.refreshColormaps();
    this.nv.drawScene();
  }

  isHidden(label: number): boolean {
    return this.hidden.has(label);
  }

  // Lets what changed in `labels` be seen with the next frame; null for everything.
  changed(box: Box | null): void {
    const [x, y, z] = this.grid?.shape ?? [0, 0, 0];
    const whole: Box = { from: [0, 0, 0], to: [x - 1, y - 1, z - 1] };
    this.queued = this.queued ? joined(this.queued, box ?? whole) : box ?? whole;
    this.redraw();
  }

  redraw(): void {
    this.frame ||= requestAnimationFrame(() => this.flush());
  }

  // What waits is drawn at once.
  flush(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (this.queued && this.grid) this.upload(this.queued);
    this.queued = null;
    this.nv.drawScene();
  }

  private upload({ from, to }: Box): void {
    const { gl, drawTexture } = this.nv;
    const [nx, ny] = this.grid!.shape;
    gl.activeTexture(DRAWING_UNIT);
    gl.bindTexture(gl.TEXTURE_3D, drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, nx);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, ny);
    const first = from[0] + nx * (from[1] + ny * from[2]);
    gl.texSubImage3D(
      gl.TEXTURE_3D, 0, ...from, to[0] - from[0] + 1, to[1] - from[1] + 1, to[2] - from[2] + 1,
      gl.RED, gl.UNSIGNED_BYTE, this.labels.subarray(first),
    );
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, 0);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, 0);
  }

  setView(view: View): void {
    this.view = view;
    this.nv.opts.multiplanarShowRender = view === "all" ? SHOW_RENDER.ALWAYS : SHOW_RENDER.NEVER;
    this.nv.setSliceType(view === "all" || view === "planes" ? SLICE_TYPE.MULTIPLANAR : KINDS[view]);
  }

  getView(): View {
    return this.view;
  }

  setWindow(low: number, high: number): void {
    const volume = this.nv.volumes[0];
    if (!volume || !(high > low)) return;
    volume.cal_min = low;
    volume.cal_max = high;
    this.nv.updateGLVolume();
  }

  window(): [number, number] {
    const volume = this.nv.volumes[0];
    return volume ? [volume.cal_min ?? 0, volume.cal_max ?? 1] : [0, 1];
  }

  setOpacity(part: number): void {
    this.nv.setDrawOpacity(part);
  }

  setSmooth(on: boolean): void {
    this.nv.setInterpolation(!on);
  }

  where(): Where {
    const mm = [...this.nv.frac2mm(this.nv.scene.crosshairPos)].slice(0, 3) as Triple;
    const ras = this.grid!.fromFrac(this.nv.scene.crosshairPos);
    const voxel = this.grid!.native(ras);
    return {
      mm, voxel, grey: this.nv.volumes[0].getValue(...voxel),
      label: this.labels[this.grid!.index(ras)],
    };
  }

  // Moves the crosshair; the picture follows.
  goTo(mm: Triple): void {
    this.put(this.nv.mm2frac(mm));
  }

  // Steps through slices of a plane (0 sagittal, 1 coronal, 2 axial).
  step(axis: number, by: number): void {
    const delta: Triple = [0, 0, 0];
    delta[axis] = by;
    this.moving = true;
    this.nv.moveCrosshairInVox(...delta);
    this.moving = false;
    this.tell(true);
  }

  private put(frac: ArrayLike<number>): void {
    for (let axis = 0; axis < 3; axis += 1) {
      this.nv.scene.crosshairPos[axis] = Math.max(0, Math.min(1, frac[axis]));
    }
    this.redraw();
    this.tell(false);
  }

  private tell(byHand: boolean): void {
    if (this.image && this.grid) this.onMove(this.where(), byHand);
  }

  // Zooms into the crosshair, which comes to the middle.
  zoom(factor: number): void {
    const to = Math.max(1, Math.min(16, this.nv.scene.pan2Dxyzmm[3] * factor));
    const at = this.nv.frac2mm(this.nv.scene.crosshairPos);
    const middle = this.nv.frac2mm([0.5, 0.5, 0.5]);
    const pan = [0, 1, 2].map((axis) => (to === 1 ? 0 : middle[axis] - at[axis]));
    this.nv.setPan2Dxyzmm([pan[0], pan[1], pan[2], to]);
  }

  private wheeled(event: WheelEvent): void {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
  }

  close(): void {
    cancelAnimationFrame(this.frame);
    this.nv.cleanup();
    this.nv.gl.getExtension("WEBGL_lose_context")?.loseContext();
    this.host.replaceChildren();
  }
}

export function joined(a: Box, b: Box): Box {
  return {
    from: a.from.map((one, axis) => Math.min(one, b.from[axis])) as Triple,
    to: a.to.map((one, axis) => Math.max(one, b.to[axis])) as Triple,
  };
}
