// Pieces of the page that know nothing of its state.

import { period, say } from "./words.js";

export function el(tag, options = {}, ...children) {
  const { class: name, on, ...rest } = options;
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const [event, act] of Object.entries(on ?? {})) node.addEventListener(event, act);
  for (const [key, value] of Object.entries(rest)) {
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function table(caption, heads, rows) {
  return el("div", { class: "scroll" }, el("table", { "aria-label": caption },
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, ...rows)));
}

export function badge(key) {
  return el("span", { class: `state ${key}` }, say.of("states", key));
}

// A period whose dates do not break at their hyphens.
export function spanned(row) {
  const parts = row.decision === "permit" ? period(row).split(" ") : ["–"];
  return parts.flatMap((part) => [el("span", { class: "stamp" }, part), " "]);
}

export function moment(iso) {
  return new Date(iso).toISOString().slice(0, 16).replace("T", " ");
}

export function ticks(chosen, offered) {
  return el("fieldset", {}, el("legend", {}, say("purposes")), ...offered.map((one) => {
    const box = el("input", { type: "checkbox", name: "purpose", value: one });
    box.checked = chosen.includes(one);
    return el("label", { class: "tick" }, box, say.of("purposeNames", one));
  }));
}

export function history(rows) {
  if (!rows.length) return el("p", { class: "hint" }, say("historyNone"));
  const heads = [say("entryNo"), `${say("recorded")} (UTC)`, say("purpose"), say("decision"),
    say("period"), say("by"), say("source")];
  return table(say("history"), heads, rows.map((row) => el("tr", {},
    el("td", {}, String(row.seq)),
    el("td", { class: "when" }, moment(row.recorded)),
    el("td", {}, say.of("purposeNames", row.purpose)),
    el("td", {}, say.of("decisions", row.decision)),
    el("td", {}, ...spanned(row)),
    el("td", { class: "by" }, row.recorded_by || "–"),
    el("td", { class: "by" }, row.source === "by hand" ? say("byHand") : row.source))));
}
