// Annotation: the case, its tools beside it, and the way to the next.

import { ask, showKeys } from "../dialog";
import * as rest from "../rest";
import {
  $, button, el, may, type Me, type Page, say, sentence, signOut, spoken,
} from "../shared";
import { listen, LOOK_KEYS } from "../viewer/keys";
import { swatch } from "../viewer/labels";
import { choice, field, opacity, option, views, VIEWS, windows } from "../viewer/panel";
import { showAgreement } from "./agreement";
import { Case } from "./case";
import { type Kind, KINDS } from "./hand";

const TOOL_KEYS: Record<Kind, string> = {
  move: "M", brush: "B", erase: "E", polygon: "P", region: "R", click: "C",
};
const KEYS: [string, string][] = [
  ...KINDS.map((kind): [string, string] => [TOOL_KEYS[kind], `tools.${kind}`]),
  ["1 … 9", "key.label"], ["[ ]", "key.size"], ["D", "key.ball"], ["G", "key.range"], ["I", "key.interpolate"],
  ["Space", "key.stamp"], ["Enter", "key.close"], ["Esc", "key.giveUp"], ["Ctrl+Z", "key.undo"],
  ["Ctrl+Y", "key.redo"], ["Ctrl+S", "key.save"], ["Ctrl+Enter", "key.submit"], ["N", "key.next"],
  ...LOOK_KEYS,
];

let now: Case | null = null;
let whose: Me | null = null;

// ---- what is done -------------------------------------------------------------------------

async function goNext(): Promise<void> {
  if (!now) return;
  if (now.draft.unsaved && !(await now.draft.save("draft"))) return;
  try {
    const image = await rest.next(now.projectId);
    if (!image || image === now.imageId) return now.say(say("allDone"));
    location.hash = `${now.projectId}/${image}`;
  } catch (refusal) {
    now.say(sentence(refusal));
  }
}

function keepDraft(): void {
  if (now && !now.locked && !now.deciding) void now.draft.save("draft");
}

function submit(): void {
  const it = now;
  if (!it) return;
  if (it.deciding) {
    ask({
      title: say("saveFinalTitle"), body: [el("p", {}, say("saveFinalText"))], confirm: say("saveFinal"),
      act: async () => ((await it.draft.save("submitted")) ? undefined : it.draft.fault),
    });
    return;
  }
  ask({
    title: say("submitTitle"),
    body: [...(it.mask.isEmpty() ? [el("p", { class: "note" }, say("submitEmpty"))] : []), el("p", {}, say("submitText"))],
    confirm: say("submit"),
    act: async () => ((await it.draft.save("submitted")) ? undefined : it.draft.fault),
  });
}

function propose(id: string): void {
  const it = now;
  const one = it?.proposals.find((each) => each.segmentation === id);
  if (!it || !one) return;
  const take = () => it.takeOver(one);
  if (it.mask.isEmpty()) void take().catch((refusal) => it.say(sentence(refusal)));
  else {
    ask({
      title: say("takeOverTitle"), body: [el("p", {}, say("takeOverText"))], confirm: say("takeIt"), act: take,
    });
  }
}

async function agree(): Promise<void> {
  const it = now!;
  try {
    showAgreement(await rest.agreement(it.projectId, it.imageId));
  } catch (refusal) {
    it.say(sentence(refusal));
  }
}

async function makeConsensus(): Promise<void> {
  const it = now!;
  try {
    if (it.draft.unsaved && !it.deciding && !(await it.draft.save("draft"))) return;
    await it.decide(await rest.consensus(it.projectId, it.imageId));
    await it.lookForDecided();
    drawPanel();
  } catch (refusal) {
    it.say(sentence(refusal));
  }
}

function reopen(): void {
  const it = now!;
  const list = el("select", { id: "reopened" }, ...it.project.readers.map((name) => el("option", { value: name }, name)));
  ask({
    title: say("reopenTitle"), confirm: say("reopen"),
    body: [el("p", {}, say("reopenText")), el("label", { for: "reopened" }, say("reader")), list],
    act: async () => {
      await rest.reopen(it.projectId, it.imageId, list.value);
      it.say(say("reopened", list.value));
    },
  });
}

// ---- keys ---------------------------------------------------------------------------------

