// For operators: rebuild the index and watch, list the snapshots, roll back. The key stays in this tab.

import { activate, cancel, job, reindex, snapshots } from "./api.js";
import { html, useEffect, useState } from "./html.js";
import { refreshIndex } from "./search.js";

const KEY = "kindred-admin-key";
const JOB = "kindred-job";
const POLL_MS = 500;
const NO_ROUTES = "This service has no admin routes: it was started without KINDRED_ADMIN_KEY.";

export function Admin() {
  const [key, setKey] = useState(sessionStorage.getItem(KEY) ?? "");
  const [list, setList] = useState(null);
  const [problem, setProblem] = useState(null);
  const guard = async (act) => {
    try {
      setProblem(null);
      return await act();
    } catch (error) {
      setProblem(error.status === 404 && error.code === "not_found" ? { message: NO_ROUTES } : error);
      if (error.status === 401) leave();
      return null;
    }
  };
  const look = async () => setList((await guard(() => snapshots(key))) ?? null);
  const leave = () => {
    sessionStorage.removeItem(KEY);
    setKey("");
    setList(null);
  };
  useEffect(() => {
    if (key) look();
  }, [key]);
  const enter = (given) => {
    sessionStorage.setItem(KEY, given);
    setKey(given);
  };
  return html`<div class="admin">
    <div class="admin-head"><h1>Admin</h1>${list && html`<button type="button" class="plain" onClick=${leave}>Forget the key</button>`}</div>
    ${problem && html`<p class="note" role="alert">${problem.message}</p>`}
    ${list ? html`<${Reindex} adminKey=${key} guard=${guard} done=${look} /><${Snapshots} list=${list} adminKey=${key} guard=${guard} done=${look} />` : html`<${Entrance} enter=${enter} />`}
  </div>`;
}

function Entrance({ enter }) {
  const submit = (event) => {
    event.preventDefault();
    enter(new FormData(event.currentTarget).get("key").trim());
  };
  return html`<form class="card" onSubmit=${submit}>
    <p>To rebuild the index or to go back to an earlier one, give the admin key. It is kept in this tab only.</p>
    <label class="written"><span>Admin key</span><input type="password" name="key" autocomplete="off" required /></label>
    <button type="submit" class="button">Continue</button>
  </form>`;
}

function Reindex({ adminKey, guard, done }) {
  const [now, setNow] = useState(null);
  const running = now !== null && now.finished_at === null;
  useEffect(() => {
    const id = sessionStorage.getItem(JOB);
    if (id) job(id, adminKey).then(setNow).catch(() => sessionStorage.removeItem(JOB));
  }, []);
  useEffect(() => {
    if (!running) return undefined;
    const timer = setTimeout(async () => {
      const next = await guard(() => job(now.id, adminKey));
      if (next) setNow(next);
      if (next?.finished_at) {
        done();
        refreshIndex();
      }
    }, POLL_MS);
    return () => clearTimeout(timer);
  }, [now]);
  const begin = async () => {
    const begun = await guard(() => reindex({}, adminKey));
    if (begun) sessionStorage.setItem(JOB, begun.id);
    if (begun) setNow(begun);
  };
  const halt = async () => setNow((await guard(() => cancel(now.id, adminKey))) ?? now);
  return html`<section class="card">
    <h2>Rebuild the index</h2>
    <p>Reads the same sources again: what is new or changed is encoded, what is gone is left out. Searches go on meanwhile.</p>
    <div class="acts"><button type="button" class="button" disabled=${running} onClick=${begin}>Start a reindex</button>
      ${running && html`<button type="button" class="button quiet" onClick=${halt}>Cancel it</button>`}</div>
    ${now && html`<${Progress} now=${now} running=${running} />`}
  </section>`;
}

function Progress({ now, running }) {
  const { stage, done, total, seconds_left: left, state, error } = now;
  const counts = ["new", "changed", "moved", "unchanged", "deleted", "encoded", "reused"].filter((name) => typeof now[name] === "number");
  return html`<div class="progress">
    <progress max=${total || 1} value=${running ? (total ? done : undefined) : 1} aria-label="Progress of the reindex"></progress>
    <p role="status"><strong>${state}</strong>${running && stage ? html` · ${stage}${total ? `: ${done.toLocaleString("en")} of ${total.toLocaleString("en")}` : ""}` : ""}${running && left ? ` · ${Math.ceil(left)} s left` : ""}</p>
    ${counts.length > 0 && html`<p class="hint">${counts.map((name) => `${now[name].toLocaleString("en")} ${name}`).join(" · ")}</p>`}
    ${error && html`<p role="alert">${error}</p>`}
  </div>`;
}

function Snapshots({ list, adminKey, guard, done }) {
  const [asked, setAsked] = useState(null);
  const roll = async (id) => {
    setAsked(null);
    if (await guard(() => activate(id, adminKey))) refreshIndex();
    done();
  };
  return html`<section class="card">
    <h2>Snapshots</h2>
    <div class="table" tabindex="0" role="region" aria-label="Snapshots"><table>
      <thead><tr><th scope="col">Snapshot</th><th scope="col">Built</th><th scope="col">Pictures</th><th scope="col">Encoder</th><th scope="col">Index</th><th scope="col"><span class="unseen">Roll back</span></th></tr></thead>
      <tbody>${list.map((each) => html`<tr key=${each.id} aria-current=${each.current ? "true" : undefined}>
        <th scope="row">${each.id}</th><td>${new Date(each.created_at).toLocaleString()}</td><td>${each.count.toLocaleString("en")}</td><td>${each.encoder.model}</td><td>${each.factory}</td>
        <td>${each.current
          ? html`<span class="badge">current</span>`
          : asked === each.id
            ? html`<button type="button" class="button" onClick=${() => roll(each.id)}>Yes, serve it</button> <button type="button" class="button quiet" onClick=${() => setAsked(null)}>No</button>`
            : html`<button type="button" class="button quiet" aria-label=${`Roll back to ${each.id}`} onClick=${() => setAsked(each.id)}>Roll back</button>`}</td>
      </tr>`)}</tbody>
    </table></div>
  </section>`;
}
