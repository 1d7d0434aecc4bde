// The pictures that a query is made of, each with its weight.

import { open, remove, weigh } from "./actions.js";
import { thumbnailOf } from "./api.js";
import { html } from "./html.js";
import { icon } from "./icons.js";
import { place } from "./place.js";
import { Shown } from "./shown.js";
import { uploads } from "./uploads.js";

export function Chips() {
  const { parts } = place.value;
  if (!parts.length) return null;
  return html`<ul class="chips" aria-label="Pictures in the query">
    ${parts.map((part) => html`<${Chip} key=${`${part.id}${part.upload}${part.box}`} part=${part} />`)}
  </ul>`;
}

function Chip({ part }) {
  const upload = part.upload && uploads.value.get(part.upload);
  const source = part.id ? thumbnailOf(part.id) : upload?.url;
  const what = `${part.box ? "a part of " : ""}${part.id ? "a picture of the index" : (upload?.title ?? "a picture from your device")}`;
  return html`<li class=${`chip ${part.weight < 0 ? "against" : ""}`}>
    <button type="button" class="chip-picture" disabled=${!source} aria-label=${`Open ${what}`} onClick=${() => open(part.id ?? `upload.${part.upload}`)}>
      ${source ? html`<${Shown} src=${source} alt="" width="40" height="40" />` : icon("picture")}
      ${part.box && html`<span class="crop" style=${placed(part.box)}></span>`}
    </button>
    <span class="chip-word">${part.weight < 0 ? "unlike" : part.box ? "this part" : "like this"}</span>
    <input type="number" class="weight" step="0.25" min="-5" max="5" aria-label=${`Weight of ${what}`} title="Weight; below 0 is unlike" value=${part.weight}
      onChange=${(event) => weigh(part, Number(event.currentTarget.value))} />
    <button type="button" class="inner" aria-label=${`Remove ${what} from the query`} title="Remove" onClick=${() => remove(part)}>${icon("close")}</button>
  </li>`;
}

export function placed([left, top, right, bottom]) {
  const percent = (share) => `${share * 100}%`;
  return { left: percent(left), top: percent(top), width: percent(right - left), height: percent(bottom - top) };
}
