// What narrows the results: cut-off, variety, facets, a filter for experts.

import { html, useEffect, useRef, useState } from "./html.js";
import { go, isSearch, place } from "./place.js";
import { found, index } from "./search.js";

const FEW = 8;
const PAUSE_MS = 200;

export function Filters({ shown }) {
  const at = place.value;
  const { facets, items } = found.value;
  const learnt = index.value?.relevance;
  const calibrated = items.length ? items.some((item) => typeof item.relevance === "number") : Boolean(learnt?.text ?? learnt?.image);
  const narrowed = at.relevance || at.score || at.expert || at.ignore || Object.keys(at.chosen).length;
  return html`<section class=${`filters ${shown ? "shown" : ""}`} id="filters" aria-label="Filters">
    ${isSearch(at) && html`<div class="how">
      ${calibrated
        ? html`<${Slider} name="relevance" label="Least relevance" value=${at.relevance} write=${percent} />`
        : html`<${Slider} name="score" label="Least score" value=${at.score} write=${(value) => value.toFixed(2)} />`}
      <${Slider} name="variety" label="Variety" value=${at.variety} write=${percent} />
      <label class="check"><input type="checkbox" checked=${!at.all} onChange=${(event) => go({ all: !event.currentTarget.checked })} /><span>Stack pictures that show the same</span></label>
      <${Written} name="ignore" label="Do not look at" placeholder="red, blue, green" value=${at.ignore} />
    </div>`}
    ${Object.keys({ ...facets, ...at.chosen }).map((key) => html`<${Facet} key=${key} name=${key} counts=${facets[key] ?? []} chosen=${at.chosen[key] ?? []} />`)}
    <details class="expert" open=${Boolean(at.expert)}>
      <summary>Filter in JSON</summary>
      <${Written} name="expert" label="Conditions, in Qdrant’s grammar" placeholder='{"must": [{"key": "label", "match": {"value": "star"}}]}' value=${at.expert} lines=${4} />
    </details>
    ${narrowed ? html`<button type="button" class="plain" onClick=${clearFilters}>Clear all filters</button>` : null}
  </section>`;
}

export const clearFilters = () => go({ relevance: 0, score: 0, chosen: {}, expert: "", ignore: "" });

const percent = (value) => `${Math.round(value * 100)}%`;

/** Call with the last value only, once no other came for a moment. */
function useSettled(act) {
  const timer = useRef(0);
  useEffect(() => () => clearTimeout(timer.current), []);
  return (value) => {
    clearTimeout(timer.current);
    timer.current = setTimeout(act, PAUSE_MS, value);
  };
}

export function Slider({ name, label, value, write }) {
  const [shown, setShown] = useState(value);
  useEffect(() => setShown(value), [value]);
  const settle = useSettled((next) => go({ [name]: next }, { replace: true }));
  const slide = (event) => {
    const next = Number(event.currentTarget.value);
    setShown(next);
    settle(next);
  };
  return html`<label class="slider"><span>${label}</span><output>${shown ? write(shown) : "off"}</output>
    <input type="range" min="0" max="1" step="0.01" value=${shown} onInput=${slide} aria-label=${label} aria-valuetext=${shown ? write(shown) : "off"} /></label>`;
}

function Written({ name, label, placeholder, value, lines }) {
  // What is being written is not lost when something else, such as the counts of the facets, comes meanwhile.
  const [draft, setDraft] = useState({ of: value, text: value });
  const written = draft.of === value ? draft.text : value;
  const keep = (event) => setDraft({ of: value, text: event.currentTarget.value });
  const write = (event) => go({ [name]: event.currentTarget.value });
  const field = lines
    ? html`<textarea rows=${lines} spellcheck="false" placeholder=${placeholder} value=${written} onInput=${keep} onChange=${write}></textarea>`
    : html`<input type="text" placeholder=${placeholder} value=${written} onInput=${keep} onChange=${write} />`;
  return html`<label class="written"><span>${label}</span>${field}</label>`;
}

function Facet({ name, counts, chosen }) {
  const [all, setAll] = useState(false);
  const values = [...counts, ...chosen.filter((value) => !counts.some((each) => each.value === value)).map((value) => ({ value, count: 0 }))];
  if (!values.length) return null;
  const shown = all ? values : values.filter((each, place) => place < FEW || chosen.includes(each.value));
  const turn = (value) => {
    const next = chosen.includes(value) ? chosen.filter((each) => each !== value) : [...chosen, value];
    const { [name]: _, ...others } = place.peek().chosen;
    go({ chosen: next.length ? { ...others, [name]: next } : others });
  };
  return html`<fieldset class="facet">
    <legend>${titled(name)}</legend>
    ${shown.map(({ value, count }) => html`<label class="check" key=${String(value)}>
      <input type="checkbox" checked=${chosen.includes(value)} onChange=${() => turn(value)} /><span>${String(value)}</span><span class="count">${count.toLocaleString("en")}</span>
    </label>`)}
    ${values.length > FEW && html`<button type="button" class="plain" aria-expanded=${all} onClick=${() => setAll(!all)}>${all ? "Show fewer" : `Show all ${values.length}`}</button>`}
  </fieldset>`;
}

function titled(key) {
  const name = key.replace(/^metadata\./, "").replace(/^"|"$/g, "").replaceAll("_", " ");
  return name[0].toUpperCase() + name.slice(1);
}
