/** The models that the server has, and which of them is asked. */

import { plural, short } from "./numbers.js";

export class Models {
  #cards = [];

  /**
   * @param {HTMLSelectElement} select
   * @param {HTMLElement} field what is hidden while there is nothing to choose
   */
  constructor(select, field) {
    this.select = select;
    this.field = field;
  }

  /** @param {object[]} cards the data of /v1/models: each model under each of its names, and aliases */
  know(cards) {
    const chosen = this.select.value;
    this.#cards = cards.filter(({ id, root }) => id === root);
    this.select.replaceChildren(...this.#cards.map(({ id }) => new Option(id, id)));
    if (this.#cards.some(({ id }) => id === chosen)) this.select.value = chosen;
    this.field.hidden = !this.several;
  }

  get several() {
    return this.#cards.length > 1;
  }

  /** The card of the one that is chosen; undefined before the server has told. */
  get chosen() {
    return this.#cards.find(({ id }) => id === this.select.value);
  }

  get description() {
    const { id, loaded, parameters, max_model_len: context } = this.chosen;
    if (!loaded) return `${id} is not loaded: the first request loads it, which takes a while.`;
    return `${id}, ${short(parameters.total)} parameters, context of ${plural(context, "token")}`;
  }
}
