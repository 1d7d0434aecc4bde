// The service's API: every answer as JSON, every failure as a Problem whose message is a sentence for people.

import { askForKey, key } from "./access.js";

export class Problem extends Error {
  constructor(detail, status = 0, code = "") {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

const UNREACHABLE = "The service cannot be reached. See whether it is running, then try again.";
const BAD_KEY = "This key is not good. It may be mistyped, expired or revoked.";
const NO_KEY = "The service answers only those who have a key.";

/** Ask with the key that the visitor has; where the service wants another, ask them for it, and then again. */
async function request(path, options) {
  const given = key.peek();
  try {
    return await requestWith(given, path, options);
  } catch (problem) {
    if (problem.status !== 401) throw problem;
    // Meanwhile another one may have been entered, for something else.
    if (given === key.peek() && !(await askForKey(given && BAD_KEY))) throw new Problem(NO_KEY, 401, problem.code);
    return request(path, options);
  }
}

async function requestWith(given, path, { method = "GET", body, signal, priority } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (given) headers.Authorization = `Bearer ${given}`;
  let response;
  try {
    response = await fetch(path, { method, headers, signal, priority, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(UNREACHABLE);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Problem(problem.detail ?? `The service answered with status ${response.status}.`, response.status, problem.code);
}

/** See that a key is good, if not for everything; throws a Problem if it is not. */
export async function tryKey(given) {
  try {
    await requestWith(given, "/v1/index");
  } catch (problem) {
    if (problem.status === 401) throw new Problem(BAD_KEY, 401, problem.code);
    if (![403, 503].includes(problem.status)) throw problem; // of another scope, or nothing is served yet
  }
}

async function json(path, options) {
  return (await request(path, options)).json();
}

const at = encodeURIComponent;

// What is asked by the way shall not make the visitor be asked for a key.
export const describeIndex = async () => (await requestWith(key.peek(), "/v1/index")).json();
export const fetchPicture = async (path, signal) => (await requestWith(key.peek(), path, { signal, priority: "low" })).blob();

export const search = (body, signal) => json("/v1/search", { method: "POST", body, signal });
export const browse = (parameters, signal) => json(`/v1/items?${new URLSearchParams(parameters)}`, { signal });
export const describeItem = (id, signal) => json(`/v1/items/${at(id)}`, { signal });
export const classify = (body, signal) => json("/v1/classify", { method: "POST", body, signal });
export const layOut = (body, signal) => json("/v1/map", { method: "POST", body, signal });

/** A picture of what in an item resembles a query, as a blob. */
export async function similarityMap(id, query, signal) {
  return (await request(`/v1/items/${at(id)}/similarity-map`, { method: "POST", body: { query }, signal })).blob();
}

// The admin panel has a field of its own for a key.
const administer = async (path, options, given = key.peek()) => (await requestWith(given, `/admin/v1/${path}`, options)).json();

export const snapshots = (given) => administer("snapshots", {}, given);
export const reindex = (options) => administer("reindex", { method: "POST", body: options });
export const job = (id) => administer(`jobs/${at(id)}`);
export const cancel = (id) => administer(`jobs/${at(id)}`, { method: "DELETE" });
export const activate = (id) => administer(`snapshots/${at(id)}/activate`, { method: "POST" });

export const thumbnailOf = (id) => `/v1/items/${at(id)}/thumbnail`;
