// The viewer: one study, its images and segmentations, beside another where one compares.

import { ask, showKeys } from "../dialog";
import * as rest from "../rest";
import type { Image, OpenedStudy, Segmentation, Triple } from "../rest";
import {
  $, button, day, el, may, type Me, moment, type Page, personName, say, sentence, whoIsIn,
} from "../shared";
import { Frame } from "./frame";
import { listen, LOOK_KEYS } from "./keys";
import { know, type Known, labelList } from "./labels";
import type { View } from "./pane";
import { choice, opacity, opacityNow, option, views, VIEWS, windows } from "./panel";

let study: OpenedStudy | null = null;
let frames: Frame[] = [];
let known: (Known | null)[] = [null, null];
let compared = "";
let linked = true;
let hidden = new Set<number>();
const opened = new Map<string, OpenedStudy>();
const panes = () => frames.map((frame) => frame.pane);

const keyed = listen({
  panes,
  nextView() {
    const next = VIEWS[(VIEWS.indexOf(frames[0].pane.getView()) + 1) % VIEWS.length];
    setView(next);
    drawPanel();
  },
  drawn: () => drawPanel(),
  keys: () => LOOK_KEYS,
});

function setView(view: View): void {
  for (const pane of panes()) pane.setView(view);
}

// ---- what is opened -----------------------------------------------------------------------

async function openFrame(
  at: number, image: Image, date: string, prefer?: (one: Segmentation) => boolean,
): Promise<void> {
  const frame = frames[at];
  known[at] = null;
  drawPanel();
  if (!(await frame.open(image, date, prefer))) return;
  frame.pane.setOpacity(opacityNow());
  if (at && linked) frame.pane.goTo(frames[0].pane.where().mm);
  frame.pane.hide(hidden);
  drawPanel();
  await learn(at);
  // 3-D is dear without a graphics card: it comes when the planes are seen.
  if (frame.pane.getView() === "planes" && at === 0 && frames.length === 1) {
    requestAnimationFrame(() => setTimeout(() => {
      if (frames[0] !== frame || frames.length > 1) return;
      frame.pane.setView("all");
      drawPanel();
    }, 0));
  }
}

async function learn(at: number): Promise<void> {
  const shown = frames[at]?.shown;
  known[at] = null;
  if (!shown) return drawPanel();
  const found = await know(shown);
  if (frames[at]?.shown?.segmentation !== shown.segmentation) return;
  known[at] = found;
  drawPanel();
}

async function showSegmentation(at: number, id: string): Promise<void> {
  const frame = frames[at];
  known[at] = null;
  hidden = new Set();
  await frame.show(frame.segmentations.find((one) => one.segmentation === id) ?? null);
  frame.pane.hide(hidden);
  await learn(at);
}

async function compare(what: string): Promise<void> {
  compared = what;
  const [kind, id] = [what.slice(0, 1), what.slice(2)];
  if (frames[1]) frames.pop()?.close();
  known[1] = null;
  if (!what || !study) return drawStage();
  const frame = addFrame(say("compare"));
  const main = frames[0];
  const same = (one: Segmentation) => one.author === main.shown?.author;
  try {
    if (kind === "s") {
      await openFrame(1, main.image!, main.date, (one) => one.segmentation === id);
    } else if (kind === "i") {
      await openFrame(1, study.images.find((one) => one.image === id)!, main.date, same);
    } else {
      const other = opened.get(id) ?? await rest.study(id);
      opened.set(id, other);
      const like = other.images.find((one) => one.modality === main.image?.modality
        && one.description === main.image?.description) ?? other.images[0];
      if (like) await openFrame(1, like, day(other.study_date), same);
      else throw new Error(say("noImages"));
    }
  } catch (refusal) {
    if (frames[1] === frame) {
      compared = "";
      frames.pop()?.close();
      drawStage();
    }
    $("faultStudy").textContent = sentence(refusal);
  }
}

