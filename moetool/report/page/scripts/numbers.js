// Numbers as people read them.

/** @typedef {import("./types").Known} Known */

const UNKNOWN = "unknown";
const UNITS = ["", "K", "M", "B", "T"];

/**
 * Returns a whole number with its thousands marked.
 * @param {Known} value
 */
export function showCount(value) {
  return value === null ? UNKNOWN : Math.round(value).toLocaleString("en-US");
}

/**
 * Returns a number with three digits.
 * @param {Known} value
 */
export function showNumber(value) {
  if (value === null) {
    return UNKNOWN;
  }
  const size = Math.abs(value);
  if (size >= 1000) {
    return showCount(value);
  }
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : 2);
}

/**
 * Returns a share as a percentage; never `0.0%` for one above zero.
 * @param {Known} value
 */
export function showShare(value) {
  if (value === null) {
    return UNKNOWN;
  }
  if (value > 0 && value < 0.0005) {
    return "<0.1%";
  }
  const text = (100 * value).toFixed(1);
  return text === "-0.0" ? "0.0%" : `${text}%`;
}

/**
 * Returns a share that is often small, with two digits after the point below 10%.
 * @param {Known} value
 */
export function showChange(value) {
  return value !== null && value >= 0.0005 && value < 0.1
    ? `${(100 * value).toFixed(2)}%`
    : showShare(value);
}

/**
 * Returns how many times as large something is.
 * @param {Known} value
 */
export function showTimes(value) {
  return value === null ? UNKNOWN : `${showNumber(value)}×`;
}

/**
 * Returns a large number with four digits and a unit, such as 46.70B.
 * @param {Known} value
 */
export function showLarge(value) {
  if (value === null) {
    return UNKNOWN;
  }
  let [rest, unit] = [value, 0];
  while (rest >= 1000 && unit < UNITS.length - 1) {
    rest /= 1000;
    unit += 1;
  }
  return unit
    ? `${rest.toFixed(rest >= 100 ? 1 : rest >= 10 ? 2 : 3)}${UNITS[unit]}`
    : String(rest);
}

/**
 * Returns an interval in words; nothing if it is unknown.
 * @param {Known} low
 * @param {Known} high
 * @param {(value: Known) => string} show
 */
export function showInterval(low, high, show = showNumber) {
  return low === null || high === null ? "" : `${show(low)} to ${show(high)}`;
}

/**
 * Returns a p-value from permutations, which are too few for smaller ones.
 * @param {Known} value
 * @param {number} numPermutations
 */
export function showPValue(value, numPermutations) {
  if (value === null) {
    return UNKNOWN;
  }
  const text = value.toPrecision(2);
  return value <= 1.0001 / (numPermutations + 1) ? `≤ ${text}` : text;
}
