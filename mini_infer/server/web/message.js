// A message on the page.

import { copyButton } from "./copy.js";
import { button, h } from "./dom.js";
import { duration, many, short } from "./format.js";
import { decode, heat } from "./heat.js";
import { MarkdownView } from "./markdown.js";

/** @typedef {import("./store.js").Message} Message */

/**
 * What a message can be asked to do.
 * @typedef {Object} Handlers
 * @property {(message: Message, text: string) => void} resend
 * @property {(message: Message) => void} regenerate
 * @property {(message: Message) => Promise<import("./completion.js").TokenLogprob[]>} logprobs
 */

/** @param {Message} message @param {Handlers} on */
export function messageView(message, on) {
  return message.role === "user" ? userView(message, on) : new AnswerView(message, on).root;
}

/** @param {Message} message @param {Handlers} on @returns {HTMLElement} */
function userView(message, on) {
  const text = h("div", { class: "text" }, message.content);
  const edit = button("Edit", () => {
    const area = /** @type {HTMLTextAreaElement} */ (h("textarea", { "aria-label": "Message" }));
    area.value = message.content;
    const form = h("form", { submit: (/** @type {Event} */ event) => {
      event.preventDefault();
      if (area.value.trim() !== "") on.resend(message, area.value.trim());
    } }, area, h("div", { class: "actions" }, h("button", { class: "icon" }, "Send again"), button("Cancel", () => {
      root.replaceChildren(name, text, actions);
      edit.focus();
    })));
    root.replaceChildren(name, form);
    area.focus();
  });
  const name = h("h3", { class: "name" }, "You");
  const actions = h("div", { class: "actions" }, edit);
  const root = h("article", { class: "message user" }, name, text, actions);
  return root;
}

/** An answer, which may still be growing. */
export class AnswerView {
  /** @param {Message} message @param {Handlers} on */
  constructor(message, on) {
    this.message = message;
    this.on = on;
    this.prose = h("div", { class: "prose" });
    this.markdown = new MarkdownView(this.prose);
    this.thinking = h("div");
    this.details = h("details", { class: "thinking", hidden: true }, h("summary", {}, "Thinking"), this.thinking);
    this.extra = h("div");
    this.actions = h("div", { class: "actions" });
    this.root = h("article", { class: "message assistant" }, h("h3", { class: "name" }, "Model"), this.details, this.prose, this.extra,
      this.actions);
    this.finish();
  }

  /** Show what has come so far. */
  grow() {
    const { content, reasoning } = this.message;
    this.prose.classList.toggle("waiting", content === "");
    this.markdown.update(content);
    if (reasoning) {
      this.details.hidden = false;
      this.thinking.textContent = reasoning;
    }
  }

  /** While it grows nothing can be done with it. */
  begin() {
    this.actions.replaceChildren();
    this.extra.replaceChildren();
    this.grow();
  }

  /** Nothing more will come. */
  finish() {
    this.grow();
    this.prose.classList.remove("waiting");
    const { message } = this;
    this.extra.replaceChildren(...(message.error ? [h("p", { class: "error", role: "alert" }, message.error)] : []));
    this.heat = button("Heat", () => this.toggleHeat(), { "aria-pressed": "false", title: "Colour each token by how likely it was" });
    this.actions.replaceChildren(copyButton(() => message.content), button("Regenerate", () => this.on.regenerate(message)),
      ...(message.sent && message.content ? [this.heat] : []), h("span", { class: "meta" }, figures(message)));
  }

  async toggleHeat() {
    const button = /** @type {HTMLButtonElement} */ (this.heat);
    if (button.getAttribute("aria-pressed") === "true") {
      button.setAttribute("aria-pressed", "false");
      this.prose.hidden = false;
      this.extra.replaceChildren();
      return;
    }
    button.disabled = true;
    try {
      this.logprobs ??= await this.on.logprobs(this.message);
      const same = decode(this.logprobs).join("").includes(this.message.content.trim());
      const note = same ? "Every token as the model drew it; the warmer, the less likely it was." :
        "Computed again, with the same seed; the text came out differently this time.";
      this.extra.replaceChildren(heat(this.logprobs), h("p", { class: "note" },
        h("span", { class: "scale", "aria-hidden": "true" }, "unlikely", h("i"), "certain"), ` · ${note}`));
      this.prose.hidden = true;
      button.setAttribute("aria-pressed", "true");
      this.actions.scrollIntoView({ block: "nearest" });
    } catch (error) {
      this.extra.replaceChildren(h("p", { class: "error", role: "alert" }, /** @type {Error} */ (error).message));
    } finally {
      button.disabled = false;
    }
  }
}

/** @param {Message} message */
function figures({ figures: found, sent }) {
  if (!found || found.tokens === 0) return "";
  const rest = found.seconds - found.first;
  const rate = found.tokens > 1 && rest > 0 ? [`${short((found.tokens - 1) / rest)} tokens/s`] : [];
  const reason = { stopped: ["stopped"], length: ["cut at the limit"] }[found.reason] ?? [];
  const seed = sent?.params.temperature !== 0 && sent?.params.seed !== undefined ? [`seed ${sent.params.seed}`] : [];
  return [many(found.tokens, "token"), ...rate, `first after ${duration(found.first)}`, ...seed, ...reason].join(" · ");
}
