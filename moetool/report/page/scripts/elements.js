// Elements of the page. Texts only ever become text nodes.

/**
 * Returns a new element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, string | number | boolean | null>} [attributes] Without those of null, and of false except for ARIA's.
 * @param {(Node | string | null)[]} [children]
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function make(tag, attributes = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    // The states of ARIA are words, which an absent attribute is not.
    if (name.startsWith("aria-") && value !== null) {
      element.setAttribute(name, String(value));
    } else if (value !== null && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/**
 * Returns a button with an action.
 * @param {string} text
 * @param {() => void} act
 * @param {Record<string, string | number | boolean | null>} [attributes]
 */
export function makeButton(text, act, attributes = {}) {
  const button = make("button", { type: "button", ...attributes }, [text]);
  button.addEventListener("click", act);
  return button;
}

/**
 * Returns a list to choose from, with its label.
 * @param {string} label
 * @param {[string, string][]} options Value and text of each.
 * @param {(value: string) => void} choose
 */
export function makeSelect(label, options, choose) {
  const select = make(
    "select",
    {},
    options.map(([value, text]) => make("option", { value }, [text])),
  );
  select.addEventListener("change", () => choose(select.value));
  return { select, element: make("label", { class: "control" }, [label, select]) };
}

/**
 * Returns a slider with its label and a readout.
 * @param {string} label
 * @param {number} count Number of its positions.
 * @param {(position: number) => void} choose
 */
export function makeSlider(label, count, choose) {
  const input = make("input", { type: "range", min: 0, max: count - 1, step: 1, value: 0 });
  const readout = make("output", { class: "readout-value" });
  input.addEventListener("input", () => choose(Number(input.value)));
  return { input, readout, element: make("label", { class: "control" }, [label, input, readout]) };
}

/**
 * Returns a panel's section with its heading.
 * @param {string} id
 * @param {string} title
 * @param {string} lead A sentence on what the panel shows.
 * @param {(Node | string | null)[]} children
 */
export function makeSection(id, title, lead, children) {
  return make("section", { id, class: "panel", "aria-labelledby": `${id}-title` }, [
    make("h2", { id: `${id}-title` }, [title]),
    lead ? make("p", { class: "lead" }, [lead]) : null,
    ...children,
  ]);
}

/**
 * Returns a panel that says why it is empty.
 * @param {string} id
 * @param {string} title
 * @param {string} reason
 * @returns {import("./types").Panel}
 */
export function makeEmptyPanel(id, title, reason) {
  const element = makeSection(id, title, "", [make("p", { class: "missing" }, [reason])]);
  return { element, update() {} };
}
