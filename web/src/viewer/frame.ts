// A pane with what must stand beside every picture: what it is of, and what its product may say.

import type { Image, Segmentation } from "../rest";
import * as rest from "../rest";
import { unzipped, labelsOf } from "../nifti";
import { el, number, say, sentence } from "../shared";
import { Pane, type Where } from "./pane";

export class Frame {
  readonly node: HTMLElement;
  readonly pane: Pane;
  image: Image | null = null;
  segmentations: Segmentation[] = [];
  shown: Segmentation | null = null;
  date = "";
  private readonly caption = el("figcaption", {});
  private readonly banner = el("p", { class: "product" });
  private readonly busy = el("p", { class: "busy", role: "status" });
  private readonly place = el("p", { class: "place" });
  private asked = 0;

  constructor(name: string) {
    const host = el("div", { class: "host" });
    this.node = el("figure", { class: "frame", "aria-label": name },
      this.caption, host, this.busy, this.place, this.banner);
    this.pane = new Pane(host, say("viewerOf", name));
  }

  // Shows an image and what was drawn on it; `prefer` says which segmentation to begin with.
  async open(image: Image, date: string, prefer?: (one: Segmentation) => boolean): Promise<boolean> {
    const mine = ++this.asked;
    this.image = image;
    this.date = date;
    this.shown = null;
    this.segmentations = [];
    this.busy.textContent = say("loading");
    this.draw();
    try {
      const [segmentations] = await Promise.all([
        rest.segmentations(image.image), this.pane.open(image),
      ]);
      if (mine !== this.asked) return false;
      this.segmentations = segmentations.reverse();
      this.busy.textContent = "";
    } catch (refusal) {
      if (mine === this.asked) this.busy.textContent = sentence(refusal) || say("loadFailed");
      return false;
    }
    const order = ["final", "consensus", "model", "reader"];
    const best = [...this.segmentations].sort(
      (a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
    await this.show((prefer && best.find(prefer)) ?? best[0] ?? null);
    return mine === this.asked;
  }

  async show(one: Segmentation | null): Promise<void> {
    const mine = this.asked;
    this.shown = one;
    this.draw();
    try {
      const labels = one ? labelsOf(await unzipped(await rest.mask(one.segmentation))) : null;
      if (mine !== this.asked || this.shown !== one) return;
      this.pane.show(labels);
    } catch (refusal) {
      this.busy.textContent = sentence(refusal) || say("loadFailed");
    }
  }

  where(at: Where): void {
    const { labels } = this.shown ?? { labels: {} as Record<string, string> };
    const grey = `${number(at.grey, Number.isInteger(at.grey) ? 0 : 1)} ${this.image?.units ?? ""}`;
    this.place.textContent = [
      say("at", at.voxel.join(", "), at.mm.map((one) => number(one, 1)).join(", ")), grey.trim(),
      at.label ? labels[at.label] ?? String(at.label) : "",
    ].filter(Boolean).join(" · ");
  }

  draw(): void {
    const { image, shown } = this;
    this.caption.textContent = [
      this.date, image?.name, image?.description, shown?.author,
    ].filter(Boolean).join(" · ");
    const kind = !shown ? "none" : shown.kind === "model" ? shown.product_class : "reader";
    this.banner.className = `product ${kind}`;
    this.banner.replaceChildren(
      ...(shown ? [el("strong", {}, say.of("productClass", shown.product_class)), " "] : []),
      [shown?.intended_use, say.of("products", kind), say("productNot")].filter(Boolean).join(" "));
  }

  close(): void {
    this.asked += 1;
    this.pane.close();
    this.node.remove();
  }
}
