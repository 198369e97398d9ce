// A grid of coloured cells on a canvas that pointer and keyboard read cell by cell.

import { inkOn } from "../colors.js";
import { make } from "../elements.js";

const LABEL_WIDTH = 64;
const LABEL_HEIGHT = 18;
const LEAST_CELL = 4;
const MOST_HEIGHT = 36;
const MOST_WIDTH = 76;
const LINE_HEIGHT = 13;
const MOST_PIXELS_A_SIDE = 32_000;
const MOST_PIXELS = 16_000_000;
// Cells of this width have room for a line across those that may be chance, and for a number.
const HATCHED_CELL = 7;
const NUMBERED_CELL = 34;

/**
 * @typedef {object} Cell
 * @property {string | null} color None for a cell without a value.
 * @property {boolean} [isFaint] Whether it may be chance.
 * @property {string} [text] Lines that are shown where the cell is large enough.
 */

/**
 * @typedef {object} GridOptions
 * @property {string} label What the grid shows.
 * @property {boolean} [isSquare]
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
  /** @type {string[] | null} */
  let columnLabels = null;
  let [cellWidth, cellHeight, density] = [MOST_WIDTH, MOST_HEIGHT, 1];
  let [row, column] = [0, 0];
  let isMoving = false;
  /** @type {[number, number] | null} */
  let selected = null;

  /**
   * @param {number} index
   * @param {number} size
   */
  const isLabelled = (index, size) => index % Math.max(1, Math.ceil(22 / size)) === 0;

  let isScheduled = false;

  /** Paints once before the next frame, however often it is called until then. */
  function schedule() {
    if (!isScheduled) {
      isScheduled = true;
      requestAnimationFrame(paint);
    }
  }

  // The cells without marks: moving a mark does not paint them anew.
  const picture = document.createElement("canvas");
  let isStale = true;

  function paint() {
    isScheduled = false;
    if (isStale) {
      paintPicture();
      isStale = false;
    }
    const context = canvas.getContext("2d");
    if (!context) {
      return;
    }
    context.resetTransform();
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, 0, 0);
    context.scale(density, density);
    const style = getComputedStyle(canvas);
    if (selected) {
      outline(context, selected, style.color, 2);
    }
    if (isMoving) {
      outline(context, [row, column], style.getPropertyValue("--accent").trim() || style.color, 2);
    }
  }

  function paintAnew() {
    isStale = true;
    paint();
  }

  function paintPicture() {
    const numColumns = Math.max(1, ...cells.map((line) => line.length));
    const room = Math.floor(((scroll.clientWidth || 600) - LABEL_WIDTH - 2) / numColumns);
    cellWidth = Math.max(LEAST_CELL, Math.min(options.isSquare ? MOST_HEIGHT : MOST_WIDTH, room));
    cellHeight = Math.min(MOST_HEIGHT, Math.max(cellWidth, options.isSquare ? 0 : 12));
    const width = LABEL_WIDTH + numColumns * cellWidth + 2;
    const height = LABEL_HEIGHT + cells.length * cellHeight + 2;
    // Browsers leave a canvas blank that is longer or larger.
    density = Math.min(
      window.devicePixelRatio || 1,
      MOST_PIXELS_A_SIDE / Math.max(width, height),
      Math.sqrt(MOST_PIXELS / (width * height)),
    );
    for (const each of [canvas, picture]) {
      each.width = width * density;
      each.height = height * density;
    }
    // The height follows, also where a narrower page makes it shrink.
    canvas.style.width = `${width}px`;
    const context = picture.getContext("2d");
    if (!context) {
      return;
    }
    const style = getComputedStyle(canvas);
    context.scale(density, density);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    paintLabels(context, style.color, numColumns);
    cells.forEach((line, y) => {
      line.forEach((cell, x) => {
        if (cell.color) {
          paintCell(context, cell, cell.color, [y, x], style.color);
        }
      });
    });
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {string} color
   * @param {number} numColumns
   */
  function paintLabels(context, color, numColumns) {
    context.fillStyle = color;
    context.textAlign = "center";
    for (let index = 0; index < numColumns; index += 1) {
      if (isLabelled(index, cellWidth)) {
        const text = columnLabels ? columnLabels[index] : String(index);
        context.fillText(text, LABEL_WIDTH + (index + 0.5) * cellWidth, LABEL_HEIGHT / 2);
      }
    }
    context.textAlign = "right";
    rowLabels.forEach((label, index) => {
      if (isLabelled(index, cellHeight)) {
        const top = LABEL_HEIGHT + (index + 0.5) * cellHeight;
        context.fillText(label, LABEL_WIDTH - 6, top, LABEL_WIDTH - 8);
      }
    });
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Cell} cell
   * @param {string} color
   * @param {[number, number]} place
   * @param {string} ink
   */
  function paintCell(context, cell, color, [y, x], ink) {
    const gap = cellWidth >= HATCHED_CELL ? 1 : 0;
    const [left, top] = [LABEL_WIDTH + x * cellWidth, LABEL_HEIGHT + y * cellHeight];
    context.globalAlpha = cell.isFaint ? 0.45 : 1;
    context.fillStyle = color;
    context.fillRect(left, top, cellWidth - gap, cellHeight - gap);
    if (cell.isFaint && cellWidth >= HATCHED_CELL) {
      context.globalAlpha = 0.5;
      context.strokeStyle = ink;
      context.lineWidth = 0.7;
      context.beginPath();
      context.moveTo(left + 1, top + cellHeight - 2);
      context.lineTo(left + cellWidth - 2, top + 1);
      context.stroke();
    }
    context.globalAlpha = 1;
    if (cell.text && cellWidth >= NUMBERED_CELL && cellHeight >= 16) {
      context.fillStyle = cell.isFaint ? ink : inkOn(color);
      context.textAlign = "center";
      const fitting = Math.max(1, Math.floor(cellHeight / LINE_HEIGHT));
      const lines = cell.text.split("\n").slice(0, fitting);
      const middle = top + cellHeight / 2 - ((lines.length - 1) * LINE_HEIGHT) / 2;
      lines.forEach((line, index) => {
        const height = middle + index * LINE_HEIGHT;
        // A word that does not fit would be squeezed.
        if (index === 0 || context.measureText(line).width <= 1.2 * (cellWidth - 4)) {
          context.fillText(line, left + cellWidth / 2, height, cellWidth - 4);
        }
      });
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
    context.strokeRect(
      LABEL_WIDTH + x * cellWidth - 1,
      LABEL_HEIGHT + y * cellHeight - 1,
      cellWidth + 1,
      cellHeight + 1,
    );
  }

  /** @param {MouseEvent} event */
  function find(event) {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left - LABEL_WIDTH) / cellWidth);
    const y = Math.floor((event.clientY - box.top - LABEL_HEIGHT) / cellHeight);
    return x >= 0 && y >= 0 && x < (cells[y]?.length ?? 0) ? { y, x } : null;
  }

  function read() {
    readout.textContent = cells[row]?.[column] ? options.describe(row, column) : "\u00a0";
  }

  /** Scrolls to the cell that the keyboard is on. */
  function follow() {
    const [left, top] = [LABEL_WIDTH + column * cellWidth, LABEL_HEIGHT + row * cellHeight];
    const { clientWidth, clientHeight } = scroll;
    scroll.scrollLeft = Math.min(
      left - LABEL_WIDTH,
      Math.max(scroll.scrollLeft, left + 2 * cellWidth - clientWidth),
    );
    scroll.scrollTop = Math.min(
      top - LABEL_HEIGHT,
      Math.max(scroll.scrollTop, top + 2 * cellHeight - clientHeight),
    );
  }

  canvas.addEventListener("pointermove", (event) => {
    const place = find(event);
    if (place) {
      [row, column] = [place.y, place.x];
      read();
    }
  });
  canvas.addEventListener("pointerleave", () => {
    readout.textContent = "\u00a0";
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
    schedule();
  });
  canvas.addEventListener("blur", () => {
    isMoving = false;
    schedule();
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
      follow();
      schedule();
    } else if (event.key === "Enter" || event.key === " ") {
      options.choose(row, column);
    } else {
      return;
    }
    event.preventDefault();
  });
  new ResizeObserver(() => paintAnew()).observe(scroll);
  for (const query of ["print", "(prefers-color-scheme: dark)"]) {
    matchMedia(query).addEventListener("change", () => paintAnew());
  }

  return {
    element: make("div", { class: "grid-block" }, [scroll, readout, help]),
    /**
     * @param {Cell[][]} next
     * @param {string[]} labels Of the rows.
     * @param {string[] | null} [tops] Of the columns; numbers by default.
     */
    draw(next, labels, tops = null) {
      cells = next;
      rowLabels = labels;
      columnLabels = tops;
      row = Math.min(row, Math.max(0, cells.length - 1));
      column = Math.min(column, Math.max(0, (cells[row]?.length ?? 1) - 1));
      isStale = true;
      schedule();
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
      schedule();
    },
    repaint: paintAnew,
  };
}