function addFrame(name: string): Frame {
  const frame = new Frame(name);
  frames.push(frame);
  if (frames.length > 1) setView("planes");
  drawStage();
  if (frames.length > 1) frame.pane.setView(frames[0].pane.getView());
  frame.pane.onWindow = drawBar;
  frame.pane.onMove = (where, byHand) => {
    frame.where(where);
    if (!byHand || !linked) return;
    for (const other of frames) if (other !== frame && other.pane.image) other.pane.goTo(where.mm);
  };
  return frame;
}

function jump(world: Triple): void {
  for (const [at, frame] of frames.entries()) {
    if (at === 0 || linked) frame.pane.goTo(world);
  }
}

function confirmIt(one: Segmentation): void {
  ask({
    title: say("confirmTitle"),
    body: [el("p", {}, say("confirmText", one.author))],
    confirm: say("confirmYes"),
    async act() {
      const now = await rest.confirm(one.segmentation, one.version);
      for (const frame of frames) {
        frame.segmentations = frame.segmentations.map(
          (each) => (each.segmentation === now.segmentation ? now : each));
        if (frame.shown?.segmentation === now.segmentation) frame.shown = now;
      }
      await learn(0);
    },
  });
}

// ---- drawing ------------------------------------------------------------------------------

function drawStage(): void {
  const stage = $("stage");
  if (!stage) return;
  stage.classList.toggle("two-panes", frames.length > 1);
  for (const frame of frames) if (frame.node.parentNode !== stage) stage.append(frame.node);
  drawPanel();
}

function compareOptions(): (HTMLOptionElement | HTMLOptGroupElement)[] {
  const main = frames[0];
  const group = (word: string, options: HTMLOptionElement[]) =>
    options.length ? [el("optgroup", { label: say(word) }, ...options)] : [];
  const one = (value: string, text: string) => option(value, text, compared === value);
  return [
    one("", say("compareNone")),
    ...group("compareSegmentation", main.segmentations
      .filter((each) => each !== main.shown)
      .map((each) => one(`s:${each.segmentation}`, named(each)))),
    ...group("compareImage", study!.images.filter((each) => each !== main.image)
      .map((each) => one(`i:${each.image}`, imageName(each)))),
    ...group("compareStudy", study!.others.map((each) =>
      one(`t:${each.study}`, `${day(each.study_date)} · ${each.description || each.modality}`))),
  ];
}

const named = (one: Segmentation): string => say("segmentationOf", say.of("kinds", one.kind), one.author,
  one.kind === "reader" ? say.of("drawnStates", one.state) : "");
const imageName = (one: Image): string => [one.name, one.description].filter(Boolean).join(" · ");

function links(one: Segmentation): HTMLElement {
  const place = `/api/segmentations/${one.segmentation}`;
  const link = (file: string, word: string) =>
    el("a", { href: `${place}/${file}`, target: "_blank", rel: "noopener" }, say(word));
  const tongue = document.documentElement.lang.startsWith("zh") ? "zh" : "en";
  return el("p", { class: "links" }, link(`report.html?language=${tongue}`, "reportHtml"),
    link(`report.pdf?language=${tongue}`, "reportPdf"), link("seg.dcm", "segDcm"));
}

function confirmation(one: Segmentation): HTMLElement | null {
  if (one.confirmed) {
    return el("p", { class: "note good" }, say("confirmedBy", one.confirmed.by, moment(one.confirmed.at)));
  }
  if (!one.needs_confirmation) return null;
  const me = whoIsIn();
  return el("div", { class: "note" }, el("p", {}, say("waitsForReader")),
    may("confirm") ? el("button", {
      type: "button", class: "main", id: "confirmIt", on: { click: () => confirmIt(one) },
    }, say("standFor", me?.name || me?.person)) : null);
}

