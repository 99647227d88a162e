/** One of the two panes: what it asks for, its answer as it streams in, what that took and how good it is. */

import { sentence } from "./api.js";
import { Choices } from "./choices.js";
import { FlockPicture } from "./flock.js";
import { Meter } from "./meter.js";
import { duration, plural, short, size } from "./numbers.js";
import { Turns } from "./turns.js";
import { differing } from "./words.js";

// Waiting in the server's queue that is worth a word.
const NOTABLE_MS = 100;

export class Pane {
  /** The server's block about what it applied, of the last run that came to its end. */
  griffin = null;
  /** Whether the last run left an answer: a whole one, or what there was when it was stopped. */
  answered = false;
  #model = null;
  #meter = null;
  #runs = false;

  constructor(template, name, otherName, sparsity) {
    this.name = name;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.setAttribute("aria-label", `Pane ${name}`);
    this.#find("h2").textContent = name;
    this.#find(".talk").setAttribute("aria-label", `Answer ${name}`);
    this.answer = this.#find(".answer");
    this.thought = this.#find(".thought");
    this.turns = new Turns(this.#find(".turns"));
    this.flock = new FlockPicture(this.#find(".flock"), otherName);
    // What runs, runs at what it was asked for.
    this.choices = new Choices(this.#find(".choices"), name, sparsity, () => this.#runs || this.#preview());
    this.reset("Ready.");
  }

  get text() {
    return this.answer.textContent;
  }

  set state(/** @type {string} */ text) {
    this.#find(".state").textContent = text;
  }

  set hidden(/** @type {boolean} */ value) {
    this.element.hidden = this.choices.disabled = value;
  }

  /** @param {?object} model its card from /v1/models; null while its sizes are not known */
  know(model) {
    this.#model = model?.loaded ? model : null;
    if (this.griffin) this.#applied();
    else this.#preview();
  }

  /** Empty, before a run. */
  reset(/** @type {string} */ state) {
    this.griffin = null;
    this.answered = false;
    this.answer.textContent = "";
    this.thought.hidden = true;
    this.thought.lastElementChild.textContent = "";
    for (const part of [".rate", ".first"]) this.#find(part).textContent = "–";
    for (const part of [".rate-server", ".first-server", ".usage"]) this.#find(part).textContent = "";
    for (const part of [".quality", ".trouble"]) this.#find(part).hidden = true;
    this.flock.explain("");
    this.#preview();
    this.state = state;
  }

  /** What was said in this conversation, and what is asked now; its end is in sight. */
  converse(/** @type {?string} */ said = null) {
    this.turns.show(said);
    const talk = this.#find(".talk");
    talk.scrollTop = talk.scrollHeight;
  }

  /** One answer, from the request to its last token. Throws what ended it early, once the pane has said so. */
  async run(api, path, body, signal) {
    const meter = new Meter();
    this.#meter = meter;
    this.#runs = true;
    this.state = this.#model ? "Reading the prompt …" : "Loading the model, then reading the prompt …";
    let ending = "";
    try {
      for await (const chunk of api.stream(path, body, signal)) {
        const choice = chunk.choices[0];
        if (!choice) {
          this.#report(chunk);
        } else if (choice.delta?.role === undefined) {
          this.#append(choice.delta ?? { content: choice.text });
          meter.count();
          this.state = `Generating … ${plural(meter.tokens, "token")}`;
          this.#time();
          if (!choice.finish_reason) continue;
          ending = choice.finish_reason === "stop" ? "the model ended there" : "as many as allowed";
          if (body.griffin.compare) this.state = "Comparing the answer with the full model …";
        }
      }
    } catch (error) {
      this.#fail(error);
      throw error;
    } finally {
      this.#runs = false;
    }
    this.answered = true;
    this.state = `Done ${this.#how(body)}: ${plural(meter.tokens, "token")}, ${ending}.`;
  }

  /** What the answer came to, for a verdict; null before there is one. @returns {?import("./verdict.js").Outcome} */
  get outcome() {
    if (!this.griffin) return null;
    const { rate, tokens } = this.#meter;
    const { mode, verification, comparison } = this.griffin;
    const drafted = mode === "fast" ? verification?.accepted_tokens ?? 0 : 0;
    return { name: this.name, bytes: this.#bytes, rate, tokens, drafted, agreement: comparison?.top1_agreement ?? null };
  }

  /** Mark the words that differ. Text goes in as text: a model may well write markup. */
  mark(/** @type {import("./words.js").Word[]} */ words) {
    const { text } = this;
    this.answer.replaceChildren();
    let at = 0;
    for (const [start, end] of differing(words)) {
      const mark = Object.assign(document.createElement("mark"), { textContent: text.slice(start, end) });
      this.answer.append(text.slice(at, start), mark);
      at = end;
    }
    this.answer.append(text.slice(at));
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }

  #how(body) {
    const { sparsity, reason } = this.griffin ?? { sparsity: body.sparsity };
    if (reason === "finished_at_first_token") return "at sparsity 0 (the first token is the full model’s)";
    const mode = body.griffin.mode === "fast" ? "" : `, ${body.griffin.mode}`;
    return sparsity ? `at sparsity ${sparsity}${mode}` : `by the full model${mode}`;
  }

  /** Before the server has said what it uses: the same sum, of the model's figures. */
  #preview() {
    this.#find(".parameters").hidden = !this.#model;
    if (!this.#model || Number.isNaN(this.choices.sparsity)) return;
    const left = ({ total, feed_forward }) => total - this.choices.sparsity * feed_forward;
    const { parameters, bytes_per_token } = this.#model;
    this.#bar(left(parameters), left(bytes_per_token));
  }

  #applied() {
    this.#find(".parameters").hidden = !this.#model;
    if (this.#model) this.#bar(this.griffin.active_parameters, this.#bytes);
  }

  /** Bytes that a token reads; where the full model checks tokens, its passes over them count too. */
  get #bytes() {
    const { mode, bytes_per_token, verification } = this.griffin;
    return mode === "fast" ? bytes_per_token : verification?.bytes_per_token ?? bytes_per_token;
  }

  /** What a token reads: its bytes are what its time goes by. */
  #bar(active, bytes) {
    const { parameters, bytes_per_token: { total: whole } } = this.#model;
    const share = Math.round((100 * bytes) / whole);
    this.#find(".active").style.width = `${Math.min(100, share)}%`;
    const beside = bytes < whole ? `${100 - share} % fewer` : `${share - 100} % more`;
    this.#find(".counts").textContent =
      `${size(bytes)} a token (${bytes === whole ? "the full model" : beside}), ` +
      `${short(active)} of ${short(parameters.total)} parameters`;
  }

  #append({ content, reasoning_content: thought }) {
    const talk = this.#find(".talk");
    const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 8;
    if (thought) {
      this.thought.hidden = false;
      this.thought.lastElementChild.append(thought);
    }
    this.answer.append(content ?? "");
    if (atEnd) talk.scrollTop = talk.scrollHeight;
  }

