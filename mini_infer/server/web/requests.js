// The requests that live, and those that ended last.

import { requestDot } from "./colours.js";
import { button, h } from "./dom.js";
import { duration, many } from "./format.js";
import { bar, life, phases, timelineView } from "./timeline.js";

/** @typedef {import("./feed.js").Ended} Ended @typedef {import("./feed.js").View} View */

const LIVE = 12;
const KEPT = 256;
const PAGE = 20;

export class Requests {
  constructor() {
    /** @type {Map<number, {ended: Ended, element: HTMLElement}>} */
    this.ended = new Map();
    this.shown = PAGE;
    this.now = h("p", { class: "now num" }, "–");
    this.live = h("ul", { class: "live" });
    this.list = h("ul", { class: "ended", pointerleave: () => this.order() });
    this.more = button("Show more", () => {
      this.shown += 2 * PAGE;
      this.order();
    }, { hidden: true });
    this.none = h("p", { class: "caption" }, "None has ended yet.");
    this.root = h("section", { class: "panel requests", "aria-labelledby": "requests-title" },
      h("h2", { id: "requests-title" }, "Requests"), this.now, this.live,
      h("h3", {}, "Ended last"),
      h("ul", { class: "legend" }, ...["queued", "prefill", "decode", "preempted", "reader"].map((phase) =>
        h("li", {}, h("i", { class: phase }), phase === "reader" ? "waiting for the reader" : phase))),
      this.none, this.list, this.more);
  }

  /** @param {View} view */
  update({ requests, stats, time }) {
    this.now.textContent = `${stats.running} running, ${stats.waiting} waiting`;
    const hidden = stats.running + stats.waiting - Math.min(LIVE, requests.length);
    const rows = requests.slice(0, LIVE).map(([id, phase, arrival, prompt, computed, output, max]) => {
      const filled = h("i");
      const share = phase === "decode" ? output / max : computed / prompt;
      filled.style.width = `${100 * Math.min(1, share)}%`;
      filled.className = phase;
      const what = phase === "decode" ? `${output} of ${max} tokens` : phase === "prefill" ? `${computed} of ${prompt} prompt tokens` :
        many(prompt, "prompt token");
      return h("li", {}, requestDot(id), h("span", { class: "id num" }, `#${id}`), h("span", { class: "phase" }, phase),
        h("span", { class: "track", "aria-hidden": "true" }, filled), h("span", { class: "what num" }, what),
        h("span", { class: "num" }, duration(Math.max(0, time - arrival))));
    });
    if (hidden > 0) rows.push(h("li", { class: "caption" }, `and ${hidden} more`));
    this.live.replaceChildren(...rows);
  }

  /** @param {Ended[]} news new ones, and known ones of which more is known */
  add(news) {
    for (const ended of news) {
      const id = ended.timeline.request_id;
      const known = this.ended.get(id);
      const element = entry(ended);
      if (known) {
        if (/** @type {HTMLDetailsElement} */ (known.element.firstElementChild).open) continue; // somebody reads it
        known.element.replaceWith(element);
      }
      this.ended.set(id, { ended, element });
    }
    while (this.ended.size > KEPT) this.ended.delete(/** @type {number} */ (this.ended.keys().next().value));
    this.order();
  }

  /** The newest first, and not all of them at once; nothing moves under somebody's pointer. */
  order() {
    if (this.list.matches(":hover") && this.list.children.length > 0) return;
    const newest = [...this.ended.values()].reverse();
    const elements = newest.slice(0, this.shown).map(({ element }) => element);
    elements.forEach((element, i) => {
      if (this.list.children[i] !== element) this.list.insertBefore(element, this.list.children[i] ?? null);
    });
    while (this.list.children.length > elements.length) this.list.lastElementChild?.remove();
    this.more.hidden = newest.length <= this.shown;
    this.none.hidden = newest.length > 0;
  }
}

/** @param {Ended} ended @returns {HTMLElement} */
function entry(ended) {
  const { timeline, delivery } = ended;
  const found = phases(ended);
  const details = h("details", { toggle: () => {
    if (details.children.length === 1) details.append(timelineView(ended));
  } }, h("summary", {}, requestDot(timeline.request_id), h("span", { class: "id num" }, `#${timeline.request_id}`),
    h("span", { class: "phase" }, delivery?.reason ?? timeline.reason),
    bar(found), h("span", { class: "what num" }, `${timeline.prompt_tokens} → ${timeline.output_tokens} tokens`),
    h("span", { class: "num" }, duration(life(found)))));
  return h("li", {}, details);
}
