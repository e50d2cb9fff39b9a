// The chat view: one conversation at a time, one answer at a time.

import { complete, replay } from "./completion.js";
import { button, byId, h, say } from "./dom.js";
import { AnswerView, messageView } from "./message.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";

const IDEAS = ["What is 27 + 35?", "Tell me a story about a fox and a girl named Mia.", "Who are you?", "What comes after Tuesday?"];

/** @typedef {import("./store.js").Message} Message @typedef {import("./store.js").Conversation} Conversation */

export class Chat {
  constructor() {
    this.store = new Store();
    this.conversation = this.store.conversations[0] ?? this.store.create();
    /** @type {AbortController | null} */
    this.running = null;
    this.thread = byId("thread");
    this.prompt = /** @type {HTMLTextAreaElement} */ (byId("prompt"));
    this.settings = new Settings(byId("settings"), (system) => { this.conversation.system = system; });
    this.sidebar = new Sidebar(byId("conversations"), this.store, {
      create: () => this.open(this.store.create()),
      open: (conversation) => this.open(conversation),
      remove: (conversation) => this.remove(conversation),
      current: () => this.conversation,
    });
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send(this.prompt.value.trim());
    });
    byId("stop").addEventListener("click", () => this.running?.abort());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.send(this.prompt.value.trim());
      }
    });
    byId("chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.running?.abort();
    });
    this.hideConversations = disclose("show-conversations", "conversations", (panel, open) => panel.classList.toggle("open", open));
    disclose("show-settings", "settings", (panel, open) => { panel.hidden = !open; });
    this.open(this.conversation);
  }

  /** @param {Conversation} conversation */
  open(conversation) {
    this.running?.abort();
    this.conversation = conversation;
    this.settings.system.value = conversation.system;
    this.hideConversations();
    this.show();
    if (matchMedia("(hover: hover)").matches) this.prompt.focus();
  }

  /** @param {Conversation} conversation */
  remove(conversation) {
    this.store.remove(conversation.id);
    if (conversation.id === this.conversation.id) this.open(this.store.conversations[0] ?? this.store.create());
    else this.sidebar.update();
  }

  /** Draw the conversation anew. */
  show() {
    const { messages, title } = this.conversation;
    byId("title").textContent = title;
    this.sidebar.update();
    this.thread.replaceChildren(...(messages.length ? messages.map((message) => messageView(message, this)) : [this.welcome()]));
    this.thread.scrollTop = this.thread.scrollHeight;
  }

  welcome() {
    return h("div", { class: "empty" }, h("h3", {}, "What would you like to ask?"),
      h("p", { class: "muted" }, "What you write goes to the model on this server and stays in this browser."),
      h("ul", {}, ...IDEAS.map((idea) => h("li", {}, button(idea, () => this.send(idea), { class: "" })))));
  }

  /** @param {string} text */
  send(text) {
    if (text === "" || this.running) return;
    this.prompt.value = "";
    const { messages } = this.conversation;
    if (messages.length === 0) this.conversation.title = text.length > 60 ? `${text.slice(0, 57)}…` : text;
    messages.push({ role: "user", content: text });
    this.answer();
  }

  /** Take a message back, and what followed it, and say it differently. @param {Message} message @param {string} text */
  resend(message, text) {
    this.running?.abort();
    const { messages } = this.conversation;
    messages.length = messages.indexOf(message);
    if (messages.length === 0) this.conversation.title = text.slice(0, 60);
    messages.push({ role: "user", content: text });
    this.answer();
  }

  /** @param {Message} message */
  regenerate(message) {
    this.running?.abort();
    this.conversation.messages.length = this.conversation.messages.indexOf(message);
    this.answer();
  }

  /** @param {Message} message */
  logprobs(message) {
    const { messages } = this.conversation;
    return replay(messages.slice(0, messages.indexOf(message)), message);
  }

  /** Let the model say the next message. */
  async answer() {
    const { conversation } = this;
    const running = new AbortController();
    this.running = running;
    const before = [...conversation.messages];
    // A seed of our own makes every answer one that can be had again, for its log-probabilities.
    const params = { seed: Math.floor(Math.random() * 2 ** 31), ...this.settings.params() };
    /** @type {Message} */
    const message = { role: "assistant", content: "", sent: { system: conversation.system, params } };
    conversation.messages.push(message);
    this.show();
    const view = new AnswerView(message, this);
    this.thread.lastElementChild?.replaceWith(view.root);
    view.begin();
    this.busy(true);
    say("The model is answering.");
    let drawn = true;
    try {
      await complete(before, message, () => {
        if (!drawn) return;
        drawn = false;
        requestAnimationFrame(() => {
          drawn = true;
          this.keepBottom(() => view.grow());
        });
      }, running.signal);
      say(`The model answered: ${message.content.slice(0, 500)}`);
    } catch (error) {
      if (!running.signal.aborted) message.error = /** @type {Error} */ (error).message;
      say(message.error ?? "Stopped.");
    }
    this.keepBottom(() => view.finish());
    if (conversation.messages.includes(message)) this.store.save(conversation);
    if (this.running === running) {
      this.running = null;
      this.busy(false);
    }
    this.sidebar.update();
  }

  /** Scroll along, unless the reader has scrolled up. @param {() => void} change */
  keepBottom(change) {
    const { thread } = this;
    const atBottom = thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;
    change();
    if (atBottom) thread.scrollTop = thread.scrollHeight;
  }

  /** @param {boolean} busy */
  busy(busy) {
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
    this.thread.setAttribute("aria-busy", String(busy));
  }
}

/**
 * A button that shows and hides a panel; Escape hides it, and where it covers the page a button of its own.
 * @param {string} buttonId @param {string} panelId @param {(panel: HTMLElement, open: boolean) => void} apply
 * @returns {() => void} hides it
 */
function disclose(buttonId, panelId, apply) {
  const control = byId(buttonId);
  const panel = byId(panelId);
  const set = (/** @type {boolean} */ open) => {
    control.setAttribute("aria-expanded", String(open));
    apply(panel, open);
  };
  const close = () => {
    set(false);
    control.focus();
  };
  panel.prepend(button("Close", close, { class: "icon narrow" }));
  control.addEventListener("click", () => set(control.getAttribute("aria-expanded") !== "true"));
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation(); // it is not meant for the answer
    close();
  });
  return () => set(false);
}
