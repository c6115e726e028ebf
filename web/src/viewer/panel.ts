// Controls that the viewer and annotation share: views, grey windows, how strong labels are.

import { el, keep, kept, say } from "../shared";
import type { Pane, View } from "./pane";

export const VIEWS: View[] = ["all", "planes", "axial", "coronal", "sagittal", "render"];

export function field(id: string, word: string, ...inputs: (Node | string)[]): HTMLElement {
  return el("div", { class: "field" }, el("label", { for: id }, say(word)), ...inputs);
}

export function choice(
  id: string, word: string, options: (HTMLOptionElement | HTMLOptGroupElement)[],
  act: (value: string) => unknown,
): HTMLElement {
  return field(id, word, el("select", {
    id, on: { change: (event: Event) => act((event.target as HTMLSelectElement).value) },
  }, ...options));
}

export function option(value: string, text: string, chosen: boolean): HTMLOptionElement {
  const one = el("option", { value }, text);
  one.selected = chosen;
  return one;
}

export function views(panes: Pane[], offered: View[], drawn: () => void): HTMLElement {
  return el("div", { class: "joined", role: "group", "aria-label": say("view") },
      ...offered.map((view) => el("button", {
        type: "button", class: "small", "aria-pressed": String(panes[0]?.getView() === view), id: `view-${view}`,
        on: { click: () => {
          for (const pane of panes) pane.setView(view);
          drawn();
          document.getElementById(`view-${view}`)?.focus();
        } },
      }, say.of("views", view))));
}

export function windows(panes: Pane[], drawn: () => void): HTMLElement {
  const main = panes[0];
  const [low, high] = main.window();
  const set = (from: number, to: number) => {
    for (const pane of panes) {
      if (pane.image?.modality === main.image?.modality) pane.setWindow(from, to);
    }
    drawn();
  };
  const bound = (id: string, word: string, value: number) => el("input", {
    id, type: "number", step: "any", "aria-label": `${say("window")}: ${say(word)}`,
    value: String(Math.round(value * 100) / 100),
    on: { change: () => {
      const read = (one: string) => Number((document.getElementById(one) as HTMLInputElement).value);
      set(read("windowLow"), read("windowHigh"));
    } },
  });
  return el("div", { class: "windows" },
    el("div", { class: "joined", role: "group", "aria-label": say("window") },
      ...(main.image?.window ?? []).map(([name, from, to]) => el("button", {
        type: "button", class: "small", "aria-pressed": String(low === from && high === to),
        on: { click: () => set(from, to) },
      }, say.of("windows", name)))),
    bound("windowLow", "windowLow", low), el("span", { "aria-hidden": "true" }, "–"),
    bound("windowHigh", "windowHigh", high));
}

// The next of the image's windows.
export function nextWindow(panes: Pane[]): void {
  const offered = panes[0]?.image?.window ?? [];
  if (!offered.length) return;
  const [low, high] = panes[0].window();
  const at = offered.findIndex(([, from, to]) => from === low && to === high);
  const [, from, to] = offered[(at + 1) % offered.length];
  for (const pane of panes) pane.setWindow(from, to);
}

export function opacity(panes: Pane[]): HTMLElement {
  return el("label", { class: "fade" }, say("opacity"), el("input", {
    id: "opacity", type: "range", min: "0", max: "1", step: "0.05", value: String(opacityNow()),
    on: { input: (event: Event) => setOpacity(panes, Number((event.target as HTMLInputElement).value)) },
  }));
}

let strength = Number(kept("opacity") ?? "0.5") || 0.5;

export function opacityNow(): number {
  return strength;
}

export function setOpacity(panes: Pane[], part: number): void {
  strength = Math.max(0, Math.min(1, part));
  keep("opacity", String(strength));
  for (const pane of panes) pane.setOpacity(strength);
  const slider = document.getElementById("opacity") as HTMLInputElement | null;
  if (slider) slider.value = String(strength);
}
