// The page of consents: what is asked for, kept and shown. Text goes in as text, never as HTML.

import { call, closeDialog, start } from "./door.js";
import { badge, el, history, moment, spanned, table, ticks } from "./parts.js";
import { how, list, say, sentence } from "./words.js";

const PURPOSES = ["care", "research", "commercial", "federated", "export"];
const $ = (id) => document.getElementById(id);
const empty = { me: null, rows: [], next: null, open: null, models: null, told: null, chain: null };
let state = { ...empty };
let searches = 0;
let opens = 0; // what was asked for before this one is shown no more
let submit = null;

// ---- asking -------------------------------------------------------------------------------

async function came(me) {
  state = { ...empty, me };
  draw();
  if (me.may_see_all) {
    await search();
    $("search").focus();
  } else {
    await open(me.patient_id);
  }
}

function went() {
  state = { ...empty };
  searches += 1;
  opens += 1;
  $("search").value = "";
}

async function search(after = "") {
  const mine = ++searches;
  const text = $("search").value.trim();
  try {
    const page = await call("POST", "/api/consent/patients", { search: text, after });
    if (mine !== searches) return; // a later search is on its way
    state.rows = after ? [...state.rows, ...page.patients] : page.patients;
    state.next = page.next;
    drawList();
  } catch (refusal) {
    if (state.me) $("found").textContent = sentence(refusal);
  }
}

async function open(id) {
  const mine = ++opens;
  try {
    const file = await call("POST", "/api/consent/patient", { patient_id: id });
    if (mine !== opens) return; // another patient was chosen, or a dialog opened, since
    state = { ...state, open: file, models: null, told: null };
    draw();
    $("fileTitle")?.focus();
    await lookForModels(id);
  } catch (refusal) {
    if (state.me && mine === opens) {
      $("file").replaceChildren(el("p", { class: "error", role: "alert" }, sentence(refusal)));
    }
  }
}

async function lookForModels(id, tries = 15) {
  let found;
  try {
    found = await call("POST", "/api/consent/models", { patient_id: id });
  } catch (refusal) {
    if (refusal.code === "busy" && tries > 1) {
      setTimeout(() => state.open?.patient_id === id && lookForModels(id, tries - 1), 2000);
      return;
    }
    found = { error: sentence(refusal), models: [] };
  }
  if (state.open?.patient_id !== id) return;
  state.models = found;
  drawFile();
  const waiting = $("consequences");
  if (waiting) waiting.replaceWith(consequences());
}

async function verify() {
  $("verify").disabled = true;
  $("verdict").textContent = say("verifying");
  try {
    state.chain = await call("POST", "/api/consent/verify", {});
    drawChain();
  } catch (refusal) {
    $("verdict").textContent = sentence(refusal);
  }
  $("verify").disabled = false;
}

// ---- drawing ------------------------------------------------------------------------------

function draw() {
  const { me } = state;
  $("desk").hidden = !me;
  $("clinic").hidden = !me?.rights.includes("study.read");
  $("finder").hidden = !me?.may_see_all;
  $("desk").classList.toggle("alone", Boolean(me && !me.may_see_all));
  drawList();
  drawChain();
  drawFile();
}

function drawList() {
  const { rows, next, me, open: file } = state;
  const text = $("search").value.trim();
  $("found").textContent = me ? say("found", rows.length, next) : "";
  $("more").hidden = !next;
  const items = rows.map((row) => {
    const permitted = PURPOSES.filter((one) => row.purposes[one] === "permit");
    return item(row.patient_id, row.patient_id,
      permitted.length ? say("permits", list(permitted)) : say("permitsNothing"), file);
  });
  if (me?.may_change && text && !rows.some((row) => row.patient_id === text) && !next) {
    items.push(item(text, say("fresh", text), "", file, "fresh"));
  }
  $("list").replaceChildren(...items);
}

function item(id, name, hint, file, kind = null) {
  return el("li", {}, el("button",
    { type: "button", class: kind, "aria-current": file?.patient_id === id ? "true" : null,
      on: { click: () => open(id) } },
    el("span", { class: "name" }, name), hint ? el("span", { class: "hint" }, hint) : null));
}

