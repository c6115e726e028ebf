// What keys do while one looks at images; both pages begin with these.

import { dialogIsOpen, showKeys } from "../dialog";
import type { Pane } from "./pane";
import { nextWindow, opacityNow, setOpacity } from "./panel";

export const LOOK_KEYS: [string, string][] = [
  ["?", "key.help"], ["↑ ↓", "key.slices"], ["← →", "key.sagittal"], ["PgUp PgDn", "key.coronal"],
  ["+ −", "key.zoom"], ["T", "key.turn"], ["Y", "key.tilt"], ["W", "key.window"], ["V", "key.view"], ["L", "key.labels"], [", .", "key.opacity"],
];

export interface Acts {
  panes(): Pane[];
  nextView(): void;
  drawn(): void;
  keys(): [string, string][];
  more?(event: KeyboardEvent): boolean;
}

let strong = 0.5;

// Does what a key says; false where it says nothing here.
function acted(event: KeyboardEvent, acts: Acts): boolean {
  const panes = acts.panes();
  const main = panes[0];
  const step = (axis: number, by: number) => { main?.step(axis, event.shiftKey ? 10 * by : by); };
  const turn = (about: number, up: number) => panes.filter((one) => one.turn(about, up)).length > 0;
  switch (event.key) {
    case "?": showKeys(acts.keys()); return true;
    case "ArrowUp": step(2, 1); return true;
    case "ArrowDown": step(2, -1); return true;
    case "ArrowLeft": step(0, -1); return true;
    case "ArrowRight": step(0, 1); return true;
    case "PageUp": step(1, 1); return true;
    case "PageDown": step(1, -1); return true;
    case "+": case "=": for (const one of panes) one.zoom(1.2); return true;
    case "-": case "−": for (const one of panes) one.zoom(1 / 1.2); return true;
    case "t": case "T": return turn(event.shiftKey ? -15 : 15, 0);
    case "y": case "Y": return turn(0, event.shiftKey ? -15 : 15);
    case "w": case "W": nextWindow(panes); acts.drawn(); return true;
    case "v": case "V": acts.nextView(); return true;
    case ",": setOpacity(panes, opacityNow() - 0.1); return true;
    case ".": setOpacity(panes, opacityNow() + 0.1); return true;
    case "l": case "L":
      if (opacityNow() > 0) strong = opacityNow();
      setOpacity(panes, opacityNow() > 0 ? 0 : strong);
      return true;
    default: return false;
  }
}

// Keys go to the picture unless one writes, chooses from a list, or a dialog is open.
export function listen(acts: Acts): (event: KeyboardEvent) => void {
  return (event) => {
    const target = event.target as HTMLElement;
    const writes = target.matches?.(
      "textarea, select, input:not([type=checkbox], [type=range], [type=radio])");
    const slides = target.matches?.("input[type=range]") && event.key.startsWith("Arrow");
    if (dialogIsOpen() || writes || slides) return;
    if (acts.more?.(event)) {
      event.preventDefault();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (acted(event, acts)) event.preventDefault();
  };
}
