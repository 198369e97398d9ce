// A grid of coloured cells on a canvas that pointer and keyboard read cell by cell.

import { make } from "./elements.js";

const LABEL_WIDTH = 44;
const LABEL_HEIGHT = 18;
const LEAST_CELL = 4;
const MOST_CELL = 26;
// Cells of this size have room for a line across those that may be chance.
const HATCHED_CELL = 7;

/**
 * @typedef {object} Cell
 * @property {string | null} color None for a cell without a value.
 * @property {boolean} [isFaint] Whether it may be chance.
 */

/**
 * @typedef {object} GridOptions
 * @property {string} label What the grid shows.
 * @property {string} rowName
 * @property {string} columnName
 * @property {(row: number, column: number) => string} describe
 * @property {(row: number, column: number) => void} choose
 */

/**
 * Returns a grid; `draw` shows new cells, `select` marks one.
 * @param {GridOptions} options
 */
export function makeGrid(options) {
  const readout = make("output", { class: "readout", "aria-live": "polite" }, ["\u00a0"]);
  const canvas = make("canvas", { tabindex: 0, role: "img", "aria-label": options.label });
  const scroll = make("div", { class: "scroll grid" }, [canvas]);
  const help = make("p", { class: "hint" }, [
    "Point at a cell, or press Tab and the arrow keys, to read it; click it, or press Enter, to select it.",
  ]);
  /** @type {Cell[][]} */
  let cells = [];
  /** @type {string[]} */
  let rowLabels = [];
  let size = MOST_CELL;
  let [row, column] = [0, 0];
  let isMoving = false;
  /** @type {[number, number] | null} */
  let selected = null;

  /** @param {number} index */
  const isLabelled = (index) => index % Math.max(1, Math.ceil(22 / size)) === 0;

  function paint() {
    const numColumns = Math.max(1, ...cells.map((line) => line.length));
    const room = (scroll.clientWidth || 600) - LABEL_WIDTH;
    size = Math.max(LEAST_CELL, Math.min(MOST_CELL, Math.floor(room / numColumns)));
    const width = LABEL_WIDTH + numColumns * size;
    const height = LABEL_HEIGHT + cells.length * size;
    const density = window.devicePixelRatio || 1;
    canvas.width = width * density;
    canvas.height = height * density;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    if (!context) {
      return;
    }
    const style = getComputedStyle(canvas);
    context.scale(density, density);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = style.color;
    context.textBaseline = "middle";
    for (let index = 0; index < numColumns; index += 1) {
      if (isLabelled(index)) {
        context.textAlign = "left";
        context.fillText(String(index), LABEL_WIDTH + index * size + 1, LABEL_HEIGHT / 2);
      }
    }
    const gap = size >= HATCHED_CELL ? 1 : 0;
    cells.forEach((line, y) => {
      if (isLabelled(y)) {
        context.fillStyle = style.color;
        context.textAlign = "right";
        context.fillText(
          rowLabels[y],
          LABEL_WIDTH - 6,
          LABEL_HEIGHT + (y + 0.5) * size,
          LABEL_WIDTH - 8,
        );
      }
      line.forEach((cell, x) => {
        if (!cell.color) {
          return;
        }
        const [left, top] = [LABEL_WIDTH + x * size, LABEL_HEIGHT + y * size];
        context.globalAlpha = cell.isFaint ? 0.45 : 1;
        context.fillStyle = cell.color;
        context.fillRect(left, top, size - gap, size - gap);
        if (cell.isFaint && size >= HATCHED_CELL) {
          context.globalAlpha = 0.5;
          context.strokeStyle = style.color;
          context.lineWidth = 0.7;
          context.beginPath();
          context.moveTo(left + 1, top + size - 2);
          context.lineTo(left + size - 2, top + 1);
          context.stroke();
        }
        context.globalAlpha = 1;
      });
    });
    if (selected) {
      outline(context, selected, style.color, 2);
    }
    if (isMoving) {
      outline(context, [row, column], style.getPropertyValue("--accent").trim() || style.color, 2);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {[number, number]} place
   * @param {string} color
   * @param {number} width
   */
  function outline(context, [y, x], color, width) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(LABEL_WIDTH + x * size - 1, LABEL_HEIGHT + y * size - 1, size + 1, size + 1);
  }

  /** @param {MouseEvent} event */
  function find(event) {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - LABEL_WIDTH) / size);
    const y = Math.floor((event.clientY - box.top - LABEL_HEIGHT) / size);
    return x >= 0 && y >= 0 && x < (cells[y]?.length ?? 0) ? { y, x } : null;
  }

  function read() {
    readout.textContent = cells[row]?.[column] ? options.describe(row, column) : "\u00a0";
  }

  canvas.addEventListener("pointermove", (event) => {
    const place = find(event);
    if (place && (place.y !== row || place.x !== column)) {
      [row, column] = [place.y, place.x];
      read();
    }
  });
  canvas.addEventListener("click", (event) => {
    const place = find(event);
    if (place) {
      [row, column] = [place.y, place.x];
      read();
      options.choose(row, column);
    }
  });
  canvas.addEventListener("focus", () => {
    isMoving = canvas.matches(":focus-visible");
    read();
    paint();
  });
  canvas.addEventListener("blur", () => {
    isMoving = false;
    paint();
  });
  canvas.addEventListener("keydown", (event) => {
    /** @type {Record<string, [number, number]>} */
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    if (event.key in steps) {
      const [down, right] = steps[event.key];
      row = Math.min(Math.max(row + down, 0), cells.length - 1);
      column = Math.min(Math.max(column + right, 0), (cells[row]?.length ?? 1) - 1);
      isMoving = true;
      read();
      paint();
    } else if (event.key === "Enter" || event.key === " ") {
      options.choose(row, column);
    } else {
      return;
    }
    event.preventDefault();
  });
  new ResizeObserver(() => paint()).observe(scroll);

  return {
    element: make("div", { class: "grid-block" }, [scroll, readout, help]),
    /**
     * @param {Cell[][]} next
     * @param {string[]} labels Of the rows.
     */
    draw(next, labels) {
      cells = next;
      rowLabels = labels;
      row = Math.min(row, Math.max(0, cells.length - 1));
      column = Math.min(column, Math.max(0, (cells[row]?.length ?? 1) - 1));
      paint();
    },
    /**
     * @param {number | null} y
     * @param {number | null} x
     */
    select(y, x) {
      selected = y === null || x === null ? null : [y, x];
      if (selected && !isMoving) {
        [row, column] = selected;
      }
      paint();
    },
    repaint: paint,
  };
}
