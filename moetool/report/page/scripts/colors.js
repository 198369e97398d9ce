// Colours: few hues for experts, one scale for shares, and one around 1 for lifts.

// Okabe and Ito 2008: eight hues that people with any colour vision can tell apart.
const HUES = [
  "#0072b2",
  "#e69f00",
  "#009e73",
  "#cc79a7",
  "#56b4e9",
  "#d55e00",
  "#f0e442",
  "#999999",
];

// Points of viridis, from low to high.
const VIRIDIS = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];
// Blue below 1, white at 1, orange above.
const DIVERGING = [
  [5, 80, 160],
  [120, 170, 220],
  [247, 247, 247],
  [240, 160, 90],
  [180, 70, 0],
];
// Lifts from this factor on have the same colour.
const STRONGEST_LIFT = 4;

export const NUM_HUES = HUES.length;

/**
 * Returns the colour of the n-th expert that has one.
 * @param {number} index
 */
export function hueOf(index) {
  return HUES[index % NUM_HUES];
}

/**
 * Returns the colour of a share of the largest value.
 * @param {number} share From 0 to 1.
 */
export function shareColor(share) {
  return interpolate(VIRIDIS, share);
}

/**
 * Returns the colour of a lift: white for 1.
 * @param {number} lift
 */
export function liftColor(lift) {
  const exponent = Math.log2(Math.max(lift, 1e-6)) / Math.log2(STRONGEST_LIFT);
  return interpolate(DIVERGING, (Math.min(Math.max(exponent, -1), 1) + 1) / 2);
}

/**
 * Returns black or white, whichever is easier to read on a colour.
 * @param {string} color As `rgb(r, g, b)` or `#rrggbb`.
 */
export function inkOn(color) {
  const parts = color.startsWith("#")
    ? [1, 3, 5].map((start) => Number.parseInt(color.slice(start, start + 2), 16))
    : (color.match(/\d+/g) ?? []).map(Number);
  const [red, green, blue] = parts.map((part) => {
    const channel = part / 255;
    return channel <= 0.04045 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4;
  });
  // WCAG 2: contrast is (L1 + 0.05) / (L2 + 0.05), which is equal for both at 0.179.
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

/**
 * @param {number[][]} points
 * @param {number} share
 */
function interpolate(points, share) {
  const place = Math.min(Math.max(share, 0), 1) * (points.length - 1);
  const index = Math.min(Math.floor(place), points.length - 2);
  const parts = points[index].map((start, channel) =>
    Math.round(start + (points[index + 1][channel] - start) * (place - index)),
  );
  return `rgb(${parts.join(", ")})`;
}
