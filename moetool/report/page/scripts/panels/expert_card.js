// One expert: its share, the domains that use it, its tokens, partners and contexts.

import { makeBarKey, makeBars } from "../charts/bars.js";
import { make, makeButton, makeSection } from "../elements.js";
import { showCount, showInterval, showNumber, showShare, showTimes } from "../numbers.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */
/** @typedef {import("../types").State} State */

const ID = "expert";
const NUM_CONTEXTS = 10;
const TOKENS_AROUND = 8;
const NUM_BINS = 10;
const CERTAINTY =
  "Significant: beyond what shuffled labels of the prompts give, at a false discovery rate of 5%; certain: at a family-wise error rate of 5%; beyond vocabulary: also more than the same tokens do elsewhere. Shuffling also mixes in how much prompts of other domains differ, so that an interval may leave out 1 without being significant.";

/**
 * Returns the panel.
 * @param {Page} page
 * @returns {Panel}
 */
export function makeExpertCard(page) {
  const { store, payload } = page;
  const content = make("div", {});
  const element = makeSection(ID, "One expert", "", [content]);

  /** @param {State} state */
  function show(state) {
    const layer = payload.layers[state.layer];
    const title = element.querySelector("h2");
    if (state.expert === null || !layer || !title) {
      if (title) {
        title.textContent = "One expert";
      }
      content.replaceChildren(
        make("p", { class: "missing" }, [
          "Select an expert: in the map, in a chart, or in the bar at the top.",
        ]),
      );
      return;
    }
    title.textContent = `Expert ${state.expert} of layer ${layer.name}`;
    const parts = [
      showSizes(page, state.layer, state.expert),
      make("div", { class: "card" }, [
        showLifts(page, state),
        showTokens(page, state.layer, state.expert),
        showPartners(page, state.layer, state.expert, (expert) => store.set({ expert })),
        showWeights(page, state.layer, state.expert),
      ]),
      showContexts(page, state.layer, state.expert, (token) => {
        store.set({ token });
        document.getElementById("reader")?.scrollIntoView();
      }),
    ];
    content.replaceChildren(...parts.filter((part) => part !== null));
  }

  return {
    element,
    update(state, changed) {
      if (changed.has("layer") || changed.has("expert") || changed.has("domain")) {
        show(state);
      }
    },
  };
}

/**
 * @param {Page} page
 * @param {number} layer
 * @param {number} expert
 */
function showSizes({ payload }, layer, expert) {
  const load = payload.load?.layers[layer];
  if (!load) {
    return make("p", {});
  }
  const count = load.load[expert];
  const total = load.load.reduce((sum, each) => sum + each, 0);
  const rank = load.load.filter((each) => each > count).length + 1;
  const prompts = load.prompts_choosing;
  const numTokens = payload.layers[layer].num_tokens;
  const words = [
    numTokens
      ? `${showShare(count / numTokens)} of the layer's tokens choose it (${showCount(count)}),`
      : `${showCount(count)} assignments,`,
    `${showTimes(total ? (count * load.load.length) / total : null)} the mean load, number ${rank} of ${load.load.length} by load.`,
    prompts
      ? `${showCount(prompts[expert])} of ${showCount(load.num_prompts)} prompts use it.`
      : "",
  ];
  return make("p", {}, [words.join(" ")]);
}

/**
 * @param {Page} page
 * @param {State} state
 */
function showLifts({ payload, store }, state) {
  const lifts = payload.specialization?.lifts[state.layer];
  const expert = state.expert ?? 0;
  if (!lifts) {
    return makeMissing("By domain", payload.missing.specialization ?? "There are no domains.");
  }
  const bars = payload.domains.map((domain, index) => {
    const cells = lifts[index];
    return {
      label: domain.name,
      value: cells.lift[expert],
      baseline: 1,
      low: cells.low[expert],
      high: cells.high[expert],
      isFaint: cells.certainty[expert] === 0,
      isSelected: state.domain === index,
      select: () => store.set({ domain: state.domain === index ? null : index }),
      texts: [
        showTimes(cells.lift[expert]),
        showInterval(cells.low[expert], cells.high[expert]) || "–",
        ["not significant", "significant", "certain", "beyond vocabulary"][cells.certainty[expert]],
      ],
    };
  });
  bars.sort((one, other) => (other.value ?? -1) - (one.value ?? -1));
  return make("div", { class: "block" }, [
    make("h3", {}, [`By ${payload.by}`]),
    makeBars(
      "Its share of the tokens, over its share of all tokens",
      [payload.by, "", "lift", "95% interval", "certainty"],
      bars,
    ),
    makeBarKey({ baseline: "1: as by all tokens", interval: true, faint: true }),
    make("p", { class: "hint" }, [CERTAINTY]),
  ]);
}

/**
 * @param {Page} page
 * @param {number} layer
 * @param {number} expert
 */
