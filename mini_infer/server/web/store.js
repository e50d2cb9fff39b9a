// Conversations and settings, in this browser only.

const CONVERSATIONS = "mini-infer.conversations";
const SETTINGS = "mini-infer.settings";
const MAX_CONVERSATIONS = 200;

/**
 * What a message was, and for an answer how it came about. `sent` is what it takes to get the same answer again.
 * @typedef {Object} Message
 * @property {"user" | "assistant"} role
 * @property {string} content
 * @property {string} [reasoning]
 * @property {string} [error]
 * @property {{system: string, params: Object<string, number | string>}} [sent]
 * @property {{tokens: number, first: number, seconds: number, reason: string}} [figures] times in seconds
 *
 * @typedef {Object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {string} system
 * @property {number} updated milliseconds since 1970
 * @property {Message[]} messages
 */

/** @template T @param {string} name @param {T} fallback @returns {T} */
function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name) ?? "") ?? fallback;
  } catch {
    return fallback;
  }
}

/** The browser's own list of what was said, the newest first. */
export class Store {
  constructor() {
    const found = read(CONVERSATIONS, []);
    /** @type {Conversation[]} */
    this.conversations = Array.isArray(found) ? found : [];
  }

  /** @returns {Conversation} */
  create() {
    return { id: crypto.randomUUID?.() ?? String(Math.random()), title: "New conversation", system: "", updated: Date.now(), messages: [] };
  }

  /** Keep a conversation, as the newest. When the browser's room is used up, the oldest ones go. @param {Conversation} conversation */
  save(conversation) {
    conversation.updated = Date.now();
    this.conversations = [conversation, ...this.conversations.filter((other) => other.id !== conversation.id)].slice(0, MAX_CONVERSATIONS);
    for (let kept = this.conversations.length; kept > 0; kept = Math.floor(kept / 2)) {
      try {
        localStorage.setItem(CONVERSATIONS, JSON.stringify(this.conversations.slice(0, kept)));
        return;
      } catch { /* no room for so many */ }
    }
  }

  /** @param {string} id */
  remove(id) {
    this.conversations = this.conversations.filter((other) => other.id !== id);
    try {
      localStorage.setItem(CONVERSATIONS, JSON.stringify(this.conversations));
    } catch { /* storage is off: nothing was kept */ }
  }
}

/** @returns {Object<string, number>} */
export function loadSettings() {
  return read(SETTINGS, {});
}

/** @param {Object<string, number>} settings */
export function saveSettings(settings) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(settings));
  } catch { /* then they last as long as the page */ }
}
