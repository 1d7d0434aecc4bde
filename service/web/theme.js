// Runs before the first paint, so that a chosen theme does not flash in. No module: those wait for the document.
(() => {
  const chosen = localStorage.getItem("kindred-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
