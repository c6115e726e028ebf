// How far the readers of a case agree, for those who decide.

import { ask } from "../dialog";
import type { Agreement } from "../rest";
import { el, number, say } from "../shared";

const figure = (value: number | null, digits = 3): string =>
  (value === null || Number.isNaN(value) ? "–" : number(value, digits));

function table(caption: string, heads: string[], rows: string[][]): HTMLElement {
  return el("div", { class: "scroll" }, el("table", { class: "figures" },
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows.map(([first, ...rest]) => el("tr", {},
      el("th", { scope: "row" }, first), ...rest.map((one) => el("td", { class: "number" }, one)))))));
}

export function showAgreement(found: Agreement): void {
  const { readers, target_kappa: target } = found;
  const verdict = found.reached
    ? el("p", { class: "note good", id: "verdict" }, say("reached", target))
    : el("p", { class: "note", id: "verdict" }, say("notReached", target));
  ask({
    title: say("agreement"),
    wide: true,
    body: [
      verdict,
      table(say("cohen"), [say("reader"), say("reader"), "κ"],
        found.cohen.map((one) => [one.a, one.b, figure(one.kappa)])),
      el("p", {}, `${say("fleiss")}: `, el("strong", {}, figure(found.fleiss))),
      el("div", { class: "matrices" }, ...Object.entries(found.dice).map(([name, matrix]) => table(
        say("diceOf", name), [say("reader"), ...readers],
        matrix.map((row, at) => [readers[at], ...row.map((one) => figure(one))])))),
      table(say("staple"), [say("reader"), say("structure"), say("sensitivity"), say("specificity")],
        found.staple.map((one) => [
          one.reader, one.label, figure(one.sensitivity), figure(one.specificity, 4)])),
    ],
  });
}
