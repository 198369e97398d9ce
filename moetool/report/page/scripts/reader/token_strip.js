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
    ...(payload.comparison ? [make("th", { scope: "col" }, [payload.comparison.other])] : []),
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
   * @param {number} sum Of the token's weights.
   */
  function makeChoice(layer, expert, weight, sum) {
    const button = makeButton(String(expert), () => store.set({ layer, expert }), {
      class: "plain",
      "aria-label": `expert ${expert} of layer ${payload.layers[layer].name}`,
    });
    if (weight === null) {
      return make("td", {}, [button]);
    }
    const fill = make("span", { class: "fill" });
    fill.style.width = `${sum > 0 ? (100 * weight) / sum : 0}%`;
    return make("td", {}, [
      button,
      make("span", { class: "weight" }, [weight.toFixed(2)]),
      make("span", { class: "track", "aria-hidden": "true" }, [fill]),
    ]);
  }

  const others = payload.changed.map(
    (tokens) => new Map(tokens.map(([token, ...experts]) => [token, experts])),
  );

  /**
   * Returns what the other trace chose, where it differs.
   * @param {number} layer
   * @param {number} token
   */
  function makeOther(layer, token) {
    const experts = others[layer]?.get(token);
    if (!payload.comparison) {
      return "";
    }
    return make("td", { class: experts ? "other" : null }, [
      experts ? `there ${experts.join(", ")}` : "same",
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
        const sum = choices.reduce((total, { weight }) => total + (weight ?? 0), 0);
        return make("tr", { class: index === current ? "selected" : null }, [
          make("th", { scope: "row" }, [layer.name]),
          ...choices.map((choice) => makeChoice(index, choice.expert, choice.weight, sum)),
          makeOther(index, token),
        ]);
      });
      body.replaceChildren(...rows.filter((row) => row !== null));
    },
  };
}
