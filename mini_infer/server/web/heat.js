// An answer token by token, the unlikely ones warm. Arrow keys go from token to token; what else was likely is shown.

import { byId, h, say } from "./dom.js";
import { percent } from "./format.js";

/** @typedef {import("./completion.js").TokenLogprob} TokenLogprob */

/** @param {TokenLogprob[]} tokens @returns {HTMLElement} */
export function heat(tokens) {
  const texts = decode(tokens);
  const buttons = tokens.map((token, i) => {
    const p = Math.exp(token.logprob);
    const kind = /^<\|?\w+\|?>$/.test(texts[i]) || texts[i] === "" ? "special" : "";
    const element = h("span", { role: "button", class: `token ${kind}`, tabindex: i === 0 ? 0 : -1, "data-i": i,
      "aria-label": texts[i].trim() === "" ? "blank" : null }, texts[i].replaceAll("\n", "↵\n") || "∅");
    const cold = Math.min(1, -Math.log2(Math.max(p, 1e-4)) / 6); // from 1 to 1/64, in doublings
    element.style.setProperty("--heat", p > 0.3 ? "var(--prefill)" : "var(--preempted)");
    element.style.setProperty("--amount", `${Math.round(cold * 62)}%`);
    return element;
  });
  const root = h("div", { class: "heat", role: "group", "aria-label": "Tokens and how likely they were; use the arrow keys" }, ...buttons);

  /** @param {number} i @param {boolean} aloud */
  const open = (i, aloud) => {
    for (const other of root.querySelectorAll("[data-open]")) other.removeAttribute("data-open");
    const element = buttons[i];
    element.setAttribute("data-open", "");
    show(element, tokens[i]);
    if (aloud) say(`${texts[i].trim() || "blank"}: ${percent(Math.exp(tokens[i].logprob))}`);
  };
  const close = () => {
    for (const other of root.querySelectorAll("[data-open]")) other.removeAttribute("data-open");
    byId("popover").hidden = true;
  };
  const index = (/** @type {Event} */ event) => {
    const found = /** @type {HTMLElement} */ (event.target).closest("[data-i]");
    return found === null ? -1 : Number(/** @type {HTMLElement} */ (found).dataset.i);
  };

  root.addEventListener("pointerover", (event) => {
    if (index(event) >= 0) open(index(event), false);
  });
  root.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && !root.contains(document.activeElement)) close();
  });
  root.addEventListener("focusin", (event) => {
    if (index(event) >= 0) open(index(event), true);
  });
  root.addEventListener("focusout", close);
  root.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") close();
    if (step === undefined || index(event) < 0) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(buttons.length - 1, index(event) + step));
    buttons[index(event)].tabIndex = -1;
    buttons[next].tabIndex = 0;
    buttons[next].focus();
  });
  return root;
}

/** Each token's text; a character of several tokens is shown with the last of them. @param {TokenLogprob[]} tokens */
export function decode(tokens) {
  const decoder = new TextDecoder();
  return tokens.map(({ bytes }) => decoder.decode(new Uint8Array(bytes), { stream: true }));
}

/** @param {HTMLElement} anchor @param {TokenLogprob} token */
function show(anchor, token) {
  const popover = byId("popover");
  const others = token.top_logprobs.some((other) => other.token === token.token) ? token.top_logprobs : [...token.top_logprobs, token];
  const rows = others.flatMap((other) => {
    const p = Math.exp(other.logprob);
    const bar = h("i");
    bar.style.width = `${100 * p}%`;
    const own = other.token === token.token ? "own" : "";
    return [h("span", { class: `mono ${own}` }, JSON.stringify(other.token).slice(1, -1) || "∅"),
      h("span", { class: "track" }, bar), h("span", { class: `num ${own}` }, percent(p))];
  });
  popover.replaceChildren(h("div", { class: "choices" }, rows));
  popover.hidden = false;
  const at = anchor.getClientRects()[0];
  const { width, height } = popover.getBoundingClientRect();
  popover.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  popover.style.top = `${at.bottom + height + 12 < innerHeight ? at.bottom + 6 : at.top - height - 6}px`;
}
