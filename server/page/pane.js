/** One of the two panes: a sparsity, an answer as it streams in, and what it took. */

import { plural, sentence } from "./api.js";
import { FlockPicture } from "./flock.js";
import { differing } from "./words.js";

// Waiting in the server's queue that is worth a word.
const NOTABLE_MS = 100;

export class Pane {
  /** The server's block about what it applied, of the last run that came to its end. */
  griffin = null;
  #model = null;
  #runs = false;

  constructor(template, name, otherName, sparsity) {
    this.name = name;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.setAttribute("aria-label", `Pane ${name}`);
    this.#find("h2").textContent = name;
    this.slider = this.#find(".slider");
    this.number = this.#find(".number");
    this.number.setAttribute("aria-label", `Sparsity of ${name} as a number`);
    this.answer = this.#find(".answer");
    this.answer.setAttribute("aria-label", `Answer ${name}`);
    this.flock = new FlockPicture(this.#find(".flock"), otherName);
    this.slider.value = this.number.value = sparsity;
    this.slider.addEventListener("input", () => this.#adjust(this.number, this.slider));
    this.number.addEventListener("input", () => this.#adjust(this.slider, this.number));
    this.reset("Ready.");
  }

  get sparsity() {
    return this.number.valueAsNumber;
  }

  get text() {
    return this.answer.textContent;
  }

  set state(/** @type {string} */ text) {
    this.#find(".state").textContent = text;
  }

  /** @param {{parameters: Sizes, bytes_per_token: Sizes}} model from /v1/models; Sizes have total and feed_forward */
  know(model) {
    this.#model = model;
    this.#preview();
  }

  /** Empty, before a run. */
  reset(/** @type {string} */ state) {
    this.griffin = null;
    this.answer.textContent = "";
    for (const part of [".rate", ".first"]) this.#find(part).textContent = "–";
    for (const part of [".rate-server", ".first-server", ".usage"]) this.#find(part).textContent = "";
    this.#find(".trouble").hidden = true;
    this.flock.explain("");
    this.#preview();
    this.state = state;
  }

  /** One answer, from the request to its last token. Throws what ended it early, once the pane has said so. */
  async run(api, path, body, signal) {
    const meter = new Meter();
    this.#runs = true;
    this.state = "Reading the prompt …";
    let ending = "";
    try {
      for await (const chunk of api.stream(path, body, signal)) {
        const choice = chunk.choices[0];
        if (!choice) {
          this.#report(chunk);
        } else if (choice.delta?.role === undefined) {
          this.#append(choice.text ?? choice.delta.content);
          meter.count();
          this.#show(meter);
          ending = choice.finish_reason === "stop" ? "the model ended there" : "as many as allowed";
        }
      }
    } catch (error) {
      this.#fail(error, meter);
      throw error;
    } finally {
      this.#runs = false;
    }
    const sparsity = this.griffin?.sparsity ?? body.sparsity;
    const why = this.griffin?.reason === "finished_at_first_token" ? " (the first token is the full model's)" : "";
    this.state = `Done at sparsity ${sparsity}${why}: ${plural(meter.tokens, "token")}, ${ending}.`;
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

  #adjust(follower, leader) {
    follower.value = leader.value;
    // What runs, runs at what it was asked for.
    if (!this.#runs) this.#preview();
  }

  /** Before the server has said what it uses: the same sum, of the model's figures. */
  #preview() {
    this.slider.setAttribute("aria-valuetext", `${Math.round(this.sparsity * 100)} % of the feed-forward weights left out`);
    if (!this.#model || Number.isNaN(this.sparsity)) return;
    const left = ({ total, feed_forward }) => total - this.sparsity * feed_forward;
    const { parameters, bytes_per_token } = this.#model;
    this.#bar(left(parameters), parameters.total, left(bytes_per_token));
  }

  /** What a token reads: its bytes are what its time goes by. */
  #bar(active, total, bytes) {
    const whole = this.#model.bytes_per_token.total;
    const share = Math.round((100 * bytes) / whole);
    this.#find(".active").style.width = `${share}%`;
    const fewer = bytes < whole ? `${100 - share} % fewer` : "the full model";
    this.#find(".counts").textContent =
      `${size(bytes)} a token (${fewer}), ${short(active)} of ${short(total)} parameters`;
  }

  #append(text) {
    const { answer } = this;
    const atEnd = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 8;
    answer.append(text);
    if (atEnd) answer.scrollTop = answer.scrollHeight;
  }

  #show(meter) {
    this.state = `Generating … ${plural(meter.tokens, "token")}`;
    this.#find(".first").textContent = `${meter.firstMs.toFixed(0)} ms`;
    if (meter.rate !== null) this.#find(".rate").textContent = meter.rate.toFixed(1);
  }

  #report({ usage, griffin, metrics }) {
    this.griffin = griffin;
    if (this.#model) this.#bar(griffin.active_parameters, griffin.total_parameters, griffin.bytes_per_token);
    const said = (value, digits, unit) => (value === null ? "" : `server: ${value.toFixed(digits)}${unit}`);
    this.#find(".rate-server").textContent = said(metrics.tokens_per_second, 1, "");
    this.#find(".first-server").textContent = said(metrics.time_to_first_token_ms, 0, " ms");
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

  #fail(error, meter) {
    if (error.name === "AbortError") {
      this.state = meter.tokens ? `Stopped after ${plural(meter.tokens, "token")}.` : "Stopped.";
      return;
    }
    this.state = meter.tokens ? `Failed after ${plural(meter.tokens, "token")}.` : "Failed.";
    const trouble = this.#find(".trouble");
    trouble.textContent = sentence(error);
    trouble.hidden = false;
  }
}

/** Tokens and when they came, from now on. */
class Meter {
  #sent = performance.now();
  #first = 0;
  #last = 0;
  tokens = 0;

  count() {
    this.#last = performance.now();
    this.#first ||= this.#last;
    this.tokens++;
  }

  /** Milliseconds from the request to the first token. */
  get firstMs() {
    return this.#first - this.#sent;
  }

  /** Tokens per second after the first; null before there are two, of which a coarse clock can tell the times apart. */
  get rate() {
    return this.#last > this.#first ? ((this.tokens - 1) * 1000) / (this.#last - this.#first) : null;
  }
}

/** 94.7 M of 94,701,888. */
export function short(/** @type {number} */ count) {
  if (count >= 1e9) return `${(count / 1e9).toFixed(1)} B`;
  return count >= 1e6 ? `${(count / 1e6).toFixed(1)} M` : Math.round(count).toLocaleString("en");
}

/** 189 MB of 189,402,624. */
function size(/** @type {number} */ bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : `${(bytes / 1e6).toFixed(0)} MB`;
}
