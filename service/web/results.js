// The grid of results, and what is said where there are none.

import { askForKey } from "./access.js";
import { nameOf, open, refine, similar } from "./actions.js";
import { clearFilters } from "./filters.js";
import { PictureButton } from "./header.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { icon } from "./icons.js";
import { go, isSearch, place } from "./place.js";
import { lost } from "./request.js";
import { again, found, more } from "./search.js";
import { Shown } from "./shown.js";

const SKELETONS = 24;
// Where nothing can be pointed at, every tile has its buttons; else only the one that is pointed at or reached.
const TOUCH = matchMedia("(hover: none)").matches;
const MOST_SUGGESTIONS = 8;
const EAGER = 50; // thumbnails that are fetched at once; the others when they come near

export function Results() {
  const { state, items, problem } = found.value;
  if (state === "lost") return html`<${Lost} />`;
  if (state === "failed") return html`<${Failed} problem=${problem} />`;
  if (state === "loading" && !items.length) return html`<${Suggestions} /><${Skeleton} />`;
  if (!items.length) return html`<${Nothing} />`;
  return html`<${Suggestions} /><${Grid} items=${items} busy=${state === "loading"} /><${More} />`;
}

/** For those who do not know yet what there is: its most frequent labels. */
function Suggestions() {
  const at = place.value;
  const { facets } = found.value;
  if (isSearch(at) || at.expert || Object.keys(at.chosen).length) return null;
  const labels = (facets.label ?? []).slice(0, MOST_SUGGESTIONS).map(({ value }) => value);
  return html`<div class="suggestions">${labels.length > 0 && html`<span>Try</span>${labels.map((label) => html`<button type="button" key=${label} onClick=${() => go({ text: label })}>${label}</button>`)}`}</div>`;
}

