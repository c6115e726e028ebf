// Light or dark, as the system says until somebody chooses; choices are kept in the browser.

import { say } from "./words.js";

export function kept(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

export function keep(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch { /* a browser that keeps nothing still shows the page */ }
}

export function drop(key) {
  try {
    localStorage.removeItem(key);
  } catch { /* nor was it kept */ }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

export function drawTheme() {
  const word = say(isDark() ? "themeLight" : "themeDark");
  document.getElementById("theme").textContent = word;
  document.getElementById("theme").setAttribute("aria-label", `${say("themeLong")}: ${word}`);
}

export function switchTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  keep("theme", theme);
  drawTheme();
}

export function startTheme() {
  if (["light", "dark"].includes(kept("theme"))) {
    document.documentElement.dataset.theme = kept("theme");
  }
}
