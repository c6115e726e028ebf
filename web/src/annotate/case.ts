// One case that is drawn on: its image, labels, tools and draft, and what is done with them.

import { ask } from "../dialog";
import { labelsOf, unzipped, zippedLabels } from "../nifti";
import * as rest from "../rest";
import type { Image, OpenedProject, Segmentation, Triple } from "../rest";
import { el, may, Refused, say, sentence } from "../shared";
import { Pane } from "../viewer/pane";
import { opacityNow } from "../viewer/panel";
import { Draft } from "./draft";
import { Hand } from "./hand";
import { interpolate } from "./interpolate";
import { Mask } from "./mask";

export class Case {
  readonly pane: Pane;
  project!: OpenedProject;
  image!: Image;
  mask!: Mask;
  hand!: Hand;
  proposals: Segmentation[] = [];
  decided: Segmentation[] = []; // consensus and final, for those who decide
  deciding = false;
  note = "";
  readonly draft: Draft;
  private points: { voxel: Triple; inside: boolean }[] = [];
  private clicking = 0;

  constructor(
    readonly projectId: string, readonly imageId: string, host: HTMLElement, label: string,
    private readonly drawn: () => void,
  ) {
    this.pane = new Pane(host, label);
    this.draft = new Draft({
      send: (state, version) => this.send(state, version),
      conflict: () => this.conflict(),
      changed: () => {
        if (this.hand) this.hand.locked = this.locked;
        this.drawn();
      },
    });
  }

  // What was submitted is changed only after an administrator opened it again.
  get locked(): boolean {
    return this.draft.state === "submitted" && !this.deciding;
  }

  async open(): Promise<void> {
    const [project, image] = await Promise.all([
      rest.project(this.projectId), rest.image(this.imageId),
    ]);
    [this.project, this.image] = [project, image];
    const drawn = project.images.find((one) => one.image === this.imageId)?.mine;
    const [own] = await Promise.all([drawn ? this.fetchOwn() : null, this.pane.open(image)]);
    this.pane.setOpacity(opacityNow());
    this.mask = new Mask(this.pane.labels, () => {
      if (this.draft) this.draft.touched();
    });
    this.hand = new Hand(this.pane, this.mask, {
      said: (key, ...values) => this.say(say(key, ...values)),
      clicked: (voxel, inside) => void this.click(voxel, inside),
      changed: () => this.drawn(),
    });
    this.hand.label = Number(Object.keys(project.labels)[0] ?? 1);
    this.rangeAround();
    this.pane.tool = this.hand;
    if (own) this.takeOwn(own);
    this.hand.choose("brush");
    this.proposals = await rest.proposals(this.projectId, this.imageId).catch(() => []);
    if (may("admin")) await this.lookForDecided();
    this.drawn();
  }

  say(text: string): void {
    this.note = text;
    this.drawn();
  }

  // ---- the drawing that lies there ----------------------------------------------------------

  private async fetchOwn(): Promise<{ labels: Uint8Array; version: string } | null> {
    try {
      const answer = await rest.annotation(this.projectId, this.imageId);
      const version = answer.headers.get("ETag") ?? "";
      return { labels: labelsOf(await unzipped(answer)), version };
    } catch (refusal) {
      if (refusal instanceof Refused && refusal.status === 404) return null;
      throw refusal;
    }
  }

  private takeOwn({ labels, version }: { labels: Uint8Array; version: string }): void {
    this.pane.show(labels);
    this.mask.forget();
    const mine = this.project.images.find((one) => one.image === this.imageId)?.mine;
    this.draft.loaded(version, mine === "submitted" ? "submitted" : "saved");
  }

  private async send(state: "draft" | "submitted", version: string | null): Promise<string> {
    const labels = this.pane.planes!.grid.toFile(this.mask.voxels);
    const content = await zippedLabels(this.pane.nifti!, labels);
    if (!this.deciding) return rest.saveAnnotation(this.projectId, this.imageId, content, state, version);
    await rest.saveFinal(this.projectId, this.imageId, content);
    await this.lookForDecided();
    return version ?? "";
  }

  private conflict(): void {
    ask({
      title: say("conflictTitle"),
      body: [el("p", {}, say("conflictText"))],
      confirm: say("keepMine"),
      cancel: say("takeTheirs"),
      otherwise: async () => {
        const own = await this.fetchOwn();
        if (own) this.takeOwn(own);
      },
      act: async () => {
        this.draft.version = (await this.fetchOwn())?.version ?? null;
        await this.draft.save("draft");
      },
    });
  }