function drawChain() {
  const { chain } = state;
  if (!chain) return $("verdict").replaceChildren();
  const verdict = chain.verified
    ? [el("p", { class: "fine" }, say("whole", chain.rows))]
    : [el("p", { class: "error" }, say("altered", chain.faults.length)),
       el("ul", {}, ...chain.faults.slice(0, 20).map((one) => el("li", {}, one)))];
  const head = chain.head
    ? [el("p", { class: "hint" }, say("headText")), el("code", {}, chain.head)] : [];
  return $("verdict").replaceChildren(...verdict, ...head);
}

function drawFile() {
  const { open: file, me, told } = state;
  if (!me) return $("file").replaceChildren();
  if (!file) return $("file").replaceChildren(el("p", { class: "empty" }, say("choose")));
  const open = file.standing.filter((one) => one.state !== "deny");
  const all = me.may_change && open.length > 1
    ? el("button", { type: "button", class: "risky",
        on: { click: () => askDeny(open.map((one) => one.purpose)) } }, say("withdrawAll"))
    : null;
  const focused = document.activeElement?.id;
  $("file").replaceChildren(
    ...[told ? notice() : null,
    el("div", { class: "sheet" },
      el("div", { class: "head" },
        el("h1", { id: "fileTitle", tabindex: "-1" }, say("patient", file.patient_id)), all),
      standing(file)),
    el("div", { class: "sheet" }, el("h2", {}, say("models")), models()),
    el("div", { class: "sheet" }, el("h2", {}, say("history")), history(file.history))].filter(Boolean),
  );
  if (focused && $(focused) && document.activeElement?.id !== focused) $(focused).focus();
  return undefined;
}

function standing(file) {
  const heads = [say("purpose"), say("now"), say("period"), `${say("recorded")} (UTC)`];
  if (state.me.may_change) heads.push(say("action"));
  return table(say("standing"), heads, file.standing.map((one) => {
    const cells = [
      el("th", { scope: "row" }, say.of("purposeNames", one.purpose)),
      el("td", {}, badge(one.state)),
      el("td", {}, ...spanned(one)),
      el("td", { class: "by" },
        el("span", { class: "stamp" }, one.recorded ? moment(one.recorded) : "–"),
        one.recorded_by ? el("span", { class: "hint" }, one.recorded_by) : null),
    ];
    if (state.me.may_change) {
      cells.push(el("td", { class: "act" }, ...actions(one)));
    }
    return el("tr", {}, ...cells);
  }));
}

// A deny may be said where nothing was: data sets whose basis is a licence pass without a permit.
function actions({ purpose, state: now }) {
  const given = now === "permit" || now === "later";
  const button = (word, kind, act) => el("button",
    { type: "button", class: `small ${kind}`, id: `${word}-${purpose}`,
      "aria-label": `${say(word)} ${say.of("purposeNames", purpose)}`,
      on: { click: () => act([purpose]) } }, say(word));
  return [
    given ? null : button("grant", "", askGrant),
    given ? button("withdraw", "risky", askDeny) : null,
    now === "none" || now === "ended" ? button("refuse", "risky", askDeny) : null,
  ].filter(Boolean);
}

function models() {
  const { models: found } = state;
  if (!found) return el("p", { class: "hint", role: "status" }, say("modelsLooking"));
  if (found.error) return el("p", { class: "error" }, found.error);
  if (!found.looked) return el("p", { class: "hint" }, say("modelsUnknown"));
  if (!found.models.length) return el("p", {}, say("modelsNone"));
  const heads = [say("model"), say("did"), say("dataset"), say("signed")];
  return table(say("models"), heads, found.models.map((one) => el("tr", {},
    el("td", { class: "model" }, one.model),
    el("td", {}, one.how.map(how).join("; ")),
    el("td", {}, one.dataset.join(", ")),
    el("td", {}, say(one.signed ? "yes" : "no")))));
}

function notice() {
  const { told } = state;
  const denied = told.decision === "deny";
  const what = say(denied ? "withdrawn" : "granted", list(told.purposes));
  return el("div", { class: denied ? "note" : "note good", id: "told", tabindex: "-1", role: "status" },
    el("h2", {}, say("done", what, told.row)), denied ? consequences("toldFollows") : null);
}

