// What the page of consents has already: requests, the way in, words, and pieces of a page.

import * as door from "../../src/qinjing/serve/static/door.js";
import * as look from "../../src/qinjing/serve/static/look.js";
import * as parts from "../../src/qinjing/serve/static/parts.js";
import * as words from "../../src/qinjing/serve/static/words.js";
import { Refused } from "../../src/qinjing/serve/static/api.js";

export { Refused };

export interface Me {
  role: string;
  name: string;
  person: string;
  rights: string[];
  idle_s: number;
}

// What door.js wants of a page; `leave` may ask before it lets go.
export interface Page {
  title(): string;
  came(me: Me): Promise<void>;
  went(): void;
  draw(): void;
  leave?(): void;
}

type Child = Node | string | null;
interface Options {
  class?: string | null;
  on?: Record<string, (event: any) => unknown>;
  [attribute: string]: unknown;
}

export const start: (page: Page) => Promise<void> = door.start;
export const signOut: () => Promise<void> = door.leave;
export const closeDialog: () => void = door.closeDialog;
export const call: (method: string, path: string, body?: unknown) => Promise<any> = door.call;
export const callRaw: (
  method: string, path: string, body?: BodyInit, headers?: Record<string, string>,
) => Promise<Response> = door.callRaw;
export const whoIsIn: () => Me | null = door.whoIsIn;
export const kept: (key: string) => string | null = look.kept;
export const keep: (key: string, value: string) => void = look.keep;
export const el = parts.el as <T extends keyof HTMLElementTagNameMap>(
  tag: T, options?: Options, ...children: Child[]
) => HTMLElementTagNameMap[T];
export const extend: (more: Record<string, object>) => void = words.extend;
export const spoken: () => "en" | "zh" = words.spoken as () => "en" | "zh";
export const sentence = words.sentence as (refusal: unknown) => string;
export const say = words.say as unknown as {
  (key: string, ...values: unknown[]): string;
  of(table: string, name: string): string;
};

export function $<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

export function may(right: string): boolean {
  return whoIsIn()?.rights.includes(right) ?? false;
}

// A button with a word of the table on it.
export function button(
  word: string, act: (event: any) => unknown, options: Options = {},
): HTMLButtonElement {
  const { on, ...rest } = options;
  return el("button", { type: "button", on: { click: act, ...on }, ...rest }, say(word));
}

// A moment as people here write it, to the minute.
export function moment(iso: string): string {
  const form = new Intl.DateTimeFormat(spoken() === "zh" ? "zh-CN" : "en-GB", {
    year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit",
  });
  return form.format(new Date(iso));
}

// A day of DICOM (20240131) or ISO, as ISO.
export function day(text: string | null): string {
  return (text ?? "").replace(/^(\d{4})(\d\d)(\d\d)$/, "$1-$2-$3") || "–";
}

// A person's name as DICOM has it ("Li^Mei=李^梅"), as people write it.
export function personName(text: string): string {
  const groups = text.split("=").map((one) => one.split("^").filter(Boolean).join(" ").trim());
  return (spoken() === "zh" && groups[1]) || groups.find(Boolean) || "";
}

export function number(value: number, digits: number): string {
  return value.toLocaleString(spoken() === "zh" ? "zh-CN" : "en-GB", {
    minimumFractionDigits: digits, maximumFractionDigits: digits,
  });
}
