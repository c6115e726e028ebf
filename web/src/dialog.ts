// The one dialog of a page: asked, answered, or left by Escape.

import { $, closeDialog, el, say, sentence } from "./shared";

type Answer = () => Promise<string | void> | string | void;
let answer: Answer | null = null;
let otherwise: Answer | null = null;

interface Asked {
  title: string;
  body: (Node | string)[];
  confirm?: string;
  cancel?: string;
  danger?: boolean;
  wide?: boolean;
  // Does what was asked; a sentence that it returns stays in the dialog as what is wrong.
  act?: Answer;
  // The button beside it, where that is another answer rather than none.
  otherwise?: Answer;
}

// Shows a dialog; without `act` it only says something.
export function ask({
  title, body, confirm, cancel, danger, wide, act, otherwise: other,
}: Asked): void {
  $("dialogTitle").textContent = title;
  $("dialogBody").replaceChildren(...body);
  $("dialogError").textContent = "";
  $("cancel").textContent = cancel ?? say(act ? "cancel" : "close");
  const yes = $<HTMLButtonElement>("confirm");
  yes.hidden = !act;
  yes.textContent = confirm ?? "";
  yes.className = danger ? "danger" : "main";
  yes.disabled = false;
  answer = act ?? null;
  otherwise = other ?? null;
  const dialog = $<HTMLDialogElement>("dialog");
  dialog.classList.toggle("wide", Boolean(wide));
  if (!dialog.open) dialog.showModal();
  const first = dialog.querySelector<HTMLElement>("#dialogBody :is(input, select, textarea)");
  (danger ? $("cancel") : first ?? $("dialogTitle")).focus();
  dialog.scrollTop = 0;
}

export function dialogIsOpen(): boolean {
  return $<HTMLDialogElement>("dialog").open;
}

async function answered(act: Answer | null): Promise<void> {
  const yes = $<HTMLButtonElement>("confirm");
  yes.disabled = true;
  try {
    const wrong = await act?.();
    if (!wrong) closeDialog();
    else if (dialogIsOpen()) $("dialogError").textContent = wrong;
  } catch (refusal) { // after the session's end the dialog is closed, and nobody is to read it
    if (dialogIsOpen()) $("dialogError").textContent = sentence(refusal);
  }
  yes.disabled = false;
}

export function startDialog(): void {
  $("dialogForm").addEventListener("submit", (event) => {
    event.preventDefault();
    void answered(answer);
  });
  $("cancel").addEventListener("click", () => void answered(otherwise));
  $("dialog").addEventListener("close", () => $("dialogBody").replaceChildren());
}

// Every shortcut of a page: a key, and where its meaning stands among the words.
export function showKeys(keys: [string, string][]): void {
  ask({
    title: say("keys"),
    wide: keys.length > 12,
    body: [el("dl", { class: "keys" }, ...keys.flatMap(([key, word]) => [
      el("dt", {}, ...key.split(" ").map((one) => el("kbd", {}, one))),
      el("dd", {}, say.of(...(word.split(".") as [string, string]))),
    ]))],
  });
}