// What a withdrawal brings about, as far as it is known by now.
function consequences(id = "consequences") {
  const { models: found } = state;
  const learnt = (found?.models ?? []).filter((one) => one.learnt);
  const items = [el("li", {}, say("followsBatch"))];
  if (!found) items.push(el("li", {}, say("modelsLooking")));
  else if (found.error || !found.looked) {
    items.push(el("li", {}, found.error ?? say("modelsUnknown")));
  } else if (!learnt.length) items.push(el("li", {}, say("followsNone")));
  else {
    items.push(
      el("li", {}, say("followsLearnt", learnt.length),
        el("ul", {}, ...learnt.map((one) => el("li", {}, el("code", {}, one.model))))),
      el("li", {}, say("followsForget")));
  }
  items.push(el("li", {}, say("followsHistory")));
  return el("div", { id }, el("h3", {}, say("follows")), el("ul", {}, ...items));
}

// ---- changing -----------------------------------------------------------------------------

function show(title, body, confirm, dangerous, act) {
  $("dialogTitle").textContent = title;
  $("dialogBody").replaceChildren(...body);
  $("dialogError").textContent = "";
  $("confirm").textContent = confirm;
  $("confirm").className = dangerous ? "danger" : "main";
  submit = act;
  opens += 1; // no file that is still on its way comes under the dialog
  $("dialog").showModal();
  $(dangerous ? "cancel" : "dialogTitle").focus();
}

// Whom a change is for is settled when its dialog opens, with what the dialog says.
function askDeny(purposes) {
  const id = state.open.patient_id;
  const open = state.open.standing.filter((one) => one.state !== "deny");
  const given = open.some((one) => purposes.includes(one.purpose) && one.state === "permit");
  const word = given ? "withdraw" : "refuse";
  show(say(`${word}Title`),
    [el("p", {}, say("patient", id)),
     ticks(purposes, open.map((one) => one.purpose)),
     el("div", { class: "note" }, consequences())],
    say(`${word}Confirm`), true,
    (chosen) => change(id, "withdraw", "deny", { purposes: chosen }));
}

function askGrant(purposes) {
  const id = state.open.patient_id;
  const field = (name, word) => el("div", {}, el("label", { for: name }, say(word)),
    el("input", { type: "date", id: name, "aria-describedby": "dayHint", min: "1900-01-01", max: "9998-12-31" }));
  show(say("grantTitle"),
    [el("p", {}, say("patient", id)), ticks(purposes, PURPOSES),
     el("div", { class: "two" }, field("start", "from"), field("end", "until")),
     el("p", { class: "hint", id: "dayHint" }, say("dayHint"))],
    say("grantConfirm"), false,
    (chosen) => change(id, "grant", "permit",
      { purposes: chosen, start: $("start").value || null, end: $("end").value || null }));
}

async function change(id, path, decision, asked) {
  const { me } = state;
  const file = await call("POST", `/api/consent/${path}`, { ...asked, patient_id: id });
  if (state.me !== me) return; // signed out since; it is recorded, but nobody's to look at
  state.open = file;
  state.told = { decision, purposes: asked.purposes, row: file.history[0].seq };
  state.chain = null;
}

async function confirmed(event) {
  event.preventDefault();
  const boxes = [...$("dialogForm").querySelectorAll("input[name=purpose]:checked")];
  if (!boxes.length) {
    $("dialogError").textContent = say("chooseOne");
    return;
  }
  $("confirm").disabled = true;
  try {
    await submit(boxes.map((box) => box.value));
    closeDialog();
    draw();
    $("told")?.scrollIntoView({ block: "nearest" });
    $("told")?.focus();
    if (state.me?.may_see_all) await search();
  } catch (refusal) {
    if (state.me) $("dialogError").textContent = sentence(refusal);
  }
  $("confirm").disabled = false;
}

let wait = 0;
$("searchForm").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("search").addEventListener("input", () => {
  clearTimeout(wait);
  wait = setTimeout(search, 250);
});
$("more").addEventListener("click", () => search(state.next));
$("verify").addEventListener("click", verify);
$("cancel").addEventListener("click", closeDialog);
$("dialogForm").addEventListener("submit", confirmed);
$("dialog").addEventListener("close", () => $("dialogBody").replaceChildren());
start({ title: () => say("title"), came, went, draw });
