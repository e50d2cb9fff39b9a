// The list of conversations, and how they leave the browser.

import { button, h } from "./dom.js";

/** @typedef {import("./store.js").Conversation} Conversation */

export class Sidebar {
  /**
   * @param {HTMLElement} root
   * @param {import("./store.js").Store} store
   * @param {{create: () => void, open: (conversation: Conversation) => void, remove: (conversation: Conversation) => void, current: () => Conversation}} on
   */
  constructor(root, store, on) {
    this.store = store;
    this.on = on;
    this.list = h("ul", { class: "conversations" });
    root.replaceChildren(
      button("New conversation", on.create, { class: "icon wide", id: "new" }), this.list,
      h("div", { class: "exports" },
        button("Export as Markdown", () => save(on.current().title, "md", "text/markdown", markdown(on.current()))),
        button("Export as JSON", () => save(on.current().title, "json", "application/json", JSON.stringify(on.current(), null, 2)))));
  }

  update() {
    const current = this.on.current();
    this.list.replaceChildren(...this.store.conversations.map((conversation) => h("li",
      { "data-current": conversation.id === current.id },
      h("button", { type: "button", class: "open", "aria-current": conversation.id === current.id ? "true" : null,
        click: () => this.on.open(conversation) }, conversation.title),
      h("button", { type: "button", class: "delete", "aria-label": `Delete ${conversation.title}`,
        click: () => this.on.remove(conversation) }, "×"))));
  }
}

/** @param {Conversation} conversation */
function markdown({ title, system, messages }) {
  const parts = [`# ${title}`, ...(system ? [`> ${system.replaceAll("\n", "\n> ")}`] : [])];
  for (const { role, content } of messages) parts.push(`## ${role === "user" ? "You" : "Model"}`, content);
  return `${parts.join("\n\n")}\n`;
}

/** @param {string} title @param {string} extension @param {string} type @param {string} text */
function save(title, extension, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "conversation";
  h("a", { href: url, download: `${name}.${extension}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
