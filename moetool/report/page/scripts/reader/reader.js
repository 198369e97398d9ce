// The reader: a prompt's text, tinted by where its tokens went.

import { inkOn } from "../colors.js";
import { make, makeButton, makeEmptyPanel, makeSection, makeSelect } from "../elements.js";
import { showShare } from "../numbers.js";
import { makePromptList } from "./prompt_list.js";
import { readTexts } from "./texts.js";
import { listColored, makePins, paintToken } from "./tinting.js";
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
  const texts = readTexts(payload);
  const prompts = makePromptList({ payload, store }, texts);
  const isNew = new Set(sample.new_tokens);
  const changedIn = payload.changed.map((tokens) => new Set(tokens.map(([token]) => token)));
  let numShown = TOKENS_AT_ONCE;
  /** @type {HTMLElement[]} */
  let spans = [];

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
  const pins = makePins({ payload, store });
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

  /** @param {State} state */
  function showPrompt(state) {
    const prompt = sample?.prompts[state.prompt];
    if (!prompt || !sample) {
      return;
    }
    const start = texts.starts[state.prompt];
    if (state.token !== null && state.token - start >= numShown) {
      numShown = state.token - start + 1;
    }
    const stack = sample.layer_stacks[state.layer];
    const tokens = Array.from({ length: prompt.num_tokens }, (_, offset) => start + offset).filter(
      (token) => !sample.stack_of || sample.stack_of[token] === stack,
    );
    const shown = tokens.slice(0, numShown);
    heading.textContent = `${prompt.domain} · prompt ${prompt.id}${prompt.num_left_out ? `, without its last ${prompt.num_left_out} tokens` : ""}${sample.stack_of ? `, ${sample.stacks[stack]}` : ""}`;
    spans = shown.map((token) =>
      make(
        "span",
        {
          class: isNew.has(token) ? "token new" : "token",
          role: "button",
          tabindex: -1,
          dir: "auto",
          "data-token": token,
        },
        [texts.ofToken(token)],
      ),
    );
    if (spans.length) {
      spans[0].tabIndex = 0;
    }
    text.replaceChildren(...spans);
    more.hidden = shown.length === tokens.length;
    tint(state);
    markToken(state);
  }

  /** @param {State} state */
  function tint(state) {
    const choicesOf = spans.map(
      (span) => decisions?.choices(state.layer, Number(span.dataset.token)) ?? [],
    );
    const colored =
      state.coloring === "expert"
        ? listColored(state, layers[state.layer].num_experts, () => choicesOf)
        : [];
    const own = domains.findIndex((each) => each.name === sample?.prompts[state.prompt]?.domain);
    const domain = state.domain ?? own;
    const lifts = domain < 0 ? null : (specialization?.lifts[state.layer][domain] ?? null);
    const changed = changedIn[state.layer];
    let before = "";
    spans.forEach((span, index) => {
      const token = Number(span.dataset.token);
      const { color, mark } = paintToken(
        state,
        choicesOf[index],
        colored,
        lifts,
        Boolean(sample?.has_ranks),
      );
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
    });
    pins.show(state, colored);
  }

  /** @param {State} state */
  function markToken(state) {
    for (const span of spans) {
      const isIt = Number(span.dataset.token) === state.token;
      span.classList.toggle("selected", isIt);
      span.setAttribute("aria-pressed", String(isIt));
    }
    strip.show(state.layer, state.token, state.token === null ? "" : texts.ofToken(state.token));
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
      strip.show(store.get().layer, token, texts.ofToken(token));
    }
  });
  text.addEventListener("focusin", (event) => {
    const span = findToken(event);
    if (span && store.get().token === null) {
      const token = Number(span.dataset.token);
      strip.show(store.get().layer, token, texts.ofToken(token));
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
    "Each token of a prompt, tinted by the expert that it went to. Point at a token, or move to it with ← and →, for its experts in every layer; ↑ and ↓, or [ and ], change the layer.",
    [
      sample.text_of
        ? null
        : make("p", { class: "muted" }, [
            "The texts of tokens are not on this page: numbers stand for them.",
          ]),
      sample.new_tokens.length
        ? make("p", { class: "muted" }, ["Underlined: tokens that the model wrote."])
        : null,
      sample.is_complete
        ? null
        : make("p", { class: "muted" }, [
            `${sample.prompts.length} prompts are shown here, ${showShare(sample.num_tokens / Math.max(1, totalTokens(payload)))} of the trace's tokens.`,
          ]),
      make("div", { class: "reader" }, [
        prompts.element,
        make("div", { class: "prompt" }, [
          make("div", { class: "controls" }, [colorings.element]),
          pins.element,
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
        prompts.show(state);
      }
      const isMissing =
        state.token !== null && !spans.some((span) => Number(span.dataset.token) === state.token);
      const isOtherStack = changed.has("layer") && Boolean(sample.stack_of);
      if (changed.has("prompt") || isOtherStack || isMissing) {
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
