// Not a module: it runs before the first paint. The choice is "auto", "light" or "dark".
(() => {
  const KEY = "mini-infer.theme";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;

  const chosen = () => {
    try {
      return localStorage.getItem(KEY) ?? "auto";
    } catch {
      return "auto";
    }
  };

  const apply = () => {
    const choice = chosen();
    root.dataset.choice = choice;
    root.dataset.theme = choice === "auto" ? (dark.matches ? "dark" : "light") : choice;
    root.dispatchEvent(new Event("themechange"));
  };

  root.addEventListener("choosetheme", (event) => {
    try {
      localStorage.setItem(KEY, event.detail);
    } catch { /* then it lasts as long as the page */ }
    apply();
  });
  dark.addEventListener("change", apply);
  apply();
})();
