// What was found for the place the page is at: kept in memory, so that going back shows it at once.

import { browse, describeIndex, Problem, search } from "./api.js";
import { computed, effect, signal, untracked } from "./html.js";
import { isSearch, place } from "./place.js";
import { browseParameters, filterOf, lost, resultsKey, searchBody } from "./request.js";
import { painted } from "./shown.js";

const NOTHING = {
  state: "loading", // or ready, failed, lost
  key: "",
  searched: false,
  items: [],
  total: 0, // pictures that the filter matches
  next: null,
  hidden: { filter: 0, cutoff: 0, duplicates: 0 },
  facets: {},
  notes: [],
  unsure: false,
  took: null,
  problem: null,
};
const REMEMBERED = 30;
const MOST_FACETS = 7;
const LONGEST_VALUE = 40;
const PATIENCE_MS = 600;

export const found = signal(NOTHING);
export const index = signal(null);
/** Said once, such as that the index was rebuilt meanwhile. */
export const notice = signal("");

const remembered = new Map();
const scrolls = new Map();
let underway = new AbortController();
let keys = null;
let snapshot = null;

const wanted = computed(() => resultsKey(place.value));

export function start() {
  let before = null;
  effect(() => {
    const key = wanted.value;
    untracked(() => {
      if (before !== null) scrolls.set(before, scrollY);
      before = key;
      notice.value = "";
      find(key);
    });
  });
}

/** Ask again, for what failed or for what may have changed. */
export function again() {
  remembered.clear();
  keys = null;
  find(wanted.peek());
}

async function find(key) {
  const at = place.peek();
  underway.abort();
  underway = new AbortController();
  const { signal } = underway;
  if (remembered.has(key)) {
    found.value = remembered.get(key);
    requestAnimationFrame(() => scrollTo(0, scrolls.get(key) ?? 0));
    return;
  }
  if (lost(at).length) {
    found.value = { ...NOTHING, key, state: "lost" };
    if (!index.peek()) refreshIndex();
    return;
  }
  found.value = { ...found.peek(), state: "loading", problem: null };
  try {
    const page = await ask(at, null, signal);
    if (signal.aborted) return;
    // The facets of the results before stay until they are counted anew: what stands in the sidebar does not jump.
    publish({ ...NOTHING, ...page, key, state: "ready", facets: found.peek().facets });
    if (scrollY) scrollTo(0, 0);
    await thumbnails();
    if (signal.aborted) return;
    if (index.peek()?.snapshot !== snapshot) refreshIndex();
    await countFacets(at, key, signal);
  } catch (error) {
    if (signal.aborted) return;
    if (found.peek().key === key && found.peek().state === "ready") return; // only the facets failed
    found.value = { ...NOTHING, key, searched: isSearch(at), state: "failed", problem: error };
    if (!index.peek()) refreshIndex();
  }
}

let fetching = false;

/** Get the page after those that are there. */
export async function more() {
  const before = found.peek();
  if (fetching || before.state !== "ready" || !before.next) return;
  fetching = true;
  try {
    const page = await ask(place.peek(), before.next, underway.signal);
    if (found.peek().key !== before.key) return;
    publish({ ...found.peek(), items: [...before.items, ...page.items], next: page.next });
  } catch (error) {
    if (error.status === 410) {
      notice.value = "The index has been rebuilt since the first page, so these results are new.";
      again();
    } else if (error instanceof Problem && found.peek().key === before.key) {
      found.value = { ...found.peek(), problem: error };
    }
  } finally {
    fetching = false;
  }
}

async function ask(at, cursor, signal) {
  const searched = isSearch(at);
  const answer = searched
    ? await search(searchBody(at, { cursor }), signal)
    : await browse(browseParameters(at, { cursor }), signal);
  if (answer.index.snapshot !== snapshot) remembered.clear(); // what came from another one
  snapshot = answer.index.snapshot;
  const { count } = answer.index;
  const hidden = answer.hidden ?? { filter: count - answer.total, cutoff: 0, duplicates: 0 };
  return {
    searched,
    hidden,
    items: answer.results ?? answer.items,
    total: count - hidden.filter,
    next: answer.next_cursor,
    notes: answer.notes ?? [],
    unsure: answer.no_confident_match ?? false,
    took: answer.took_ms?.total ?? null,
  };
}

/** Wait for the pictures that are looked at first: what else there is to ask must not hold them up. */
async function thumbnails() {
  await Promise.race([pause(0).then(loaded), pause(PATIENCE_MS)]);
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const loaded = () => Promise.allSettled([...document.querySelectorAll(".tile-open img[loading=eager]")].map(painted));

/** Count the facets, once the results are there: counting takes longer than searching. */
async function countFacets(at, key, signal) {
  const known = await facetKeys(signal);
  const count = async (facets, without) => {
    const options = { facets, filter: filterOf(at, without), limit: 1 };
    return (await (isSearch(at) ? search(searchBody(at, options), signal) : browse(browseParameters(at, options), signal))).facets;
  };
  // Under its own filter a facet has only the chosen values; without it, it tells what the others would bring.
  const chosen = Object.keys(at.chosen);
  const counted = await Promise.all([count(known.filter((each) => !chosen.includes(each))), ...chosen.map((each) => count([each], each))]);
  const all = Object.assign({}, ...counted);
  const facets = Object.fromEntries([...new Set([...known, ...chosen])].map((each) => [each, all[each] ?? []]));
  if (found.peek().key === key) publish({ ...found.peek(), facets });
}

/** The metadata that is worth counting: values that are short, and that pictures share. */
async function facetKeys(signal) {
  keys ??= browse({ limit: 50 }, signal).then(({ items }) => ["label", ...sharedKeys(items)]);
  try {
    return await keys;
  } catch (error) {
    keys = null;
    throw error;
  }
}

function sharedKeys(items) {
  const values = new Map();
  for (const { metadata } of items) {
    for (const [name, value] of Object.entries(metadata)) {
      if (!values.has(name)) values.set(name, []);
      values.get(name).push(...(Array.isArray(value) ? value : [value]));
    }
  }
  const countable = [...values].filter(([name, all]) => nameable(name) && new Set(all).size <= all.length / 2 && all.every(short));
  return countable.slice(0, MOST_FACETS).map(([name]) => (/[.[\]]/.test(name) ? `metadata."${name}"` : `metadata.${name}`));
}

const nameable = (name) => name.length <= 100 && !/["\\\p{Cc}]/u.test(name);
const short = (value) => value !== null && typeof value !== "object" && String(value).length <= LONGEST_VALUE;

function publish(answer) {
  remembered.delete(answer.key);
  remembered.set(answer.key, answer);
  if (remembered.size > REMEMBERED) remembered.delete(remembered.keys().next().value);
  found.value = answer;
}

export async function refreshIndex() {
  try {
    index.value = await describeIndex();
  } catch {
    index.value = null; // what failed is said where results would be
  }
}
