// Where the page is: what is searched for and what is open. All of it is in the URL, so that a link is a saved search.

import { signal } from "./html.js";

const START = {
  text: "",
  parts: [], // { id or upload, weight, box }
  chosen: {}, // facet values, by key
  expert: "", // a filter as JSON
  relevance: 0,
  score: 0,
  variety: 0,
  all: false, // whether pictures that show the same are all shown
  ignore: "",
  view: "results", // or map, admin
  item: "", // the picture that is open: an id, or an upload
  panel: "about", // or classify, why, part
  confidence: 0,
};
const WORDS = { text: "q", expert: "filter", ignore: "ignore", view: "view", item: "item", panel: "panel" };
const NUMBERS = ["relevance", "score", "variety", "confidence"];

export const place = signal(read(location.search));

export const isSearch = ({ text, parts }) => Boolean(text.trim() || parts.length);

export function read(query) {
  const given = new URLSearchParams(query);
  const at = { ...START, all: given.has("all"), parts: given.getAll("like").map(readPart).filter(Boolean), chosen: readChosen(given) };
  for (const [name, word] of Object.entries(WORDS)) at[name] = given.get(word) ?? START[name];
  for (const name of NUMBERS) at[name] = Math.min(1, Math.max(0, Number(given.get(name)) || 0));
  return at;
}

/** Return the URL of a place, with only what differs from the start. */
export function write(at) {
  const query = new URLSearchParams();
  for (const [name, word] of Object.entries(WORDS)) if (at[name] !== START[name]) query.set(word, at[name]);
  for (const name of NUMBERS) if (at[name]) query.set(name, at[name]);
  for (const part of at.parts) query.append("like", writePart(part));
  if (at.all) query.set("all", "1");
  if (Object.keys(at.chosen).length) query.set("facets", JSON.stringify(at.chosen));
  const text = query.toString();
  return text ? `${location.pathname}?${text}` : location.pathname;
}

/** Go to a place that differs from this one by `changes`; `opened` marks a step that closing goes back over. */
export function go(changes, { replace = false, opened = false } = {}) {
  const next = { ...place.peek(), ...changes };
  const url = write(next);
  if (url === location.pathname + location.search) return;
  if (replace) history.replaceState(history.state, "", url);
  else history.pushState({ opened }, "", url);
  place.value = next;
}

/** Close what is open over the page: back, if that is where it was opened from. */
export function close(changes) {
  if (history.state?.opened) history.back();
  else go(changes, { replace: true });
}

history.scrollRestoration = "manual"; // results come from memory; see search.js
addEventListener("popstate", () => {
  place.value = read(location.search);
});

function writePart({ id, upload, weight, box }) {
  return [weight, id ?? `upload.${upload}`, ...(box ? [box.join(",")] : [])].join("~");
}

function readPart(text) {
  const [weight, name = "", box] = text.split("~");
  if (!name || !Number.isFinite(Number(weight))) return null;
  const picture = name.startsWith("upload.") ? { upload: name.slice("upload.".length) } : { id: name };
  const sides = box?.split(",").map(Number);
  return { ...picture, weight: Number(weight), ...(sides?.length === 4 && sides.every(Number.isFinite) ? { box: sides } : {}) };
}

function readChosen(given) {
  try {
    const chosen = JSON.parse(given.get("facets") ?? "{}");
    return Object.fromEntries(Object.entries(chosen).filter(([, values]) => Array.isArray(values) && values.length));
  } catch {
    return {};
  }
}
