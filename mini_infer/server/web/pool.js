// The KV cache as a grid of blocks, each in the colour of the request that holds it.

import { Canvas } from "./canvas.js";
import { colour, requestColour } from "./colours.js";
import { byId, h } from "./dom.js";
import { many, percent } from "./format.js";

/** @typedef {import("./feed.js").View} View */

const FREE = 0;
const CACHED = 1;
const SHARED = 2;
const FIRST_OWNER = 3;
const HEIGHT = 236; // of the grid at most, in pixels

export class Pool {
  constructor() {
    /** @type {View | null} */
    this.view = null;
    this.cells = new Uint16Array();
    this.shared = 0; // blocks of several requests
    this.canvas = new Canvas("The blocks of the KV cache", (context, width) => this.paint(context, width));
    this.now = h("p", { class: "now num" }, "–");
    this.scale = h("p", { class: "caption" });
    this.table = h("tbody");
    this.details = /** @type {HTMLDetailsElement} */ (h("details", { toggle: () => this.list() }, h("summary", {}, "Blocks by request"),
      h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Held by"), h("th", { scope: "col" }, "Blocks"),
        h("th", { scope: "col" }, "Share"))), this.table)));
    this.root = h("section", { class: "panel pool", "aria-labelledby": "pool-title" }, h("h2", { id: "pool-title" }, "KV cache"), this.now,
      this.canvas.element,
      h("ul", { class: "legend" }, h("li", {}, h("i", { class: "own" }), "held by a request, in its colour"),
        h("li", {}, h("i", { class: "shared" }), "shared by several"), h("li", {}, h("i", { class: "cached" }), "cached, evictable"),
        h("li", {}, h("i", { class: "free" }), "free")), this.scale, this.details);
    this.canvas.element.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.element.addEventListener("pointerleave", () => { byId("popover").hidden = true; });
  }

  /** @param {View} view */
  update(view) {
    const bytes = Uint8Array.from(atob(view.cells), (char) => char.charCodeAt(0));
    this.cells = Uint16Array.from({ length: bytes.length / 2 }, (_, i) => bytes[2 * i] | (bytes[2 * i + 1] << 8));
    this.view = view;
    const { total_blocks: total, used_blocks: used, cached_blocks: cached, free_blocks: free, block_size: size } = view.stats;
    const each = view.blocks_per_cell;
    this.shared = each * this.cells.filter((cell) => cell === SHARED).length;
    const shared = this.shared ? ` (${each === 1 ? "" : "about "}${this.shared.toLocaleString("en")} shared)` : "";
    this.now.textContent = `${many(total, "block")} of ${size} tokens: ${used.toLocaleString("en")} held${shared}, `
      + `${cached.toLocaleString("en")} cached, ${free.toLocaleString("en")} free`;
    this.scale.textContent = each === 1 ? "" : `A square stands for ${each} blocks and shows the first of them.`;
    this.canvas.describe(`The blocks of the KV cache. ${this.now.textContent}`);
    this.canvas.draw();
    if (this.details.open) this.list();
  }

  /** The side of a cell and the number of columns, for this width. @param {number} width */
  layout(width) {
    let side = 14;
    while (side > 3 && Math.ceil(this.cells.length / Math.floor(width / side)) * side > HEIGHT) side -= 0.5;
    const columns = Math.max(1, Math.floor(width / side));
    return { side, columns, rows: Math.ceil(this.cells.length / columns) };
  }

  /** @param {CanvasRenderingContext2D} context @param {number} width */
  paint(context, width) {
    if (this.view === null) return;
    const { side, columns, rows } = this.layout(width);
    const height = `${Math.max(side, Math.ceil(rows * side))}px`;
    if (this.canvas.element.style.height !== height) {
      this.canvas.element.style.height = height; // and it will be drawn again
      return;
    }
    const gap = side > 6 ? 1.5 : 1;
    const fixed = [colour("sunken"), colour("cached"), colour("shared")];
    const owners = this.view.owners.map(([id]) => requestColour(id));
    const size = side - gap;
    this.cells.forEach((cell, i) => {
      const x = (i % columns) * side;
      const y = Math.floor(i / columns) * side;
      context.fillStyle = cell < FIRST_OWNER ? fixed[cell] : owners[cell - FIRST_OWNER];
      context.fillRect(x, y, size, size);
      if (cell === CACHED && size > 4) { // not by colour alone
        context.fillStyle = colour("muted");
        context.fillRect(x + size / 2 - 0.75, y + size / 2 - 0.75, 1.5, 1.5);
      } else if (cell === SHARED && size > 3) {
        context.strokeStyle = colour("surface");
        context.beginPath();
        context.moveTo(x, y + size);
        context.lineTo(x + size, y);
        context.stroke();
      }
    });
  }

  /** Who holds how much, as text. */
  list() {
    if (this.view === null || !this.details.open) return;
    const { stats, owners } = this.view;
    const rows = [...owners.map(([id, blocks]) => [`Request ${id}`, blocks]),
      ["Shared by several of these", this.shared], ["Cached, evictable", stats.cached_blocks], ["Free", stats.free_blocks]];
    this.table.replaceChildren(...rows.map(([name, blocks]) => h("tr", {}, h("td", {}, name),
      h("td", { class: "num" }, Number(blocks).toLocaleString("en")), h("td", { class: "num" }, percent(Number(blocks) / stats.total_blocks)))));
  }

  /** @param {PointerEvent} event */
  hover(event) {
    if (this.view === null) return;
    const box = this.canvas.element.getBoundingClientRect();
    const { side, columns } = this.layout(box.width);
    const column = Math.floor((event.clientX - box.left) / side);
    const i = Math.floor((event.clientY - box.top) / side) * columns + column;
    const cell = this.cells[i];
    const popover = byId("popover");
    popover.hidden = cell === undefined || column >= columns;
    if (popover.hidden) return;
    const what = cell < FIRST_OWNER ? { [FREE]: "free", [CACHED]: "cached, evictable", [SHARED]: "shared" }[cell] :
      `held by request ${this.view.owners[cell - FIRST_OWNER][0]}`;
    popover.textContent = `Block ${(i * this.view.blocks_per_cell).toLocaleString("en")}: ${what}`;
    popover.style.left = `${Math.min(event.clientX + 12, innerWidth - popover.offsetWidth - 8)}px`;
    popover.style.top = `${Math.max(8, event.clientY - popover.offsetHeight - 12)}px`;
  }
}
