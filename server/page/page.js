/** The page: what is asked, of which pane, and in which order. */

import { Api, sentence } from "./api.js";
import { Models } from "./models.js";
import { explain } from "./neurons.js";
import { Pane } from "./pane.js";
import { verdict } from "./verdict.js";
import { compare, summary } from "./words.js";

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 5000;
const KEY = "griffin-key";

const byId = (/** @type {string} */ id) => document.getElementById(id);
const form = byId("request");
const [completion, chat] = form.elements.mode;
const api = new Api();
const models = new Models(byId("models"), byId("models-field"));
const [A, B] = [new Pane(byId("pane"), "A", "B", 0), new Pane(byId("pane"), "B", "A", 0.5)];

/** Of the run that is under way. @type {?AbortController} */
let running = null;
let workers = 1;
let hasChat = true;

/** The panes that are shown. */
function panes() {
  return byId("two").checked ? [A, B] : [A];
}

function complain(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

/** Ask until the server answers requests; then what it serves. */
async function meet() {
  for (let waitMs = FIRST_WAIT_MS; ; waitMs = Math.min(LONGEST_WAIT_MS, 1.5 * waitMs)) {
    const state = await api.get("page/state").catch((error) => ({ trouble: sentence(error) }));
    byId("key-field").hidden = !state.needs_key;
    workers = state.workers ?? 1;
    if (state.ready) {
      for (const pane of [A, B]) pane.choices.begin(state);
      break;
    }
    byId("model").textContent = `Not ready: ${state.trouble}`;
    await new Promise((resolve) => setTimeout(resolve, waitMs));
  }
  arrange();
  await introduce();
}

async function introduce() {
  if (!byId("key-field").hidden && !api.key) {
    byId("model").textContent = "Enter an API key to begin.";
    return;
  }
  try {
    models.know((await api.get("v1/models")).data);
    complain("");
    await describe();
  } catch (error) {
    complain(sentence(error));
  }
}

/** The chosen model, and whether it can chat; one that is not loaded will say so when it is asked. */
async function describe() {
  const model = models.chosen;
  for (const pane of [A, B]) pane.know(model);
  const asked = model.loaded ? api.get(`tokenizer_info?model=${encodeURIComponent(model.id)}`) : null;
  const info = await asked?.catch(() => null);
  // Another one may have been chosen meanwhile.
  if (models.chosen.id !== model.id) return;
  hasChat = !info || info.chat_template !== null;
  byId("model").textContent = models.description;
  arrange();
}

/** What can be used now, and what it is called. */
function arrange() {
  const [busy, two] = [running !== null, byId("two").checked];
  if (!hasChat) completion.checked = true;
  if (workers < 2) byId("at-once").checked = false;
  byId("run").setAttribute("aria-disabled", String(busy));
  byId("stop").disabled = !busy;
  for (const part of [completion, byId("two"), byId("models")]) part.disabled = busy;
  chat.disabled = busy || !hasChat;
  byId("at-once-field").hidden = workers < 2;
  byId("at-once").disabled = busy || !two;
  byId("compare").disabled = atOnce();
  byId("anew").disabled = busy || A.turns.count === 0;
  B.hidden = !two;
  byId("no-chat").hidden = hasChat;
  byId("chat-hint").hidden = byId("anew").hidden = !chat.checked;
  byId("prompt-label").textContent = chat.checked ? "Message" : "Prompt";
  byId("run-word").textContent = chat.checked ? "Send" : "Run";
}

function atOnce() {
  return byId("two").checked && byId("at-once").checked;
}

/** Empty panes, with what they have said in this conversation. */
function clear() {
  for (const pane of [A, B]) {
    pane.reset("Ready.");
    if (chat.checked) pane.converse();
    else pane.turns.hide();
  }
  judge("", "");
  say("");
  arrange();
}

function ask() {
  const said = byId("prompt").value;
  const body = {
    ...(models.chosen && { model: models.chosen.id }),
    max_tokens: byId("max-tokens").valueAsNumber,
    temperature: byId("temperature").valueAsNumber,
    repetition_penalty: byId("penalty").valueAsNumber,
    seed: byId("seed").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  };
  // A comparison of one answer would slow down the other.
  const compared = byId("compare").checked && !atOnce();
  const runs = panes().map((pane) => ({
    pane,
    body: {
      ...body,
      ...(chat.checked ? { messages: pane.turns.messages(said) } : { prompt: said }),
      ...pane.choices.body(compared),
    },
  }));
  const path = chat.checked ? "v1/chat/completions" : "v1/completions";
  return { path, runs, said, prompt: `${chat.checked} ${A.turns.count} ${said}` };
}

async function run() {
  const { path, runs, said, prompt } = ask();
  running = new AbortController();
  begin(said);
  const { signal } = running;
  const start = ({ pane, body }) => pane.run(api, path, body, signal);
  let outcome = "Done.";
  try {
    await (atOnce() ? allAtOnce(runs, start) : inTurn(runs, start));
  } catch (error) {
    outcome = error.name === "AbortError" ? "Stopped." : "That failed.";
    if (error.code === "no_chat_template") hasChat = false;
    if (error.status === 401) byId("key-field").hidden = false;
  }
  outcome += remember(said);
  finish();
  await explain(api, panes(), prompt, () => running !== null);
  if (!running) say(outcome);
}

function begin(said) {
  judge("", "");
  for (const pane of panes()) {
    pane.reset("Not started.");
    if (chat.checked) pane.converse(said);
  }
  arrange();
}

/** Each has the whole machine, so that their figures can be compared. */
async function inTurn([first, second], start) {
  say(second ? "A is running, B waits for it." : "A is running.");
  if (second) second.pane.state = "Waiting for A.";
  try {
    await start(first);
  } catch (error) {
    if (second) second.pane.state = "Not started.";
    throw error;
  }
  if (!second) return;
  say("B is running.");
  await start(second);
}

/** Both to their end, also when one fails. */
async function allAtOnce(runs, start) {
  say("Both are running.");
  const failed = (await Promise.allSettled(runs.map(start))).find(({ status }) => status === "rejected");
  if (failed) throw failed.reason;
}

/** In a conversation, a message is kept once every pane has an answer to it, so that all go on from the same ones. */
function remember(said) {
  if (!chat.checked) return "";
  if (panes().some((pane) => !pane.answered)) return " Your message was not kept: you can send it again.";
  for (const pane of panes()) pane.turns.keep(said, pane.text);
  if (byId("prompt").value === said) byId("prompt").value = "";
  return "";
}

function finish() {
  const timed = !atOnce();
  running = null;
  if (document.activeElement === byId("stop")) byId("run").focus();
  arrange();
  if (models.several) introduce();
  const [a, b] = panes();
  if (!b?.text || !a.text) return;
  const comparison = compare(a.text, b.text);
  a.mark(comparison.left);
  b.mark(comparison.right);
  judge(a.outcome && b.outcome ? verdict(a.outcome, b.outcome, timed) : "", summary(comparison));
}

function judge(found, agreement) {
  byId("verdict").textContent = found;
  byId("agreement").textContent = agreement;
}

function say(text) {
  byId("status").textContent = text;
}

function takeExample() {
  const [example] = byId("example").selectedOptions;
  byId("prompt").value = example.text;
  const mode = example.dataset.mode === "chat" && hasChat ? chat : completion;
  if (mode.checked || running) return;
  mode.checked = true;
  clear();
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
byId("models").addEventListener("change", () => describe().catch((error) => complain(sentence(error))));
for (const mode of [completion, chat]) mode.addEventListener("change", clear);
byId("anew").addEventListener("click", () => {
  for (const pane of [A, B]) pane.turns.forget();
  clear();
  byId("prompt").focus();
});
byId("two").addEventListener("change", () => {
  // A pane that comes back goes on from what the other has said.
  if (B.turns.count !== A.turns.count) B.turns.takeOver(A.turns);
  clear();
});
byId("at-once").addEventListener("change", arrange);
byId("example").addEventListener("change", takeExample);
byId("panes").append(A.element, B.element);
byId("key").value = api.key = sessionStorage.getItem(KEY) ?? "";
if (!byId("prompt").value) takeExample();
arrange();
meet();
