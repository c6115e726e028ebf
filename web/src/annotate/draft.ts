// Keeping what is drawn: by hand, by itself, and again where the service was away.

import { Refused, sentence } from "../shared";

export type SaveState = "clean" | "dirty" | "saving" | "saved" | "submitted" | "kept" | "final";

const IDLE_MS = 8_000; // after the last stroke, then a draft is saved
const LONGEST_MS = 30_000; // after the first that is not saved
const AGAIN_MS = 10_000; // after the service was not there

export interface Keeper {
  // Sends what is drawn; returns the version that it has then.
  send(state: "draft" | "submitted", version: string | null): Promise<string>;
  conflict(): void;
  changed(): void;
}

export class Draft {
  state: SaveState = "clean";
  version: string | null = null;
  at: Date | null = null; // of the last save
  fault = "";
  byItself = true; // off while an administrator decides: nothing is final by itself
  private changes = 0;
  private since = 0;
  private timer = 0;
  private sending: Promise<boolean> | null = null;

  constructor(private readonly keeper: Keeper) {}

  get unsaved(): boolean {
    return ["dirty", "saving", "kept"].includes(this.state);
  }

  // Something was drawn.
  touched(): void {
    this.changes += 1;
    this.since ||= Date.now();
    this.to("dirty");
    this.plan(Math.min(IDLE_MS, Math.max(0, this.since + LONGEST_MS - Date.now())));
  }

  // It was loaded as it lies there.
  loaded(version: string | null, state: SaveState): void {
    this.stop();
    this.since = 0;
    this.version = version;
    this.fault = "";
    this.to(state);
  }

  private plan(ms: number): void {
    this.stop();
    if (this.byItself) this.timer = window.setTimeout(() => void this.save("draft"), ms);
  }

  stop(): void {
    clearTimeout(this.timer);
  }

  // Saves; true where it lies there now, with all that was drawn.
  async save(state: "draft" | "submitted"): Promise<boolean> {
    while (this.sending) await this.sending; // one after the other, each over the one before
    this.sending = this.send(state).finally(() => { this.sending = null; });
    return this.sending;
  }

  private async send(state: "draft" | "submitted"): Promise<boolean> {
    this.stop();
    const sent = this.changes;
    this.to("saving");
    try {
      this.version = await this.keeper.send(state, this.version);
    } catch (refusal) {
      this.failed(refusal);
      return false;
    }
    this.at = new Date();
    this.fault = "";
    if (sent !== this.changes) { // drawn on meanwhile
      this.since = Date.now();
      this.to("dirty");
      this.plan(IDLE_MS);
      return false;
    }
    this.since = 0;
    this.to(!this.byItself ? "final" : state === "submitted" ? "submitted" : "saved");
    return true;
  }

  private failed(refusal: unknown): void {
    const code = refusal instanceof Refused ? refusal.code : "";
    const status = refusal instanceof Refused ? refusal.status : 0;
    this.fault = sentence(refusal);
    this.to("kept");
    if (code === "version") this.keeper.conflict();
    // What the service refused for a reason of its own will be refused again.
    else if (status === 0 || status >= 500 || status === 408 || status === 429) this.plan(AGAIN_MS);
  }

  private to(state: SaveState): void {
    this.state = state;
    this.keeper.changed();
  }
}
