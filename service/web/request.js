// From a place to what the service is asked.

import { Problem } from "./api.js";
import { isSearch } from "./place.js";
import { parse } from "./shorthand.js";
import { uploads } from "./uploads.js";

export const PAGE = 50;
const ADDRESS = /^https?:\/\/\S+$/;

/** The uploads that a place names and this page does not have: it was reloaded, or the link came from elsewhere. */
export const lost = (at) => at.parts.filter(({ upload }) => upload && !uploads.value.has(upload));

/** The part of a query that is a picture, or the part of one. */
export function picturePart({ id, upload, box }) {
  const picture = id ? { id } : { image: uploads.peek().get(upload).data };
  return box ? { region: { ...picture, box } } : picture;
}

export function queryOf(at) {
  const text = at.text.trim();
  if (ADDRESS.test(text)) return [{ image_url: text }, ...at.parts.map(weighted)];
  if (!at.parts.length) return text;
  return [...(text ? written(text) : []), ...at.parts.map(weighted)];
}

const weighted = (part) => ({ ...picturePart(part), weight: part.weight });

function written(text) {
  try {
    return parse(text);
  } catch (error) {
    throw new Problem(error.message);
  }
}

/** The filter of a place, or null; `without` leaves one facet out, to count what else it could be. */
export function filterOf(at, without = null) {
  const must = Object.entries(at.chosen)
    .filter(([key]) => key !== without)
    .map(([key, values]) => ({ key, match: { any: values } }));
  if (at.expert.trim()) must.push(expert(at.expert));
  return must.length ? { must } : null;
}

function expert(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Problem(`The filter is not JSON yet: ${error.message}`);
  }
}

/** The body of a search for a place. */
export function searchBody(at, { facets = [], cursor = null, filter = filterOf(at), limit = PAGE } = {}) {
  const ignore = at.ignore.split(",").map((text) => text.trim()).filter(Boolean);
  return {
    query: queryOf(at),
    limit,
    ...(filter && { filter }),
    ...(facets.length && { facets }),
    ...(cursor && { cursor }),
    ...(ignore.length && { suppress: ignore }),
    ...(at.relevance > 0 && { min_relevance: at.relevance }),
    ...(at.score > 0 && { min_score: at.score }),
    ...(at.variety > 0 && { diversity: at.variety }),
    ...(!at.all && { collapse_duplicates: true }),
  };
}

/** The parameters of browsing, where nothing is searched for. */
export function browseParameters(at, { facets = [], cursor = null, filter = filterOf(at), limit = PAGE } = {}) {
  return {
    limit,
    ...(filter && { filter: JSON.stringify(filter) }),
    ...(facets.length && { facets: facets.join(",") }),
    ...(cursor && { cursor }),
  };
}

/** What tells one list of results from another. */
export function resultsKey(at) {
  return JSON.stringify(isSearch(at) ? { ...at, view: "", item: "", panel: "", confidence: 0 } : [at.chosen, at.expert]);
}