  // ---- drawing other than by hand -----------------------------------------------------------

  async takeOver(one: Segmentation): Promise<void> {
    if (this.locked) return;
    const labels = labelsOf(await unzipped(await rest.mask(one.segmentation)));
    const grid = this.pane.planes!.grid;
    const ras = new Uint8Array(grid.count);
    grid.toRas(labels, ras);
    // The project's labels by name: a model may number them otherwise, or know more.
    const own = new Map(Object.entries(this.project.labels).map(([value, name]) => [name.toLowerCase(), Number(value)]));
    const table = new Uint8Array(256);
    for (const [value, name] of Object.entries(one.labels)) {
      table[Number(value)] = own.get(name.toLowerCase()) ?? 0;
    }
    for (let at = 0; at < ras.length; at += 1) ras[at] = table[ras[at]];
    this.mask.replace(ras);
    this.pane.changed();
  }

  fillBetween(): void {
    if (this.locked) return;
    this.mask.begin();
    const { hand, mask } = this;
    const filled = interpolate(this.pane.planes!.grid, mask.voxels.slice(), hand.label, hand.axis, (index) => {
      if (mask.voxels[index] === 0) mask.set(index, hand.label);
    });
    mask.end();
    this.pane.changed();
    this.say(say("interpolated", filled));
  }

  undo(): void {
    this.points = [];
    if (!this.locked && this.mask.undo()) this.pane.changed();
  }

  redo(): void {
    if (!this.locked && this.mask.redo()) this.pane.changed();
  }

  // The next click segments another structure.
  anew(): void {
    this.points = [];
    this.hand.giveUp();
  }

  // One click more about the same structure: what the last one drew gives way to the new answer.
  private async click(ras: Triple, inside: boolean): Promise<void> {
    const mine = ++this.clicking;
    const grid = this.pane.planes!.grid;
    const again = this.points.length > 0;
    if (!again && !inside) return this.say(say.of("toolHints", "click"));
    const points = [...this.points, { voxel: grid.native(ras), inside }];
    this.say(say("segmenting"));
    try {
      const answer = await unzipped(await rest.click(this.imageId, points));
      if (mine !== this.clicking) return; // another click came meanwhile
      const found = new Uint8Array(grid.count);
      grid.toRas(labelsOf(answer), found);
      if (again) this.mask.undo();
      this.mask.begin();
      for (let at = 0; at < found.length; at += 1) {
        if (found[at] && this.mask.voxels[at] === 0) this.mask.set(at, this.hand.label);
      }
      const count = this.mask.end();
      this.points = count ? points : [];
      this.pane.changed();
      this.say(say("segmented", count));
    } catch (refusal) {
      if (mine === this.clicking) this.say(sentence(refusal));
    }
  }

  // A grey range like what lies around the crosshair.
  rangeAround(): void {
    const planes = this.pane.planes!;
    const { grid, at } = planes;
    const greys: number[] = [];
    for (let z = -2; z <= 2; z += 1) {
      for (let y = -2; y <= 2; y += 1) {
        for (let x = -2; x <= 2; x += 1) {
          const voxel: Triple = [at[0] + x, at[1] + y, at[2] + z];
          if (grid.within(voxel)) greys.push(planes.grey(voxel));
        }
      }
    }
    const mean = greys.reduce((sum, one) => sum + one, 0) / greys.length;
    const spread = Math.sqrt(greys.reduce((sum, one) => sum + (one - mean) ** 2, 0) / greys.length);
    const half = Math.max(2 * spread, (planes.high - planes.low) / 20);
    [this.hand.low, this.hand.high] = [Math.round(mean - half), Math.round(mean + half)];
    this.drawn();
  }

  // ---- deciding -----------------------------------------------------------------------------

  async lookForDecided(): Promise<void> {
    const all = await rest.segmentations(this.imageId).catch(() => []);
    this.decided = all.filter((one) => one.kind === "consensus" || one.kind === "final");
  }

  // The editor holds what will be final from now on.
  async decide(from: Segmentation): Promise<void> {
    const labels = labelsOf(await unzipped(await rest.mask(from.segmentation)));
    this.deciding = true;
    this.draft.byItself = false;
    this.pane.show(labels);
    this.mask.forget();
    this.draft.loaded(null, from.kind === "final" ? "final" : "clean");
    this.hand.locked = false;
    this.say(say(from.kind === "consensus" ? "consensusMade" : "adjudicating"));
  }

  close(): void {
    this.clicking += 1;
    this.draft.stop();
    this.pane.close();
  }
}
