// Experts that are chosen together in a layer, and the flow to the next.

import { makeBars, selectBar } from "../charts/bars.js";
import { makeGrid } from "../charts/grid.js";
import { makeTable, makeTwin } from "../charts/tables.js";
import { liftColor } from "../colors.js";
import { make, makeEmptyPanel, makeSection } from "../elements.js";
import { showCount, showInterval, showShare, showTimes } from "../numbers.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */
/** @typedef {import("../types").State} State */
/** @typedef {import("../types").LayerTogetherness} LayerTogetherness */

const ID = "togetherness";
const TITLE = "Experts together";

/**
 * Returns the panel.
 * @param {Page} page
 * @returns {Panel}
 */
export function makeTogetherness({ payload, store }) {
  const { togetherness, layers } = payload;
  if (!togetherness) {
    return makeEmptyPanel(ID, TITLE, payload.missing.coactivation ?? "Pairs are unknown.");
  }
  const summary = make("p", {});
  const groups = make("div", {});
  const flow = make("div", {});
  const predicted = togetherness.layers.flatMap((layer, index) =>
    layer.next?.hit_rate == null ? [] : [{ index, next: layer.next }],
  );
  const prediction = makeBars(
    "Share of the next layer's experts that a layer's experts predict, on prompts held out",
    ["layer", "", "predicted", "the most popular ones", "random ones"],
    predicted.map(({ index, next }) => ({
      label: layers[index].name,
      value: next.hit_rate,
      baseline: next.random,
      select: () => store.set({ layer: index }),
      texts: [showShare(next.hit_rate), showShare(next.popularity), showShare(next.random)],
    })),
    { most: 1 },
  );
  /** Expert of each row and column. @type {number[]} */
  let order = [];
  const grid = makeGrid({
    label:
      "A grid with a row and a column for each expert of the layer. The table below has its strongest pairs.",
    isSquare: true,
    describe(row, column) {
      const layer = store.get().layer;
      const pair = readPair(
        togetherness.layers[layer],
        layers[layer].num_experts,
        order[row],
        order[column],
      );
      return row === column
        ? `Expert ${order[row]} with itself`
        : `Experts ${order[row]} and ${order[column]}: ${showTimes(pair.overExpected)} what their loads explain (lift ${showTimes(pair.lift)})${pair.isSignificant ? "" : ", not significant"}`;
    },
    choose: (row) => store.set({ expert: order[row] }),
  });
  const matrix = make("div", {}, [
    make("h3", {}, ["Pairs, relative to what their loads explain"]),
    grid.element,
    make("p", { class: "key" }, [
      "Orange: chosen together more than their loads explain. Blue: less. Pale and struck out: not significant. Rows and columns begin with the strongest groups.",
    ]),
  ]);
  const twin = makeTwin("The strongest pairs of the layer", () => ({
    columns: [
      { name: "expert" },
      { name: "other expert" },
      { name: "decisions", show: showCount },
      { name: "lift", show: showTimes },
      { name: "expected", show: showTimes },
      { name: "95% interval" },
    ],
    rows: togetherness.layers[store.get().layer].pairs.map(
      ([one, other, count, lift, expected, low, high]) => [
        one,
        other,
        count,
        lift,
        expected,
        showInterval(low, high) || "unknown",
      ],
    ),
  }));

  /** @param {State} state */
  function draw(state) {
    const mine = togetherness?.layers[state.layer];
    if (!mine) {
      return;
    }
    const numExperts = layers[state.layer].num_experts;
    summary.textContent = mine.num_pairs
      ? `Layer ${layers[state.layer].name}: ${showCount(mine.num_above)} of ${showCount(mine.num_pairs)} pairs are chosen together more than their loads explain, ${showCount(mine.num_below)} less.`
      : `Layer ${layers[state.layer].name} chooses one expert for each token: it has no pairs.`;
    groups.replaceChildren(
      mine.groups.length
        ? makeTable(
            "Groups whose members are all paired more often than their loads explain",
            [
              { name: "experts" },
              { name: "share of all pairs", show: showShare },
              { name: "same loads", show: showShare },
              { name: "random router", show: showShare },
            ],
            mine.groups.map((group) => [
              group.experts.join(", "),
              group.share,
              group.expected_share,
              group.random_share,
            ]),
          )
        : make("p", { class: "missing" }, ["No group of experts stands out in this layer."]),
    );
    matrix.hidden = !mine.matrix;
    if (mine.matrix) {
      order = orderByGroups(mine, numExperts);
      grid.draw(
        order.map((one) =>
          order.map((other) => {
            const { overExpected, isSignificant } = readPair(mine, numExperts, one, other);
            return one === other || overExpected === null
              ? { color: null }
              : {
                  color: liftColor(overExpected),
                  isFaint: !isSignificant,
                  text: overExpected.toFixed(overExpected < 10 ? 2 : 0),
                };
          }),
        ),
        order.map(String),
        order.map(String),
      );
      mark(state);
    }
    twin.update();
    drawFlow(state, mine);
  }

  /** @param {State} state */
  function mark(state) {
    const place = state.expert === null ? -1 : order.indexOf(state.expert);
    grid.select(place < 0 ? null : place, place < 0 ? null : place);
  }

  /**
   * @param {State} state
   * @param {LayerTogetherness} mine
   */
  function drawFlow(state, mine) {
    const next = mine.next;
    if (!next) {
      flow.replaceChildren(
        make("p", { class: "missing" }, ["No routed layer of the same stack follows this one."]),
      );
      return;
    }
    flow.replaceChildren(
      makeBars(
        `From layer ${layers[state.layer].name} to layer ${next.layer}: the pairs of experts with the largest lifts, which are not tested`,
        ["experts", "", "lift", "times", "if the first is chosen"],
        next.pairs.map(([from, to, count, lift, given]) => ({
          label: `${from} → ${to}`,
          value: lift,
          baseline: 1,
          select: () => store.set({ expert: from }),
          texts: [showTimes(lift), showCount(count), showShare(given)],
        })),
      ),
    );
  }

  const element = makeSection(
    ID,
    TITLE,
    "Pairs within one decision, and from one layer to the next.",
    [
      summary,
      groups,
      matrix,
      twin.element,
      make("h3", {}, ["To the next layer"]),
      flow,
      make(
        "div",
        {
          class: "scroll",
          tabindex: 0,
          role: "region",
          "aria-label": "Prediction of the next layer",
        },
        [
          predicted.length
            ? prediction
            : make("p", { class: "missing" }, [
                "No layer here has a next one, or prompts are too few to predict its experts.",
              ]),
        ],
      ),
    ],
  );
  return {
    element,
    update(state, changed) {
      if (changed.has("layer") || changed.has("theme")) {
        draw(state);
        selectBar(
          prediction,
          predicted.findIndex(({ index }) => index === state.layer),
        );
      } else if (changed.has("expert")) {
        mark(state);
      }
    },
  };
}

/**
 * Returns a pair from the rows above the diagonal.
 * @param {LayerTogetherness} layer
 * @param {number} numExperts
 * @param {number} one
 * @param {number} other
 */
function readPair({ matrix }, numExperts, one, other) {
  const [i, j] = one < other ? [one, other] : [other, one];
  const place = i * numExperts - (i * (i + 1)) / 2 + j - i - 1;
  return {
    lift: matrix?.lift[place] ?? null,
    overExpected: matrix?.over_expected[place] ?? null,
    isSignificant: matrix?.is_significant[place] === 1,
  };
}

/**
 * Returns the experts, those of the strongest groups first.
 * @param {LayerTogetherness} layer
 * @param {number} numExperts
 */
function orderByGroups(layer, numExperts) {
  const grouped = layer.groups.flatMap((group) => group.experts);
  const ids = Array.from({ length: numExperts }, (_, id) => id);
  return [...new Set([...grouped, ...ids])];
}
