// The reader: a prompt's text, tinted by where its tokens went.

import { hueOf, inkOn, liftColor, NUM_HUES, shareColor } from "../colors.js";
import { make, makeButton, makeEmptyPanel, makeSection, makeSelect } from "../elements.js";
import { showShare } from "../numbers.js";
import { findPrompt } from "../store.js";
import { makeTokenStrip } from "./token_strip.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */
/** @typedef {import("../types").State} State */

const ID = "reader";
const TITLE = "Reader";
// Tokens of a prompt that are shown at once; more are added on request.
const TOKENS_AT_ONCE = 1500;

/**
 * Returns the panel.
 * @param {Page} page
 * @returns {Panel}
 */
export function makeReader({ payload, decisions, store }) {
  const { sample, layers, specialization, domains } = payload;
  if (!sample || !decisions) {
    return makeEmptyPanel(ID, TITLE, payload.missing.sample ?? "The trace holds no single tokens.");
  }
  const starts = sample.prompts.map(() => 0);
  sample.prompts.reduce((start, prompt, index) => {
    starts[index] = start;
    return start + prompt.num_tokens;
  }, 0);
  const isNew = new Set(sample.new_tokens);
  const changedIn = payload.changed.map((tokens) => new Set(tokens));
  let numShown = TOKENS_AT_ONCE;
  /** @type {HTMLElement[]} */
  let spans = [];

  const search = make("input", {
    id: "prompt-search",
    type: "search",
    "aria-label": "Search prompts",
    placeholder: "Search prompts  ( / )",
  });
  const list = make("ul", { class: "prompts scroll", tabindex: 0, "aria-label": "Prompts" });
  const colorings = makeSelect(
    "Colour by",
    [
      ["expert", sample.has_ranks ? "first choice" : "expert"],
      ...(specialization
        ? [/** @type {[string, string]} */ (["lift", "lift of the first choice"])]
        : []),
      ...(sample.has_weights
        ? [/** @type {[string, string]} */ (["confidence", "weight of the first choice"])]
        : []),
    ],
    (value) => store.set({ coloring: /** @type {State["coloring"]} */ (value) }),
  );
  const pins = make("div", { class: "pins", role: "group", "aria-label": "Experts with a colour" });
  const heading = make("h3", {});
  const text = make("div", {
    class: "tokens",
    role: "group",
    "aria-label": "Tokens of the prompt; the arrow keys move between them",
  });
  const more = makeButton("Show more tokens", () => {
    numShown += TOKENS_AT_ONCE;
    showPrompt(store.get());
  });
  const strip = makeTokenStrip({ payload, decisions, store });

  search.addEventListener("input", () => showList(store.get()));

  /** @param {number} token */
  function textOf(token) {
    return sample?.text_of
      ? (sample.texts[sample.text_of[token]] ?? "?")
      : `${token - starts[findPrompt(token, payload)]} `;
  }

  /** @param {number} index */
  function wholeText(index) {
    const prompt = sample?.prompts[index];
    if (!prompt || !sample?.text_of) {
      return "";
    }
    const tokens = sample.text_of.slice(starts[index], starts[index] + prompt.num_tokens);
    return tokens.map((at) => sample.texts[at]).join("");
  }

  /** @param {State} state */
  function showList(state) {
    const wanted = search.value.trim().toLowerCase();
    const chosen = state.domain === null ? null : domains[state.domain].name;
    const items = (sample?.prompts ?? []).map((prompt, index) => {
      const isWanted =
        (chosen === null || prompt.domain === chosen) &&
        (!wanted ||
          `${prompt.id} ${prompt.domain}`.toLowerCase().includes(wanted) ||
          wholeText(index).toLowerCase().includes(wanted));
      if (!isWanted) {
        return null;
      }
      const button = makeButton("", () => store.set({ prompt: index, token: null }), {
        class: "plain",
        "aria-current": index === state.prompt ? "true" : null,
      });
      button.append(
        make("span", { class: "prompt-text", dir: "auto" }, [
          wholeText(index)
            .replace(/^<[^>]*>/, "")
            .slice(0, 80)
            .replaceAll("⏎\n", " ") || `prompt ${prompt.id}`,
        ]),
        make("span", { class: "muted" }, [
          `${prompt.domain} · ${prompt.id} · ${prompt.num_tokens}`,
        ]),
      );
      return make("li", {}, [button]);
    });
    const shown = items.filter((item) => item !== null);
    list.replaceChildren(
      ...(shown.length ? shown : [make("li", { class: "muted" }, ["No prompt has these words."])]),
    );
    const current = list.querySelector("[aria-current]");
    if (current instanceof HTMLElement) {
      list.scrollTop = current.offsetTop - list.offsetTop - list.clientHeight / 3;
    }
  }

  /** @param {State} state */
  function showPrompt(state) {
    const prompt = sample?.prompts[state.prompt];
    if (!prompt || !sample) {
      return;
    }
    const start = starts[state.prompt];
    if (state.token !== null && state.token - start >= numShown) {
      numShown = state.token - start + 1;
    }
    const count = Math.min(prompt.num_tokens, numShown);
    heading.textContent = `${prompt.domain} · prompt ${prompt.id}`;
    spans = Array.from({ length: count }, (_, offset) => {
      const token = start + offset;
      return make(
        "span",
        {
          class: isNew.has(token) ? "token new" : "token",
          role: "button",
          tabindex: -1,
          dir: "auto",
          "data-token": token,
        },
        [textOf(token)],
      );
    });
    if (spans.length) {
      spans[0].tabIndex = 0;
    }
    text.replaceChildren(...spans);
    more.hidden = count === prompt.num_tokens;
    tint(state);
    markToken(state);
  }

  /**
   * Returns the experts that have a colour: those pinned, else the selected one, else the prompt's most frequent.
   * @param {State} state
   */
  function listColored(state) {
    if (state.pins.length) {
      return state.pins;
    }
    const numExperts = layers[state.layer].num_experts;
    if (state.expert !== null) {
      return [state.expert];
    }
    if (numExperts <= NUM_HUES) {
      return Array.from({ length: numExperts }, (_, id) => id);
    }
    /** @type {Map<number, number>} */
    const counts = new Map();
    for (const span of spans) {
      const first = decisions?.choices(state.layer, Number(span.dataset.token))[0];
      if (first) {
        counts.set(first.expert, (counts.get(first.expert) ?? 0) + 1);
      }
    }
    const ordered = [...counts].sort((one, other) => other[1] - one[1] || one[0] - other[0]);
    return ordered.slice(0, 6).map(([expert]) => expert);
  }

  /** @param {State} state */
  function tint(state) {
    const colored = state.coloring === "expert" ? listColored(state) : [];
    const own = domains.findIndex((each) => each.name === sample?.prompts[state.prompt]?.domain);
    const domain = state.domain ?? own;
    const lifts = domain < 0 ? null : (specialization?.lifts[state.layer][domain] ?? null);
    const changed = changedIn[state.layer];
    let before = "";
    for (const span of spans) {
      const token = Number(span.dataset.token);
      const choices = decisions?.choices(state.layer, token) ?? [];
      const { color, mark } = paintToken(state, choices, colored, lifts);
      span.style.backgroundColor = color ?? "";
      span.style.color = color ? inkOn(color) : "";
      span.classList.toggle("changed", Boolean(changed?.has(token)));
      // The number stands at the first of several tokens in a row.
      if (mark && mark !== before) {
        span.dataset.mark = mark;
      } else {
        delete span.dataset.mark;
      }
      before = mark;
    }
    showPins(state, colored);
  }

  /**
   * @param {State} state
   * @param {import("../types").Choice[]} choices
   * @param {number[]} colored
   * @param {import("../types").Lifts | null} lifts
   */
  function paintToken(state, choices, colored, lifts) {
    const first = choices[0];
    if (!first) {
      return { color: null, mark: "" };
    }
    if (state.coloring === "lift") {
      const lift = lifts?.lift[first.expert] ?? null;
      return { color: lift === null ? null : liftColor(lift), mark: "" };
    }
    if (state.coloring === "confidence") {
      return { color: first.weight === null ? null : shareColor(first.weight), mark: "" };
    }
    const found = choices.find((choice) => colored.includes(choice.expert));
    // With pins, any choice of a pinned expert counts; otherwise the first choice alone.
    const shown = state.pins.length || state.expert !== null || !sample?.has_ranks ? found : first;
    const index = shown ? colored.indexOf(shown.expert) : -1;
    return index < 0
      ? { color: null, mark: "" }
      : { color: hueOf(index), mark: String(colored[index]) };
  }

  /**
   * @param {State} state
   * @param {number[]} colored
   */
  function showPins(state, colored) {
    if (state.coloring !== "expert") {
      const words =
        state.coloring === "lift"
          ? "Orange: an expert that the domain uses more than all tokens do. Blue: less."
          : "Dark violet: the first choice has no weight. Yellow: all of it.";
      pins.replaceChildren(make("span", { class: "muted" }, [words]));
      return;
    }
    const chips = colored.map((expert, index) => {
      const chip = makeButton(`expert ${expert}`, () => togglePin(expert), {
        class: "chip",
        "aria-pressed": state.pins.includes(expert),
      });
      chip.style.backgroundColor = hueOf(index);
      chip.style.color = inkOn(hueOf(index));
      return chip;
    });
    const words = state.pins.length
      ? "Press an expert to take its colour away."
      : `Layer ${layers[state.layer].name}. Press an expert to keep its colour alone; tokens without a colour went elsewhere.`;
    pins.replaceChildren(...chips, make("span", { class: "muted" }, [words]));
  }

  /** @param {number} expert */
  function togglePin(expert) {
    const { pins: pinned } = store.get();
    store.set({
      pins: pinned.includes(expert) ? pinned.filter((pin) => pin !== expert) : [...pinned, expert],
    });
  }

  /** @param {State} state */
  function markToken(state) {
    for (const span of spans) {
      const isIt = Number(span.dataset.token) === state.token;
      span.classList.toggle("selected", isIt);
      span.setAttribute("aria-pressed", String(isIt));
    }
    strip.show(state.layer, state.token, state.token === null ? "" : textOf(state.token));
  }

  /** @param {Event} event */
  function findToken(event) {
    const span = /** @type {HTMLElement} */ (event.target).closest?.("[data-token]");
    return span instanceof HTMLElement ? span : null;
  }

  text.addEventListener("pointerover", (event) => {
    const span = findToken(event);
    if (span && store.get().token === null) {
      const token = Number(span.dataset.token);
      strip.show(store.get().layer, token, textOf(token));
    }
  });
  text.addEventListener("focusin", (event) => {
    const span = findToken(event);
    if (span && store.get().token === null) {
      const token = Number(span.dataset.token);
      strip.show(store.get().layer, token, textOf(token));
    }
  });
  text.addEventListener("click", (event) => {
    const span = findToken(event);
    if (span) {
      const token = Number(span.dataset.token);
      store.set({ token: store.get().token === token ? null : token });
    }
  });
  text.addEventListener("keydown", (event) => {
    const span = findToken(event);
    const index = span ? spans.indexOf(span) : -1;
    if (index < 0 || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    /** @type {Record<string, number>} */
    const targets = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: spans.length - 1 };
    /** @type {Record<string, number>} */
    const steps = { ArrowUp: -1, ArrowDown: 1 };
    if (event.key in targets) {
      const next = spans[Math.min(Math.max(targets[event.key], 0), spans.length - 1)];
      spans[index].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      if (store.get().token !== null) {
        store.set({ token: Number(next.dataset.token) });
      }
    } else if (event.key in steps) {
      const layer = store.get().layer + steps[event.key];
      if (layer >= 0 && layer < layers.length) {
        store.set({ layer });
      }
    } else if (event.key === "Enter" || event.key === " ") {
      spans[index].click();
    } else {
      return;
    }
    event.preventDefault();
  });

  const element = makeSection(
    ID,
    TITLE,
    "Each token of a prompt, tinted by the expert that it went to. Point at a token, or move to it with the arrow keys, for its experts in every layer; [ and ] change the layer.",
    [
      sample.text_of
        ? null
        : make("p", { class: "muted" }, [
            "The texts of tokens are not on this page: numbers stand for them.",
          ]),
      sample.is_complete
        ? null
        : make("p", { class: "muted" }, [
            `${sample.prompts.length} prompts are shown here, ${showShare(sample.num_tokens / Math.max(1, totalTokens(payload)))} of the trace's tokens.`,
          ]),
      make("div", { class: "reader" }, [
        make("div", { class: "prompt-list" }, [search, list]),
        make("div", { class: "prompt" }, [
          make("div", { class: "controls" }, [colorings.element]),
          pins,
          heading,
          text,
          more,
        ]),
        strip.element,
      ]),
    ],
  );
  return {
    element,
    update(state, changed) {
      colorings.select.value = state.coloring;
      if (changed.has("prompt")) {
        numShown = TOKENS_AT_ONCE;
      }
      if (changed.has("prompt") || changed.has("domain")) {
        showList(state);
      }
      if (changed.has("prompt")) {
        showPrompt(state);
      } else if (
        ["layer", "coloring", "pins", "domain", "expert", "theme"].some((key) =>
          changed.has(/** @type {keyof State} */ (key)),
        )
      ) {
        tint(state);
        markToken(state);
      } else if (changed.has("token")) {
        markToken(state);
      }
    },
  };
}

/** @param {import("../types").Payload} payload */
function totalTokens(payload) {
  const stacks = new Map(payload.layers.map((layer) => [layer.stack, 0]));
  for (const layer of payload.layers) {
    stacks.set(layer.stack, Math.max(stacks.get(layer.stack) ?? 0, layer.num_tokens));
  }
  return [...stacks.values()].reduce((total, number) => total + number, 0);
}
