// What is inside a paragraph: emphasis, code, links, line ends. One pass, with a stack of what has been opened.

import { h } from "./dom.js";

const MAX_OPEN = 24; // marks that wait for their partner; older ones are text
const MAX_URL = 2048;
const ESCAPABLE = "\\`*_{}[]()#+-.!|~>\"'";
const URL_START = /https?:\/\/[^\s<>"'`\\]+/y;
const TAGS = { "**": "strong", "__": "strong", "*": "em", "_": "em", "~~": "del" };

/**
 * @typedef {{mark: string, at: number}} Open a mark, and where its text node is among the nodes so far
 */

/**
 * @param {string} text
 * @returns {Node[]}
 */
export function inline(text) {
  const ticks = tickRuns(text);
  /** @type {Node[]} */
  const nodes = [];
  /** @type {Open[]} */
  const open = [];
  let plain = "";
  let i = 0;

  const flush = () => {
    if (plain !== "") nodes.push(document.createTextNode(plain));
    plain = "";
  };
  /** @param {string} mark */
  const openMark = (mark) => {
    flush();
    open.push({ mark, at: nodes.length });
    nodes.push(document.createTextNode(mark));
    if (open.length > MAX_OPEN) open.shift();
  };

  while (i < text.length) {
    const char = text[i];
    if (char === "\\" && i + 1 < text.length && ESCAPABLE.includes(text[i + 1])) {
      plain += text[i + 1];
      i += 2;
    } else if (char === "\n") {
      plain = plain.trimEnd();
      flush();
      nodes.push(h("br"));
      i++;
    } else if (char === "`") {
      const run = /** @type {{length: number, close: number}} */ (ticks.get(i));
      if (run.close < 0) {
        plain += text.slice(i, i + run.length);
        i += run.length;
      } else {
        flush();
        nodes.push(h("code", {}, text.slice(i + run.length, run.close).trim()));
        i = run.close + run.length;
      }
    } else if (char === "[") {
      openMark("[");
      i++;
    } else if (char === "]" && text[i + 1] === "(") {
      const end = linkEnd(text, i + 2);
      const from = lastOpen(open, "[");
      if (end < 0 || from < 0) {
        plain += char;
        i++;
      } else {
        flush();
        const url = safeUrl(text.slice(i + 2, end).trim());
        const { at } = open[from];
        open.length = from;
        const inner = nodes.splice(at).slice(1); // without the mark itself
        nodes.push(url === null ? h("span", {}, inner) : link(url, inner));
        i = end + 1;
      }
    } else if (char === "*" || char === "_" || (char === "~" && text[i + 1] === "~")) {
      const mark = text[i + 1] === char ? char + char : char;
      const before = text[i - 1] ?? " ";
      const after = text[i + mark.length] ?? " ";
      const wordy = char === "_" && /[\p{L}\p{N}]/u.test(before) && /[\p{L}\p{N}]/u.test(after); // snake_case
      const from = wordy || /\s/.test(before) ? -1 : lastOpen(open, mark);
      if (from >= 0) {
        flush();
        const { at } = open[from];
        open.length = from;
        const inner = nodes.splice(at).slice(1);
        nodes.push(h(TAGS[/** @type {keyof typeof TAGS} */ (mark)], {}, inner));
      } else if (!wordy && !/\s/.test(after)) openMark(mark);
      else plain += mark;
      i += mark.length;
    } else if (char === "h" && (i === 0 || !/[\p{L}\p{N}]/u.test(text[i - 1]))) {
      URL_START.lastIndex = i;
      const found = URL_START.exec(text)?.[0].slice(0, MAX_URL).replace(/[.,;:!?)\]*_]{1,8}$/, "");
      if (found) {
        flush();
        nodes.push(link(found, found));
      }
      plain += found ? "" : char;
      i += found?.length ?? 1;
    } else {
      plain += char;
      i++;
    }
  }
  flush();
  return nodes;
}

/** @param {Open[]} open @param {string} mark */
function lastOpen(open, mark) {
  for (let i = open.length - 1; i >= 0; i--) if (open[i].mark === mark) return i;
  return -1;
}

/** Where the address of a link ends, or -1. @param {string} text @param {number} from */
function linkEnd(text, from) {
  let depth = 0;
  for (let i = from; i < text.length && i < from + MAX_URL; i++) {
    if (text[i] === "\n") return -1;
    if (text[i] === "(") depth++;
    else if (text[i] === ")" && depth-- === 0) return i;
  }
  return -1;
}

/** @param {string} text @returns {string | null} */
function safeUrl(text) {
  const address = text.split(/\s/)[0];
  return /^(?:https?:\/\/|mailto:)/i.test(address) ? address : null;
}

/** @param {string} href @param {string | Node[]} children */
function link(href, children) {
  return h("a", { href, target: "_blank", rel: "noopener noreferrer" }, children);
}

/** Each run of backticks by its place, with the place of the next one as long, or -1. @param {string} text */
function tickRuns(text) {
  const runs = new Map();
  const last = new Map();
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== "`") continue;
    let length = 1;
    while (text[i + length] === "`") length++;
    const run = { length, close: -1 };
    const before = last.get(length);
    if (before) before.close = i;
    last.set(length, run);
    runs.set(i, run);
    i += length - 1;
  }
  return runs;
}
