// Keys that work anywhere on the page.

/**
 * Moves between layers with [ and ], to the search of prompts with /, and clears with Esc.
 * @param {import("./types").Page} page
 */
export function listenToKeys({ payload, store }) {
  document.addEventListener("keydown", (event) => {
    // Some keyboards write brackets with Alt.
    if (event.ctrlKey || event.metaKey || event.defaultPrevented) {
      return;
    }
    const target = /** @type {HTMLElement} */ (event.target);
    const isTyping = target.matches("input[type=search], textarea");
    if (event.key === "Escape") {
      if (isTyping) {
        // The search clears itself first.
        return;
      }
      store.set({ expert: null, domain: null, token: null, pins: [] });
    } else if (isTyping) {
      return;
    } else if (event.key === "[" || event.key === "]") {
      const next = store.get().layer + (event.key === "]" ? 1 : -1);
      if (next >= 0 && next < payload.layers.length) {
        store.set({ layer: next });
      }
    } else if (event.key === "/") {
      document.getElementById("prompt-search")?.focus();
    } else {
      return;
    }
    event.preventDefault();
  });
}
