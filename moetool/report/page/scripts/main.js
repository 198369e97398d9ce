// Builds the page: reads its data, makes the panels, and links them by one selection.

import { readData } from "./data.js";
import { make } from "./elements.js";
import { holdFocus } from "./focus.js";
import { listenToKeys } from "./keyboard.js";
import { makeComparison } from "./panels/comparison.js";
import { makeCompute } from "./panels/compute.js";
import { makeDomains } from "./panels/domains.js";
import { makeExpertCard } from "./panels/expert_card.js";
import { makeExpertMap } from "./panels/expert_map.js";
import { makeLoad } from "./panels/load.js";
import { makeProvenance } from "./panels/provenance.js";
import { makeTogetherness } from "./panels/togetherness.js";
import { makeReader } from "./reader/reader.js";
import { makeSelectionBar } from "./selection_bar.js";
import { createStore } from "./store.js";

/** @typedef {import("./types").Panel} Panel */
/** @typedef {import("./types").Page} Page */

/** @type {((page: Page) => Panel | null)[]} */
const PANELS = [
  makeReader,
  makeExpertMap,
  makeExpertCard,
  makeDomains,
  makeTogetherness,
  makeLoad,
  makeCompute,
  makeComparison,
  makeProvenance,
];

async function build() {
  const { payload, decisions } = await readData();
  const store = createStore(payload);
  /** @type {Page} */
  const page = { payload, decisions, store };
  const bar = makeSelectionBar(page);
  const panels = PANELS.map((makePanel) => makePanel(page)).filter((panel) => panel !== null);
  const links = panels.map((panel) =>
    make("li", {}, [
      make("a", { href: `#${panel.element.id}` }, [
        panel.element.querySelector("h2")?.textContent ?? "",
      ]),
    ]),
  );
  for (const link of links) {
    // The hash holds the selection, so a link scrolls without changing it.
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const id = link.querySelector("a")?.getAttribute("href")?.slice(1) ?? "";
      const target = document.getElementById(id);
      target?.scrollIntoView();
      target?.querySelector("h2")?.focus({ preventScroll: true });
    });
  }
  document.getElementById("without-scripts")?.remove();
  document
    .getElementById("panels")
    ?.replaceChildren(
      make("nav", { "aria-label": "Panels" }, [make("ul", {}, links)]),
      bar.element,
      ...panels.map((panel) => panel.element),
    );
  for (const heading of document.querySelectorAll(".panel h2")) {
    heading.setAttribute("tabindex", "-1");
  }
  const everything = new Set(
    /** @type {(keyof import("./types").State)[]} */ (Object.keys(store.get())),
  );
  const parts = [bar, ...panels];
  store.subscribe((state, changed) => {
    const returnFocus = holdFocus();
    for (const part of parts) {
      part.update(state, changed);
    }
    returnFocus();
  });
  for (const part of parts) {
    part.update(store.get(), everything);
  }
  listenToKeys(page);
  document.documentElement.dataset.ready = "true";
}

build().catch((error) => {
  document.getElementById("failure")?.removeAttribute("hidden");
  console.error(error);
});
