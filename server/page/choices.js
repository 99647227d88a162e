/** What one pane asks for: sparsity, method, mode and drafts, in combinations that the server accepts. */

// Besides the server's default, which is sent as no choice at all.
const DRAFTS = { fast: ["ngram", "none"], guarded: ["both", "pruned", "ngram"], lossless: ["both", "pruned", "ngram"] };
const EXPLAINED = {
  fast: "",
  guarded: "The full model checks every few tokens and replaces those that it finds unlikely.",
  lossless: "The full model checks all tokens: the answer is its own, token by token.",
};
const ALONE = "The full model alone: it checks words that followed the same ones before.";

export class Choices {
  /**
   * @param {HTMLFieldSetElement} fieldset
   * @param {string} name of the pane
   * @param {number} sparsity at first
   * @param {() => void} changed told after each change
   */
  constructor(fieldset, name, sparsity, changed) {
    this.fieldset = fieldset;
    this.changed = changed;
    const find = (selector) => fieldset.querySelector(selector);
    [this.slider, this.number] = [find(".slider"), find(".number")];
    [this.method, this.mode, this.drafts] = [find(".method"), find(".mode"), find(".drafts")];
    this.explained = find(".explained");
    this.slider.setAttribute("aria-label", `Sparsity of ${name}`);
    this.number.setAttribute("aria-label", `Sparsity of ${name} as a number`);
    for (const kind of ["method", "mode", "drafts"]) {
      this[kind].setAttribute("aria-label", `${kind[0].toUpperCase()}${kind.slice(1)} of ${name}`);
      this[kind].addEventListener("change", () => this.#arrange());
    }
    this.slider.value = this.number.value = sparsity;
    this.slider.addEventListener("input", () => this.#follow(this.number, this.slider));
    this.number.addEventListener("input", () => this.#follow(this.slider, this.number));
    this.#arrange();
  }

  /** The server's own, where it has any. */
  begin({ method, mode }) {
    this.method.value = method;
    this.mode.value = mode;
    this.#arrange();
  }

  /** Of feed-forward weights that are left out; NaN where none is entered. */
  get sparsity() {
    return this.#fullModelAlone ? 0 : this.number.valueAsNumber;
  }

  set disabled(/** @type {boolean} */ value) {
    this.fieldset.disabled = value;
  }

  /** Whether the answer is that of the sparse model, so that it can be compared with the full one. */
  get unchecked() {
    return this.mode.value === "fast" && this.sparsity > 0;
  }

  /** Fields of a request. */
  body(/** @type {boolean} */ compare) {
    const draft = this.drafts.value && { draft: this.drafts.value };
    const mode = { mode: this.mode.value, ...draft };
    if (this.#fullModelAlone) return { griffin: mode };
    const compared = compare && this.unchecked && { compare: true };
    return { sparsity: this.sparsity, griffin: { method: this.method.value, ...mode, ...compared } };
  }

  get #fullModelAlone() {
    return this.mode.value !== "fast" && this.drafts.value === "ngram";
  }

  #follow(follower, leader) {
    follower.value = leader.value;
    this.#arrange();
  }

  #arrange() {
    const { mode, drafts } = this;
    const chosen = drafts.value;
    const options = DRAFTS[mode.value].map((draft) => new Option(draft, draft));
    drafts.replaceChildren(new Option("default", ""), ...options);
    drafts.value = DRAFTS[mode.value].includes(chosen) ? chosen : "";
    const alone = this.#fullModelAlone;
    this.slider.disabled = this.number.disabled = alone;
    this.method.disabled = this.sparsity === 0;
    this.explained.textContent = alone ? ALONE : EXPLAINED[mode.value];
    this.explained.hidden = !this.explained.textContent;
    this.slider.setAttribute("aria-valuetext", `${Math.round(this.sparsity * 100)} % of the feed-forward weights left out`);
    this.changed();
  }
}
