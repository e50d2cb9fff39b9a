// The page: two views, of which one is shown, and what stands above them.

import { request } from "./api.js";
import { Chat } from "./chat.js";
import { byId } from "./dom.js";
import { EngineView } from "./engine.js";

const VIEWS = ["chat", "engine"];
const THEMES = { auto: "light", light: "dark", dark: "auto" };

const engine = new EngineView(byId("engine"));

/** The view that the address names, if any. The slash keeps the browser from jumping to an element of that name. */
function named() {
  return VIEWS.find((view) => location.hash === `#/${view}`);
}

/** @param {string} name @param {boolean} [focus] */
function select(name, focus = false) {
  for (const view of VIEWS) {
    const tab = byId(`tab-${view}`);
    tab.setAttribute("aria-selected", String(view === name));
    tab.tabIndex = view === name ? 0 : -1;
    byId(view).hidden = view !== name;
    if (view === name && focus) tab.focus();
  }
  if (named() !== name) history.replaceState(null, "", `#/${name}`);
  watch();
}

/** The engine is looked at only while somebody can see it. */
function watch() {
  if (!byId("engine").hidden && document.visibilityState === "visible") engine.start();
  else engine.stop();
}

function themes() {
  const root = document.documentElement;
  const button = byId("theme");
  const show = () => {
    const choice = root.dataset.choice ?? "auto";
    button.textContent = { auto: "◐ Auto", light: "○ Light", dark: "● Dark" }[choice] ?? choice;
    button.setAttribute("aria-label", `Colours: ${choice}. Change`);
  };
  root.addEventListener("themechange", show);
  button.addEventListener("click", () => {
    const choice = /** @type {keyof typeof THEMES} */ (root.dataset.choice ?? "auto");
    root.dispatchEvent(new CustomEvent("choosetheme", { detail: THEMES[choice] }));
  });
  show();
}

async function nameModel() {
  try {
    const { data } = await (await request("v1/models")).json();
    byId("model").textContent = `${data[0].id} · context ${data[0].max_model_len.toLocaleString("en")}`;
    document.title = `${data[0].id} · mini-infer`;
  } catch (error) {
    byId("model").textContent = /** @type {Error} */ (error).message;
  }
}

for (const view of VIEWS) {
  const tab = byId(`tab-${view}`);
  tab.addEventListener("click", () => select(view));
  tab.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") select(VIEWS[1 - VIEWS.indexOf(view)], true);
  });
}
addEventListener("hashchange", () => {
  const name = named();
  if (name) select(name);
});
document.addEventListener("visibilitychange", watch);
themes();
new Chat();
select(named() ?? "chat");
nameModel();
