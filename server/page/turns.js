/** One pane's conversation: what was said so far, by the user and by this pane. Lasts as long as the page. */
export class Turns {
  /** @type {{said: string, answer: string}[]} */
  #kept = [];

  constructor(/** @type {HTMLOListElement} */ list) {
    this.list = list;
  }

  get count() {
    return this.#kept.length;
  }

  /** Of a request that goes on with what was kept. */
  messages(/** @type {string} */ said) {
    const before = this.#kept.flatMap((turn) => [
      { role: "user", content: turn.said },
      { role: "assistant", content: turn.answer },
    ]);
    return [...before, { role: "user", content: said }];
  }

  keep(/** @type {string} */ said, /** @type {string} */ answer) {
    this.#kept.push({ said, answer });
  }

  forget() {
    this.#kept = [];
  }

  /** Go on from another pane's conversation. */
  takeOver(/** @type {Turns} */ other) {
    this.#kept = [...other.#kept];
  }

  /** All that was kept, and what is asked now. */
  show(/** @type {?string} */ said = null) {
    const turns = said === null ? this.#kept : [...this.#kept, { said, answer: null }];
    this.list.replaceChildren(...turns.flatMap(({ said, answer }) => [item("You", said), ...answered(answer)]));
    this.list.hidden = turns.length === 0;
  }

  hide() {
    this.list.replaceChildren();
    this.list.hidden = true;
  }
}

function answered(answer) {
  return answer === null ? [] : [item("Model", answer)];
}

function item(who, text) {
  const [li, label, words] = ["li", "span", "div"].map((tag) => document.createElement(tag));
  li.className = who.toLowerCase();
  label.className = "who";
  label.textContent = who;
  words.textContent = text;
  li.append(label, words);
  return li;
}
