// What carried a result: the shares of the query's parts, the words that hold and those that do not, and where.

import { search, similarityMap, thumbnailOf } from "./api.js";
import { html, useEffect, useState } from "./html.js";
import { place } from "./place.js";
import { filterOf, queryOf, searchBody } from "./request.js";
import { parse } from "./shorthand.js";
import { Shown } from "./shown.js";

export function Why({ hit }) {
  const answer = useAnswer(() => explain(hit.id), [hit.id]);
  if (!answer) return html`<p>Asking …</p>`;
  if (answer.problem) return html`<p role="alert">${answer.problem.message}</p>`;
  const { parts = [], words = [] } = answer.explanation ?? {};
  return html`${parts.length > 0 && html`<h3>Parts of the query</h3>
      <ul class="bars">${parts.map((each) => html`<li key=${each.part}><span>${named(each.part)}</span><span class="count">${signed(each.share ?? each.score)}</span><meter min="0" max="1" value=${Math.max(0, each.share ?? each.score)} aria-label=${named(each.part)}></meter></li>`)}</ul>`}
    ${words.length > 0 && html`<h3>Words</h3><p class="hint">How much the score falls without the word. Below 0, the word does not hold.</p>
      <ul class="words">${words.map((each, number) => html`<li key=${number} class=${each.effect < 0 ? "against" : ""}><span>${each.word}</span><span class="count">${signed(each.effect)}</span></li>`)}</ul>`}
    ${!parts.length && !words.length && html`<p>Nothing more is known than the score, ${hit.score.toFixed(3)}.</p>`}
    <${Where} id=${hit.id} />`;
}

function Where({ id }) {
  const answer = useAnswer(async () => ({ url: URL.createObjectURL(await similarityMap(id, queryOf(place.peek()))) }), [id]);
  if (!answer) return null;
  return html`<h3>Where in the picture</h3>
    ${answer.problem ? html`<p class="hint">${answer.problem.message}</p>` : html`<div class="where"><${Shown} src=${thumbnailOf(id)} alt="" /><img src=${answer.url} alt="Red where the picture is most like the query" /></div>`}`;
}

function useAnswer(ask, what) {
  const [answer, setAnswer] = useState(null);
  useEffect(() => {
    let current = true;
    ask()
      .catch((problem) => ({ problem }))
      .then((given) => current && setAnswer(given));
    return () => (current = false);
  }, what);
  return answer;
}

/** The same search among this picture alone, explained. */
async function explain(id) {
  const at = { ...place.peek(), relevance: 0, score: 0, variety: 0, all: true };
  const filter = { must: [{ has_id: [id] }, ...(filterOf(at)?.must ?? [])] };
  const { results } = await search({ ...searchBody(at, { filter, limit: 1 }), explain: true });
  return results[0] ?? {};
}

const signed = (value) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(3);

/** What the part of the query at a place such as `/query/0` is. */
function named(pointer) {
  const query = queryOf(place.peek());
  const part = (typeof query === "string" ? parse(query) : query)[Number(pointer.split("/").pop())];
  const what = part.text ? `“${part.text}”` : part.region ? "the part of a picture" : "the picture";
  return part.weight < 0 ? `not ${what}` : what;
}