function Grid({ items, busy }) {
  const [active, setActive] = useState(0);
  const list = useRef(null);
  const now = Math.min(active, items.length - 1);
  const reach = (event) => {
    const to = target(event.key, now, items.length, list.current);
    if (to === null || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    list.current.children[to]?.querySelector(".tile-open").focus();
  };
  return html`<ul class="grid" ref=${list} aria-busy=${busy} aria-label="Pictures" onKeyDown=${reach}>
    ${items.map((item, place) => html`<${Tile} key=${item.id} item=${item} eager=${place < EAGER} active=${place === now} activate=${() => setActive(place)} />`)}
  </ul>`;
}

/** Where an arrow leads in the grid, or null. */
function target(key, now, count, list) {
  const columns = getComputedStyle(list).gridTemplateColumns.split(" ").length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  const to = { Home: 0, End: count - 1 }[key] ?? now + by;
  return Number.isNaN(to) || to < 0 || to >= count ? null : to;
}

// One tile of the grid can be reached with Tab, and its buttons; arrows move among tiles.
function Tile({ item, eager, active, activate }) {
  const name = nameOf(item);
  const reachable = active ? 0 : -1;
  const [pointed, setPointed] = useState(false);
  const press = (event) => {
    const act = { s: () => similar({ id: item.id }), "+": () => refine(item.id, 1), "-": () => refine(item.id, -1) }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  };
  return html`<li class="tile" onFocusIn=${activate} onKeyDown=${press} onPointerEnter=${() => setPointed(true)} onPointerLeave=${() => setPointed(false)}>
    <button type="button" class="tile-open" tabindex=${reachable} onClick=${() => open(item.id)}>
      <${Shown} src=${item.thumbnail} alt=${name} width="224" height="224" loading=${eager ? "eager" : "lazy"} decoding="async" />
    </button>
    <div class="tile-line"><span class="tile-name" title=${name}>${item.label ?? name}</span><${Worth} item=${item} /></div>
    ${item.duplicates > 0 && html`<span class="stack">+${item.duplicates} the same</span>`}
    ${(active || pointed || TOUCH) && html`<div class="tile-tools">
      <${Act} name="similar" label="More like this" reachable=${reachable} onClick=${() => similar({ id: item.id })} />
      <${Act} name="plus" label="More of this in the query" reachable=${reachable} onClick=${() => refine(item.id, 1)} />
      <${Act} name="minus" label="Less of this in the query" reachable=${reachable} onClick=${() => refine(item.id, -1)} />
    </div>`}
  </li>`;
}

const Act = ({ name, label, reachable, onClick }) =>
  html`<button type="button" tabindex=${reachable} aria-label=${label} title=${label} onClick=${onClick}>${icon(name)}</button>`;

/** Relevance where it is known, and the score. */
export function Worth({ item }) {
  if (item.score === undefined) return null;
  const known = typeof item.relevance === "number";
  const title = `Score ${item.score.toFixed(3)}${known ? `, relevance ${Math.round(item.relevance * 100)}%` : ""}`;
  return html`<span class="worth" title=${title}>${known && html`<span>${Math.round(item.relevance * 100)}%</span>`}<span class="score">${item.score.toFixed(2)}</span></span>`;
}

function More() {
  const { next, problem, items, searched } = found.value;
  const end = useRef(null);
  useEffect(() => {
    const watcher = new IntersectionObserver(([seen]) => seen.isIntersecting && more(), { rootMargin: "600px" });
    if (end.current) watcher.observe(end.current);
    return () => watcher.disconnect();
  }, [next]);
  if (!next) return html`<p class="end">${searched ? "That is all." : "These are all the pictures."}</p>`;
  return html`<div class="end" ref=${end}>
    ${problem && html`<p role="alert">${problem.message}</p>`}
    <button type="button" class="button" onClick=${more}>${problem ? "Try again" : `Load more than these ${items.length}`}</button>
  </div>`;
}

const Skeleton = () =>
  html`<ul class="grid" aria-hidden="true">${Array.from({ length: SKELETONS }, (_, number) => html`<li class="tile" key=${number}><div class="tile-open empty"></div><div class="tile-line"></div></li>`)}</ul>`;

function Nothing() {
  const at = place.value;
  const { unsure, hidden } = found.value;
  const cut = at.relevance > 0 || at.score > 0;
  if (cut && (unsure || hidden.cutoff)) {
    return html`<${Message} title="Nothing is likely enough to be what you asked for">
      <p>Everything that was looked at is under your cut-off.</p>
      <button type="button" class="button" onClick=${() => go({ relevance: 0, score: 0 })}>Show it all the same</button>
    <//>`;
  }
  if (at.expert || Object.keys(at.chosen).length) {
    return html`<${Message} title="No picture passes the filters"><p>Ask for less at once, or for other words.</p>
      <button type="button" class="button" onClick=${clearFilters}>Clear all filters</button><//>`;
  }
  return html`<${Message} title=${isSearch(at) ? "Nothing was found" : "There are no pictures yet"}>
    <p>${isSearch(at) ? "Try fewer or other words, or a picture." : "Build an index of a folder, then load this page again."}</p><//>`;
}

function Failed({ problem }) {
  const locked = [401, 403].includes(problem.status);
  const unlock = async () => (await askForKey()) && again();
  return html`<${Message} title="That did not work" alert>
    <p>${problem.message}</p>
    <button type="button" class="button" onClick=${locked ? unlock : again}>${locked ? "Enter a key" : "Try again"}</button>
  <//>`;
}

function Lost() {
  const at = place.value;
  const [{ upload }] = lost(at);
  const others = { parts: at.parts.filter((part) => part.upload !== upload) };
  return html`<${Message} title="Your picture is not here any more">
    <p>A picture from your device is not part of a link, and a page that is loaded again forgets it. Choose it again, and the search goes on as it was.</p>
    <${PictureButton} className="button" label="Choose the picture again" instead=${upload}>Choose the picture again<//>
    <button type="button" class="button quiet" onClick=${() => go(others, { replace: true })}>Go on without it</button>
  <//>`;
}

export const Message = ({ title, alert, children }) =>
  html`<div class="message" role=${alert ? "alert" : undefined}><h2>${title}</h2>${children}</div>`;
