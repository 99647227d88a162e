/** Tokens and when they came, from now on. */
export class Meter {
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
