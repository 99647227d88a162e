/** Which neurons each pane used: a picture where some were kept, a sentence elsewhere. */

import { sentence } from "./api.js";
import { plural } from "./numbers.js";

/**
 * Ask the server, which takes some time; so only once nothing is being timed any more.
 * @param {import("./api.js").Api} api
 * @param {import("./pane.js").Pane[]} panes
 * @param {string} prompt what was asked
 * @param {() => boolean} outdated whether something else runs by now
 */
export async function explain(api, panes, prompt, outdated) {
  const sets = await Promise.all(panes.map(({ griffin }) => expertSet(api, griffin?.expert_set)));
  if (outdated()) return;
  panes.forEach(({ griffin, flock }, i) => {
    if (!griffin) return;
    if (sets[i] instanceof Error) flock.explain(sentence(sets[i]));
    else if (sets[i] && !sets[i].kept) flock.explain(picked(griffin.shares_read));
    else if (sets[i]) flock.show(sets[i], sets[1 - i]?.kept ? sets[1 - i] : null, prompt);
    else flock.explain(`All ${plural(griffin.neurons_total, "neuron")} were used.`);
  });
}

/** By method griffin+ there are no kept neurons to draw. `up` is null in a model without a gate. */
function picked({ gate, up, down }) {
  const of = (share, matrix) => `${Math.round(100 * share)} % of ${matrix}`;
  const shares = up === null
    ? `${of(gate, "the first feed-forward matrix")} and ${of(down, "the second")}`
    : `${of(gate, "the gate")}, ${of(up, "the up")} and ${of(down, "the down matrix")}`;
  return `Each token picked the weights that it read: on average ${shares}.`;
}

async function expertSet(api, /** @type {?string} */ name) {
  return name ? api.get(`v1/griffin/experts/${name}`).catch((error) => error) : null;
}