function more(event: KeyboardEvent): boolean {
  if (!now?.hand) return false;
  const { hand } = now;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") (event.shiftKey ? now.redo() : now.undo());
    else if (key === "y") now.redo();
    else if (key === "s") keepDraft();
    else if (key === "enter" && !now.locked) submit();
    else return false;
    return true;
  }
  const kind = KINDS.find((one) => TOOL_KEYS[one].toLowerCase() === key);
  const label = Object.keys(now.project.labels)[Number(key) - 1];
  if (kind) hand.choose(kind);
  else if (/^[1-9]$/.test(key) && label) setLabel(Number(label));
  else if (key === "[") setSize(hand.size / 1.25);
  else if (key === "]") setSize(hand.size * 1.25);
  else if (key === "d") toggle(() => { hand.ball = !hand.ball; });
  else if (key === "g") toggle(() => { hand.ranged = !hand.ranged; });
  else if (key === "i") now.fillBetween();
  else if (key === "n") void goNext();
  else if (key === "escape") now.anew();
  else if (key === "enter" && hand.hasPolygon) hand.close();
  else if (key === " " && !(event.target as Element).matches?.("button, a, summary, input")) {
    hand.use(now.pane.planes!.at, hand.axis, event.shiftKey);
  } else return false;
  return true;
}

const keyed = listen({
  panes: () => (now?.pane.image ? [now.pane] : []),
  nextView() {
    if (!now) return;
    now.pane.setView(VIEWS[(VIEWS.indexOf(now.pane.getView()) + 1) % VIEWS.length]);
    drawBar();
  },
  drawn: () => drawBar(),
  keys: () => KEYS,
  more,
});

function toggle(act: () => void): void {
  act();
  drawPanel();
}

function setLabel(label: number): void {
  now!.hand.label = label;
  now!.anew();
  drawPanel();
}

function setSize(mm: number): void {
  now!.hand.size = Math.max(0.5, Math.min(80, Math.round(mm * 10) / 10));
  drawPanel();
  now!.pane.redraw();
}

// ---- drawing ------------------------------------------------------------------------------

function tools(it: Case): HTMLElement {
  const { hand } = it;
  return el("div", { class: "tools6", role: "radiogroup", "aria-label": say("tool") },
    ...KINDS.map((kind) => el("button", {
      type: "button", role: "radio", "aria-checked": String(hand.kind === kind), id: `tool-${kind}`,
      on: { click: () => hand.choose(kind) },
    }, say.of("tools", kind), el("kbd", { "aria-hidden": "true" }, TOOL_KEYS[kind]))));
}

function labels(it: Case): HTMLElement {
  return el("div", { class: "labelPick", role: "radiogroup", "aria-label": say("activeLabel") },
    ...Object.entries(it.project.labels).map(([value, name], at) => el("button", {
      type: "button", role: "radio", class: "name", "aria-checked": String(it.hand.label === Number(value)),
      id: `pick-${value}`, on: { click: () => setLabel(Number(value)) },
    }, swatch(Number(value)), name, at < 9 ? el("kbd", { "aria-hidden": "true" }, String(at + 1)) : null)));
}

