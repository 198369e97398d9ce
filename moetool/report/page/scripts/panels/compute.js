// Dense and sparse compute: parameters, FLOPs, and the experts that a batch touches.

import { makeBarKey, makeBars } from "../charts/bars.js";
import { make, makeSection } from "../elements.js";
import { showCount, showLarge, showNumber, showShare } from "../numbers.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */

/**
 * Returns the panel.
 * @param {Page} page
 * @returns {Panel}
 */
export function makeCompute({ payload }) {
  const element = makeSection(
    "compute",
    "Dense and sparse compute",
    "A token runs few experts; a batch of tokens needs most of them.",
    [makeCounts(payload), ...makeTouched(payload)],
  );
  return { element, update() {} };
}

/** @param {import("../types").Payload} payload */
function makeCounts({ counts }) {
  if (!counts) {
    return make("p", { class: "missing" }, ["The trace does not state the model's parameters."]);
  }
  const { total_parameters: total, active_parameters: active } = counts;
  const tables = [
    makeBars(
      "Parameters",
      ["", "", "parameters", "share"],
      [
        { label: "all", value: total, texts: [showLarge(total), showShare(1)] },
        {
          label: "active for a token",
          value: active,
          texts: [showLarge(active), showShare(counts.active_share)],
        },
      ],
    ),
  ];
  const { flops_per_token: flops, dense_flops_per_token: dense } = counts;
  if (flops !== null && dense !== null) {
    tables.push(
      makeBars(
        `FLOPs per token in a prompt${counts.flops_prompt_tokens === null ? "" : ` of ${showCount(counts.flops_prompt_tokens)} tokens`}`,
        ["", "", "FLOPs", "share"],
        [
          { label: "if all experts ran", value: dense, texts: [showLarge(dense), showShare(1)] },
          {
            label: "as routed",
            value: flops,
            texts: [showLarge(flops), showShare(counts.flops_ratio)],
          },
        ],
      ),
    );
  }
  return make("div", { class: "card" }, tables);
}

/** @param {import("../types").Payload} payload */
function makeTouched({ touched, missing }) {
  const title = make("h3", {}, ["Experts that a batch touches"]);
  if (!touched.length) {
    return [title, make("p", { class: "missing" }, [missing.caching ?? "Batches are unknown."])];
  }
  const kinds = [...new Set(touched.map((each) => each.of))];
  return [
    title,
    make("p", { class: "hint" }, [
      "Distinct experts per layer that the tokens of a batch need together. Large batches are those of the longest prompts alone.",
    ]),
    make(
      "div",
      { class: "card" },
      kinds.map((kind) =>
        makeBars(
          `Tokens of ${kind}`,
          ["tokens", "", "experts", "at random", "batches"],
          touched
            .filter((each) => each.of === kind)
            .map((each) => ({
              label: showCount(each.batch_size),
              value: each.experts,
              baseline: each.random,
              texts: [
                showNumber(each.experts),
                showNumber(each.random),
                showCount(each.num_batches),
              ],
            })),
        ),
      ),
    ),
    makeBarKey({ baseline: "a random router" }),
  ];
}
