// The sampling controls. A field left empty is not sent: then the server's default counts.

import { button, h } from "./dom.js";
import { loadSettings, saveSettings } from "./store.js";

const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, usual: 1, slider: true, about: "0 always takes the most likely token." },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, usual: 1, slider: true, about: "Keep the likeliest tokens up to this probability." },
  { name: "top_k", label: "Top k", min: 0, max: 1000, step: 1, usual: 0, about: "Keep this many; 0 is all." },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, usual: 0, about: "Keep what is this likely, against the best." },
  { name: "max_tokens", label: "Longest answer", min: 1, max: 1000000, step: 1, usual: "auto", about: "In tokens." },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 31 - 1, step: 1, usual: "random", about: "The same seed gives the same answer." },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.5, max: 2, step: 0.05, usual: 1, about: "Above 1: avoid what was said." },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1, usual: 0, about: "Against tokens that were used." },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1, usual: 0, about: "Against tokens by how often." },
];

export class Settings {
  /**
   * @param {HTMLElement} root
   * @param {(system: string) => void} onSystem
   */
  constructor(root, onSystem) {
    this.values = loadSettings();
    this.system = /** @type {HTMLTextAreaElement} */ (h("textarea", { id: "system", rows: 4, placeholder: "Who should the model be?",
      input: () => onSystem(this.system.value) }));
    this.form = h("form", { class: "settings", submit: (/** @type {Event} */ event) => event.preventDefault() },
      h("label", { class: "field" }, "System prompt", this.system), ...FIELDS.map((field) => this.field(field)),
      button("Back to defaults", () => this.reset(), { class: "icon wide" }));
    root.replaceChildren(this.form);
  }

  /** What to send. @returns {Object<string, number>} */
  params() {
    return { ...this.values };
  }

  /** @param {typeof FIELDS[number]} field */
  field({ name, label, about, usual, slider, min, max, step }) {
    const value = this.values[name] ?? "";
    const number = /** @type {HTMLInputElement} */ (h("input", { type: "number", id: `set-${name}`, min, max, step: name === "seed" ? 1 : "any",
      placeholder: usual, value, inputmode: "decimal", "aria-describedby": `about-${name}`, input: () => {
        if (range) range.value = number.value === "" ? String(usual) : number.value;
        this.set(name, number);
      } }));
    const range = slider ? /** @type {HTMLInputElement} */ (h("input", { type: "range", min, max, step, value: value === "" ? usual : value,
      "aria-label": label, input: () => {
        number.value = range?.value ?? "";
        this.set(name, number);
      } })) : null;
    const title = h("label", { for: `set-${name}` }, label);
    const note = h("span", { class: "about", id: `about-${name}` }, about);
    return h("div", { class: "field" },
      range ? h("div", {}, title) : null,
      h("div", { class: "pair" }, range ?? h("div", {}, title), number), note);
  }

  /** @param {string} name @param {HTMLInputElement} input */
  set(name, input) {
    if (input.value === "" || !input.validity.valid) delete this.values[name];
    else this.values[name] = Number(input.value);
    saveSettings(this.values);
  }

  reset() {
    this.values = {};
    saveSettings(this.values);
    for (const { name, usual, slider } of FIELDS) {
      const number = /** @type {HTMLInputElement} */ (this.form.querySelector(`#set-${name}`));
      number.value = "";
      if (slider) /** @type {HTMLInputElement} */ (number.previousElementSibling).value = String(usual);
    }
  }
}
