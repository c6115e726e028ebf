// The volume and its labels in 3-D, by NiiVue: loaded when it is asked for, drawn when all is still.

import { Niivue, NVImage, SLICE_TYPE } from "@niivue/niivue";
import { table } from "../colours";
import type { Triple } from "../rest";

export class Solid {
  private asked: [number, number] = [0, 0];
  private frame = 0;

  private constructor(private readonly nv: Niivue, readonly canvas: HTMLCanvasElement) {}

  static async make(
    canvas: HTMLCanvasElement, file: ArrayBuffer, window: [number, number], labels: Uint8Array,
  ): Promise<Solid> {
    const nv = new Niivue({
      logLevel: "silent", loadingText: "", dragAndDropEnabled: false, backColor: [0, 0, 0, 1],
      crosshairColor: [0.37, 0.82, 0.75, 0.9], show3Dcrosshair: true, isOrientCube: false,
      sliceType: SLICE_TYPE.RENDER, isColorbar: false, viewModeHotKey: "", clipPlaneHotKey: "",
      cycleClipPlaneHotKey: "", isOrientationTextVisible: false,
    });
    await nv.attachToCanvas(canvas, false);
    canvas.removeAttribute("tabindex"); // NiiVue's: but what it shows is told by the planes
    const volume = await NVImage.loadFromUrl({
      url: file, name: "image.nii", cal_min: window[0], cal_max: window[1], trustCalMinMax: false,
      colorbarVisible: false,
    });
    nv.addVolume(volume);
    nv.createEmptyDrawing();
    nv.drawBitmap = labels; // the same bytes: what is drawn in a plane is in 3-D as well
    const solid = new Solid(nv, canvas);
    nv.setRenderAzimuthElevation(150, 10);
    return solid;
  }

  labelled(hidden: ReadonlySet<number>, opacity: number): void {
    this.nv.drawLut = { lut: table(hidden), labels: [] };
    this.nv.refreshColormaps();
    this.nv.drawOpacity = opacity;
    this.nv.refreshDrawing(true);
  }

  window(low: number, high: number): void {
    const volume = this.nv.volumes[0];
    volume.cal_min = low;
    volume.cal_max = high;
    this.nv.updateGLVolume();
  }

  goTo(mm: Triple): void {
    this.nv.scene.crosshairPos = this.nv.mm2frac(mm);
    this.nv.drawScene();
  }

  // Degrees about the head's axis, and up or down; a key that is held turns it once a picture.
  turn(about: number, up: number): void {
    this.asked[0] += about;
    this.asked[1] += up;
    this.frame ||= requestAnimationFrame(() => {
      const { renderAzimuth, renderElevation } = this.nv.scene;
      const raised = Math.max(-90, Math.min(90, renderElevation + this.asked[1]));
      this.nv.setRenderAzimuthElevation((renderAzimuth + this.asked[0] + 360) % 360, raised);
      [this.frame, this.asked] = [0, [0, 0]];
    });
  }

  close(): void {
    cancelAnimationFrame(this.frame);
    this.nv.cleanup();
    this.nv.gl.getExtension("WEBGL_lose_context")?.loseContext();
  }
}
