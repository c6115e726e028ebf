// The worklist: studies as they come in, found, filtered and opened; and the projects.

import * as rest from "../rest";
import { $, button, day, el, keep, kept, may, moment, type Me, type Page, personName, Refused, say, sentence } from "../shared";
import { drawProjects, loadProjects } from "./projects";

const STATES: rest.State[] = ["received", "waiting", "working", "done", "failed"];
const REFRESH_MS = 3000;

type Key = "patient_name" | "study_date" | "description" | "modality" | "images" | "received" | "state";
const COLUMNS: [Key, string][] = [
  ["patient_name", "patient_"], ["study_date", "studyDate"], ["description", "studyText"],
  ["modality", "modality"], ["images", "imagesN"], ["received", "receivedAt"], ["state", "stateNow"],
];

const chosen = new Set<string>(); // studies for a new project
let rows: rest.Study[] = [];
let counts: Record<string, number> = {};
let next: string | null = null;
let state: rest.State | null = null;
let sort: { key: Key; down: boolean } | null = null;
let fault = "";
let asked = 0;
let timer = 0;

async function load(after: string | null = null): Promise<void> {
  const mine = ++asked;
  clearTimeout(timer);
  try {
    const text = $<HTMLInputElement>("search")?.value.trim() ?? "";
    const page = await rest.studies(text, state, after);
    if (mine !== asked) return; // a later one is on its way
    rows = after ? [...rows, ...page.studies] : page.studies;
    ({ next, counts } = page);
    fault = "";
  } catch (refusal) {
    if (mine !== asked) return;
    if (refusal instanceof Refused && refusal.code === "http") { // a service of consents alone
      location.replace("/consent");
      return;
    }
    fault = sentence(refusal);
  }
  drawRows();
  // While work goes on it is looked at again, but not under who has paged further down.
  const busy = (counts.waiting ?? 0) + (counts.working ?? 0) + (counts.received ?? 0) > 0;
  if ((busy || fault) && !after && rows.length <= 50) timer = window.setTimeout(load, REFRESH_MS);
}

function sorted(): rest.Study[] {
  if (!sort) return rows;
  const { key, down } = sort;
  const value = (row: rest.Study) => (key === "state" ? STATES.indexOf(row.state) : row[key]);
  const order = [...rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    return typeof x === "number" ? x - Number(y) : String(x).localeCompare(String(y), "zh");
  });
  return down ? order.reverse() : order;
}

function choose(column: Key): void {
  sort = sort?.key !== column ? { key: column, down: false }
    : sort.down ? null : { key: column, down: true };
  keep("sort", JSON.stringify(sort));
  drawRows();
  $(`by-${column}`)?.focus();
}

function head(key: Key, word: string): HTMLElement {
  const now = sort?.key === key ? (sort.down ? "descending" : "ascending") : null;
  const arrow = now ? (sort?.down ? " ▼" : " ▲") : "";
  return el("th", { scope: "col", "aria-sort": now },
    el("button", { type: "button", class: "sort", id: `by-${key}`, on: { click: () => choose(key) } },
      say(word) + arrow));
}

function why(row: rest.Study): string {
  return row.jobs.filter((one) => one.state !== "done" && one.reason)
    .map((one) => `${one.kind}: ${one.reason}`).join("\n");
}

function line(row: rest.Study): HTMLElement {
  const address = `/study#${row.study}`;
  const reasons = why(row);
  const tick = el("input", {
    type: "checkbox", "aria-label": say("chooseStudy", personName(row.patient_name) || row.patient_id),
    on: { change: (event: Event) => {
      const on = (event.target as HTMLInputElement).checked;
      if (on) chosen.add(row.study);
      else chosen.delete(row.study);
      drawProjects([...chosen]);
    } },
  });
  tick.checked = chosen.has(row.study);
  return el("tr", {
    class: "open", on: { click: (event: MouseEvent) => {
      if (!(event.target as Element).closest("a, input, button, label, summary")) location.assign(address);
    } },
  },
    ...(may("admin") ? [el("td", { class: "pick" }, el("label", {}, tick))] : []),
    el("th", { scope: "row" },
      el("a", { href: address, class: "to" }, personName(row.patient_name) || row.patient_id || say("nameless")),
      el("span", { class: "hint" }, [row.patient_id, day(row.birth_date)].join(" · "))),
    el("td", { class: "when" }, day(row.study_date)),
    el("td", { class: "by" }, row.description || "–",
      row.accession ? el("span", { class: "hint" }, row.accession) : null),
    el("td", {}, row.modality || "–"),
    el("td", { class: "number" }, say("imagesOf", row.images, row.segmentations, row.instances)),
    el("td", { class: "when" }, moment(row.received)),
    el("td", {}, el("span", { class: `state ${row.state}` }, say.of("studyStates", row.state)),
      reasons ? el("details", {}, el("summary", {}, say("why")), el("p", { class: "hint" }, reasons),
        may("admin") ? button("again", () => again(row.study), { class: "small" }) : null) : null));
}

