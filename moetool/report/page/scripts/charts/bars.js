// Bar charts that are tables: each row has its numbers, and a bar that shows one of them.

import { make, makeButton } from "../elements.js";

/**
 * @typedef {object} Bar
 * @property {string} label
 * @property {number | null} value Length of the bar.
 * @property {number | null} [baseline] What a random router would have: a mark across the bar.
 * @property {number | null} [low] Lower limit of an interval: a line over the bar.
 * @property {number | null} [high]
 * @property {string[]} texts What the columns after the bar say.
 * @property {boolean} [isFaint] Whether it is not significant.
 * @property {boolean} [isSelected]
 * @property {(() => void) | null} [select]
 */

/**
 * Returns a chart.
 * @param {string} caption
 * @param {string[]} header Name of the label, of the bar, and of each further column.
 * @param {Bar[]} bars
 * @param {{ most?: number, origin?: number }} [scale] Value of a full bar, and of an empty one.
 */
export function makeBars(caption, header, bars, scale = {}) {
  const origin = scale.origin ?? 0;
  const values = bars.flatMap((bar) => [bar.value, bar.baseline, bar.high]);
  const known = values.filter((value) => value !== null && value !== undefined);
  const most = scale.most ?? Math.max(origin + 1e-9, ...known);
  /** @param {number} value */
  const percent = (value) =>
    `${Math.min(100, Math.max(0, (100 * (value - origin)) / (most - origin)))}%`;
  const rows = bars.map((bar) =>
    make("tr", { class: bar.isSelected ? "selected" : null }, [
      make("th", { scope: "row" }, [
        bar.select
          ? makeButton(bar.label, bar.select, {
              class: "plain",
              "aria-pressed": Boolean(bar.isSelected),
            })
          : bar.label,
      ]),
      make("td", { class: "bar-cell", "aria-hidden": "true" }, [makeBar(bar, percent)]),
      ...bar.texts.map((text) => make("td", { class: "number" }, [text])),
    ]),
  );
  const names = header.map((name, index) => {
    if (index === 1) {
      return make("td", { class: "bar-head", "aria-hidden": "true" }, [name]);
    }
    return name
      ? make("th", { scope: "col", class: index > 1 ? "number" : null }, [name])
      : make("td");
  });
  return make("table", { class: "bars" }, [
    make("caption", {}, [caption]),
    make("thead", {}, [make("tr", {}, names)]),
    make("tbody", {}, rows),
  ]);
}

/**
 * Marks one row of a chart as selected; none if there is no such row.
 * @param {HTMLTableElement} chart
 * @param {number} index
 */
export function selectBar(chart, index) {
  [...chart.tBodies[0].rows].forEach((row, at) => {
    row.classList.toggle("selected", at === index);
    row.querySelector("button")?.setAttribute("aria-pressed", String(at === index));
  });
}

/**
 * @param {Bar} bar
 * @param {(value: number) => string} percent
 */
function makeBar(bar, percent) {
  const track = make("div", { class: "track" });
  if (bar.value !== null) {
    const fill = make("div", { class: bar.isFaint ? "fill faint" : "fill" });
    fill.style.width = percent(bar.value);
    track.append(fill);
  }
  if (bar.low != null && bar.high != null) {
    const line = make("div", { class: "interval" });
    line.style.left = percent(bar.low);
    line.style.right = `calc(100% - ${percent(bar.high)})`;
    track.append(line);
  }
  if (bar.baseline != null) {
    const mark = make("div", { class: "baseline" });
    mark.style.left = percent(bar.baseline);
    track.append(mark);
  }
  return track;
}

/**
 * Returns the key to the marks of bar charts.
 * @param {{ baseline?: string, interval?: boolean, faint?: boolean }} marks Those that are drawn.
 */
export function makeBarKey({ baseline, interval, faint }) {
  /** @type {[string, string][]} */
  const parts = [];
  if (baseline) {
    parts.push(["key-baseline", baseline]);
  }
  if (interval) {
    parts.push(["key-interval", "95% interval over prompts"]);
  }
  if (faint) {
    parts.push(["key-faint", "not significant"]);
  }
  return make(
    "p",
    { class: "key" },
    parts.flatMap(([name, text]) => [
      make("span", { class: name, "aria-hidden": "true" }),
      ` ${text}`,
    ]),
  );
}
