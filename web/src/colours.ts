// Colours of labels: apart from each other on a grey picture, the first eight for the colour-blind too.

const NAMED: [number, number, number][] = [
  [230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [204, 121, 167], [213, 94, 0],
  [90, 110, 255], [0, 220, 200], [255, 110, 130], [160, 220, 60], [190, 140, 255], [255, 190, 140],
];

export function colour(label: number): [number, number, number] {
  if (label <= NAMED.length) return NAMED[(label - 1 + NAMED.length) % NAMED.length];
  const turn = (label * 137.508) % 360; // the golden angle: neighbours lie far apart
  const part = (shift: number) => {
    const at = (turn / 30 + shift) % 12;
    return Math.round(255 * (0.6 - 0.4 * Math.max(-1, Math.min(at - 3, 9 - at, 1))));
  };
  return [part(0), part(8), part(4)];
}

export function css(label: number): string {
  return `rgb(${colour(label).join(" ")})`;
}

// NiiVue's table: of 256 labels, those that are hidden without colour.
export function table(hidden: ReadonlySet<number>): Uint8ClampedArray {
  const lut = new Uint8ClampedArray(4 * 256);
  for (let label = 1; label < 256; label += 1) {
    lut.set([...colour(label), hidden.has(label) ? 0 : 255], 4 * label);
  }
  return lut;
}
