// Coming in and going out, and the frame around every page: who it is, language, light or dark.

import { ask, Refused, send } from "./api.js";
import { drawTheme, drop, keep, kept, startTheme, switchTheme } from "./look.js";
import { say, sentence, speak, spoken } from "./words.js";

const $ = (id) => document.getElementById(id);
let me = null;
let idle = 0;
let page = null; // title(), came(me), went(), draw()

export function whoIsIn() {
  return me;
}

// One request; where the session has ended, so does what lies on the screen.
async function minded(request) {
  try {
    const answer = await request();
    watchIdle();
    return answer;
  } catch (refusal) {
    if (refusal instanceof Refused && refusal.code === "session" && me) signedOut();
    throw refusal;
  }
}

export function call(method, path, body) {
  return minded(() => ask(method, path, body));
}

export function callRaw(method, path, body, headers) {
  return minded(() => send(method, path, body, headers));
}

// What lies on the screen goes when the session does, though nobody asks any more.
function watchIdle() {
  clearTimeout(idle);
  if (me) idle = setTimeout(signedOut, me.idle_s * 1000);
}

// Emptied at once: a browser says that a dialog has closed with its next picture, and a page that
// nobody looks at has none.
export function closeDialog() {
  $("dialog").close();
  for (const part of ["dialogTitle", "dialogBody", "dialogError"]) $(part).replaceChildren();
}

function signedOut() {
  clearTimeout(idle);
  me = null;
  drop("in");
  closeDialog();
  page.went();
  drawFrame();
  $("entryError").textContent = say("sessionEnded");
  $("token").focus();
}

// Whether there may be a session: where there was none, nobody need ask and be refused.
function mayBeIn() {
  try {
    return localStorage.getItem("in") !== null;
  } catch {
    return true;
  }
}

async function begin(whoever) {
  me = whoever;
  keep("in", "yes");
  watchIdle();
  drawFrame();
  await page.came(me);
}

async function enter(event) {
  event.preventDefault();
  $("entryError").textContent = "";
  try {
    const whoever = await ask("POST", "/api/session", { token: $("token").value });
    $("token").value = "";
    await begin(whoever);
  } catch (refusal) {
    $("entryError").textContent = sentence(refusal);
    $("token").focus();
  }
}

export async function leave() {
  drop("in"); // first: the next page may begin before the answer comes
  await ask("DELETE", "/api/session").catch(() => null);
  signedOut();
  $("entryError").textContent = "";
}

function switchLanguage() {
  speak(spoken() === "zh" ? "en" : "zh");
  keep("language", spoken());
  $("entryError").textContent = "";
  drawFrame();
}

// The frame, then the page within it.
export function drawFrame() {
  document.documentElement.lang = spoken() === "zh" ? "zh-Hans" : "en";
  document.title = `Qinjing · ${page.title()}`;
  for (const node of document.querySelectorAll("[data-word]")) {
    node.textContent = say(node.dataset.word);
  }
  $("language").textContent = say("other");
  $("language").setAttribute("aria-label", say("otherLong"));
  drawTheme();
  $("entry").hidden = Boolean(me);
  $("leave").hidden = !me;
  $("who").textContent = me ? [me.name, say.of("roles", me.role)].filter(Boolean).join(" · ") : "";
  page.draw();
}

export async function start(thePage) {
  page = thePage;
  speak(kept("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en"));
  startTheme();
  $("entryForm").addEventListener("submit", enter);
  $("leave").addEventListener("click", () => page.leave ? page.leave() : leave());
  $("language").addEventListener("click", switchLanguage);
  $("theme").addEventListener("click", switchTheme);
  drawFrame();
  const came = new URLSearchParams(location.search).get("sign_in"); // from the hospital's provider
  if (came === "done") keep("in", "yes");
  if (came) history.replaceState(null, "", location.pathname + location.hash);
  let whoever;
  try {
    whoever = mayBeIn() ? await ask("GET", "/api/session") : null;
  } catch {
    drop("in");
  }
  if (whoever) {
    await begin(whoever);
    return;
  }
  if (came && came !== "done") $("entryError").textContent = say.of("signIn", came) ?? "";
  $("token").focus();
  const ways = await ask("GET", "/api/session/ways").catch(() => null);
  $("elsewhere").hidden = !ways?.oidc;
}