async function again(study: string): Promise<void> {
  try {
    await rest.again(study);
    await load();
  } catch (refusal) {
    $("faultWork").textContent = sentence(refusal);
  }
}

function drawRows(): void {
  const list = $("studies");
  if (!list) return;
  const held = document.activeElement?.closest("tr")?.querySelector("a")?.getAttribute("href");
  const onTick = document.activeElement?.matches("input[type=checkbox]");
  $("faultWork").textContent = fault;
  $("states").replaceChildren(...[null, ...STATES].map((one) => {
    const n = one ? counts[one] ?? 0 : Object.values(counts).reduce((sum, many) => sum + many, 0);
    return el("button", {
      type: "button", class: "chip", id: `state-${one}`, "aria-pressed": String(state === one),
      on: { click: () => { state = one; void load().then(() => $(`state-${one}`)?.focus()); } },
    }, one ? say.of("studyStates", one) : say("all"), el("span", { class: "count" }, String(n)));
  }));
  list.replaceChildren(rows.length
    ? el("div", { class: "scroll" }, el("table", { "aria-label": say("worklist") },
        el("thead", {}, el("tr", {},
          ...(may("admin") ? [el("th", { scope: "col" }, el("span", { class: "unseen" }, say("choose_")))] : []),
          ...COLUMNS.map(([key, word]) => head(key, word)))),
        el("tbody", {}, ...sorted().map(line))))
    : el("p", { class: "empty" }, fault ? "" : say(state || $<HTMLInputElement>("search").value
        ? "noStudyFound" : "noStudyYet")));
  $("more").hidden = !next;
  if (held) {
    list.querySelector<HTMLElement>(`tr:has(a[href="${held}"]) ${onTick ? "input" : "a"}`)?.focus();
  }
}

// Up and down go from study to study; "/" goes to the search.
function keyed(event: KeyboardEvent): void {
  const target = event.target as HTMLElement;
  if (event.key === "/" && !target.matches("input, textarea")) {
    event.preventDefault();
    $("search")?.focus();
  }
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const links = [...document.querySelectorAll<HTMLElement>("#studies a.to")];
  const at = links.indexOf(target);
  if (at < 0 && target.id !== "search") return;
  event.preventDefault();
  const to = event.key === "ArrowDown" ? at + 1 : at - 1;
  (links[to] ?? (to < 0 ? $("search") : null))?.focus();
}

function build(): void {
  let wait = 0;
  const work = el("section", { "aria-labelledby": "workTitle", class: "work" },
    el("div", { class: "head" },
      el("h1", { id: "workTitle", tabindex: "-1" }, say("worklist")),
      el("form", {
        role: "search", class: "find", method: "post",
        on: { submit: (event: Event) => { event.preventDefault(); void load(); } },
      },
        el("label", { for: "search", class: "unseen" }, say("findStudy")),
        el("input", {
          id: "search", type: "search", autocomplete: "off", spellcheck: "false", maxlength: "256",
          placeholder: say("findStudy"),
          on: { input: () => { clearTimeout(wait); wait = window.setTimeout(load, 250); } },
        }))),
    el("div", { class: "chips", id: "states", role: "group", "aria-label": say("byState") }),
    el("p", { class: "error", id: "faultWork", role: "alert" }),
    el("div", { class: "sheet", id: "studies" }),
    el("p", {}, button("more", () => load(next), { id: "more", hidden: "" })));
  $("page").replaceChildren(
    ...(may("study.read") ? [work] : []),
    el("section", { id: "projects", "aria-labelledby": "projectsTitle" }));
}

export const page: Page = {
  title: () => say(may("annotate") && !may("study.read") ? "projects" : "worklist"),
  async came(_me: Me) {
    try {
      sort = JSON.parse(kept("sort") ?? "null");
    } catch { /* something else was kept there */ }
    build();
    document.addEventListener("keydown", keyed);
    if (may("annotate")) void loadProjects().then(() => drawProjects([...chosen]));
    if (may("study.read")) {
      await load();
      $("search").focus();
    }
  },
  went() {
    asked += 1;
    clearTimeout(timer);
    document.removeEventListener("keydown", keyed);
    rows = [];
    counts = {};
    chosen.clear();
    $("page").replaceChildren();
  },
  draw() {
    if (!$("projects")) return;
    const text = $<HTMLInputElement>("search")?.value ?? "";
    build();
    if ($("search")) $<HTMLInputElement>("search").value = text;
    if (may("study.read")) drawRows();
    if (may("annotate")) drawProjects([...chosen]);
  },
};
