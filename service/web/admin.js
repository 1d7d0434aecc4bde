// For operators: rebuild the index and watch, list the snapshots, roll back. The key stays in this tab.

import { forget, hold, key } from "./access.js";
import { activate, cancel, job, reindex, snapshots } from "./api.js";
import { html, useEffect, useState } from "./html.js";
import { refreshIndex } from "./search.js";
import { KeyForm } from "./unlock.js";

const JOB = "kindred-job";
const POLL_MS = 500;
const NO_ROUTES = "This service has no admin routes: it was started without KINDRED_ADMIN_KEY.";
const REFUSED = ["unauthorized", "scope_missing"];
const NO_SCOPE = "This key may not administer; enter one that may.";

export function Admin() {
  const [list, setList] = useState(null);
  const [problem, setProblem] = useState(null);
  const guard = async (act) => {
    try {
      setProblem(null);
      return await act();
    } catch (error) {
      setProblem(said(error));
      if (REFUSED.includes(error.code)) setList(null);
      return null;
    }
  };
  const look = async (given) => {
    const found = await guard(() => snapshots(given));
    setList(found);
    return found;
  };
  useEffect(() => {
    if (key.value) look();
  }, [key.value]);
  // One that may not administer is not kept: the one before may be good for searching.
  const enter = async (given) => (await look(given)) && hold(given);
  return html`<div class="admin">
    <div class="admin-head"><h1>Admin</h1>${list && html`<button type="button" class="plain" onClick=${forget}>Forget the key</button>`}</div>
    ${problem && html`<p class="note" role="alert">${problem}</p>`}
    ${list ? html`<${Reindex} guard=${guard} done=${look} /><${Snapshots} list=${list} guard=${guard} done=${look} />` : html`<${Entrance} enter=${enter} />`}
  </div>`;
}

function said({ status, code, message }) {
  if (code === "scope_missing") return NO_SCOPE;
  return status === 404 && code === "not_found" ? NO_ROUTES : message;
}

const Entrance = ({ enter }) => html`<div class="card">
    <p>To rebuild the index or to go back to an earlier one, give the admin key. It is kept in this tab only.</p>
    <${KeyForm} label="Admin key" enter=${enter} />
  </div>`;

function Reindex({ guard, done }) {
  const [now, setNow] = useState(null);
  const running = now !== null && now.finished_at === null;
  useEffect(() => {
    const id = sessionStorage.getItem(JOB);
    if (id) job(id).then(setNow).catch(() => sessionStorage.removeItem(JOB));
  }, []);
  useEffect(() => {
    if (!running) return undefined;
    const timer = setTimeout(async () => {
      const next = await guard(() => job(now.id));
      if (next) setNow(next);
      if (next?.finished_at) {
        done();
        refreshIndex();
      }
    }, POLL_MS);
    return () => clearTimeout(timer);
  }, [now]);
  const begin = async () => {
    const begun = await guard(() => reindex({}));
    if (begun) sessionStorage.setItem(JOB, begun.id);
    if (begun) setNow(begun);
  };
  const halt = async () => setNow((await guard(() => cancel(now.id))) ?? now);
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

function Snapshots({ list, guard, done }) {
  const [asked, setAsked] = useState(null);
  const roll = async (id) => {
    setAsked(null);
    if (await guard(() => activate(id))) refreshIndex();
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
