// The API key: asked for when the server wants one, kept until the browser's tab is closed.

import { byId, h } from "./dom.js";

const NAME = "mini-infer.key";

/** @type {Promise<boolean> | null} */
let asking = null;

/** @returns {string | null} */
export function currentKey() {
  return sessionStorage.getItem(NAME);
}

/**
 * Show the dialog; whoever asks meanwhile gets the same answer.
 * @param {boolean} wrong whether a key was tried already
 * @returns {Promise<boolean>} whether there is a new key
 */
export function askKey(wrong) {
  asking ??= show(wrong).finally(() => { asking = null; });
  return asking;
}

/** @param {boolean} wrong */
function show(wrong) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key"));
  const input = /** @type {HTMLInputElement} */ (h("input", { type: "password", required: true, autocomplete: "off", name: "key" }));
  return new Promise((resolve) => {
    const form = h("form", { method: "dialog" },
      h("h2", { id: "key-title" }, "API key"),
      h("p", { class: "muted" }, wrong ? "The server does not know that key. Please try another." :
        "This server wants a key. It stays in this browser tab."),
      h("label", { class: "field" }, "Key", input),
      h("div", { class: "row" },
        h("button", { type: "button", class: "icon", click: () => dialog.close("") }, "Cancel"),
        h("button", { class: "primary", value: "ok" }, "Continue")));
    dialog.replaceChildren(form);
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" && input.value.trim() !== "";
      if (given) sessionStorage.setItem(NAME, input.value.trim());
      resolve(given);
    }, { once: true });
    dialog.showModal();
    input.focus();
  });
}
