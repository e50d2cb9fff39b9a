// Each step as a column: the tokens of prompt chunks upward, the decode rows downward, every request in its colour.

import { Canvas } from "./canvas.js";
import { colour, requestColour } from "./colours.js";
import { byId, h } from "./dom.js";
import { duration, many } from "./format.js";

/** @typedef {import("./feed.js").Step} Step */

const KEPT = 600;
const COLUMN = 6; // pixels, a gap of one included
const LABELS = 74;

export class Batch {
  constructor() {
    /** @type {Step[]} */
    this.steps = [];
    this.canvas = new Canvas("The steps of the engine", (context, width, height) => this.paint(context, width, height));
    this.now = h("p", { class: "now num" }, "No step yet. Ask something in the chat, or send a request.");
    this.root = h("section", { class: "panel batch", "aria-labelledby": "batch-title" },
      h("h2", { id: "batch-title" }, "Batch, step by step"), this.now, this.canvas.element,
      h("p", { class: "caption" }, "Each column is a step, the newest on the right; each colour is a request. Prompt chunks go up by their "
        + "tokens, decode rows down, one token each. When steps are many, the first few after each look at the engine are shown."));
    const { element } = this.canvas;
    element.addEventListener("pointermove", (event) => this.hover(event));
    element.addEventListener("pointerleave", () => { byId("popover").hidden = true; });
  }

  /** @param {Step[]} steps */
  push(steps) {
    if (steps.length === 0) return;
    this.steps = [...this.steps, ...steps].slice(-KEPT);
    const text = describe(steps[steps.length - 1]);
    this.now.textContent = text;
    this.canvas.describe(`The steps of the engine. ${text}`);
    this.canvas.draw();
  }

  /** @param {CanvasRenderingContext2D} context @param {number} width @param {number} height */
  paint(context, width, height) {
    const columns = Math.max(1, Math.floor((width - LABELS) / COLUMN));
    const shown = this.steps.slice(-columns);
    const middle = Math.round(height * 0.52);
    const most = (/** @type {(step: Step) => number} */ of) => Math.max(1, ...shown.map(of));
    const prefill = most((step) => chunkTokens(step));
    const rows = most((step) => step.num_decodes);
    const chunky = shown.some((step) => chunkTokens(step) > 0);
    context.fillStyle = colour("line");
    context.fillRect(0, middle, width, 1);
    shown.forEach((step, i) => {
      const x = width - (shown.length - i) * COLUMN;
      let up = middle - 1;
      let down = middle + 2;
      step.request_ids.forEach((id, row) => {
        context.fillStyle = requestColour(id);
        if (row < step.num_decodes) {
          const size = (height - middle - 4) / rows;
          context.fillRect(x, down, COLUMN - 1, Math.max(0.75, size > 3 ? size - 1 : size));
          down += size;
        } else {
          const size = ((middle - 4) * step.chunks[row - step.num_decodes]) / prefill;
          context.fillRect(x, up - size, COLUMN - 1, Math.max(1, size > 4 ? size - 1 : size));
          up -= size;
        }
      });
    });
    context.font = `11px ${colour("sans")}`;
    context.fillStyle = colour("muted");
    for (const [text, y] of /** @type {[string, number][]} */ ([[many(chunky ? prefill : 0, "token"), 11], ["prefill", middle - 8],
      ["decode", middle + 18], [many(rows, "row"), height - 4]])) context.fillText(text, 0, y);
  }

  /** @param {PointerEvent} event */
  hover(event) {
    const popover = byId("popover");
    const { right } = this.canvas.element.getBoundingClientRect();
    const step = this.steps[this.steps.length - 1 - Math.floor((right - event.clientX) / COLUMN)];
    popover.hidden = step === undefined;
    if (step === undefined) return;
    popover.textContent = describe(step);
    const { width, height } = popover.getBoundingClientRect();
    popover.style.left = `${Math.max(8, Math.min(event.clientX + 12, innerWidth - width - 8))}px`;
    popover.style.top = `${Math.max(8, event.clientY - height - 12)}px`;
  }
}

/** @param {Step} step */
function chunkTokens(step) {
  return step.chunks.reduce((sum, tokens) => sum + tokens, 0);
}

/** @param {Step} step */
function describe(step) {
  const parts = [...(step.chunks.length ? [`${many(step.chunks.length, "prompt chunk")} with ${many(chunkTokens(step), "token")}`] : []),
    ...(step.num_decodes ? [many(step.num_decodes, "decode row")] : [])];
  return `Step ${step.step_id.toLocaleString("en")}: ${parts.join(", ")}, ${duration(step.seconds)}`;
}