function options(it: Case): HTMLElement[] {
  const { hand } = it;
  const parts: HTMLElement[] = [];
  if (hand.kind === "brush" || hand.kind === "erase") {
    parts.push(field("size", "size", el("div", { class: "slide" }, el("input", {
      id: "size", type: "range", min: "0.5", max: "80", step: "0.5", value: String(hand.size),
      on: { input: (event: Event) => { // not drawn anew: the slider is still held
        hand.size = Number((event.target as HTMLInputElement).value);
        $("sizeNow").textContent = `${hand.size} mm`;
      } },
    }), el("span", { class: "hint", id: "sizeNow" }, `${hand.size} mm`))));
  }
  if (hand.kind !== "move" && hand.kind !== "polygon" && hand.kind !== "click") {
    parts.push(el("div", { class: "joined", role: "group", "aria-label": say("reach") },
      ...[false, true].map((ball) => el("button", {
        type: "button", class: "small", id: ball ? "ball" : "flat", "aria-pressed": String(hand.ball === ball),
        on: { click: () => toggle(() => { hand.ball = ball; }) },
      }, say(ball ? "ball" : "flat")))));
  }
  if (hand.kind === "brush" || hand.kind === "polygon" || hand.kind === "region") {
    const box = el("input", {
      type: "checkbox", id: "ranged", on: { change: () => toggle(() => { hand.ranged = !hand.ranged; }) },
    });
    box.checked = hand.ranged;
    const bound = (id: "low" | "high", word: string) => el("input", {
      id, type: "number", step: "any", value: String(hand[id]), "aria-label": `${say("greyRange")}: ${say(word)}`,
      on: { change: (event: Event) => { hand[id] = Number((event.target as HTMLInputElement).value); } },
    });
    if (hand.kind !== "region") parts.push(el("label", { class: "tick" }, box, say("onlyRange")));
    if (hand.ranged || hand.kind === "region") {
      parts.push(el("div", { class: "windows" }, bound("low", "windowLow"), el("span", { "aria-hidden": "true" }, "–"),
        bound("high", "windowHigh"), button("rangeHere", () => it.rangeAround(), { class: "small" })));
    }
  }
  return parts;
}

function saving(it: Case): HTMLElement[] {
  const { draft } = it;
  const at = draft.at ? new Intl.DateTimeFormat(spoken() === "zh" ? "zh-CN" : "en-GB", {
    hour: "2-digit", minute: "2-digit", second: "2-digit",
  }).format(draft.at) : "";
  const word = say.of("saves", draft.state);
  const settled = ["saved", "submitted", "final"].includes(draft.state);
  return [
    el("p", { role: "status", id: "saveState", class: `state ${draft.state}` }, settled && at ? say("savedAt", word, at) : word),
    ...(draft.fault ? [el("p", { class: "error", role: "alert" }, draft.fault)] : []),
    el("div", { class: "row" },
      ...(it.deciding || it.locked ? [] : [button("saveDraft", keepDraft, { id: "save" })]),
      ...(it.locked ? [] : [button(it.deciding ? "saveFinal" : "submit", submit, { class: "main", id: "submit" })]),
      it.deciding ? button("ownDrawing", () => location.reload()) : button("nextCase", goNext, { id: "next" })),
  ];
}

function deciding(it: Case): HTMLElement | null {
  if (!may("admin")) return null;
  const final = it.decided.find((one) => one.kind === "final");
  const last = final ?? it.decided.at(-1);
  return el("section", { class: "deciding", "aria-labelledby": "agreementTitle" },
    el("h2", { id: "agreementTitle" }, say("agreement")),
    el("div", { class: "row" },
      button("agreementOpen", agree, { id: "agreement" }),
      button("makeConsensus", makeConsensus, { id: "consensus" }),
      button("reopenOne", reopen, { id: "reopen" }),
      last ? button("adjudicate", () => it.decide(last).then(drawPanel), { id: "adjudicate" }) : null),
    it.deciding ? el("p", { class: "note" }, say("adjudicating")) : null,
    final ? el("p", {}, el("a", { href: `/api/segmentations/${final.segmentation}/seg.dcm`, id: "exportSeg" }, say("exportSeg"))) : null);
}

function drawPanel(): void {
  const panel = $("panel");
  const it = now;
  if (!panel || !it?.hand) return;
  const focused = document.activeElement?.id;
  const scrolled = panel.scrollTop;
  const known = it.project.images.find((one) => one.image === it.imageId);
  panel.replaceChildren(...[
    el("div", { class: "patient" },
      el("h1", { id: "caseTitle", tabindex: "-1" }, known?.name || it.image.name),
      el("p", { class: "hint" }, `${it.project.name} · ${say("doneOf", it.project.done, it.project.images.length)}`)),
    tools(it),
    it.locked ? el("p", { class: "note", id: "locked" }, say("lockedText"))
      : el("p", { class: "hint", id: "toolHint" }, say.of("toolHints", it.hand.kind)),
    labels(it),
    ...options(it),
    el("p", { id: "said", role: "status" }, it.note),
    el("div", { class: "row" },
      button("undo", () => it.undo(), { id: "undo", class: "small", disabled: it.mask.canUndo ? null : "" }),
      button("redo", () => it.redo(), { id: "redo", class: "small", disabled: it.mask.canRedo ? null : "" }),
      button("interpolate", () => it.fillBetween(), { id: "interpolate", class: "small", title: say("interpolateHint") })),
    it.proposals.length
      ? choice("proposal", "startFrom", [option("", "–", true),
          ...it.proposals.map((one) => option(one.segmentation, one.author, false))], propose)
      : el("p", { class: "hint" }, say("proposalNone")),
    deciding(it),
  ].filter((one) => one !== null));
  $("keep").replaceChildren(...saving(it));
  panel.scrollTop = scrolled;
  if (focused && document.activeElement?.id !== focused) $(focused)?.focus();
}