function drawPanel(): void {
  const panel = $("panel");
  if (!panel || !study) return;
  const main = frames[0];
  const focused = document.activeElement?.id;
  const scrolled = panel.scrollTop;
  const failed = study.jobs.filter((one) => one.state === "failed" && one.reason);
  panel.replaceChildren(
    el("div", { class: "patient" },
      el("h1", { id: "studyTitle", tabindex: "-1" }, personName(study.patient_name) || study.patient_id || say("nameless")),
      el("p", { class: "hint" }, [study.patient_id, say("born", day(study.birth_date))].join(" · ")),
      el("p", {}, [day(study.study_date), study.description].filter(Boolean).join(" · "))),
    el("p", { class: "error", id: "faultStudy", role: "alert" }),
    ...failed.map((one) => el("p", { class: "note" }, say("jobFailed", one.reason))),
    ...(main ? controls(main) : []));
  drawBar();
  panel.scrollTop = scrolled;
  if (focused && document.activeElement?.id !== focused) $(focused)?.focus();
}

// What tells the two columns of volumes apart: dates, or authors.
function headings(): [string, string] {
  const [a, b] = frames;
  if (!b) return ["", ""];
  return a.date === b.date ? [a.shown?.author ?? "", b.shown?.author ?? ""] : [a.date, b.date];
}

function drawBar(): void {
  const ready = Boolean(frames[0]?.pane.image);
  $("bar").replaceChildren(...(ready ? [
    views(panes(), VIEWS, drawPanel), windows(panes(), drawPanel), opacity(panes()),
    button("keysHint", () => showKeys(LOOK_KEYS), { class: "plain small" }),
  ] : []));
}

function controls(main: Frame): HTMLElement[] {
  if (!study!.images.length) return [el("p", { class: "empty" }, say("noImages"))];
  const parts: (HTMLElement | null)[] = [
    choice("imageChoice", "series", study!.images.map((one) =>
      option(one.image, imageName(one), one === main.image)), async (id) => {
      await compare("");
      hidden = new Set();
      const image = study!.images.find((one) => one.image === id)!;
      await openFrame(0, image, day(study!.study_date));
    }),
    choice("segmentationChoice", "segmentation", [
      ...main.segmentations.map((one) => option(one.segmentation, named(one), one === main.shown)),
      option("", say("noSegmentation"), !main.shown),
    ], (id) => showSegmentation(0, id)),
    main.shown ? confirmation(main.shown) : null,
    main.shown ? links(main.shown) : null,
    el("h2", {}, say("structuresHere")),
    labelList(main, known[0], known[1], headings(), hidden, jump, () => {
      frames[1]?.pane.hide(hidden);
      drawPanel();
    }),
    choice("compareChoice", "compare", compareOptions(), compare),
  ];
  if (frames.length > 1) {
    const box = el("input", {
      type: "checkbox", id: "linked", on: { change: (event: Event) => {
        linked = (event.target as HTMLInputElement).checked;
        if (linked) jump(main.pane.where().mm);
      } },
    });
    box.checked = linked;
    parts.push(el("label", { class: "tick" }, box, say("linked")),
      compared.startsWith("t") ? el("p", { class: "hint" }, say("linkedHint")) : null);
  }
  return parts.filter((one) => one !== null);
}

export const page: Page = {
  title: () => say("study"),
  async came(_me: Me) {
    $("page").replaceChildren(
      el("aside", { id: "panel", "aria-label": say("panelOf") }),
      el("div", { id: "bar", role: "toolbar", "aria-label": say("view") }),
      el("section", { id: "stage", "aria-label": say("study") }));
    document.addEventListener("keydown", keyed);
    try {
      study = await rest.study(location.hash.slice(1));
    } catch (refusal) {
      $("panel").replaceChildren(
        el("p", { class: "error", role: "alert" }, sentence(refusal)),
        el("p", {}, el("a", { href: "/" }, say("backToList"))));
      return;
    }
    drawPanel();
    if (!study.images.length) {
      $("panel").append(el("p", { class: "empty" }, say("noImages")));
      return;
    }
    addFrame(say("study"));
    await openFrame(0, study.images[0], day(study.study_date));
    $("studyTitle")?.focus();
  },
  went() {
    document.removeEventListener("keydown", keyed);
    for (const frame of frames) frame.close();
    frames = [];
    known = [null, null];
    study = null;
    compared = "";
    opened.clear();
    $("page").replaceChildren();
  },
  draw() {
    for (const frame of frames) frame.draw();
    drawPanel();
  },
};
