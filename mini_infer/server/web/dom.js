// Elements, built without markup: text is always text.

/** @typedef {Node | string | number | null | undefined} Child */

/**
 * An element. Props that are functions become listeners, `true` an empty attribute, null and false nothing at all.
 * @param {string} tag
 * @param {Object<string, unknown>} [props]
 * @param {...(Child | Child[])} children null and undefined are nothing
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (typeof value === "function") element.addEventListener(name, /** @type {EventListener} */ (value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

/**
 * The element of the page with this id.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`no #${id}`);
  return element;
}

/** Tell a screen reader. @param {string} text */
export function say(text) {
  byId("status").textContent = text;
}

/** A button with a handler. @param {string} label @param {() => void} click @param {Object<string, unknown>} [props] */
export function button(label, click, props = {}) {
  return h("button", { type: "button", class: "quiet", ...props, click }, label);
}
