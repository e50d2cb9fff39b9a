// A figure with its recent past.

import { Canvas } from "./canvas.js";
import { colour } from "./colours.js";
import { h } from "./dom.js";

const SECONDS = 60;

/**
 * @typedef {{time: number, values: (number | null)[]}} Point
 */

export class Plot {
  /**
   * @param {string} title
   * @param {string[]} colours custom properties, one for each line
   * @param {(value: number) => string} format
   * @param {number} [ceiling] the top of the axis, where it does not depend on the values
   */
  constructor(title, colours, format, ceiling) {
    this.title = title;
    this.colours = colours;
    this.format = format;
    this.ceiling = ceiling;
    /** @type {Point[]} */
    this.points = [];
    this.value = h("p", { class: "value num" }, "–");
    this.sub = h("p", { class: "sub num" });
    this.canvas = new Canvas(`${title}, the last minute`, (context, width, height) => this.paint(context, width, height));
    this.root = h("div", { class: "card" }, h("h3", {}, title), this.value, this.sub, this.canvas.element);
  }

  /**
   * @param {number} time seconds
   * @param {(number | null)[]} values
   * @param {string} value what to write large
   * @param {string} sub and small
   */
  push(time, values, value, sub) {
    this.points.push({ time, values });
    while (this.points[0].time < time - SECONDS) this.points.shift();
    this.value.textContent = value;
    this.sub.textContent = sub;
    this.canvas.describe(`${this.title}, the last minute: at most ${this.format(this.most())}; now ${value}, ${sub}`);
    this.canvas.draw();
  }

  /** The highest value of all lines. */
  most() {
    return Math.max(0, ...this.points.flatMap(({ values }) => values.map((value) => value ?? 0)));
  }

  /** @param {CanvasRenderingContext2D} context @param {number} width @param {number} height */
  paint(context, width, height) {
    const { points } = this;
    const top = 14;
    const base = height - 1;
    context.fillStyle = colour("line");
    context.fillRect(0, base, width, 1);
    if (points.length === 0) return;
    const now = points[points.length - 1].time;
    const highest = this.ceiling ?? this.most();
    if (highest <= 0) return;
    const x = (/** @type {number} */ time) => width - ((now - time) / SECONDS) * width;
    const y = (/** @type {number} */ value) => base - (Math.min(value, highest) / highest) * (base - top);
    this.colours.forEach((name, line) => {
      context.strokeStyle = context.fillStyle = colour(name);
      context.lineWidth = 1.5;
      context.lineJoin = "round";
      for (const run of runs(points, line)) {
        context.beginPath();
        run.forEach(({ time, values }, i) => context[i ? "lineTo" : "moveTo"](x(time), y(/** @type {number} */ (values[line]))));
        if (run.length === 1) context.lineTo(x(run[0].time) + 1.5, y(/** @type {number} */ (run[0].values[line])));
        context.stroke();
        context.lineTo(x(run[run.length - 1].time), base);
        context.lineTo(x(run[0].time), base);
        context.globalAlpha = 0.12;
        context.fill();
        context.globalAlpha = 1;
      }
    });
    context.font = `10.5px ${colour("sans")}`;
    context.fillStyle = colour("muted");
    context.textAlign = "left";
    context.fillText(this.format(highest), 0, 9);
  }
}

/** A gap of more than two seconds without a value ends a run. @param {Point[]} points @param {number} line */
function runs(points, line) {
  /** @type {Point[][]} */
  const found = [];
  let last = -Infinity;
  for (const point of points) {
    if (point.values[line] === null) continue;
    if (point.time - last > 2) found.push([]);
    found[found.length - 1].push(point);
    last = point.time;
  }
  return found;
}
