// Colours of tokens, and of the experts that they stand for.

import { hueOf, inkOn, liftColor, NUM_HUES, shareColor } from "../colors.js";
import { make, makeButton } from "../elements.js";

/** @typedef {import("../types").State} State */
/** @typedef {import("../types").Choice} Choice */

// Experts that have a colour unasked where a layer has more than there are hues.
const MOST_UNASKED = 6;

/**
 * Returns the experts that have a colour: those pinned, else the selected one, else all of a small
 * layer, else the most frequent first choices.
 * @param {State} state
 * @param {number} numExperts Of the layer.
 * @param {() => Choice[][]} readChoices Choices of the tokens in view.
 */
export function listColored(state, numExperts, readChoices) {
  if (state.pins.length) {
    return state.pins;
  }
  if (state.expert !== null) {
    return [state.expert];
  }
  if (numExperts <= NUM_HUES) {
    return Array.from({ length: numExperts }, (_, id) => id);
  }
  /** @type {Map<number, number>} */
  const counts = new Map();
  for (const [first] of readChoices()) {
    if (first) {
      counts.set(first.expert, (counts.get(first.expert) ?? 0) + 1);
    }
  }
  const ordered = [...counts].sort((one, other) => other[1] - one[1] || one[0] - other[0]);
  return ordered.slice(0, MOST_UNASKED).map(([expert]) => expert);
}

/**
 * Returns the number of the hue of one of the experts that have a colour: that of its own number, so
 * that it keeps its colour when others lose theirs, else the next that no expert before it has.
 * @param {number[]} colored
 * @param {number} index
 */
function hueIndex(colored, index) {
  const taken = new Set();
  let hue = 0;
  for (const expert of colored.slice(0, index + 1)) {
    hue = expert % NUM_HUES;
    while (taken.has(hue) && taken.size < NUM_HUES) {
      hue = (hue + 1) % NUM_HUES;
    }
    taken.add(hue);
  }
  return hue;
}

/**
 * Returns the colour of a token, and the number of the expert that the colour stands for.
 * @param {State} state
 * @param {Choice[]} choices Of the token.
 * @param {number[]} colored
 * @param {import("../types").Lifts | null} lifts
 * @param {boolean} hasRanks
 * @returns {{ color: string | null, mark: string }}
 */
export function paintToken(state, choices, colored, lifts, hasRanks) {
  const [first] = choices;
  if (!first) {
    return { color: null, mark: "" };
  }
  if (state.coloring === "lift") {
    const lift = lifts?.lift[first.expert] ?? null;
    return { color: lift === null ? null : liftColor(lift), mark: "" };
  }
  if (state.coloring === "confidence") {
    const sum = choices.reduce((total, { weight }) => total + (weight ?? 0), 0);
    return { color: sum > 0 ? shareColor((first.weight ?? 0) / sum) : null, mark: "" };
  }
  // Any choice of an expert that was asked for counts; otherwise the first choice alone.
  const isAnyRank = state.pins.length > 0 || state.expert !== null || !hasRanks;
  const shown = isAnyRank ? choices.find(({ expert }) => colored.includes(expert)) : first;
  const index = shown ? colored.indexOf(shown.expert) : -1;
  return index < 0
    ? { color: null, mark: "" }
    : { color: hueOf(hueIndex(colored, index)), mark: String(colored[index]) };
}

/**
 * Returns the key to the colours, whose experts can be pinned.
 * @param {Pick<import("../types").Page, "payload" | "store">} page
 */
export function makePins({ payload, store }) {
  const element = make("div", {
    class: "pins",
    role: "group",
    "aria-label": "Experts with a colour",
  });

  /** @param {number} expert */
  function toggle(expert) {
    const { pins } = store.get();
    store.set({
      pins: pins.includes(expert) ? pins.filter((pin) => pin !== expert) : [...pins, expert],
    });
  }

  /**
   * @param {State} state
   * @param {number} expert
   * @param {number} index
   * @param {number[]} colored
   */
  function makeChip(state, expert, index, colored) {
    const chip = makeButton(`expert ${expert}`, () => toggle(expert), {
      class: "chip",
      "aria-pressed": state.pins.includes(expert),
    });
    const hue = hueOf(hueIndex(colored, index));
    chip.style.backgroundColor = hue;
    chip.style.color = inkOn(hue);
    return chip;
  }

  /** @param {State} state */
  function explain(state) {
    switch (state.coloring) {
      case "lift":
        return `Orange: an expert that the ${payload.by} uses more than all tokens do. Blue: less.`;
      case "confidence":
        return "Dark violet: the first choice has no part of the token's weight. Yellow: all of it.";
      default:
        return explainExperts(state);
    }
  }

  /** @param {State} state */
  function explainExperts(state) {
    const { name, num_experts: numExperts } = payload.layers[state.layer];
    if (state.pins.length) {
      return "Every token that chose one of these, whatever its rank. Press an expert to take its colour away.";
    }
    if (state.expert !== null) {
      return `Every token that chose expert ${state.expert}, whatever its rank.`;
    }
    const which =
      numExperts > NUM_HUES
        ? `The ${MOST_UNASKED} most frequent first choices of this prompt in layer ${name}.`
        : `First choices in layer ${name}.`;
    return `${which} Press experts to show only these.`;
  }

  return {
    element,
    /**
     * @param {State} state
     * @param {number[]} colored
     */
    show(state, colored) {
      element.replaceChildren(
        ...colored.map((expert, index) => makeChip(state, expert, index, colored)),
        make("span", { class: "muted" }, [explain(state)]),
      );
    },
  };
}
