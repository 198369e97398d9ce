// Reads the values that the page carries: JSON, and bytes of decisions, both deflated.

/** @typedef {import("./types").Payload} Payload */
/** @typedef {import("./types").Sample} Sample */
/** @typedef {import("./types").Decisions} Decisions */
/** @typedef {import("./types").Choice} Choice */

const FULL_WEIGHT = 255;

/**
 * Returns the bytes of an island: base64 of raw deflate, or nothing.
 * @param {string} id
 * @returns {Promise<Uint8Array<ArrayBuffer>>}
 */
async function unpack(id) {
  const text = document.getElementById(id)?.textContent?.trim() ?? "";
  if (!text) {
    // Nothing is not a deflated stream.
    return new Uint8Array();
  }
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Returns the page's values, and its decisions if it has any.
 * @returns {Promise<{ payload: Payload, decisions: Decisions | null }>}
 */
export async function readData() {
  const [text, bytes] = await Promise.all([unpack("payload"), unpack("decisions")]);
  /** @type {Payload} */
  const payload = JSON.parse(new TextDecoder().decode(text));
  const decisions = payload.sample && bytes.length ? openDecisions(payload.sample, bytes) : null;
  return { payload, decisions };
}

/**
 * Returns the decisions in bytes: of each layer, experts by token and rank, then weights.
 * @param {Sample} sample
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @returns {Decisions}
 */
function openDecisions(sample, bytes) {
  let offset = 0;
  const layers = sample.shapes.map(([topK, width], index) => {
    const size = sample.num_tokens * topK;
    // A copy: words of two bytes begin at even places only.
    const own = bytes.slice(offset, offset + size * width);
    const experts = width === 1 ? own : new Uint16Array(own.buffer);
    offset += size * width;
    const weights = sample.has_weights ? bytes.subarray(offset, offset + size) : null;
    offset += weights ? size : 0;
    const none = width === 1 ? 0xff : 0xffff;
    return { topK, experts, weights, none, scale: sample.weight_scale[index] / FULL_WEIGHT };
  });
  return {
    choices(layer, token) {
      const { topK, experts, weights, none, scale } = layers[layer];
      /** @type {Choice[]} */
      const found = [];
      for (let place = token * topK; place < (token + 1) * topK; place += 1) {
        if (experts[place] !== none) {
          found.push({ expert: experts[place], weight: weights ? weights[place] * scale : null });
        }
      }
      return found;
    },
    tokensOf(layer, expert) {
      const { topK, experts, weights, scale } = layers[layer];
      const found = [];
      for (let place = 0; place < experts.length; place += 1) {
        if (experts[place] === expert) {
          const weight = weights ? weights[place] * scale : null;
          found.push({ token: Math.floor(place / topK), weight });
        }
      }
      return found.sort((one, other) => (other.weight ?? 0) - (one.weight ?? 0));
    },
  };
}
