/** What two answers cost and how good they are, as a sentence. Knows nothing of the page. */

import { size, timesIn100 } from "./numbers.js";

// Of fewer tokens, times say little.
const FEWEST_TOKENS = 16;

/**
 * @typedef {object} Outcome
 * @property {string} name of the pane
 * @property {number} bytes that a token reads
 * @property {?number} rate tokens per second
 * @property {number} tokens
 * @property {number} drafted those of them that were drafts, so that one reading of the weights gave several
 * @property {?number} agreement how often the full model finds the same token most likely, if it was measured
 */

/** @param {boolean} timed whether each had the machine for itself */
export function verdict(/** @type {Outcome} */ a, /** @type {Outcome} */ b, timed) {
  const [more, less] = a.bytes < b.bytes ? [b, a] : [a, b];
  const parts = [];
  if (less.bytes < more.bytes) parts.push(`reads ${size(less.bytes)} a token instead of ${size(more.bytes)}`);
  if (timed && enough(more) && enough(less)) {
    parts.push(`is ${(less.rate / more.rate).toFixed(2)} times as fast${parts.length ? "" : ` as ${more.name}`}`);
  }
  if (less.agreement !== null) parts.push(`picks the same next token as the full model ${timesIn100(less.agreement)}`);
  const sentences = parts.length ? [`${less.name} ${listed(parts)}.`] : [];
  if (more.agreement !== null) sentences.push(`${more.name} picks the full model’s ${timesIn100(more.agreement)}.`);
  const helped = [a, b].filter(({ drafted }) => drafted > 0);
  if (helped.length) {
    const shares = helped.map(({ name, drafted, tokens }) => `${drafted} of ${name}’s ${tokens} tokens`);
    sentences.push(`Drafts brought ${listed(shares)} sooner; choose none to compare without them.`);
  }
  return sentences.join(" ");
}

function enough({ rate, tokens }) {
  return rate !== null && tokens >= FEWEST_TOKENS;
}

/** a; a and b; a, b, and c. */
function listed(/** @type {string[]} */ parts) {
  if (parts.length < 3) return parts.join(" and ");
  return `${parts.slice(0, -1).join(", ")}, and ${parts.at(-1)}`;
}
