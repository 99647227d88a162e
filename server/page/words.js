/** Two texts compared word by word. Knows nothing of the page. */

// A word is what stands between spaces; a script that writes without spaces has one with each character.
const WORD = /[\p{sc=Han}\p{sc=Hira}\p{sc=Kana}]|[^\s\p{sc=Han}\p{sc=Hira}\p{sc=Kana}]+/gu;
// The comparison takes the product of both lengths in memory; what comes behind is left uncompared.
const MOST_WORDS = 3000;

/**
 * @typedef {object} Word
 * @property {string} text
 * @property {number} start index of its first character in the text
 * @property {boolean} agrees whether the other text has it too, at this place in the order
 */

/**
 * @returns {{left: Word[], right: Word[], common: number, firstDifference: ?number}} firstDifference counts from 1
 */
export function compare(/** @type {string} */ left, /** @type {string} */ right) {
  const [a, b] = [words(left), words(right)];
  const common = markLongestCommon(a, b);
  const shorter = Math.min(a.length, b.length);
  let first = 0;
  while (first < shorter && a[first].text === b[first].text) first++;
  const same = first === a.length && first === b.length;
  return { left: a, right: b, common, firstDifference: same ? null : first + 1 };
}

/** A comparison as a sentence: marks alone would not tell everybody. */
export function summary({ left, right, common, firstDifference }) {
  if (left.length + right.length === 0) return "Both answers are empty.";
  const most = Math.max(left.length, right.length) === MOST_WORDS ? ` Only the first ${MOST_WORDS} were compared.` : "";
  if (firstDifference === null) return `Both answers are the same, word for word.${most}`;
  const share = Math.round((200 * common) / (left.length + right.length));
  return `First difference at word ${firstDifference}; ${share} % of the words agree.${most}`;
}

/** Runs of words that differ, from the first one's beginning to the last one's end. @returns {[number, number][]} */
export function differing(/** @type {Word[]} */ found) {
  const runs = [];
  found.forEach(({ text, start, agrees }, i) => {
    if (agrees) return;
    if (i === 0 || found[i - 1].agrees) runs.push([start, 0]);
    runs.at(-1)[1] = start + text.length;
  });
  return runs;
}

/** @returns {Word[]} */
function words(/** @type {string} */ text) {
  const found = Array.from(text.matchAll(WORD), (match) => ({ text: match[0], start: match.index, agrees: false }));
  return found.slice(0, MOST_WORDS);
}

/** The longest common subsequence: how many words can be kept of both, in their order. */
function markLongestCommon(a, b) {
  const width = b.length + 1;
  // longest[i * width + j]: of a from i on and b from j on.
  const longest = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] =
        a[i].text === b[j].text
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i].text === b[j].text) a[i++].agrees = b[j++].agrees = true;
    else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
    else j++;
  }
  return longest[0];
}
