// The one selection that links all panels. It is kept in the address, so that it can be sent.

/** @typedef {import("./types").Payload} Payload */
/** @typedef {import("./types").State} State */
/** @typedef {import("./types").Store} Store */
/** @typedef {import("./types").Coloring} Coloring */

const COLORINGS = ["expert", "lift", "confidence"];
const THEMES = ["auto", "light", "dark"];

/** @type {State} */
const START = {
  layer: 0,
  expert: null,
  domain: null,
  token: null,
  prompt: 0,
  coloring: "expert",
  pins: [],
  theme: "auto",
};

/**
 * Returns a store that begins with the selection in the address.
 * @param {Payload} payload
 * @returns {Store}
 */
export function createStore(payload) {
  let state = readHash(payload);
  /** @type {((state: State, changed: Set<keyof State>) => void)[]} */
  const listeners = [];

  /** @param {State} next */
  function replace(next) {
    const keys = /** @type {(keyof State)[]} */ (Object.keys(START));
    const changed = new Set(keys.filter((key) => String(next[key]) !== String(state[key])));
    if (changed.size) {
      state = next;
      for (const listener of listeners) {
        listener(state, changed);
      }
    }
  }

  window.addEventListener("hashchange", () => replace(readHash(payload)));
  return {
    get: () => state,
    set(changes) {
      replace(fit(changes, state, payload));
      const hash = writeHash(state, payload);
      if (hash === location.hash) {
        return;
      }
      // Going back undoes a selection; walking over tokens would bury it.
      if (Object.keys(changes).every((key) => key === "token")) {
        history.replaceState(null, "", hash);
      } else {
        history.pushState(null, "", hash);
      }
    },
    subscribe(listener) {
      listeners.push(listener);
    },
  };
}

/**
 * Returns a state whose parts fit together: an expert of the layer, a token of the prompt.
 * @param {Partial<State>} changes
 * @param {State} before
 * @param {Payload} payload
 * @returns {State}
 */
function fit(changes, before, payload) {
  const fitted = { ...before, ...changes };
  const layer = payload.layers[fitted.layer];
  if (fitted.layer !== before.layer) {
    // Experts of two layers have nothing but a number in common.
    fitted.pins = changes.pins ?? [];
    fitted.expert = changes.expert ?? null;
  }
  if (fitted.expert !== null && layer && fitted.expert >= layer.num_experts) {
    fitted.expert = null;
  }
  if (fitted.token !== null && fitted.token !== before.token && payload.sample) {
    fitted.prompt = findPrompt(fitted.token, payload);
  } else if (fitted.domain !== null && fitted.domain !== before.domain && payload.sample) {
    const { name } = payload.domains[fitted.domain];
    const { prompts } = payload.sample;
    const first = prompts.findIndex((prompt) => prompt.domain === name);
    if (first >= 0 && prompts[fitted.prompt].domain !== name) {
      fitted.prompt = first;
      fitted.token = null;
    }
  } else if (fitted.prompt !== before.prompt && fitted.token === before.token) {
    fitted.token = null;
  }
  return fitted;
}

/**
 * Returns the prompt that a token of the sample is in.
 * @param {number} token
 * @param {Payload} payload
 */
function findPrompt(token, payload) {
  let end = 0;
  const prompts = payload.sample?.prompts ?? [];
  return Math.max(
    0,
    prompts.findIndex((prompt) => {
      end += prompt.num_tokens;
      return token < end;
    }),
  );
}

/**
 * @param {Payload} payload
 * @returns {State}
 */
function readHash(payload) {
  const found = new URLSearchParams(location.hash.slice(1));
  const sample = payload.sample;
  const names = payload.layers.map((each) => each.name);
  const layer = readName(found.get("layer"), names) ?? payload.start.layer;
  const numExperts = payload.layers[layer]?.num_experts ?? 0;
  const token = readNumber(found.get("token"), sample?.num_tokens ?? 0);
  const prompt =
    readNumber(found.get("prompt"), sample?.prompts.length ?? 0) ?? payload.start.prompt;
  const coloring = found.get("color") ?? "";
  const theme = found.get("theme") ?? "";
  return {
    layer,
    expert: readNumber(found.get("expert"), numExperts),
    domain: readName(
      found.get("domain"),
      payload.domains.map((each) => each.name),
    ),
    token,
    prompt: token === null ? prompt : findPrompt(token, payload),
    coloring: COLORINGS.includes(coloring) ? /** @type {Coloring} */ (coloring) : START.coloring,
    pins: [
      ...new Set(
        (found.get("pins") ?? "")
          .split(".")
          .map((text) => readNumber(text, numExperts))
          .filter((pin) => pin !== null),
      ),
    ],
    theme: THEMES.includes(theme) ? /** @type {State["theme"]} */ (theme) : START.theme,
  };
}

/**
 * @param {State} state
 * @param {Payload} payload
 */
function writeHash(state, payload) {
  /** @type {[string, string | number | null][]} */
  const parts = [
    ["layer", payload.layers[state.layer]?.name ?? null],
    ["expert", state.expert],
    ["domain", state.domain === null ? null : payload.domains[state.domain].name],
    ["prompt", state.token === null && state.prompt !== payload.start.prompt ? state.prompt : null],
    ["token", state.token],
    ["color", state.coloring === START.coloring ? null : state.coloring],
    ["pins", state.pins.length ? state.pins.join(".") : null],
    ["theme", state.theme === START.theme ? null : state.theme],
  ];
  const known = parts.filter(([, value]) => value !== null);
  return `#${known.map(([name, value]) => `${name}=${encodeURIComponent(String(value))}`).join("&")}`;
}

/**
 * Returns the index of a name; null for anything else.
 * @param {string | null} text
 * @param {string[]} names
 */
function readName(text, names) {
  const index = text === null ? -1 : names.indexOf(text);
  return index < 0 ? null : index;
}

/**
 * Returns a whole number below a limit; null for anything else.
 * @param {string | null} text
 * @param {number} limit
 */
function readNumber(text, limit) {
  const number = text !== null && /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  return number < limit ? number : null;
}
