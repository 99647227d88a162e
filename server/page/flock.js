/** Which neurons a prompt has chosen, as a picture: a row for each layer, from left to right its neurons. */

const MOST_COLUMNS = 1024;
const PICTURE_PX = 180;
const HIGHEST_ROW_PX = 6;
// How dark a neuron is that only this pane keeps, beside one that both keep.
const OWN = 0.4;

/**
 * The answer of /v1/griffin/experts/{expert_set}.
 * @typedef {object} ExpertSet
 * @property {string} model
 * @property {number} layers
 * @property {number} neurons_per_layer
 * @property {number[]} kept_per_layer
 * @property {number[][]} kept for each layer the indices of its kept neurons
 */

/** One pane's picture, with its words. */
export class FlockPicture {
  /** @type {?ExpertSet} */
  #set = null;
  /** The other pane's set, if it left neurons out too. @type {?ExpertSet} */
  #beside = null;
  /** Of the prompt before this one, by the same model. @type {?ExpertSet} */
  #before = null;
  #latest = { prompt: "", set: null };
  #layer = 0;

  /**
   * @param {HTMLElement} figure
   * @param {string} otherPane
   */
  constructor(figure, otherPane) {
    this.figure = figure;
    this.otherPane = otherPane;
    this.caption = figure.querySelector("figcaption");
    this.picture = figure.querySelector(".picture");
    this.canvas = figure.querySelector("canvas");
    this.cursor = figure.querySelector(".cursor");
    this.words = figure.querySelector(".layer");
    this.canvas.addEventListener("pointermove", (event) => this.#choose(Math.floor(event.offsetY / this.#rowPx)));
    this.canvas.addEventListener("focus", () => this.#choose(this.#layer));
    this.canvas.addEventListener("keydown", (event) => this.#move(event));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /** A sentence instead of a picture; none hides all. */
  explain(/** @type {string} */ text) {
    this.#set = null;
    this.#reveal(text);
  }

  /**
   * @param {ExpertSet} set
   * @param {?ExpertSet} beside
   * @param {string} prompt what was asked; this set is compared with the same model's of the prompt before it
   */
  show(set, beside, prompt) {
    if (this.#latest.set?.model !== set.model) this.#before = null;
    else if (this.#latest.prompt !== prompt) this.#before = this.#latest.set;
    this.#latest = { prompt, set };
    this.#set = set;
    this.#beside = beside;
    this.#layer = Math.min(this.#layer, set.layers - 1);
    this.#reveal(this.#summary());
    this.cursor.hidden = true;
    this.words.textContent = "Point at a layer, or go up and down with the arrow keys.";
    this.canvas.setAttribute("aria-label", `${this.caption.textContent} Arrow keys go from layer to layer.`);
    this.#draw();
  }

  #reveal(text) {
    this.caption.textContent = text;
    this.figure.hidden = !text;
    this.picture.hidden = this.words.hidden = this.#set === null;
  }

  #summary() {
    const { layers, neurons_per_layer: width } = this.#set;
    const kept = total(this.#set);
    const both = (other) => this.#set.kept.reduce((sum, row, layer) => sum + shared(row, other.kept[layer]), 0);
    const sentences = [`Kept for this prompt: ${kept} of ${layers * width} neurons in ${layers} layers.`];
    if (this.#beside) {
      const common = both(this.#beside);
      const jaccard = (common / (kept + total(this.#beside) - common)).toFixed(2);
      const share = percent(common, kept);
      sentences.push(`${share} of them, drawn darker, are kept in ${this.otherPane} too (Jaccard index ${jaccard}).`);
    }
    if (this.#before) {
      const [share, chance] = [percent(both(this.#before), kept), percent(total(this.#before), layers * width)];
      sentences.push(`${share} were kept for the prompt before too; chosen blindly it would be ${chance}.`);
    }
    return sentences.join(" ");
  }

  #choose(layer) {
    if (!this.#set) return;
    this.#layer = Math.max(0, Math.min(this.#set.layers - 1, layer));
    const row = this.#set.kept[this.#layer];
    const share = ({ kept }) => percent(shared(row, kept[this.#layer]), row.length);
    let text = `Layer ${this.#layer}: ${row.length} of ${this.#set.neurons_per_layer} kept`;
    if (this.#beside) text += `, ${share(this.#beside)} of them in ${this.otherPane} too`;
    if (this.#before) text += `, ${share(this.#before)} for the prompt before`;
    this.words.textContent = `${text}.`;
    this.cursor.hidden = false;
    this.cursor.style.top = `${this.#layer * this.#rowPx}px`;
    this.cursor.style.height = `${this.#rowPx}px`;
  }

  #move(event) {
    const last = (this.#set?.layers ?? 1) - 1;
    const to = { ArrowUp: this.#layer - 1, ArrowDown: this.#layer + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#choose(to);
  }

  get #rowPx() {
    return Math.max(2, Math.min(HIGHEST_ROW_PX, Math.floor(PICTURE_PX / (this.#set?.layers ?? 1))));
  }

  /** The darkness of a column is the mean of its neurons'. */
  #draw() {
    if (!this.#set) return;
    const { canvas } = this;
    const { layers, neurons_per_layer: width, kept } = this.#set;
    const perColumn = Math.ceil(width / MOST_COLUMNS);
    canvas.width = Math.ceil(width / perColumn);
    canvas.height = layers * this.#rowPx;
    canvas.style.height = `${canvas.height}px`;
    const context = canvas.getContext("2d");
    context.fillStyle = getComputedStyle(canvas).color;
    kept.forEach((row, layer) => {
      const both = new Set(this.#beside?.kept[layer] ?? row);
      const darkness = new Float32Array(canvas.width);
      for (const neuron of row) darkness[Math.floor(neuron / perColumn)] += (both.has(neuron) ? 1 : OWN) / perColumn;
      darkness.forEach((value, x) => {
        context.globalAlpha = value;
        context.fillRect(x, layer * this.#rowPx, 1, this.#rowPx);
      });
    });
  }
}

/** Neurons kept in all layers. */
function total(set) {
  return set.kept_per_layer.reduce((sum, kept) => sum + kept, 0);
}

/** How many numbers two lists have in common. */
function shared(a, b) {
  const other = new Set(b);
  return a.filter((each) => other.has(each)).length;
}

function percent(part, whole) {
  return `${Math.round((100 * part) / whole)} %`;
}
