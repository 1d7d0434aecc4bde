// The page: what is shown where, and what works anywhere on it.

import { searchWith } from "./actions.js";
import { Admin } from "./admin.js";
import { Chips } from "./chips.js";
import { Filters } from "./filters.js";
import { Header } from "./header.js";
import { html, render, useEffect, useState } from "./html.js";
import { icon } from "./icons.js";
import { Keys, showKeys, singleKeys } from "./keys.js";
import { MapView, mapped } from "./map.js";
import { Picture } from "./picture.js";
import { go, isSearch, place } from "./place.js";
import { Results } from "./results.js";
import { found, index, notice, start } from "./search.js";
import { Unlock } from "./unlock.js";
import { firstPicture } from "./uploads.js";

function Page() {
  const [filters, setFilters] = useState(false);
  const { view } = place.value;
  useEffect(() => {
    document.title = place.value.text ? `${place.value.text} · kindred` : "kindred";
  }, [place.value.text]);
  return html`<a class="skip" href="#results" onClick=${skip}>Skip to the pictures</a>
    <${Header} />
    ${view !== "admin" && html`<${Chips} />`}
    ${view === "admin"
      ? html`<main class="narrow" id="results" tabindex="-1"><${Admin} /></main>`
      : html`<main class="columns">
          <${Status} filters=${filters} turn=${() => setFilters(!filters)} />
          <${Filters} shown=${filters} />
          <div class="results" id="results" tabindex="-1">${view === "map" ? html`<${MapView} />` : html`<${Results} />`}</div>
        </main>`}
    <${Footer} />
    <${Picture} />
    <${Keys} />
    <${Unlock} />
    <${DropTarget} />`;
}

function skip(event) {
  event.preventDefault();
  document.getElementById("results").focus();
}

function Status({ filters, turn }) {
  const at = place.value;
  const { notes } = found.value;
  return html`<div class="top"><div class="status">
      <h1 class="said" aria-live="polite">${at.view === "map" && mapped.value !== null ? saidOfMap(found.value) : said(found.value)}</h1>
      <div class="switch" role="group" aria-label="View">
        <button type="button" class="filters-button" aria-expanded=${filters} aria-controls="filters" onClick=${turn}>${icon("filters")}<span>Filters</span></button>
        <button type="button" aria-pressed=${at.view !== "map"} onClick=${() => go({ view: "results" })}>${icon("grid")}<span>List</span></button>
        <button type="button" aria-pressed=${at.view === "map"} onClick=${() => go({ view: "map" })}>${icon("map")}<span>Map</span></button>
      </div>
    </div>
    ${[notice.value, ...notes].filter(Boolean).map((text) => html`<p class="note" role="status" key=${text}>${text}</p>`)}</div>`;
}

const number = (count) => count.toLocaleString("en");
const pictures = (count) => `${number(count)} ${count === 1 ? "picture" : "pictures"}`;

/** What was found and what was left out, in a line. */
function said({ state, items, total, hidden, searched, next }) {
  if (state === "lost" || state === "failed") return "No pictures";
  if (state === "loading" && !items.length) return "Looking …";
  const shown = searched ? `${next ? "The nearest " : ""}${pictures(items.length)}` : `${pictures(items.length)} of ${number(total)}`;
  const left = [
    hidden.filter && `${number(hidden.filter)} hidden by filters`,
    hidden.cutoff && `${number(hidden.cutoff)} under the cut-off`,
    hidden.duplicates && `${number(hidden.duplicates)} stacked`,
  ];
  return [shown, ...left.filter(Boolean)].join(" · ");
}

function saidOfMap({ searched, total }) {
  const shown = searched ? `The nearest ${pictures(mapped.value)}` : `${pictures(mapped.value)} of ${number(total)}`;
  return `${shown}, where neighbours look alike`;
}

function Footer() {
  const { took } = found.value;
  const now = index.value;
  if (!now) return html`<footer></footer>`;
  const name = now.encoder.name.model;
  return html`<footer>
    <p><span>${pictures(now.count)}</span><span>Snapshot ${now.snapshot}</span><span>Encoder ${name}</span>${took !== null && isSearch(place.value) && html`<span>Answered in ${took.toFixed(1)} ms</span>`}<a href="/docs">API</a></p>
    ${now.notice && html`<p>${now.notice}</p>`}
    ${now.refused && html`<p>A newer snapshot is not served: ${now.refused}</p>`}
  </footer>`;
}

function DropTarget() {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const carriesFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const drag = (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const leave = (event) => event.relatedTarget === null && setOver(false);
    const drop = (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      setOver(false);
      searchWith(firstPicture(event.dataTransfer.files));
    };
    const paste = (event) => {
      const file = firstPicture(event.clipboardData?.files);
      if (!file) return;
      event.preventDefault();
      searchWith(file);
    };
    const press = (event) => {
      const typing = event.target.matches("input:not([type=checkbox], [type=range]), textarea, select");
      if (!singleKeys.peek() || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/" && !document.querySelector("dialog[open]")) document.getElementById("text").focus();
      else if (event.key === "?") showKeys.value = true;
      else return;
      event.preventDefault();
    };
    const listeners = { dragover: drag, dragleave: leave, drop, paste, keydown: press };
    for (const [name, listener] of Object.entries(listeners)) document.addEventListener(name, listener);
    return () => Object.entries(listeners).forEach(([name, listener]) => document.removeEventListener(name, listener));
  }, []);
  return over && html`<div class="drop" aria-hidden="true"><p>Drop the picture to search with it</p></div>`;
}

start();
render(html`<${Page} />`, document.getElementById("page"));
