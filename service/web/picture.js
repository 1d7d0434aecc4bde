// One picture, opened over the page: large, with what is known of it and what can be done with it.

import { isUpload, nameOf, refine, shut, similar, step } from "./actions.js";
import { describeItem, Problem } from "./api.js";
import { Classification } from "./classify.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { icon } from "./icons.js";
import { go, isSearch, place } from "./place.js";
import { RegionPicker } from "./region.js";
import { found } from "./search.js";
import { Shown } from "./shown.js";
import { useFit } from "./sizes.js";
import { uploads } from "./uploads.js";
import { Why } from "./why.js";

export function Picture() {
  const { item } = place.value;
  const dialog = useRef(null);
  useEffect(() => {
    if (item && !dialog.current.open) dialog.current.showModal();
    if (!item && dialog.current.open) dialog.current.close();
  }, [item]);
  const press = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && !event.target.closest("input, [role=tablist], [role=application]")) step(by);
  };
  // Closing goes by way of the history, so that Back and Esc are the same.
  const cancel = (event) => {
    event.preventDefault();
    shut();
  };
  return html`<dialog class="picture" ref=${dialog} aria-label="Picture" onCancel=${cancel} onKeyDown=${press} onClick=${(event) => event.target === dialog.current && shut()}>
    ${item && html`<${Opened} key=${item} name=${item} />`}
  </dialog>`;
}

/** Read what is known of the picture, or tell why that is not there. */
function useSubject(name) {
  const [subject, setSubject] = useState(null);
  useEffect(() => {
    const asked = new AbortController();
    if (isUpload(name)) {
      const upload = name.slice("upload.".length);
      const kept = uploads.peek().get(upload);
      setSubject(kept ? { part: { upload }, image: kept.url, caption: kept.title, metadata: {} } : { problem: new Problem("This picture was on your device; choose it again to search with it.") });
    } else {
      describeItem(name, asked.signal)
        .then((item) => setSubject({ ...item, part: { id: name } }))
        .catch((problem) => asked.signal.aborted || setSubject({ problem }));
    }
    return () => asked.abort();
  }, [name]);
  return subject;
}

function Opened({ name }) {
  const subject = useSubject(name);
  const hit = found.value.items.find(({ id }) => id === name);
  const { panel } = place.value;
  const number = found.value.items.indexOf(hit);
  return html`<div class="stage">
      ${subject?.image && (panel === "part" ? html`<${RegionPicker} subject=${subject} />` : html`<${Large} subject=${subject} thumbnail=${hit?.thumbnail} />`)}
    </div>
    <div class="facts">
      <div class="dialog-head">
        <h2>${subject ? (subject.problem ? "Not found" : nameOf(subject)) : " "}</h2>
        <span class="steps">
          <button type="button" class="tool" aria-label="The picture before" title="Before (←)" disabled=${number < 1} onClick=${() => step(-1)}>${icon("before")}</button>
          <button type="button" class="tool" aria-label="The picture after" title="After (→)" disabled=${number < 0 || number + 1 >= found.value.items.length} onClick=${() => step(1)}>${icon("after")}</button>
          <button type="button" class="tool" aria-label="Close" title="Close (Esc)" onClick=${shut}>${icon("close")}</button>
        </span>
      </div>
      ${subject?.problem && html`<p role="alert">${subject.problem.message}</p>`}
      ${subject && !subject.problem && html`<${Acts} part=${subject.part} panel=${panel} /><${Tabs} subject=${subject} hit=${hit} panel=${panel} />`}
    </div>`;
}

// The thumbnail is there already, and is what remains if the file is not.
function Large({ subject, thumbnail }) {
  const [gone, setGone] = useState(false);
  const source = gone ? (thumbnail ?? subject.thumbnail) : subject.image;
  const [size, measure] = useFit(subject);
  return html`<figure>
    <${Shown} class="large" src=${source} alt=${nameOf(subject)} style=${size} onLoad=${measure} onError=${() => setGone(true)} />
    ${gone && html`<figcaption>The file itself cannot be shown; this is its thumbnail.</figcaption>`}
  </figure>`;
}

function Acts({ part, panel }) {
  const choosing = panel === "part";
  return html`<div class="acts">
    <button type="button" class="button" onClick=${() => similar(part)}>${icon("similar")}More like this</button>
    ${part.id && html`<button type="button" class="button quiet" onClick=${() => refine(part.id, 1)}>${icon("plus")}More of this</button>
      <button type="button" class="button quiet" onClick=${() => refine(part.id, -1)}>${icon("minus")}Less of this</button>`}
    <button type="button" class="button quiet" aria-pressed=${choosing} onClick=${() => go({ panel: choosing ? "about" : "part" }, { replace: true })}>${icon("crop")}Search a part</button>
  </div>`;
}

function Tabs({ subject, hit, panel }) {
  const names = { about: "About", classify: "Classify", ...(hit && isSearch(place.value) && { why: "Why this" }) };
  const now = names[panel] ? panel : "about";
  const turn = (to) => go({ panel: to }, { replace: true });
  const press = (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const keys = Object.keys(names);
    const to = keys[(keys.indexOf(now) + by + keys.length) % keys.length];
    turn(to);
    document.getElementById(`tab-${to}`).focus();
  };
  return html`<div role="tablist" class="tabs" aria-label="About the picture" onKeyDown=${press}>
      ${Object.entries(names).map(([key, word]) => html`<button type="button" role="tab" key=${key} id=${`tab-${key}`} aria-selected=${now === key} aria-controls="panel" tabindex=${now === key ? 0 : -1} onClick=${() => turn(key)}>${word}</button>`)}
    </div>
    <div role="tabpanel" class="panel" id="panel" tabindex="0" aria-labelledby=${`tab-${now}`}>
      ${now === "classify" ? html`<${Classification} part=${subject.part} />` : now === "why" ? html`<${Why} hit=${hit} />` : html`<${About} subject=${subject} hit=${hit} />`}
    </div>`;
}

function About({ subject, hit }) {
  const { label, caption, path, width, height, media_type: type, metadata, id } = subject;
  const rows = {
    Relevance: typeof hit?.relevance === "number" ? `${Math.round(hit.relevance * 100)}%` : null,
    Score: hit?.score?.toFixed(3),
    Label: label,
    Caption: caption,
    Path: path,
    Size: width && `${width} × ${height}, ${type}`,
    ...metadata,
    Id: id,
  };
  const there = Object.entries(rows).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return html`<dl class="rows">${there.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${written(value)}</dd></div>`)}</dl>`;
}

const written = (value) => (Array.isArray(value) ? value.map(written).join(", ") : typeof value === "object" && value ? JSON.stringify(value) : String(value));
