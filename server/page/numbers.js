/** Numbers as people say them. */

export function plural(/** @type {number} */ count, /** @type {string} */ noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** 94.7 M of 94,701,888. */
export function short(/** @type {number} */ count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(1)} B`;
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} M` : Math.round(count).toLocaleString("en");
}

/** 1,005 MB of 1,005,402,624. */
export function size(/** @type {number} */ bytes) {
  if (bytes >= 1e10) return `${(bytes / 1e9).toFixed(1)} GB`;
  return `${Math.round(bytes / 1e6).toLocaleString("en")} MB`;
}

/** 75 times in 100 of 0.748. */
export function timesIn100(/** @type {number} */ share) {
  const times = Math.round(100 * share);
  return times === 100 ? "every time" : `${times} times in 100`;
}

/** 164 ms, or 16.0 s. */
export function duration(/** @type {number} */ ms) {
  return ms < 1e4 ? `${ms.toFixed(0)} ms` : `${(ms / 1e3).toFixed(1)} s`;
}
