// The tools as the mouse and the keyboard use them.

import { css } from "../colours";
import type { Triple } from "../rest";
import type { Hit, Pane, Tool } from "../viewer/pane";
import type { Box, Tile } from "../viewer/planes";
import type { Mask } from "./mask";
import { line, polygon, region, stamp } from "./shapes";

export type Kind = "move" | "brush" | "erase" | "polygon" | "region" | "click";
export const KINDS: Kind[] = ["move", "brush", "erase", "polygon", "region", "click"];
const MOST_REGION = 4_000_000;

export interface Told {
  said(key: string, ...values: unknown[]): void; // in the line below the tools
  clicked(voxel: Triple, inside: boolean): void; // of RAS, for click-to-segment
  changed(): void; // a choice: the panel is to be drawn
}

export class Hand implements Tool {
  kind: Kind = "brush";
  label = 1;
  size = 10; // mm across
  ball = false;
  ranged = false;
  low = 0;
  high = 0;
  locked = false; // what was submitted is looked at alone
  axis = 2; // of the plane in which was drawn last
  private last: Triple | null = null;
  private erasing: "label" | "all" | null = null;
  private corners: { axis: number; places: Triple[]; at: number } | null = null;
  private hovered: Hit | null = null;

  constructor(private readonly pane: Pane, private readonly mask: Mask, private readonly told: Told) {}

  private within(index: number): boolean {
    const grey = this.pane.planes!.greyAt(index);
    return grey >= this.low && grey <= this.high;
  }

  private paint = (index: number): void => {
    if (this.erasing) {
      if (this.erasing === "all" || this.mask.voxels[index] === this.label) this.mask.set(index, 0);
    } else if (!this.ranged || this.within(index)) this.mask.set(index, this.label);
  };

  down(hit: Hit, event: PointerEvent): boolean {
    if (this.kind === "move" || this.locked) return false;
    this.axis = hit.axis;
    if (this.kind === "brush" || this.kind === "erase") {
      this.erasing = this.kind === "erase" ? (event.shiftKey ? "all" : "label") : event.altKey ? "label" : null;
      this.mask.begin();
      this.last = hit.place;
      stamp(this.pane.grid!, hit.place, this.size / 2, this.ball ? null : hit.axis, this.paint);
      this.seen();
    } else if (this.kind === "polygon") this.corner(hit, event.detail > 1);
    else this.use(hit.place, hit.axis, event.shiftKey);
    return true;
  }

  move(hit: Hit, event: PointerEvent): void {
    this.hovered = hit;
    if (this.last) {
      line(this.pane.grid!, this.last, hit.place, this.size / 2, this.ball ? null : hit.axis, this.paint);
      this.last = hit.place;
      this.seen();
    } else if (this.corners && this.kind === "polygon" && event.buttons) {
      const before = this.corners.places.at(-1)!;
      const way = Math.hypot(...before.map((one, at) => hit.place[at] - one));
      if (way > 0.7) this.corners.places.push(hit.place); // an outline that is dragged
      this.pane.redraw();
    }
  }

  up(_event: PointerEvent): void {
    if (this.last) {
      this.mask.end();
      this.last = null;
      this.seen();
    }
    // A dragged outline that comes back to where it began is whole.
    if (this.corners && this.corners.places.length - this.corners.at > 8) this.close();
  }

  hover(hit: Hit | null, _event: PointerEvent): void {
    this.hovered = hit;
    if (this.kind !== "move") this.pane.redraw();
  }

  // The tool at a place, as by a click: for keys as well.
  use(place: Triple, axis: number, outside: boolean): void {
    if (this.locked) return;
    const grid = this.pane.grid!;
    const voxel = grid.nearest(place);
    this.axis = axis;
    if (this.kind === "click") this.told.clicked(voxel, !outside);
    else if (this.kind === "region") {
      const found = region(
        grid, voxel, this.ball ? null : axis, (index) => this.within(index), MOST_REGION);
      if (!found) return this.told.said("tooWide");
      if (!found.length) return this.told.said("nothingThere");
      this.mask.begin();
      for (const index of found) this.mask.set(index, this.label);
      this.told.said("segmented", this.mask.end());
      this.seen();
    } else if (this.kind === "polygon") {
      this.add(place, axis);
    } else if (this.kind !== "move") {
      this.erasing = this.kind === "erase" ? (outside ? "all" : "label") : null;
      this.mask.begin();
      stamp(grid, place, this.size / 2, this.ball ? null : axis, this.paint);
      this.mask.end();
      this.seen();
    }
  }

  private corner(hit: Hit, twice: boolean): void {
    if (twice && this.corners && this.corners.places.length > 2) {
      this.close();
      return;
    }
    this.add(hit.place, hit.axis);
  }

  private add(place: Triple, axis: number): void {
    if (this.corners?.axis !== axis || Math.round(this.corners.places[0][axis]) !== Math.round(place[axis])) {
      this.corners = { axis, places: [], at: 0 };
    }
    this.corners.places.push(place);
    this.corners.at = this.corners.places.length;
    this.pane.redraw();
  }

  get hasPolygon(): boolean {
    return this.corners !== null;
  }

  // Fills the polygon.
  close(): void {
    const { corners } = this;
    this.corners = null;
    if (corners && corners.places.length > 2) {
      this.erasing = null;
      this.mask.begin();
      polygon(this.pane.grid!, corners.places, corners.axis, this.paint);
      this.told.said("segmented", this.mask.end());
    }
    this.seen();
  }

  giveUp(): void {
    this.corners = null;
    this.pane.redraw();
  }

  choose(kind: Kind): void {
    this.kind = kind;
    this.giveUp();
    this.pane.canvas.style.cursor = kind === "move" ? "default" : "crosshair";
    this.told.changed();
  }

  private seen(): void {
    const fresh = this.last ? this.mask.fresh() : null; // within a stroke
    if (!fresh) return this.pane.changed();
    if (!fresh.length) return this.pane.redraw();
    const grid = this.pane.grid!;
    const box: Box = { from: grid.at(fresh[0]), to: grid.at(fresh[0]) };
    for (const index of fresh) {
      grid.at(index).forEach((one, axis) => {
        box.from[axis] = Math.min(box.from[axis], one);
        box.to[axis] = Math.max(box.to[axis], one);
      });
    }
    return this.pane.changed(box);
  }

  // The brush's outline under the mouse, and a polygon that is not filled yet.
  over(paper: CanvasRenderingContext2D, tile: Tile): void {
    const { planes } = this.pane;
    const dpr = planes!.unit;
    paper.lineWidth = 1.5 * dpr;
    paper.strokeStyle = this.kind === "erase" ? "#fff" : css(this.label);
    if (this.corners && tile.plane!.axis === this.corners.axis
        && planes!.at[this.corners.axis] === Math.round(this.corners.places[0][this.corners.axis])) {
      paper.beginPath();
      for (const place of this.corners.places) paper.lineTo(...planes!.toScreen(tile, place));
      if (this.hovered?.tile === tile) paper.lineTo(this.hovered.x, this.hovered.y);
      paper.stroke();
      for (const place of this.corners.places.slice(0, 1)) {
        const [x, y] = planes!.toScreen(tile, place);
        paper.strokeRect(x - 3 * dpr, y - 3 * dpr, 6 * dpr, 6 * dpr);
      }
    }
    if (this.hovered?.tile === tile && (this.kind === "brush" || this.kind === "erase")) {
      paper.beginPath();
      paper.arc(this.hovered.x, this.hovered.y, (this.size / 2) * planes!.perMm(tile), 0, 2 * Math.PI);
      paper.stroke();
    }
  }
}
