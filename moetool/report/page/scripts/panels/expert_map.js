// The map of layers and experts: load, or lift in a domain.

import { makeGrid } from "../charts/grid.js";
import { makeTwin } from "../charts/tables.js";
import { liftColor, shareColor } from "../colors.js";
import { make, makeEmptyPanel, makeSection, makeSelect } from "../elements.js";
import { showCount, showInterval, showTimes } from "../numbers.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */

const ID = "map";
const TITLE = "Layers and experts";
// Loads from this many times the mean on have the same colour.
const STRONGEST_LOAD = 3;

/**
 * Returns the panel.
 * @param {Page} page
 * @returns {Panel}
 */
export function makeExpertMap({ payload, store }) {
  const { layers, load, specialization, domains } = payload;
  if (!load) {
    return makeEmptyPanel(ID, TITLE, "There are no loads.");
  }
  let [mode, order] = [specialization ? "lift" : "load", "id"];
  /** Expert of each column, by layer. @type {number[][]} */
  let columns = [];
  const modes = makeSelect(
    "Show",
    specialization
      ? [
          ["lift", `lift by ${payload.by}`],
          ["load", "load"],
        ]
      : [["load", "load"]],
    (value) => {
      mode = value;
      draw();
    },
  );
  const orders = makeSelect(
    "Order experts by",
    [
      ["id", "number"],
      ["value", "value, in each layer"],
    ],
    (value) => {
      order = value;
      draw();
    },
  );
  const means = load.layers.map((each, index) => sum(each.load) / layers[index].num_experts || 1);
  const grid = makeGrid({
    label:
      "A grid with a row for each layer and a column for each expert. The table below has its numbers.",
    describe: (row, column) => describe(row, columns[row][column]),
    choose: (row, column) => store.set({ layer: row, expert: columns[row][column] }),
  });
  const scale = make("p", { class: "key" });
  const twin = makeTwin("Load and lift of each expert", () => ({
    columns: [
      { name: "layer" },
      { name: "expert" },
      { name: "assignments", show: showCount },
      { name: "load over the mean", show: showTimes },
      ...(specialization ? [{ name: payload.by }, { name: "lift", show: showTimes }] : []),
    ],
    rows: layers.flatMap((layer, row) =>
      load.layers[row].load.map((count, expert) => [
        layer.name,
        expert,
        count,
        count / means[row],
        ...(specialization ? listStrongest(row, expert) : []),
      ]),
    ),
  }));

  /**
   * Returns the index of the domain in focus: the chosen one, else that with the largest lift.
   * @param {number} row
   * @param {number} expert
   */
  function findDomain(row, expert) {
    const chosen = store.get().domain;
    if (chosen !== null || !specialization) {
      return chosen ?? 0;
    }
    // A small domain may have a large lift by chance: those beyond it come first.
    const cells = specialization.lifts[row];
    const isAnySure = cells.some((each) => each.certainty[expert] > 0 && isAbove(each, expert));
    const lifts = cells.map((each) =>
      isAnySure && each.certainty[expert] === 0 ? -1 : (each.lift[expert] ?? -1),
    );
    return lifts.indexOf(Math.max(...lifts));
  }

  /**
   * @param {number} row
   * @param {number} expert
   */
  function listStrongest(row, expert) {
    const domain = findDomain(row, expert);
    return [domains[domain].name, specialization?.lifts[row][domain].lift[expert] ?? null];
  }

  /**
   * @param {number} row
   * @param {number} expert
   */
  function findValue(row, expert) {
    return mode === "load" || !specialization
      ? (load?.layers[row].load[expert] ?? 0) / means[row]
      : (specialization.lifts[row][findDomain(row, expert)].lift[expert] ?? null);
  }

  /**
   * @param {number} row
   * @param {number} expert
   */
  function describe(row, expert) {
    const count = load?.layers[row].load[expert] ?? 0;
    const words = [
      `Layer ${layers[row].name}, expert ${expert}:`,
      `${showTimes(count / means[row])} the mean load (${showCount(count)} assignments)`,
    ];
    if (specialization) {
      const domain = findDomain(row, expert);
      const cells = specialization.lifts[row][domain];
      const interval = showInterval(cells.low[expert], cells.high[expert]);
      words.push(
        `; ${domains[domain].name} ${showTimes(cells.lift[expert])}`,
        interval ? `(${interval})` : "",
        cells.certainty[expert] ? "" : ", not significant",
      );
    }
    return words.filter(Boolean).join(" ").replaceAll(" ;", ";").replaceAll(" ,", ",");
  }

  function draw() {
    columns = layers.map((layer, row) => {
      const ids = Array.from({ length: layer.num_experts }, (_, id) => id);
      return order === "id"
        ? ids
        : ids.sort((one, other) => (findValue(row, other) ?? -1) - (findValue(row, one) ?? -1));
    });
    const cells = columns.map((ids, row) =>
      ids.map((expert) => {
        const value = findValue(row, expert);
        if (value === null) {
          return { color: null };
        }
        if (mode === "load" || !specialization) {
          return { color: shareColor(value / STRONGEST_LOAD), text: value.toFixed(2) };
        }
        const domain = findDomain(row, expert);
        const lift = value.toFixed(value < 10 ? 2 : 0);
        return {
          color: liftColor(value),
          isFaint: specialization.lifts[row][domain].certainty[expert] === 0,
          text: store.get().domain === null ? `${lift}\n${domains[domain].name}` : lift,
        };
      }),
    );
    grid.draw(
      cells,
      layers.map((layer) => layer.name),
      order === "id" ? null : cells[0].map((_, rank) => `#${rank + 1}`),
    );
    mark();
    const domain = store.get().domain;
    scale.textContent =
      mode === "load"
        ? "Dark violet: never chosen. Green: twice the mean load. Yellow: three times or more."
        : `Orange: used more by ${domain === null ? `the ${payload.by} that uses it most` : domains[domain].name} than by all. Blue: less. Pale and struck out: not significant.`;
    twin.update();
  }

  function mark() {
    const { layer, expert } = store.get();
    grid.select(layer, expert === null ? null : columns[layer].indexOf(expert));
  }

  const element = makeSection(
    ID,
    TITLE,
    "A row for each routed layer, a column for each of its experts.",
    [
      make("div", { class: "controls" }, [modes.element, orders.element]),
      grid.element,
      scale,
      twin.element,
    ],
  );
  return {
    element,
    update(_, changed) {
      if (changed.has("domain") || changed.has("theme")) {
        draw();
      } else if (changed.has("layer") || changed.has("expert")) {
        mark();
      }
    },
  };
}

/** @param {number[]} values */
function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/**
 * @param {import("../types").Lifts} lifts
 * @param {number} expert
 */
function isAbove(lifts, expert) {
  return (lifts.lift[expert] ?? 0) > 1;
}
