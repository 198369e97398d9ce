// The same tokens in two traces.

import { makeBarKey, makeBars, selectBar } from "../charts/bars.js";
import { make, makeSection } from "../elements.js";
import { showCount, showInterval, showShare } from "../numbers.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */

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
    "Experts in common, as a share of the larger set",
    ["layer", "", "overlap", "at random", "first choice flips"],
    comparison.layers.map((layer, index) => ({
      label: layers[index].name,
      value: layer.overlap,
      low: layer.overlap_low,
      high: layer.overlap_high,
      baseline: layer.random_overlap,
      select: () => store.set({ layer: index }),
      texts: [
        showShare(layer.overlap),
        showShare(layer.random_overlap),
        showShare(layer.first_choice_flips),
      ],
    })),
    { most: 1 },
  );
  const element = makeSection(
    "comparison",
    `Compared with ${comparison.other}`,
    `${showShare(overall.changed_decisions)} of ${showCount(overall.num_decisions)} decisions have other experts there (95% interval ${showInterval(overall.changed_decisions_low, overall.changed_decisions_high, showShare) || "unknown"}). Changed tokens are outlined in the reader.`,
    [
      make(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Changes in each layer" },
        [byLayer],
      ),
      makeBarKey(),
      makeBars(
        "Changed decisions by group",
        ["group", "", "changed", "95% interval", "first choice flips"],
        comparison.groups.map((group) => ({
          label: group.group,
          value: group.changed_decisions,
          low: group.changed_decisions_low,
          high: group.changed_decisions_high,
          texts: [
            showShare(group.changed_decisions),
            showInterval(group.changed_decisions_low, group.changed_decisions_high, showShare) ||
              "–",
            showShare(group.first_choice_flips),
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
