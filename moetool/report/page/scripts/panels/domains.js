// Domains: how much each layer's choice tells about them, and who uses whom in one layer.

import { makeBarKey, makeBars, selectBar } from "../charts/bars.js";
import { makeGrid } from "../charts/grid.js";
import { makeTwin } from "../charts/tables.js";
import { liftColor } from "../colors.js";
import { make, makeEmptyPanel, makeSection } from "../elements.js";
import { showInterval, showNumber, showPValue, showShare, showTimes } from "../numbers.js";

/** @typedef {import("../types").Page} Page */
/** @typedef {import("../types").Panel} Panel */
/** @typedef {import("../types").State} State */

const ID = "domains";
// Of more domains, the lead names these.
const MOST_NAMED = 12;

/**
 * Returns the panel.
 * @param {Page} page
 * @returns {Panel}
 */
export function makeDomains({ payload, store }) {
  const { specialization, domains, layers, by } = payload;
  const title = by === "domain" ? "Domains" : `Values of ${by}`;
  if (!specialization) {
    return makeEmptyPanel(ID, title, payload.missing.specialization ?? "There are no domains.");
  }
  const information = makeBars(
    `What the choice of experts tells about the ${by}, as a share of all there is to know`,
    ["layer", "", "share", "p", "once the token is known"],
    specialization.information.map((each, index) => ({
      label: layers[index].name,
      value: each.normalized,
      isFaint: !each.is_significant,
      select: () => store.set({ layer: index }),
      texts: [
        showShare(each.normalized),
        showPValue(each.p_value, specialization.num_permutations),
        showShare(each.conditional_normalized),
      ],
    })),
  );
  const heading = make("h3", {});
  const grid = makeGrid({
    label: `A grid with a row for each ${by} and a column for each expert of the layer. The table below has its numbers.`,
    describe(row, column) {
      const cells = specialization.lifts[store.get().layer][row];
      const interval = showInterval(cells.low[column], cells.high[column]);
      return `${domains[row].name}, expert ${column}: lift ${showTimes(cells.lift[column])}${
        interval ? ` (${interval})` : ""
      }${cells.certainty[column] ? "" : ", not significant"}`;
    },
    choose: (row, column) => store.set({ domain: row, expert: column }),
  });
  const twin = makeTwin("Lift of each expert of the layer", () => ({
    columns: [
      { name: by },
      { name: "expert" },
      { name: "lift", show: showNumber },
      { name: "low", show: showNumber },
      { name: "high", show: showNumber },
    ],
    rows: domains.flatMap((domain, row) => {
      const cells = specialization.lifts[store.get().layer][row];
      return cells.lift.map((lift, expert) => [
        domain.name,
        expert,
        lift,
        cells.low[expert],
        cells.high[expert],
      ]);
    }),
  }));

  /** @param {State} state */
  const draw = (state) => {
    selectBar(information, state.layer);
    heading.textContent = `Lift of the experts of layer ${layers[state.layer].name}`;
    grid.draw(
      specialization.lifts[state.layer].map((cells) =>
        cells.lift.map((lift, expert) => ({
          color: lift === null ? null : liftColor(lift),
          isFaint: cells.certainty[expert] === 0,
          text: lift === null ? "" : lift.toFixed(lift < 10 ? 2 : 0),
        })),
      ),
      domains.map((domain) => domain.name),
    );
    grid.select(state.domain, state.expert);
    twin.update();
  };

  const element = makeSection(ID, title, listDomains(payload), [
    make(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Information of each layer" },
      [information],
    ),
    makeBarKey({ faint: true }),
    make("p", { class: "hint" }, [
      `Chance is subtracted: 0 is what shuffled labels of the prompts give, on average. p: the share of ${specialization.num_permutations} shuffles that reach as much; significant at a false discovery rate of 5% over the layers. Last column: the share of what is left to know once the token is known.`,
    ]),
    heading,
    grid.element,
    make("p", { class: "key" }, [
      "Orange: used more than by all tokens. Blue: less. Pale and struck out: not significant.",
    ]),
    twin.element,
  ]);
  return {
    element,
    update(state, changed) {
      if (changed.has("layer") || changed.has("theme")) {
        draw(state);
      } else if (changed.has("domain") || changed.has("expert")) {
        grid.select(state.domain, state.expert);
      }
    },
  };
}

/** @param {import("../types").Payload} payload */
function listDomains({ domains, by }) {
  const named = domains
    .slice(0, MOST_NAMED)
    .map((domain) => `${domain.name} (${domain.prompts} prompts)`);
  const rest = domains.length - named.length;
  const kind = by === "domain" ? "domains" : "values";
  return `${domains.length} ${kind}: ${named.join(", ")}${rest ? ` and ${rest} more` : ""}.`;
}
