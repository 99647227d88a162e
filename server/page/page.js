/** The page: what is asked, of which pane, and in which order. */

import { Api, ApiError, plural, sentence } from "./api.js";
import { Pane, short } from "./pane.js";
import { compare, summary } from "./words.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;
const KEY = "griffin-key";

const byId = (/** @type {string} */ id) => document.getElementById(id);
const form = byId("request");
const api = new Api();
const panes = [new Pane(byId("pane"), "A", "B", 0.25), new Pane(byId("pane"), "B", "A", 0.5)];

/** Of the run that is under way. @type {?AbortController} */
let running = null;

function complain(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

/** Ask until the server answers requests; then what it serves. */
async function meet() {
  for (let waitMs = FIRST_WAIT_MS; ; waitMs = Math.min(LONGEST_WAIT_MS, 1.5 * waitMs)) {
    const state = await api.get("page/state").catch((error) => ({ trouble: sentence(error) }));
    byId("key-field").hidden = !state.needs_key;
    byId("at-once").disabled = state.workers < 2;
    if (state.workers < 2) byId("at-once").checked = false;
    if (state.ready) {
      byId("method").value = state.method;
      byId("drafts").disabled = state.drafts === null;
      byId("drafts").value = state.drafts ?? "ngram";
      break;
    }
    byId("model").textContent = `Not ready: ${state.trouble}`;
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
  await introduce();
}

async function introduce() {
  if (!byId("key-field").hidden && !api.key) {
    byId("model").textContent = "Enter an API key to begin.";
    return;
  }
  try {
    const [model] = (await api.get("v1/models")).data;
    const [size, context] = [short(model.parameters.total), plural(model.max_model_len, "token")];
    byId("model").textContent = `${model.id}, ${size} parameters, context of ${context}`;
    for (const pane of panes) pane.know(model);
    complain("");
  } catch (error) {
    complain(sentence(error));
  }
}

function ask() {
  const prompt = byId("prompt").value;
  const chat = form.elements.mode.value === "chat";
  const body = {
    ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }),
    max_tokens: byId("max-tokens").valueAsNumber,
    temperature: byId("temperature").valueAsNumber,
    repetition_penalty: byId("penalty").valueAsNumber,
    seed: byId("seed").valueAsNumber,
    griffin: { method: byId("method").value, ...(!byId("drafts").disabled && { draft: byId("drafts").value }) },
    stream: true,
    stream_options: { include_usage: true },
  };
  const runs = panes.map((pane) => ({ pane, body: { ...body, sparsity: pane.sparsity } }));
  return { path: chat ? "v1/chat/completions" : "v1/completions", runs, prompt: `${chat}${prompt}` };
}

async function run() {
  const { path, runs, prompt } = ask();
  running = new AbortController();
  begin();
  const { signal } = running;
  const start = ({ pane, body }) => pane.run(api, path, body, signal);
  let outcome = "Done.";
  try {
    await (byId("at-once").checked ? atOnce(runs, start) : inTurn(runs, start));
  } catch (error) {
    outcome = error.name === "AbortError" ? "Stopped." : "That failed.";
    if (error.code === "no_chat_template") withoutChat();
    if (error.status === 401) byId("key-field").hidden = false;
  }
  finish();
  await picture(prompt);
  if (!running) say(outcome);
}

function begin() {
  byId("run").setAttribute("aria-disabled", "true");
  byId("stop").disabled = false;
  byId("agreement").textContent = "";
  for (const pane of panes) pane.reset("Not started.");
}

/** Each has the whole machine, so that their figures can be compared. */
async function inTurn([first, second], start) {
  second.pane.state = "Waiting for A.";
  say("A is running, B waits for it.");
  try {
    await start(first);
  } catch (error) {
    second.pane.state = "Not started.";
    throw error;
  }
  say("B is running.");
  await start(second);
}

/** Both to their end, also when one fails. */
async function atOnce(runs, start) {
  say("Both are running.");
  const failed = (await Promise.allSettled(runs.map(start))).find(({ status }) => status === "rejected");
  if (failed) throw failed.reason;
}

function finish() {
  running = null;
  byId("run").removeAttribute("aria-disabled");
  if (document.activeElement === byId("stop")) byId("run").focus();
  byId("stop").disabled = true;
  if (panes.some((pane) => !pane.text)) return;
  const comparison = compare(panes[0].text, panes[1].text);
  panes[0].mark(comparison.left);
  panes[1].mark(comparison.right);
  byId("agreement").textContent = summary(comparison);
}

/** Which neurons each pane used; asked for when nothing is being timed any more. */
async function picture(prompt) {
  const sets = await Promise.all(panes.map(({ griffin }) => experts(griffin?.expert_set)));
  panes.forEach(({ griffin, flock }, i) => {
    if (running || !griffin) return;
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

async function experts(/** @type {?string} */ name) {
  return name ? api.get(`v1/griffin/experts/${name}`).catch((error) => error) : null;
}

function withoutChat() {
  const [completion, chat] = form.elements.mode;
  chat.disabled = true;
  completion.checked = true;
  byId("no-chat").textContent = "Chat is off: this model has no chat template.";
  byId("no-chat").hidden = false;
}

function say(text) {
  byId("status").textContent = text;
}

function takeExample() {
  const [example] = byId("example").selectedOptions;
  const [completion, chat] = form.elements.mode;
  byId("prompt").value = example.text;
  (example.dataset.mode === "chat" && !chat.disabled ? chat : completion).checked = true;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) run();
});
byId("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
byId("key").addEventListener("change", () => {
  api.key = byId("key").value.trim();
  sessionStorage.setItem(KEY, api.key);
  introduce();
});
byId("example").addEventListener("change", takeExample);
byId("panes").append(...panes.map((pane) => pane.element));
byId("key").value = api.key = sessionStorage.getItem(KEY) ?? "";
if (!byId("prompt").value) takeExample();
meet();