function showTokens({ payload }, layer, expert) {
  const listed = payload.tokens?.experts[layer]?.[expert] ?? [];
  const tokens = listed.filter(([, , , , isBeyondChance]) => isBeyondChance);
  if (!payload.tokens || !tokens.length) {
    const reason = payload.tokens
      ? `No token that occurs ${payload.tokens.min_count} times goes here more often than chance explains.`
      : `Unknown: ${payload.missing.token_specialization ?? "texts were left out."}`;
    return makeMissing("Characteristic tokens", reason);
  }
  const rows = tokens.map(([text, assignments, occurrences, lift]) =>
    make("tr", {}, [
      make("th", { scope: "row" }, [make("q", { class: "piece", dir: "auto" }, [text])]),
      make("td", { class: "number" }, [`${showCount(assignments)} of ${showCount(occurrences)}`]),
      make("td", { class: "number" }, [showTimes(lift)]),
    ]),
  );
  return make("div", { class: "block" }, [
    make("h3", {}, ["Characteristic tokens"]),
    make("table", {}, [
      make("caption", {}, [
        "Tokens that go here more often than a router that ignores tokens would send any",
      ]),
      make("thead", {}, [
        make(
          "tr",
          {},
          ["token", "times", "lift"].map((name, index) =>
            make("th", { scope: "col", class: index ? "number" : null }, [name]),
          ),
        ),
      ]),
      make("tbody", {}, rows),
    ]),
  ]);
}

/**
 * @param {Page} page
 * @param {number} layer
 * @param {number} expert
 * @param {(expert: number) => void} choose
 */
function showPartners({ payload }, layer, expert, choose) {
  const partners = payload.togetherness?.layers[layer].partners[expert] ?? [];
  if (!partners.length) {
    const reason = payload.togetherness
      ? "No decision chose it together with another expert."
      : (payload.missing.coactivation ?? "Pairs are unknown.");
    return makeMissing("Partners", reason);
  }
  return make("div", { class: "block" }, [
    make("h3", {}, ["Partners"]),
    makeBars(
      "How often both are chosen, relative to independent choices; mark: expected from their loads",
      ["expert", "", "lift", "expected"],
      partners.map(([other, lift, expected]) => ({
        label: `expert ${other}`,
        value: lift,
        baseline: expected,
        select: () => choose(other),
        texts: [showTimes(lift), showTimes(expected)],
      })),
    ),
  ]);
}

/**
 * @param {Page} page
 * @param {number} layer
 * @param {number} expert
 */
function showWeights({ payload, decisions }, layer, expert) {
  if (!decisions || !payload.sample?.has_weights) {
    return null;
  }
  const weights = decisions.tokensOf(layer, expert).map((each) => each.weight ?? 0);
  if (!weights.length) {
    return null;
  }
  // The first is the largest.
  const width = Math.max(0.01, Math.ceil(weights[0] * 10) / 10) / NUM_BINS;
  const bins = Array.from({ length: NUM_BINS }, () => 0);
  for (const weight of weights) {
    bins[Math.min(NUM_BINS - 1, Math.floor(weight / width))] += 1;
  }
  return make("div", { class: "block" }, [
    make("h3", {}, ["Weights"]),
    makeBars(
      `Its weight in ${showCount(weights.length)} decisions of the prompts shown here`,
      ["weight", "", "decisions"],
      bins.map((count, index) => ({
        label: `${showNumber(index * width)} to ${showNumber((index + 1) * width)}`,
        value: count,
        texts: [showCount(count)],
      })),
    ),
  ]);
}

/**
 * @param {Page} page
 * @param {number} layer
 * @param {number} expert
 * @param {(token: number) => void} choose
 */
function showContexts({ payload, decisions }, layer, expert, choose) {
  const { sample } = payload;
  const found = decisions?.tokensOf(layer, expert).slice(0, NUM_CONTEXTS) ?? [];
  if (!sample?.text_of || !found.length) {
    return null;
  }
  const prompts = sample.prompts.flatMap((prompt, index) =>
    Array.from({ length: prompt.num_tokens }, () => index),
  );
  /** @param {number} token */
  const textOf = (token) => sample.texts[sample.text_of?.[token] ?? 0];
  const rows = found.map(({ token, weight }) => {
    const isNear = (/** @type {number} */ other) =>
      prompts[other] === prompts[token] && sample.stack_of?.[other] === sample.stack_of?.[token];
    const range = (/** @type {number} */ from, /** @type {number} */ to) =>
      Array.from({ length: to - from }, (_, step) => from + step)
        .filter(isNear)
        .map(textOf)
        .join("");
    return make("li", { dir: "auto" }, [
      makeButton("read", () => choose(token), {
        "aria-label": `Read the prompt of this context${weight === null ? "" : `, weight ${weight.toFixed(2)}`}`,
      }),
      " ",
      range(Math.max(0, token - TOKENS_AROUND), token),
      make("mark", {}, [textOf(token)]),
      range(token + 1, token + 1 + TOKENS_AROUND),
    ]);
  });
  return make("div", { class: "block" }, [
    make("h3", {}, [
      sample.has_weights ? "Contexts in which it has its largest weights" : "Contexts",
    ]),
    make("ul", { class: "contexts" }, rows),
  ]);
}

/**
 * @param {string} title
 * @param {string} reason
 */
function makeMissing(title, reason) {
  return make("div", { class: "block" }, [
    make("h3", {}, [title]),
    make("p", { class: "missing" }, [reason]),
  ]);
}
