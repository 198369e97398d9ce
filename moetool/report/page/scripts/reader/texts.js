// Texts of the sample's tokens and prompts.

/**
 * @typedef {object} Texts
 * @property {number[]} starts First token of each prompt.
 * @property {(token: number) => string} ofToken
 * @property {(prompt: number) => string} ofPrompt Nothing if texts are not on the page.
 */

/**
 * Returns the texts of a sample; numbers stand for tokens without one.
 * @param {import("../types").Payload} payload
 * @returns {Texts}
 */
export function readTexts({ sample }) {
  const { prompts, texts, text_of: textOf } = sample ?? { prompts: [], texts: [], text_of: null };
  /** @type {number[]} */
  const starts = [];
  /** @type {number[]} */
  const promptOf = [];
  prompts.forEach((prompt, index) => {
    starts.push(promptOf.length);
    for (let count = 0; count < prompt.num_tokens; count += 1) {
      promptOf.push(index);
    }
  });
  return {
    starts,
    ofToken(token) {
      return textOf ? (texts[textOf[token]] ?? "?") : `${token - starts[promptOf[token]]} `;
    },
    ofPrompt(index) {
      const end = starts[index] + prompts[index].num_tokens;
      const tokens = textOf?.slice(starts[index], end) ?? [];
      return tokens.map((at) => texts[at] ?? "?").join("");
    },
  };
}
