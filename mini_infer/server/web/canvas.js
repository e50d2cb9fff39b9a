// A canvas that fits its place on the page.

import { h } from "./dom.js";

/** Draws itself again when its size or the colours change. */
export class Canvas {
  /**
   * @param {string} label what it shows, for those who do not see it
   * @param {(context: CanvasRenderingContext2D, width: number, height: number) => void} draw
   */
  constructor(label, draw) {
    this.element = /** @type {HTMLCanvasElement} */ (h("canvas", { role: "img", "aria-label": label }));
    this.paint = draw;
    this.due = false;
    new ResizeObserver(() => this.draw()).observe(this.element);
    document.documentElement.addEventListener("themechange", () => this.draw());
  }

  /** @param {string} label */
  describe(label) {
    if (this.element.getAttribute("aria-label") !== label) this.element.setAttribute("aria-label", label);
  }

  /** With the next frame of the screen. */
  draw() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      const { clientWidth: width, clientHeight: height } = this.element;
      if (width === 0 || height === 0) return;
      const scale = devicePixelRatio;
      if (this.element.width !== Math.round(width * scale) || this.element.height !== Math.round(height * scale)) {
        this.element.width = Math.round(width * scale);
        this.element.height = Math.round(height * scale);
      }
      const context = /** @type {CanvasRenderingContext2D} */ (this.element.getContext("2d"));
      context.setTransform(scale, 0, 0, scale, 0, 0);
      context.clearRect(0, 0, width, height);
      this.paint(context, width, height);
    });
  }
}
