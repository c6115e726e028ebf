// Labels that are drawn, and the way back: every stroke is kept as the voxels that it changed.

const MOST_STROKES = 200;

interface Stroke {
  at: Int32Array;
  before: Uint8Array;
  after: Uint8Array;
}

export class Mask {
  private readonly done: Stroke[] = [];
  private readonly undone: Stroke[] = [];
  private at: number[] = [];
  private before: number[] = [];
  private open = false;
  private told = 0;

  constructor(readonly voxels: Uint8Array, private readonly changed: () => void) {}

  begin(): void {
    this.end();
    this.open = true;
  }

  // The voxels that were changed since this was asked last within a stroke.
  fresh(): number[] {
    const since = this.at.slice(this.told);
    this.told = this.at.length;
    return since;
  }

  // Changes one voxel within a stroke.
  set(index: number, label: number): void {
    const now = this.voxels[index];
    if (now === label) return;
    this.at.push(index);
    this.before.push(now);
    this.voxels[index] = label;
  }

  // Ends the stroke; returns how many changes it made.
  end(): number {
    if (!this.open) return 0;
    this.open = false;
    const count = this.at.length;
    if (count) {
      this.done.push({
        at: Int32Array.from(this.at), before: Uint8Array.from(this.before),
        after: Uint8Array.from(this.at, (index) => this.voxels[index]),
      });
      if (this.done.length > MOST_STROKES) this.done.shift();
      this.undone.length = 0;
    }
    this.at = [];
    this.before = [];
    this.told = 0;
    if (count) this.changed();
    return count;
  }

  get canUndo(): boolean {
    return this.done.length > 0;
  }

  get canRedo(): boolean {
    return this.undone.length > 0;
  }

  undo(): boolean {
    this.end();
    const stroke = this.done.pop();
    if (!stroke) return false;
    for (let one = stroke.at.length - 1; one >= 0; one -= 1) {
      this.voxels[stroke.at[one]] = stroke.before[one];
    }
    this.undone.push(stroke);
    this.changed();
    return true;
  }

  redo(): boolean {
    this.end();
    const stroke = this.undone.pop();
    if (!stroke) return false;
    stroke.at.forEach((index, one) => { this.voxels[index] = stroke.after[one]; });
    this.done.push(stroke);
    this.changed();
    return true;
  }

  // Takes all labels from elsewhere, as one stroke.
  replace(labels: Uint8Array): number {
    this.begin();
    for (let index = 0; index < labels.length; index += 1) this.set(index, labels[index]);
    return this.end();
  }

  // What was drawn before is no more to be gone back to.
  forget(): void {
    this.done.length = 0;
    this.undone.length = 0;
  }

  isEmpty(): boolean {
    return !this.voxels.some((label) => label !== 0);
  }
}
