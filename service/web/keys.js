// The keys, and a switch to turn off those that are single characters.

import { html, signal, useEffect, useRef } from "./html.js";
import { icon } from "./icons.js";

const ROWS = [
  ["/", "go to the search field"],
  ["← ↑ → ↓", "move among pictures"],
  ["Enter", "open the picture"],
  ["s", "more like the picture"],
  ["+ and −", "more or less of the picture in the query"],
  ["← and →", "in an open picture: the one before, the one after"],
  ["Esc", "close"],
  ["?", "show these keys"],
];

export const showKeys = signal(false);
export const singleKeys = signal(localStorage.getItem("kindred-keys") !== "off");

export function Keys() {
  const dialog = useRef(null);
  useEffect(() => {
    if (showKeys.value && !dialog.current.open) dialog.current.showModal();
  }, [showKeys.value]);
  const turn = (event) => {
    singleKeys.value = event.currentTarget.checked;
    localStorage.setItem("kindred-keys", singleKeys.value ? "on" : "off");
  };
  return html`<dialog class="keys" ref=${dialog} aria-labelledby="keys-title" onClose=${() => (showKeys.value = false)}>
    <div class="dialog-head"><h2 id="keys-title">Keys</h2><button type="button" class="tool" aria-label="Close" onClick=${() => dialog.current.close()}>${icon("close")}</button></div>
    <dl>${ROWS.map(([key, does]) => html`<div key=${key + does}><dt><kbd>${key}</kbd></dt><dd>${does}</dd></div>`)}</dl>
    <label class="check"><input type="checkbox" checked=${singleKeys.value} onChange=${turn} /><span>Use / and ? anywhere on the page</span></label>
  </dialog>`;
}
