// The page's colours, for what is drawn and not styled.

import { h } from "./dom.js";

const GOLDEN_ANGLE = 137.508;
const CHROMA = 0.125;

/** @type {Map<string, string>} */
const known = new Map(); // asking the page is slow, and a batch has thousands of cells
document.documentElement.addEventListener("themechange", () => known.clear());

/** A custom property of the page. @param {string} name without the dashes */
export function colour(name) {
  let value = known.get(name);
  if (value === undefined) {
    value = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    known.set(name, value);
  }
  return value;
}

/** A request's own colour: neighbours are far apart. @param {number} id */
export function requestColour(id) {
  return `oklch(${colour("request-l")} ${CHROMA} ${hue(id)})`;
}

/** The same as a dot. @param {number} id @returns {HTMLElement} */
export function requestDot(id) {
  const dot = h("i", { class: "dot" });
  dot.style.background = `oklch(var(--request-l) ${CHROMA} ${hue(id)})`;
  return dot;
}

/** @param {number} id */
function hue(id) {
  return ((30 + id * GOLDEN_ANGLE) % 360).toFixed(1);
}
