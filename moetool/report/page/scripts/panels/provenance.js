// Where the numbers come from, and what is not shown.

import { makeTwin } from "../charts/tables.js";
import { make, makeSection } from "../elements.js";

/**
 * Returns the panel.
 * @param {import("../types").Page} page
 * @returns {import("../types").Panel}
 */
export function makeProvenance({ payload }) {
  const twin = makeTwin("The trace", () => ({
    columns: [{ name: "fact" }, { name: "value" }],
    rows: payload.provenance,
  }));
  twin.element.open = true;
  const element = makeSection("data", "Data", "", [
    twin.element,
    makeList("Not shown here", payload.left_out),
    makeList(
      "Notes",
      payload.notes.map((note) => `${note.about}: ${note.text}`),
    ),
    makeList("Keys", [
      "Arrow keys move between prompts, tokens and cells; Enter selects.",
      "[ and ], or up and down in the reader, change the layer; a selected expert is of one layer.",
      "/ goes to the search of prompts.",
      "Esc clears the search, then the selection.",
    ]),
  ]);
  return { element, update() {} };
}

/**
 * @param {string} title
 * @param {string[]} sentences
 */
function makeList(title, sentences) {
  if (!sentences.length) {
    return null;
  }
  return make("div", {}, [
    make("h3", {}, [title]),
    make(
      "ul",
      {},
      sentences.map((sentence) => make("li", {}, [sentence])),
    ),
  ]);
}
