// Load of the busiest experts, what a capacity drops, and what GPUs would carry.

import { makeBarKey, makeBars, selectBar } from "../charts/bars.js";
import { makeTable } from "../charts/tables.js";
import { make, makeEmptyPanel, makeSection, makeSelect, makeSlider } from "../elements.js";
import { showCount, showNumber, showShare, showTimes } from "../numbers.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */

const ID = "load";
const TITLE = "Load, capacity and GPUs";
/** @type {Record<string, string>} */
const METHODS = { contiguous: "contiguous", eplb: "EPLB", coactivation: "co-activation" };

/**
 * Returns the panel.
 * @param {Page} page
 * @returns {Panel}
 */
export function makeLoad(page) {
  const { payload, store } = page;
  const { load, layers } = payload;
  if (!load) {
    return makeEmptyPanel(ID, TITLE, "There are no loads.");
  }
  const busiest = makeBars(
    "Load of the busiest expert over the mean load",
    [
      "layer",
      "",
      "busiest",
      "at random",
      wordBatch(payload),
      "at random",
      "never chosen",
      "at random",
    ],
    load.layers.map((each, index) => ({
      label: layers[index].name,
      value: each.max_over_mean,
      baseline: each.random_max_over_mean,
      select: () => store.set({ layer: index }),
      texts: [
        showTimes(each.max_over_mean),
        showTimes(each.random_max_over_mean),
        showTimes(each.batch_max_over_mean),
        showTimes(each.random_batch_max_over_mean),
        showCount(each.num_dead),
        showNumber(each.random_num_dead),
      ],
    })),
    { origin: 0 },
  );
  const element = makeSection(ID, TITLE, "The busiest expert decides how long a layer takes.", [
    make(
      "div",
      {
        class: "scroll",
        tabindex: 0,
        role: "region",
        "aria-label": "Busiest expert of each layer",
      },
      [busiest],
    ),
    makeBarKey({ baseline: "a random router" }),
    makeCapacity(page),
    makeGpus(page),
  ]);
  return {
    element,
    update(state, changed) {
      if (changed.has("layer")) {
        selectBar(busiest, state.layer);
      }
    },
  };
}

/** @param {Page} page */
function makeCapacity({ payload }) {
  const title = make("h3", {}, ["If experts had a limited capacity"]);
  const { capacity } = payload;
  if (!capacity) {
    return make("div", {}, [
      title,
      make("p", { class: "missing" }, ["The trace has no batches to fill."]),
    ]);
  }
  const factors = [...new Set(capacity.shares.map((share) => share.factor))].sort((a, b) => a - b);
  const policies = [...new Set(capacity.shares.map((share) => share.policy))];
  let [index, policy] = [0, policies[0]];
  const result = make("div", { "aria-live": "polite" });
  const slider = makeSlider("Capacity factor", factors.length, (position) => {
    index = position;
    draw();
  });
  slider.input.id = "capacity-slider";
  const who = makeSelect(
    "Kept first",
    policies.map((each) => [
      each,
      each === "position" ? "earlier tokens" : "tokens with a larger weight",
    ]),
    (value) => {
      policy = value;
      draw();
    },
  );
  function draw() {
    const share = capacity?.shares.find(
      (each) => each.factor === factors[index] && each.policy === policy,
    );
    slider.readout.textContent = String(factors[index]);
    slider.input.setAttribute("aria-valuetext", String(factors[index]));
    if (!share) {
      result.replaceChildren(make("p", { class: "missing" }, ["This was not recorded."]));
      return;
    }
    result.replaceChildren(
      make("p", {}, [
        `${showShare(share.dropped)} of the assignments would be dropped; of a random router, ${showShare(share.random_dropped)}. Batches have ${showNumber(share.tokens_per_batch)} tokens${capacity?.batches === "prompt" ? " on average: each prompt is one" : ""}.`,
      ]),
      share.by_position
        ? makeBars(
            "Dropped by place in the batch",
            ["tenth of the batch", "", "dropped", "at random"],
            share.by_position.map((dropped, tenth) => ({
              label: `${tenth * 10} to ${tenth * 10 + 10}%`,
              value: dropped,
              baseline: share.random_by_position[tenth],
              texts: [showShare(dropped), showShare(share.random_by_position[tenth])],
            })),
            { most: 1 },
          )
        : make("p", { class: "missing" }, ["Places in the batch are unknown."]),
    );
  }
  draw();
  return make("div", {}, [
    title,
    make("p", { class: "hint" }, [
      "An expert takes at most the capacity factor times the mean load of a batch, and drops the rest.",
    ]),
    make("div", { class: "controls" }, [slider.element, policies.length > 1 ? who.element : null]),
    result,
  ]);
}

/** @param {Page} page */
function makeGpus({ payload }) {
  const title = make("h3", {}, ["If several GPUs shared the experts"]);
  const { placements } = payload;
  if (!placements.length) {
    return make("div", {}, [
      title,
      make("p", { class: "missing" }, [payload.missing.placements ?? "No placement was made."]),
    ]);
  }
  const result = make("div", { "aria-live": "polite" });
  const slider = makeSlider("GPUs", placements.length, draw);
  slider.input.id = "gpu-slider";
  /** @param {number} index */
  function draw(index) {
    const placement = placements[index];
    slider.readout.textContent = String(placement.num_gpus);
    slider.input.setAttribute("aria-valuetext", String(placement.num_gpus));
    result.replaceChildren(
      makeTable(
        wordFit(placement),
        [
          { name: "placement" },
          { name: "busiest GPU over the mean", show: showTimes },
          { name: "of a random router", show: showTimes },
          { name: "GPUs per token", show: showNumber },
          { name: "per token of a random router", show: showNumber },
          { name: "bytes sent per token", show: showCount },
        ],
        Object.entries(placement.methods).map(([name, method]) => [
          METHODS[name] ?? name,
          method.batch_imbalance,
          method.random_batch_imbalance,
          method.fan_out,
          method.random_fan_out,
          method.all_to_all_bytes_per_token,
        ]),
      ),
    );
  }
  draw(0);
  return make("div", {}, [title, make("div", { class: "controls" }, [slider.element]), result]);
}

/** @param {import("../types").Payload} payload */
function wordBatch({ capacity }) {
  return capacity?.batches === "prompt" ? "in one prompt" : "in a batch";
}

/** @param {import("../types").Placement} placement */
function wordFit({
  num_fitted: numFitted,
  num_held_out: numHeldOut,
  unit,
  tokens_per_batch: size,
}) {
  const batches = size ? `, in batches of ${size} tokens` : "";
  return unit === null
    ? `Fitted and measured on the same decisions${batches}`
    : `Fitted on ${numFitted} ${unit}${numFitted === 1 ? "" : "s"}, measured on ${numHeldOut} other${numHeldOut === 1 ? "" : "s"}${batches}`;
}
