// Where the time of a request went that has ended: a bar of its phases, and the same as a table.

import { h } from "./dom.js";
import { duration, many, percent } from "./format.js";

/** @typedef {import("./feed.js").Ended} Ended */
/** @typedef {{phase: string, begin: number, end: number, tokens: number}} Phase seconds since arrival */

const NAMES = { queued: "Queued", prefill: "Prefill", decode: "Decode", preempted: "Preempted", reader: "Waiting for the reader" };

/**
 * The phases of a request without gaps, the last one being the wait for its reader.
 * @param {Ended} ended
 * @returns {Phase[]}
 */
export function phases({ timeline, delivery }) {
  let begin = 0;
  const found = timeline.spans.map(([phase, end, tokens]) => {
    const span = { phase, begin, end: Math.max(begin, end - timeline.arrival), tokens };
    begin = span.end;
    return span;
  });
  if (delivery !== null && delivery.end - timeline.arrival > begin) {
    found.push({ phase: "reader", begin, end: delivery.end - timeline.arrival, tokens: 0 });
  }
  return found;
}

/** How long it lived. @param {Phase[]} found */
export function life(found) {
  return found[found.length - 1]?.end ?? 0;
}

/** @param {Phase[]} found @returns {HTMLElement} */
export function bar(found) {
  const total = life(found) || 1;
  return h("span", { class: "lane", "aria-hidden": "true" }, ...found.map(({ phase, begin, end }) => place(phase, begin / total, end / total)));
}

/** @param {string} phase @param {number} from @param {number} to shares of the width */
function place(phase, from, to) {
  const span = h("i", { class: phase });
  span.style.left = `${100 * from}%`;
  span.style.width = `${100 * (to - from)}%`;
  return span;
}

/** @param {Ended} ended @returns {HTMLElement} */
export function timelineView(ended) {
  const found = phases(ended);
  const total = life(found) || 1;
  const { timeline, delivery } = ended;
  const stalls = (delivery?.stalls ?? []).map(([begin, end]) => [begin - timeline.arrival, Math.min(total, end - timeline.arrival)]);
  const stalled = stalls.reduce((sum, [begin, end]) => sum + end - begin, 0);
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const tick = h("span", {}, duration(share * total));
    tick.style.left = `${100 * share}%`;
    return tick;
  });
  return h("div", { class: "timeline" }, bar(found),
    stalls.length ? h("span", { class: "lane thin", "aria-hidden": "true" }, ...stalls.map(([begin, end]) =>
      place("reader", begin / total, end / total))) : null,
    h("div", { class: "ticks num", "aria-hidden": "true" }, ...ticks),
    h("table", {}, h("thead", {}, h("tr", {}, ...["Phase", "Time", "Share", "What"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows(found, total, timeline))),
    stalls.length ? h("p", { class: "caption" }, `While it was computed, its reader let output wait for ${duration(stalled)} `
      + "(the thin bar). That holds nobody up.") : null);
}

/** @param {Phase[]} found @param {number} total @param {Ended["timeline"]} timeline */
function rows(found, total, timeline) {
  return Object.entries(NAMES).flatMap(([phase, name]) => {
    const spans = found.filter((span) => span.phase === phase);
    const seconds = spans.reduce((sum, { begin, end }) => sum + end - begin, 0);
    if (spans.length === 0) return [];
    const tokens = spans.reduce((sum, span) => sum + span.tokens, 0);
    const cached = timeline.cached_tokens ? `; ${timeline.cached_tokens} were cached` : "";
    const what = phase === "prefill" ? `${many(spans.filter((span) => span.tokens).length, "chunk")}, ${many(tokens, "token")}${cached}` :
      phase === "decode" ? `${many(tokens, "token")}${tokens > 1 ? `, ${duration(seconds / (tokens - 1))} each` : ""}` :
        phase === "preempted" ? many(spans.length, "time") : "";
    return [h("tr", {}, h("td", {}, h("i", { class: `dot ${phase}` }), name), h("td", { class: "num" }, duration(seconds)),
      h("td", { class: "num" }, percent(seconds / total)), h("td", { class: "num" }, what))];
  });
}
