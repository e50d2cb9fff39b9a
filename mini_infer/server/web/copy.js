// A button that copies.

import { button, say } from "./dom.js";

const SHOWN_MS = 1500;

/** @param {() => string} text what to copy when it is pressed */
export function copyButton(text) {
  const element = button("Copy", async () => {
    element.textContent = (await copy(text())) ? "Copied" : "Not copied";
    say(element.textContent);
    setTimeout(() => { element.textContent = "Copy"; }, SHOWN_MS);
  });
  return element;
}

/** Over plain http from another machine a browser has no clipboard to write to, but still knows the old way. @param {string} text */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
