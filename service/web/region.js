// A box on a picture, to search with what is in it: drawn with a pointer, or moved and sized with the arrow keys.

import { nameOf, similar } from "./actions.js";
import { placed } from "./chips.js";
import { html, useRef, useState } from "./html.js";
import { Shown } from "./shown.js";
import { useFit } from "./sizes.js";

const STEP = 0.02;
const LEAST = 0.02; // of the picture's width and height: a click is no box
const START = [0.25, 0.25, 0.75, 0.75];

export function RegionPicker({ subject }) {
  const [box, setBox] = useState(START);
  const [size, measure] = useFit(subject);
  const drag = useRef(null);
  const surface = useRef(null);
  const search = () => similar({ ...subject.part, box: box.map((side) => Math.round(side * 1000) / 1000) });
  const begin = (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    surface.current.focus();
    surface.current.setPointerCapture(event.pointerId);
    drag.current = { from: share(event, surface.current), before: box };
  };
  const draw = (event) => {
    if (!drag.current) return;
    const next = drawn(drag.current.from, share(event, surface.current));
    setBox(next[2] - next[0] >= LEAST && next[3] - next[1] >= LEAST ? next : drag.current.before);
  };
  const press = (event) => {
    if (event.key === "Enter") return search();
    const by = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
    if (!by) return undefined;
    event.preventDefault();
    return setBox(event.shiftKey ? sized(box, by) : moved(box, by));
  };
  return html`<div class="choose">
    <div class="surface" ref=${surface} style=${size} tabindex="0" role="application" aria-roledescription="box on the picture" aria-label=${`Box on the picture: ${said(box)}`} aria-describedby="box-help"
      onPointerDown=${begin} onPointerMove=${draw} onPointerUp=${() => (drag.current = null)} onPointerCancel=${() => (drag.current = null)} onKeyDown=${press}>
      <${Shown} src=${subject.image} alt=${nameOf(subject)} draggable=${false} onLoad=${measure} />
      <span class="box" style=${placed(box)}></span>
    </div>
    <p id="box-help">Draw a box. With keys: arrows move it, Shift and arrows change its size.</p>
    <p class="unseen" aria-live="polite">${said(box)}</p>
    <button type="button" class="button" onClick=${search}>Search with this part</button>
  </div>`;
}

/** Where a pointer is, as shares of the picture's width and height. */
function share(event, element) {
  const { left, top, width, height } = element.getBoundingClientRect();
  return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
}

const within = (value) => Math.min(1, Math.max(0, value));
const drawn = ([x, y], [u, v]) => [Math.min(x, u), Math.min(y, v), Math.max(x, u), Math.max(y, v)];

function moved([left, top, right, bottom], [x, y]) {
  const across = Math.min(1 - right, Math.max(-left, x));
  const down = Math.min(1 - bottom, Math.max(-top, y));
  return [left + across, top + down, right + across, bottom + down];
}

function sized([left, top, right, bottom], [x, y]) {
  return [left, top, Math.min(1, Math.max(left + 2 * LEAST, right + x)), Math.min(1, Math.max(top + 2 * LEAST, bottom + y))];
}

function said([left, top, right, bottom]) {
  const percent = (value) => `${Math.round(value * 100)}%`;
  return `from ${percent(left)} to ${percent(right)} across, from ${percent(top)} to ${percent(bottom)} down`;
}
