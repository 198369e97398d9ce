// The same tokens in two traces.

import { makeBarKey, makeBars, selectBar } from "../charts/bars.js";
import { make, makeButton, makeSection } from "../elements.js";
import { showChange, showCount, showInterval, showShare } from "../numbers.js";
import { readTexts } from "../reader/texts.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */

// Of the tokens that changed.
const MOST_TOKENS = 20;

/**
 * Returns the panel; null if no trace is compared.
 * @param {Page} page
 * @returns {Panel | null}
 */
export function makeComparison({ payload, store }) {
  const { comparison, layers } = payload;
  if (!comparison) {
    return null;
  }
  const { overall } = comparison;
  const byLayer = makeBars(
    "Decisions with other experts",
    [
      "layer",
      "",
      "changed",
      "95% interval",
      "at random",
      "first choice flips",
      "experts in common",
    ],
    comparison.layers.map((layer, index) => ({
      label: layers[index].name,
      value: layer?.changed_decisions ?? null,
      low: layer?.changed_decisions_low,
      high: layer?.changed_decisions_high,
      select: () => store.set({ layer: index }),
      texts: layer
        ? [
            showChange(layer.changed_decisions),
            showInterval(layer.changed_decisions_low, layer.changed_decisions_high, showChange) ||
              "–",
            showShare(layer.random_changed_decisions),
            showChange(layer.first_choice_flips),
            showShare(layer.overlap),
          ]
        : ["not in the other trace", "", "", "", ""],
    })),
  );
  const element = makeSection(
    "comparison",
    `Compared with ${comparison.other}`,
    `${showChange(overall.changed_decisions)} of ${showCount(overall.num_decisions)} decisions use different experts in ${comparison.other} (95% interval ${showInterval(overall.changed_decisions_low, overall.changed_decisions_high, showChange) || "unknown"}). In the reader, tokens whose set of experts changed in the layer are outlined, and the strip shows the other trace's experts.`,
    [
      make(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Changes in each layer" },
        [byLayer],
      ),
      makeBarKey({ interval: true }),
      makeChangedTokens(payload, store),
      makeBars(
        `Decisions with other experts, by ${payload.by}`,
        [payload.by, "", "changed", "95% interval", "first choice flips"],
        comparison.groups.map((group) => ({
          label: group.group,
          value: group.changed_decisions,
          low: group.changed_decisions_low,
          high: group.changed_decisions_high,
          texts: [
            showChange(group.changed_decisions),
            showInterval(group.changed_decisions_low, group.changed_decisions_high, showChange) ||
              "–",
            showChange(group.first_choice_flips),
          ],
        })),
      ),
    ],
  );
  return {
    element,
    update(state, changed) {
      if (changed.has("layer")) {
        selectBar(byLayer, state.layer);
      }
    },
  };
}

/**
 * Returns the tokens of the sample that changed in most layers, as buttons that select them.
 * @param {import("../types").Payload} payload
 * @param {import("../types").Store} store
 */
function makeChangedTokens(payload, store) {
  /** @type {Map<number, number[]>} */
  const layersOf = new Map();
  payload.changed.forEach((tokens, layer) => {
    for (const [token] of tokens) {
      layersOf.set(token, [...(layersOf.get(token) ?? []), layer]);
    }
  });
  if (!layersOf.size) {
    return make("p", { class: "missing" }, ["No token of the prompts shown here changed."]);
  }
  const texts = readTexts(payload);
  const most = [...layersOf]
    .sort((one, other) => other[1].length - one[1].length || one[0] - other[0])
    .slice(0, MOST_TOKENS);
  return make("div", {}, [
    make("h3", {}, ["Tokens that changed in most layers"]),
    make(
      "ul",
      { class: "inline" },
      most.map(([token, layers]) =>
        make("li", {}, [
          makeButton(
            `${texts.ofToken(token).trim() || "␠"} (${layers.length})`,
            () => {
              store.set({ token, layer: layers[0] });
              document.getElementById("reader")?.scrollIntoView();
            },
            { dir: "auto" },
          ),
        ]),
      ),
    ),
  ]);
}
