// The present results, or a sample of the collection, on a grid where neighbours look alike; to be zoomed and moved.

import { nameOf, open } from "./actions.js";
import { layOut, search } from "./api.js";
import { html, signal, useEffect, useRef, useState } from "./html.js";
import { isSearch, place } from "./place.js";
import { filterOf, searchBody } from "./request.js";
import { Message, Results } from "./results.js";
import { found } from "./search.js";
import { Shown } from "./shown.js";

const CELL = 72;
const SAMPLE = 400;
const NEAREST = 300;
const MOST = 8;
const STEP = 1.25;

/** How many pictures the map shows, of how many. */
export const mapped = signal(null);

export function MapView() {
  const { key, state, items } = found.value;
  const [map, setMap] = useState(null);
  const there = state === "ready" && items.length > 0;
  useEffect(() => {
    if (!there) return undefined;
    const asked = new AbortController();
    ask(place.peek(), asked.signal)
      .then((answer) => {
        mapped.value = answer.items.length;
        setMap(answer);
      })
      .catch((problem) => asked.signal.aborted || setMap({ problem }));
    return () => asked.abort();
  }, [key, there]);
  useEffect(() => () => (mapped.value = null), []);
  if (state !== "loading" && !there) return html`<${Results} />`;
  if (map?.problem) return html`<${Message} title="The map is not there" alert><p>${map.problem.message}</p><//>`;
  if (!map) return html`<div class="map waiting"><p>Sorting the pictures …</p></div>`;
  return html`<${Plane} map=${map} />`;
}

async function ask(at, signal) {
  if (isSearch(at)) {
    const { results } = await search(searchBody(at, { limit: NEAREST }), signal);
    return layOut({ ids: results.map(({ id }) => id) }, signal);
  }
  const filter = filterOf(at);
  return layOut({ limit: SAMPLE, ...(filter && { filter }) }, signal);
}

function Plane({ map }) {
  const frame = useRef(null);
  const [view, setView] = useState(null);
  const fit = () => setView(fitted(map, frame.current));
  useEffect(fit, [map]);
  const zoom = (by, event) => setView((now) => now && zoomed(now, by, event ? point(event, frame.current) : middle(frame.current)));
  const handlers = usePan(frame, setView, zoom);
  const size = { width: `${map.columns * CELL}px`, height: `${map.rows * CELL}px` };
  const transform = view ? `translate(${view.x}px, ${view.y}px) scale(${view.scale})` : "scale(0)";
  return html`<div class="map" ref=${frame} ...${handlers} role="group" aria-label=${`Map of ${map.items.length} pictures; arrows move among them, plus and minus zoom`}>
    <div class="plane" style=${{ ...size, transform }}>
      ${map.items.map((item, number) => html`<button type="button" class="spot" key=${item.id} data-at=${`${item.row},${item.column}`} tabindex=${number ? -1 : 0} style=${{ left: `${item.column * CELL}px`, top: `${item.row * CELL}px` }} onClick=${() => open(item.id)}><${Shown} src=${item.thumbnail} alt=${nameOf(item)} width="72" height="72" loading="lazy" decoding="async" draggable=${false} /></button>`)}
    </div>
    <div class="zoom"><button type="button" aria-label="Zoom in" onClick=${() => zoom(STEP)}>+</button><button type="button" aria-label="Zoom out" onClick=${() => zoom(1 / STEP)}>−</button><button type="button" aria-label="Show the whole map" onClick=${fit}>⤢</button></div>
  </div>`;
}

function fitted(map, frame) {
  const scale = Math.min(frame.clientWidth / (map.columns * CELL), frame.clientHeight / (map.rows * CELL));
  return { scale, x: (frame.clientWidth - map.columns * CELL * scale) / 2, y: (frame.clientHeight - map.rows * CELL * scale) / 2 };
}

/** Zoom about a point of the frame, which stays where it is. */
function zoomed({ scale, x, y }, by, [u, v]) {
  const next = Math.min(MOST, Math.max(0.1, scale * by));
  const ratio = next / scale;
  return { scale: next, x: u - (u - x) * ratio, y: v - (v - y) * ratio };
}

const middle = (frame) => [frame.clientWidth / 2, frame.clientHeight / 2];

function point(event, frame) {
  const { left, top } = frame.getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
}

/** Drag with one pointer, pinch with two, zoom with the wheel, walk with the arrows. */
function usePan(frame, setView, zoom) {
  const pointers = useRef(new Map());
  const dragged = useRef(false);
  useEffect(() => {
    // Not Preact's: a listener of the wheel that may prevent scrolling has to say so.
    const wheel = (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY / 400), event);
    };
    frame.current.addEventListener("wheel", wheel, { passive: false });
    const element = frame.current;
    return () => element.removeEventListener("wheel", wheel);
  }, []);
  const down = (event) => {
    pointers.current.set(event.pointerId, event);
    dragged.current = false;
  };
  const move = (event) => {
    const before = pointers.current.get(event.pointerId);
    if (!before) return;
    const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (!dragged.current && Math.hypot(x, y) < 4) return;
    dragged.current = true;
    const other = [...pointers.current.values()].find(({ pointerId }) => pointerId !== event.pointerId);
    pointers.current.set(event.pointerId, event);
    if (other) zoom(apart(event, other) / Math.max(1, apart(before, other)), event);
    else setView((now) => ({ ...now, x: now.x + x, y: now.y + y }));
  };
  const up = (event) => pointers.current.delete(event.pointerId);
  const click = (event) => {
    if (dragged.current) event.stopPropagation();
    dragged.current = false;
  };
  return { onPointerDown: down, onPointerMove: move, onPointerUp: up, onPointerCancel: up, onPointerLeave: up, onClickCapture: click, onKeyDown: (event) => walk(event, frame.current, zoom) };
}

const apart = (one, other) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);

function walk(event, frame, zoom) {
  if (event.key === "+" || event.key === "-") return zoom(event.key === "+" ? STEP : 1 / STEP);
  const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const at = event.target.dataset?.at?.split(",").map(Number);
  if (!by || !at) return undefined;
  event.preventDefault();
  return frame.querySelector(`[data-at="${at[0] + by[0]},${at[1] + by[1]}"]`)?.focus();
}
