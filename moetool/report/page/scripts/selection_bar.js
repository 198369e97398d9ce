// The bar that stays in sight: what is selected, and how to change it.

import { make, makeButton, makeSelect } from "./elements.js";

/** @typedef {import("./types").Page} Page */
/** @typedef {import("./types").Panel} Panel */

const NONE = "";

/**
 * Returns the bar.
 * @param {Page} page
 * @returns {Panel}
 */
export function makeSelectionBar({ payload, store }) {
  const layer = makeSelect(
    "Layer",
    payload.layers.map((each, index) => [String(index), each.name]),
    (value) => store.set({ layer: Number(value) }),
  );
  const expert = makeSelect("Expert", [], (value) =>
    store.set({ expert: value === NONE ? null : Number(value) }),
  );
  const domain = makeSelect(
    payload.by === "domain" ? "Domain" : payload.by,
    [
      [NONE, "all"],
      ...payload.domains.map(
        (each, index) => /** @type {[string, string]} */ ([String(index), each.name]),
      ),
    ],
    (value) => store.set({ domain: value === NONE ? null : Number(value) }),
  );
  const theme = makeSelect(
    "Theme",
    [
      ["auto", "as the system"],
      ["light", "light"],
      ["dark", "dark"],
    ],
    (value) => store.set({ theme: /** @type {"auto"} */ (value) }),
  );
  const clear = makeButton("Clear", () =>
    store.set({ expert: null, domain: null, token: null, pins: [] }),
  );
  clear.title = "Esc";
  const element = make("div", { class: "selection", role: "group", "aria-label": "Selection" }, [
    payload.layers.length ? layer.element : null,
    payload.layers.length ? expert.element : null,
    payload.domains.length ? domain.element : null,
    clear,
    theme.element,
  ]);
  let numExperts = -1;
  return {
    element,
    update(state, changed) {
      const wanted = payload.layers[state.layer]?.num_experts ?? 0;
      if (wanted !== numExperts) {
        numExperts = wanted;
        const options = Array.from({ length: wanted }, (_, id) =>
          make("option", { value: id }, [String(id)]),
        );
        expert.select.replaceChildren(make("option", { value: NONE }, ["none"]), ...options);
      }
      layer.select.value = String(state.layer);
      expert.select.value = state.expert === null ? NONE : String(state.expert);
      domain.select.value = state.domain === null ? NONE : String(state.domain);
      theme.select.value = state.theme;
      if (changed.has("theme")) {
        document.documentElement.dataset.theme = state.theme;
      }
    },
  };
}
