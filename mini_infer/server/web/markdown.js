// Markdown to elements, for text that nobody vouches for: no markup passes, links go to http, https and mailto only.
// Blocks here, what is inside a line in inline.js. Every loop goes forward, so the time is linear in the text.

import { copyButton } from "./copy.js";
import { h } from "./dom.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 6; // of quotes and lists; deeper ones are text
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +(.*)|)$/;
const DELIMITERS = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

/**
 * Shows a text that grows: blocks that stay the same keep their elements.
 */
export class MarkdownView {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    /** @type {string[]} */
    this.sources = [];
  }

  /** @param {string} source */
  update(source) {
    const blocks = split(source);
    let same = 0;
    while (same < blocks.length && same < this.sources.length && blocks[same] === this.sources[same]) same++;
    while (this.root.childNodes.length > same) this.root.lastChild?.remove();
    for (const block of blocks.slice(same)) this.root.append(element(block, 0));
    this.sources = blocks;
  }
}

/**
 * The top-level blocks of a text, each as its lines.
 * @param {string} source
 * @returns {string[]}
 */
export function split(source) {
  const lines = source.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n");
  const blocks = [];
  let i = 0;
  while (i < lines.length) {
    if (lines[i].trim() === "") {
      i++;
      continue;
    }
    const end = blockEnd(lines, i);
    blocks.push(lines.slice(i, end).join("\n"));
    i = end;
  }
  return blocks;
}

/** Where the block that begins with line `i` ends. @param {string[]} lines @param {number} i */
function blockEnd(lines, i) {
  const fence = FENCE.exec(lines[i]);
  if (fence) {
    for (let end = i + 1; end < lines.length; end++) if (closes(lines[end], fence[1])) return end + 1;
    return lines.length;
  }
  if (HEADING.test(lines[i]) || RULE.test(lines[i])) return i + 1;
  let end = i + 1;
  if (lines[i].startsWith(">")) {
    while (end < lines.length && lines[end].startsWith(">")) end++;
    return end;
  }
  if (ITEM.test(lines[i])) return listEnd(lines, i);
  const table = isTable(lines, i);
  while (end < lines.length && lines[end].trim() !== "" && (table ? lines[end].includes("|") || end === i + 1 :
    !begins(lines, end))) end++;
  return end;
}

/** A list goes on over blank lines, as long as items or indented lines follow. @param {string[]} lines @param {number} i */
function listEnd(lines, i) {
  let end = i + 1;
  for (let next = end; next < lines.length; next++) {
    const line = lines[next];
    if (line.trim() === "") continue;
    const blank = lines[next - 1].trim() === "";
    if (line.startsWith("  ") || (ITEM.test(line) && !RULE.test(line)) || (!blank && !begins(lines, next))) end = next + 1;
    else break;
  }
  return end;
}

/** Whether line `i` is the beginning of a block that needs no blank line before it. @param {string[]} lines @param {number} i */
function begins(lines, i) {
  const line = lines[i];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || line.startsWith(">") || ITEM.test(line) || isTable(lines, i);
}

/** @param {string[]} lines @param {number} i */
function isTable(lines, i) {
  return lines[i].includes("|") && i + 1 < lines.length && lines[i + 1].includes("-") && lines[i + 1].includes("|") &&
    DELIMITERS.test(lines[i + 1]);
}

/** @param {string} line @param {string} fence */
function closes(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

/** @param {string} block @param {number} depth @returns {HTMLElement} */
function element(block, depth) {
  const lines = block.split("\n");
  const fence = FENCE.exec(lines[0]);
  if (fence) return code(lines, fence);
  const heading = HEADING.exec(lines[0]);
  if (heading) return h(`h${Math.min(5, heading[1].length + 2)}`, {}, inline(heading[2].replace(/ #+ *$/, "")));
  if (RULE.test(lines[0])) return h("hr");
  if (depth < MAX_DEPTH && lines[0].startsWith(">")) {
    return h("blockquote", {}, children(lines.map((line) => line.replace(/^> ?/, "")).join("\n"), depth));
  }
  if (depth < MAX_DEPTH && ITEM.test(lines[0])) return list(lines, depth);
  if (isTable(lines, 0)) return table(lines);
  return h("p", {}, inline(block));
}

/** @param {string} source @param {number} depth */
function children(source, depth) {
  return split(source).map((block) => element(block, depth + 1));
}

/** @param {string[]} lines @param {RegExpExecArray} fence */
function code(lines, fence) {
  const closed = lines.length > 1 && closes(lines[lines.length - 1], fence[1]);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const language = fence[2].trim().split(" ")[0];
  return h("div", { class: "code" }, h("div", { class: "head" }, h("span", {}, language || "text"), copyButton(() => text)),
    h("pre", { tabindex: 0, role: "region", "aria-label": `Code, ${language || "text"}` }, h("code", {}, text)));
}

/** @param {string[]} lines @param {number} depth */
function list(lines, depth) {
  const first = /** @type {RegExpExecArray} */ (ITEM.exec(lines[0]));
  const ordered = /\d/.test(first[2]);
  const indent = first[1].length;
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent + 1) items.push([item[3] ?? ""]);
    else items[items.length - 1].push(line.replace(/^ {1,4}/, ""));
  }
  const start = ordered ? Number.parseInt(first[2], 10) : 1;
  return h(ordered ? "ol" : "ul", start === 1 ? {} : { start }, items.map((item) => {
    const parts = children(item.join("\n"), depth);
    const only = parts[0]; // an item's first paragraph needs no margin of its own
    return h("li", {}, only?.tagName === "P" ? [...only.childNodes, ...parts.slice(1)] : parts);
  }));
}

/** @param {string[]} lines */
function table(lines) {
  const [head, , ...rows] = lines.map((line) => {
    const cells = line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|");
    return cells.map((cell) => inline(cell.trim()));
  });
  return h("div", { class: "table" }, h("table", {},
    h("thead", {}, h("tr", {}, head.map((cell) => h("th", { scope: "col" }, cell)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, head.map((_, i) => h("td", {}, row[i] ?? [])))))));
}