function drawBar(): void {
  const bar = $("bar");
  if (!bar || !now?.pane.image) return;
  const panes = [now.pane];
  bar.replaceChildren(views(panes, VIEWS, drawBar), windows(panes, drawBar), opacity(panes),
    button("keysHint", () => showKeys(KEYS), { class: "plain small" }));
}

function drawPlace(): void {
  const it = now;
  if (!it?.hand || !$("place")) return;
  const at = it.pane.where();
  $("place").textContent = [say("at", at.voxel.join(", "), at.mm.map((one) => one.toFixed(1)).join(", ")),
    `${Math.round(at.grey * 10) / 10} ${it.image.units}`.trim(), at.label ? it.project.labels[at.label] ?? "" : ""]
    .filter(Boolean).join(" · ");
}

// ---- coming and going ---------------------------------------------------------------------

function guard(event: BeforeUnloadEvent): void {
  if (now?.draft.unsaved) event.preventDefault();
}

async function begin(): Promise<void> {
  const [project, image] = location.hash.slice(1).split("/");
  const host = el("div", { class: "host" });
  $("page").replaceChildren(
    el("aside", { id: "side", "aria-label": say("annotate") },
      el("div", { id: "panel" }, el("p", { role: "status" }, say("loading"))), el("div", { id: "keep" })),
    el("div", { id: "bar", role: "toolbar", "aria-label": say("view") }),
    el("section", { id: "stage", "aria-label": say("annotate") },
      el("figure", { class: "frame drawn" }, host, el("p", { class: "place", id: "place" }),
        el("p", { class: "product tool" }, el("strong", {}, say.of("productClass", "tool")), ` ${say.of("products", "tool")}`))));
  const it = new Case(project, image, host, say("viewerOf", say("annotate")), () => drawPanel());
  now = it;
  it.pane.onMove = drawPlace;
  it.pane.onWindow = drawBar;
  try {
    await it.open();
  } catch (refusal) {
    if (now !== it) return;
    $("panel").replaceChildren(el("p", { class: "error", role: "alert" }, sentence(refusal) || say("loadFailed")),
      el("p", {}, button("tryAgain", () => location.reload())), el("p", {}, el("a", { href: "/" }, say("backToList"))));
    return;
  }
  drawBar();
  drawPlace();
  $("caseTitle")?.focus();
  void rest.next(project, true).catch(() => null); // meanwhile, so that what comes next is known
}

export const page: Page = {
  title: () => say("annotate"),
  async came(me) {
    document.addEventListener("keydown", keyed);
    addEventListener("beforeunload", guard);
    // Who was signed out for being still comes back to what was drawn.
    if (now?.mask && whose?.person === me.person && now.draft.unsaved) {
      void now.draft.save("draft");
      drawPanel();
      return;
    }
    now?.close();
    now = null;
    whose = me;
    await begin();
  },
  went() {
    document.removeEventListener("keydown", keyed);
    if (now?.draft.unsaved) {
      now.draft.stop();
      return; // hidden, not lost: the same person finds it again
    }
    removeEventListener("beforeunload", guard);
    now?.close();
    now = null;
    $("page").replaceChildren();
  },
  draw() {
    drawPanel();
    drawBar();
  },
  leave() {
    if (!now?.draft.unsaved) {
      void signOut();
      return;
    }
    ask({
      title: say("leaveTitle"), body: [el("p", {}, say("leaveText"))], confirm: say("leaveYes"), danger: true,
      act: async () => {
        now?.draft.loaded(null, "clean");
        await signOut();
      },
    });
  },
};
