// Projects of annotation on the worklist: how far each is, what is next, and a new one.

import { ask } from "../dialog";
import * as rest from "../rest";
import { $, button, day, el, may, personName, say, sentence } from "../shared";

let projects: rest.Project[] = [];
const opened = new Map<string, rest.OpenedProject>();
let fault = "";
let studies: string[] = [];

export async function loadProjects(): Promise<void> {
  try {
    projects = await rest.projects();
    fault = "";
  } catch (refusal) {
    fault = sentence(refusal);
  }
}

async function goOn(project: string): Promise<void> {
  try {
    const image = await rest.next(project);
    if (image) location.assign(`/annotate#${project}/${image}`);
    else {
      fault = say("allDone");
      drawProjects(studies);
    }
  } catch (refusal) {
    fault = sentence(refusal);
    drawProjects(studies);
  }
}

async function unfold(project: string): Promise<void> {
  if (opened.has(project)) return;
  try {
    opened.set(project, await rest.project(project));
  } catch (refusal) {
    fault = sentence(refusal);
  }
  drawProjects(studies);
}

function images(project: string): HTMLElement {
  const known = opened.get(project);
  if (!known) return el("p", { class: "hint" }, say("loading"));
  return el("ul", { class: "cases" }, ...known.images.map((one, at) => el("li", {},
    el("a", { href: `/annotate#${project}/${one.image}` }, `${at + 1}. ${one.name || one.image.slice(0, 8)}`),
    one.mine ? el("span", { class: `state ${one.mine}` }, say.of("drawnStates", one.mine)) : null,
    one.final ? el("span", { class: "state done" }, say.of("drawnStates", "final")) : null,
    one.submitted !== undefined
      ? el("span", { class: "hint" }, say("submittedBy", one.submitted, known.readers.length)) : null)));
}

function card(one: rest.Project): HTMLElement {
  const names = Object.values(one.labels).join(" · ");
  const details = el("details", {
    on: { toggle: (event: Event) => {
      if ((event.target as HTMLDetailsElement).open) void unfold(one.project);
    } },
  }, el("summary", {}, say("itsImages", one.images)), images(one.project));
  details.open = opened.has(one.project);
  return el("li", { class: "sheet" },
    el("div", { class: "head" },
      el("h3", {}, one.name),
      one.mine ? button("goOn", () => goOn(one.project), {
        class: "main", "aria-label": `${say("goOn")}: ${one.name}`,
      }) : null),
    el("p", { class: "hint" }, names),
    el("div", { class: "progress" },
      el("progress", { max: String(Math.max(one.images, 1)), value: String(one.done), "aria-label": say("doneOf", one.done, one.images) }),
      el("span", { class: "hint" }, say("doneOf", one.done, one.images))),
    may("admin") ? el("p", { class: "hint" }, say("readersOf", one.readers.join(", "), one.target_kappa)) : null,
    details);
}

export function drawProjects(chosen: string[]): void {
  studies = chosen;
  const place = $("projects");
  if (!place) return;
  place.replaceChildren(
    el("div", { class: "head" },
      el("h2", { id: "projectsTitle" }, say("projects")),
      may("admin") ? el("button", {
        type: "button", id: "newProject", disabled: chosen.length ? null : "",
        title: chosen.length ? null : say("tickFirst"), on: { click: () => void begin(chosen) },
      }, say("newProject", chosen.length)) : null),
    el("p", { class: "error", role: "alert" }, fault),
    projects.length ? el("ul", { class: "cards" }, ...projects.map(card))
      : el("p", { class: "hint" }, say(may("admin") ? "noProjectAdmin" : "noProject")));
}

// A new project over the images of the studies that were ticked.
async function begin(chosen: string[]): Promise<void> {
  let found: { image: rest.Image; of: string }[];
  try {
    const opened = await Promise.all(chosen.map(rest.study));
    found = opened.flatMap((one) => one.images.map((image) => (
      { image, of: [personName(one.patient_name), day(one.study_date)].filter(Boolean).join(", ") })));
  } catch (refusal) {
    fault = sentence(refusal);
    drawProjects(chosen);
    return;
  }
  const field = (id: string, word: string, hint: string, input: HTMLElement) => el("div", {},
    el("label", { for: id }, say(word)), input, hint ? el("p", { class: "hint", id: `${id}Hint` }, say(hint)) : null);
  const text = (id: string, more = {}) => el("input", { id, type: "text", autocomplete: "off", required: "", ...more });
  const lines = (id: string) => el("textarea", { id, rows: "3", required: "", spellcheck: "false", "aria-describedby": `${id}Hint` });
  const value = (id: string) => $<HTMLInputElement>(id).value;
  const split = (id: string) => value(id).split(/[\n,，、;；]/).map((one) => one.trim()).filter(Boolean);
  ask({
    title: say("newProjectTitle"),
    confirm: say("makeIt"),
    body: [
      field("projectName", "projectName", "", text("projectName", { maxlength: "100" })),
      field("projectLabels", "structures", "structuresHint", lines("projectLabels")),
      field("projectReaders", "readers", "readersHint", lines("projectReaders")),
      field("projectKappa", "targetKappa", "", text("projectKappa", {
        type: "number", min: "0", max: "1", step: "0.01", value: "0.85",
      })),
      el("fieldset", { class: "pickImages" }, el("legend", {}, say("images_")), ...found.map(({ image: one, of }) => {
        const box = el("input", { type: "checkbox", name: "image", value: one.image });
        box.checked = true;
        return el("label", { class: "tick" }, box,
          [of, one.name, one.description].filter(Boolean).join(" · "));
      })),
    ],
    async act() {
      const picked = [...document.querySelectorAll<HTMLInputElement>("#dialog input[name=image]:checked")];
      if (!picked.length) return say("pickImage");
      const labels = Object.fromEntries(split("projectLabels").map((name, at) => [String(at + 1), name]));
      await rest.makeProject({
        name: value("projectName").trim(), labels, readers: split("projectReaders"),
        images: picked.map((one) => one.value), target_kappa: Number(value("projectKappa")),
      });
      await loadProjects();
      drawProjects(studies);
      return undefined;
    },
  });
}
