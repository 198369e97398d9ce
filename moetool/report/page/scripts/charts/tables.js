// Tables: the form that every chart can be read in, and copied from.

import { make, makeButton } from "../elements.js";

// Rows that a table shows; a copy has all of them.
const MOST_ROWS = 500;

/**
 * @typedef {object} Column
 * @property {string} name
 * @property {(value: any) => string} [show] Text of a value; `String` by default.
 */

/** @typedef {(string | number | boolean | null)[]} Row */

/**
 * Returns a table.
 * @param {string} caption
 * @param {Column[]} columns
 * @param {Row[]} rows
 */
export function makeTable(caption, columns, rows) {
  const shown = rows.slice(0, MOST_ROWS);
  const rest = rows.length - shown.length;
  const text = rest ? `${caption} (the first ${MOST_ROWS} of ${rows.length} rows)` : caption;
  return make("table", {}, [
    make("caption", {}, [text]),
    make("thead", {}, [
      make(
        "tr",
        {},
        columns.map((column, index) => {
          const isNumber = typeof rows[0]?.[index] === "number";
          return make("th", { scope: "col", class: isNumber ? "number" : null }, [column.name]);
        }),
      ),
    ]),
    make(
      "tbody",
      {},
      shown.map((row) =>
        make(
          "tr",
          {},
          row.map((value, index) => makeCell(value, columns[index])),
        ),
      ),
    ),
  ]);
}

/**
 * @param {string | number | boolean | null} value
 * @param {Column} column
 */
function makeCell(value, column) {
  const text = column.show ? column.show(value) : value === null ? "unknown" : String(value);
  return make("td", { class: typeof value === "number" ? "number" : null }, [text]);
}

/**
 * Returns the table behind a chart, closed at first, and a button that copies it as CSV.
 * @param {string} caption
 * @param {() => { columns: Column[], rows: Row[] }} read Called when the table is opened.
 */
export function makeTwin(caption, read) {
  const place = make("div", {
    class: "scroll",
    tabindex: 0,
    role: "region",
    "aria-label": caption,
  });
  const status = make("span", { role: "status" });
  const copy = makeButton("Copy as CSV", async () => {
    const { columns, rows } = read();
    await copyText(toCsv(columns, rows));
    status.textContent = `${rows.length} rows copied.`;
  });
  const element = make("details", { class: "twin" }, [
    make("summary", {}, ["Table"]),
    make("div", { class: "controls" }, [copy, status]),
    place,
  ]);
  function fill() {
    if (element.open) {
      const { columns, rows } = read();
      place.replaceChildren(makeTable(caption, columns, rows));
    }
  }
  element.addEventListener("toggle", fill);
  return { element, update: fill };
}

/**
 * Returns rows as CSV, with quotes where a value needs them.
 * @param {Column[]} columns
 * @param {Row[]} rows
 */
function toCsv(columns, rows) {
  const lines = [columns.map((column) => column.name), ...rows];
  return lines.map((line) => `${line.map(quote).join(",")}\n`).join("");
}

/** @param {string | number | boolean | null} value */
function quote(value) {
  const plain = value === null ? "" : String(value);
  // A spreadsheet would run a text as a formula.
  const text = typeof value === "string" && /^[=+\-@]/.test(plain) ? `'${plain}` : plain;
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * Puts a text on the clipboard, also where a page from a file may not use the new interface.
 * @param {string} text
 */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