  #time() {
    const { firstMs, rate } = this.#meter;
    this.#find(".first").textContent = duration(firstMs);
    if (rate !== null) this.#find(".rate").textContent = rate.toFixed(1);
  }

  #report({ usage, griffin, metrics }) {
    this.griffin = griffin;
    // A chunk is a token, but for those where a thought ends.
    this.#meter.tokens = usage.completion_tokens;
    this.#time();
    this.#applied();
    this.#judge(griffin.comparison);
    const said = (value, words) => (value === null ? "" : `server: ${words(value)}`);
    this.#find(".rate-server").textContent = said(metrics.tokens_per_second, (rate) => rate.toFixed(1));
    this.#find(".first-server").textContent = said(metrics.time_to_first_token_ms, duration);
    const { prompt_tokens: all, prompt_tokens_details: { cached_tokens: known } } = usage;
    const sentences = [known
      ? `${known} of ${all} prompt tokens were known already, which brought the first token sooner.`
      : `${plural(all, "prompt token")} ${all === 1 ? "was" : "were"} read.`];
    const drafts = griffin.verification;
    if (drafts?.drafted_tokens) {
      sentences.push(`${drafts.accepted_tokens} of ${plural(drafts.drafted_tokens, "drafted token")} stayed.`);
    }
    const waitedMs = metrics.queue_time_ms;
    if (waitedMs > NOTABLE_MS) sentences.push(`It waited ${(waitedMs / 1e3).toFixed(1)} s for its turn.`);
    this.#find(".usage").textContent = sentences.join(" ");
  }

  /** Measured by the server after the last token, in no time that is shown. */
  #judge(comparison) {
    this.#find(".quality").hidden = !comparison;
    if (!comparison) return;
    const { top1_agreement: same, kl, tokens } = comparison;
    this.#find(".same").textContent = `${Math.round(100 * same)} %`;
    this.#find(".kl").textContent = `KL ${kl.toFixed(kl < 0.1 ? 3 : 2)}, on ${plural(tokens, "token")}`;
  }

  #fail(error) {
    const { tokens } = this.#meter;
    if (error.name === "AbortError") {
      this.answered = tokens > 0;
      this.state = tokens ? `Stopped after ${plural(tokens, "token")}.` : "Stopped.";
      return;
    }
    this.state = tokens ? `Failed after ${plural(tokens, "token")}.` : "Failed.";
    const trouble = this.#find(".trouble");
    trouble.textContent = sentence(error);
    trouble.hidden = false;
  }
}
