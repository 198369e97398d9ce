// The experts of one token, layer by layer.

import { make, makeButton } from "../elements.js";

/** @typedef {import("../types").Page} Page */

/**
 * Returns a table that shows the experts of any token of the sample.
 * @param {{ payload: import("../types").Payload, decisions: import("../types").Decisions, store: import("../types").Store }} page
 */
export function makeTokenStrip({ payload, decisions, store }) {
  const caption = make("caption", {});
  const body = make("tbody", {});
  const most = Math.max(1, ...payload.layers.map((layer) => layer.top_k));
  const head = make("tr", {}, [
    make("th", { scope: "col" }, ["layer"]),
    make("th", { scope: "col", colspan: most }, [
      payload.sample?.has_weights ? "experts, with their weights" : "experts",
    ]),
  ]);
  const table = make("table", {}, [caption, make("thead", {}, [head]), body]);
  const element = make(
    "div",
    { class: "strip scroll", tabindex: 0, role: "region", "aria-label": "Experts of the token" },
    [table],
  );

  /**
   * @param {number} layer
   * @param {number} expert
   * @param {number | null} weight
   */
  function makeChoice(layer, expert, weight) {
    const button = makeButton(String(expert), () => store.set({ layer, expert }), {
      class: "plain",
      "aria-label": `expert ${expert} of layer ${payload.layers[layer].name}`,
    });
    if (weight === null) {
      return make("td", {}, [button]);
    }
    const fill = make("span", { class: "fill" });
    fill.style.width = `${Math.min(100, 100 * weight)}%`;
    return make("td", {}, [
      button,
      make("span", { class: "weight" }, [weight.toFixed(2)]),
      make("span", { class: "track", "aria-hidden": "true" }, [fill]),
    ]);
  }

  return {
    element,
    /**
     * @param {number} current Layer in focus.
     * @param {number | null} token
     * @param {string} text
     */
    show(current, token, text) {
      if (token === null) {
        caption.textContent = "Point at a token for its experts; click to keep them here.";
        body.replaceChildren();
        return;
      }
      caption.replaceChildren("Experts of ", make("q", { dir: "auto" }, [text.trim() || "␠"]));
      const rows = payload.layers.map((layer, index) => {
        const choices = decisions.choices(index, token);
        if (!choices.length) {
          return null;
        }
        return make("tr", { class: index === current ? "selected" : null }, [
          make("th", { scope: "row" }, [layer.name]),
          ...choices.map((choice) => makeChoice(index, choice.expert, choice.weight)),
        ]);
      });
      body.replaceChildren(...rows.filter((row) => row !== null));
    },
  };
}
