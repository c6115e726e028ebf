// The structures of what is shown: their colours, places and, where its class lets it, volumes.

import { css } from "../colours";
import type { Figures, Place, Segmentation, Structure, Triple, Volume } from "../rest";
import * as rest from "../rest";
import { button, el, number, Refused, say, sentence } from "../shared";
import type { Frame } from "./frame";

// What is known of a segmentation besides its voxels.
export interface Known {
  of: Segmentation;
  places: Place[];
  figures: Figures | null;
  why: string; // there are no figures, or ""
}

export async function know(of: Segmentation): Promise<Known> {
  const known: Known = { of, places: [], figures: null, why: "" };
  const [places, figures] = await Promise.allSettled([
    rest.places(of.segmentation),
    // What its class gives out is the service's word; the page only spares it a refusal.
    of.may.includes("measurement") ? rest.figures(of.segmentation)
      : Promise.reject(new Refused(403, "class", "")),
  ]);
  if (places.status === "fulfilled") known.places = places.value;
  else known.why = sentence(places.reason);
  if (figures.status === "fulfilled") known.figures = figures.value;
  else known.why = sentence(figures.reason);
  return known;
}

export const toRas = ([x, y, z]: Triple): Triple => [-x, -y, z];

// With its uncertainty: half of the interval, in the same digits.
function volume({ ml, low_ml, high_ml }: Volume, narrow: boolean): (Node | string)[] {
  const digits = ml < 10 ? 2 : ml < 100 ? 1 : 0;
  const [size, more] = [number(ml, digits), number((high_ml - low_ml) / 2, digits)];
  return narrow ? [`${size} ml`, el("span", { class: "hint" }, `± ${more}`)] : [say("volumeOf", size, more)];
}

// The table of labels; `second` adds a column of another segmentation's volumes, and `names` tells
// the two apart.
export function labelList(
  frame: Frame, known: Known | null, second: Known | null, names: [string, string], hidden: Set<number>,
  jump: (world: Triple) => void, drawn: () => void,
): HTMLElement {
  const { shown } = frame;
  if (!shown) return el("p", { class: "hint" }, say("noSegmentation"));
  const two = Boolean(second?.figures);
  const structure = (of: Known | null, name: string): Structure | undefined =>
    of?.figures?.structures.find((one) => one.name === name);
  const toggle = (labels: number[], on: boolean) => {
    for (const label of labels) {
      if (on) hidden.delete(label);
      else hidden.add(label);
    }
    frame.pane.hide(hidden);
    drawn();
  };
  const all = Object.entries(shown.labels);
  const rows = all.flatMap(([value, name]) => {
    const label = Number(value);
    const place = known?.places.find((one) => one.label === label);
    const own = structure(known, name);
    const box = el("input", {
      type: "checkbox", "aria-label": say("showIt", name), id: `label-${label}`,
      on: { change: (event: Event) => toggle([label], (event.target as HTMLInputElement).checked) },
    });
    box.checked = !hidden.has(label);
    const row = el("tr", { "data-label": String(label) },
      el("td", { class: "pick" }, el("label", {}, box)),
      el("th", { scope: "row" },
        el("button", {
          type: "button", class: "name", "aria-label": say("goToIt", name),
          disabled: known && !place ? "" : null, on: { click: () => place && jump(place.world_mm) },
        }, swatch(label), name)),
      ...(known?.figures ? [el("td", { class: "number" },
        ...(own?.count ? volume(own.volume, two) : [el("span", { class: "hint" }, say("notFound"))]))] : []),
      ...(second?.figures ? [el("td", { class: "number" }, ...((one) =>
        (one?.count ? volume(one.volume, true) : ["–"]))(structure(second, name)))] : []));
    const lesions = own && own.count > 1 ? own.lesions.slice(0, 20) : [];
    return [row, ...lesions.map((one) => el("tr", { class: "lesion" },
      el("td", {}),
      el("th", { scope: "row" }, el("button", {
        type: "button", class: "name", "aria-label": say("goToIt", `${name} ${one.number}`),
        on: { click: () => jump(toRas(one.centroid_mm)) },
      }, `${one.number}`, el("span", { class: "hint" },
        ` ${number(one.long_axis_mm, 0)} × ${number(one.short_axis_mm, 0)} mm`))),
      el("td", { class: "number" }, ...volume(one.volume, two)),
      ...(second?.figures ? [el("td", {})] : [])))];
  });
  const heads = [say("structure"), ...(known?.figures ? [two ? names[0] : say("volume")] : []),
    ...(second?.figures ? [names[1]] : [])];
  const numbers = all.map(([value]) => Number(value));
  return el("div", { class: "labels" },
    el("p", { class: "row" },
      button("showAll", () => toggle(numbers, true), { class: "small" }),
      button("hideAll", () => toggle(numbers, false), { class: "small" })),
    known?.why ? el("p", { class: "hint", id: "noFigures" }, known.why) : null,
    el("table", { "aria-label": say("structuresHere") },
      el("thead", {}, el("tr", {}, el("td", {}),
        ...heads.map((head, at) => el("th", { scope: "col", class: at ? "number" : null }, head)))),
      el("tbody", {}, ...rows)),
    ...(known?.figures?.findings ?? []).map((one) => el("p", { class: "finding" },
      `${one.text} (${number(100 * one.confidence, 0)} %)`)));
}

export function swatch(label: number): HTMLElement {
  const mark = el("span", { class: "swatch", "aria-hidden": "true" });
  mark.style.background = css(label); // by script: the policy lets no style stand in the page
  return mark;
}
