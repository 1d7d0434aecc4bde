// What a picture shows, by the votes of the labelled pictures nearest to it, and those pictures as the evidence.

import { nameOf, open } from "./actions.js";
import { classify } from "./api.js";
import { Slider } from "./filters.js";
import { html, useEffect, useState } from "./html.js";
import { place } from "./place.js";
import { picturePart } from "./request.js";
import { Shown } from "./shown.js";

const SHOWN_CLASSES = 5;
const NEIGHBOURS = 21;

export function Classification({ part }) {
  const { confidence } = place.value;
  const [answer, setAnswer] = useState(null);
  useEffect(() => {
    const asked = new AbortController();
    classify({ ...picturePart(part), k: NEIGHBOURS, ...(confidence > 0 && { min_confidence: confidence }) }, asked.signal)
      .then(setAnswer)
      .catch((problem) => asked.signal.aborted || setAnswer({ problem }));
    return () => asked.abort();
  }, [part.id, part.upload, confidence]);
  return html`<${Slider} name="confidence" label="Give a label only from a confidence of" value=${confidence} write=${percent} />
    ${!answer ? html`<p>Asking the neighbours …</p>` : answer.problem ? html`<p role="alert">${answer.problem.message}</p>` : html`<${Verdict} answer=${answer} />`}`;
}

const percent = (value) => `${Math.round(value * 100)}%`;

function Verdict({ answer }) {
  const { label, confidence, abstained, classes, neighbors } = answer;
  return html`<p class="verdict" aria-live="polite">${abstained
      ? html`<strong>No label</strong> <span>The best guess is “${classes[0].label}”, and not sure enough.</span>`
      : html`<strong>${label}</strong>`}
      ${typeof confidence === "number" && html`<span>right with a probability of ${percent(confidence)}</span>`}</p>
    <h3>Votes</h3>
    <ul class="bars">${classes.slice(0, SHOWN_CLASSES).map((each) => html`<li key=${each.label}><span>${each.label}</span><span class="count">${percent(each.probability)}</span><meter min="0" max="1" value=${each.probability} aria-label=${`Votes for ${each.label}`}></meter></li>`)}</ul>
    <h3>The ${neighbors.length} pictures that voted</h3>
    <ul class="voters">${neighbors.map((each) => html`<li key=${each.id}>
      <button type="button" onClick=${() => open(each.id, "classify")}><${Shown} src=${each.thumbnail} alt=${nameOf(each)} width="72" height="72" loading="lazy" /></button>
      <span>${each.label}</span><span class="count">${each.score.toFixed(2)}</span></li>`)}</ul>`;
}
