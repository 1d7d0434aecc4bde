// The service's API: every answer as JSON, every failure as a Problem whose message is a sentence for people.

export class Problem extends Error {
  constructor(detail, status = 0, code = "") {
    super(detail);
    this.status = status;
    this.code = code;
  }
}

const UNREACHABLE = "The service cannot be reached. See whether it is running, then try again.";

async function request(path, { method = "GET", body, key, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const given = key ?? sessionStorage.getItem("kindred-admin-key");
  if (given) headers.Authorization = `Bearer ${given}`;
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem(UNREACHABLE);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Problem(problem.detail ?? `The service answered with status ${response.status}.`, response.status, problem.code);
}

async function json(path, options) {
  return (await request(path, options)).json();
}

const at = encodeURIComponent;

export const describeIndex = () => json("/v1/index");
export const search = (body, signal) => json("/v1/search", { method: "POST", body, signal });
export const browse = (parameters, signal) => json(`/v1/items?${new URLSearchParams(parameters)}`, { signal });
export const describeItem = (id, signal) => json(`/v1/items/${at(id)}`, { signal });
export const classify = (body, signal) => json("/v1/classify", { method: "POST", body, signal });
export const layOut = (body, signal) => json("/v1/map", { method: "POST", body, signal });

/** A picture of what in an item resembles a query, as a blob. */
export async function similarityMap(id, query, signal) {
  return (await request(`/v1/items/${at(id)}/similarity-map`, { method: "POST", body: { query }, signal })).blob();
}

export const snapshots = (key) => json("/admin/v1/snapshots", { key });
export const reindex = (options, key) => json("/admin/v1/reindex", { method: "POST", body: options, key });
export const job = (id, key) => json(`/admin/v1/jobs/${at(id)}`, { key });
export const cancel = (id, key) => json(`/admin/v1/jobs/${at(id)}`, { method: "DELETE", key });
export const activate = (id, key) => json(`/admin/v1/snapshots/${at(id)}/activate`, { method: "POST", key });

export const thumbnailOf = (id) => `/v1/items/${at(id)}/thumbnail`;
