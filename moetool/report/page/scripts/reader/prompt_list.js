// The list of prompts, with its search.

import { make, makeButton } from "../elements.js";

/** @typedef {import("../types").State} State */

const LONGEST_TEXT = 80;

/**
 * Returns the list; `show` lists the prompts that the search and the selected domain leave.
 * @param {Pick<import("../types").Page, "payload" | "store">} page
 * @param {import("./texts").Texts} texts
 */
export function makePromptList({ payload, store }, texts) {
  const prompts = payload.sample?.prompts ?? [];
  const search = make("input", {
    id: "prompt-search",
    type: "search",
    "aria-label": "Search prompts",
    placeholder: "Search prompts  ( / )",
  });
  const list = make("ul", { class: "prompts scroll", tabindex: 0, "aria-label": "Prompts" });

  /**
   * @param {number} index
   * @param {State} state
   */
  function isWanted(index, state) {
    const { id, domain } = prompts[index];
    const wanted = search.value.trim().toLowerCase();
    return (
      (state.domain === null || domain === payload.domains[state.domain].name) &&
      (!wanted || `${id} ${domain} ${texts.ofPrompt(index)}`.toLowerCase().includes(wanted))
    );
  }

  /**
   * @param {number} index
   * @param {State} state
   */
  function makeItem(index, state) {
    const { id, domain, num_tokens: numTokens } = prompts[index];
    // Without a special token at its beginning.
    const text = texts.ofPrompt(index).replace(/^<[^>]*>/, "");
    const button = makeButton("", () => store.set({ prompt: index, token: null }), {
      class: "plain",
      "aria-current": index === state.prompt ? "true" : null,
      tabindex: -1,
    });
    button.append(
      make("span", { class: "prompt-text", dir: "auto" }, [
        text.slice(0, LONGEST_TEXT).replaceAll("⏎\n", " ") || `prompt ${id}`,
      ]),
      make("span", { class: "muted" }, [
        `${numTokens} tokens · ${id.includes(domain) ? id : `${domain} · ${id}`}`,
      ]),
    );
    return make("li", {}, [button]);
  }

  /** @param {State} state */
  function show(state) {
    const wanted = prompts.map((_, index) => index).filter((index) => isWanted(index, state));
    list.replaceChildren(
      ...(wanted.length
        ? wanted.map((index) => makeItem(index, state))
        : [make("li", { class: "muted" }, ["No prompt has these words."])]),
    );
    const current = list.querySelector("[aria-current]");
    const stop = current ?? list.querySelector("button");
    stop?.setAttribute("tabindex", "0");
    if (current instanceof HTMLElement) {
      list.scrollTop = current.offsetTop - list.offsetTop - list.clientHeight / 3;
    }
  }

  /** @returns {HTMLButtonElement[]} */
  const listButtons = () => [...list.querySelectorAll("button")];

  search.addEventListener("input", () => show(store.get()));
  search.addEventListener("keydown", (event) => {
    const [first] = listButtons();
    if (event.key === "Enter") {
      first?.click();
    } else if (event.key === "ArrowDown") {
      first?.focus();
    } else if (event.key === "Escape" && search.value) {
      search.value = "";
      show(store.get());
    } else if (event.key === "Escape") {
      search.blur();
    } else {
      return;
    }
    event.preventDefault();
  });
  // One stop of the Tab key; the arrow keys move within the list.
  list.addEventListener("keydown", (event) => {
    const buttons = listButtons();
    const index = buttons.indexOf(/** @type {HTMLButtonElement} */ (event.target));
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (index < 0 || step === undefined) {
      return;
    }
    if (index + step < 0) {
      search.focus();
    } else {
      buttons[Math.min(index + step, buttons.length - 1)].focus();
    }
    event.preventDefault();
  });
  return { element: make("div", { class: "prompt-list" }, [search, list]), show };
}
