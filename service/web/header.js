// The bar at the top: the search field, a picture to search with, the views.

import { askForKey, key } from "./access.js";
import { searchWith } from "./actions.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { icon } from "./icons.js";
import { showKeys } from "./keys.js";
import { go, place } from "./place.js";
import { firstPicture } from "./uploads.js";

const PAUSE_MS = 250;
const ONE_SEARCH_MS = 3_000; // what is typed within so long of each other is one step of the history

export function Header() {
  return html`<header class="bar">
    <a class="brand" href=${location.pathname} onClick=${home} aria-label="kindred, to the start"><span class="rings" aria-hidden="true"></span><span class="word">kindred</span></a>
    <${SearchField} />
    <nav class="tools" aria-label="Page">
      <${Tool} name="admin" label="Admin" pressed=${place.value.view === "admin"} onClick=${() => go({ view: place.value.view === "admin" ? "results" : "admin", item: "" })} />
      <${Theme} />
      ${key.value && html`<${Tool} name="key" label="Your key" onClick=${() => askForKey()} />`}
      <${Tool} name="keys" label="Keys" onClick=${() => (showKeys.value = true)} />
    </nav>
  </header>`;
}

function home(event) {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go({ text: "", parts: [], chosen: {}, expert: "", ignore: "", relevance: 0, score: 0, view: "results", item: "" });
  scrollTo(0, 0);
}

const Tool = ({ name, label, pressed, onClick }) =>
  html`<button type="button" class="tool" aria-label=${label} title=${label} aria-pressed=${pressed} onClick=${onClick}>${icon(name)}</button>`;

function SearchField() {
  const [text, setText] = useState(place.value.text);
  const timer = useRef(0);
  const typed = useRef(-Infinity);
  const shown = place.value.text;
  useEffect(() => {
    if (!timer.current) setText(shown);
  }, [shown]);
  const search = (value) => {
    clearTimeout(timer.current);
    timer.current = 0;
    const now = performance.now();
    const sameStep = now - typed.current < ONE_SEARCH_MS && place.peek().text.trim() !== "";
    typed.current = now;
    go({ text: value, view: place.peek().view === "admin" ? "results" : place.peek().view, item: "" }, { replace: sameStep });
  };
  const type = (event) => {
    const { value } = event.currentTarget;
    setText(value);
    clearTimeout(timer.current);
    timer.current = setTimeout(search, PAUSE_MS, value);
  };
  const submit = (event) => {
    event.preventDefault();
    search(text);
  };
  const clear = () => {
    setText("");
    search("");
    document.getElementById("text").focus();
  };
  return html`<form class="field" role="search" onSubmit=${submit}>
    ${icon("search")}
    <input id="text" name="text" type="text" enterkeyhint="search" autocomplete="off" autocapitalize="off" spellcheck="false" maxlength="10000"
      placeholder="Describe a picture, or drop one" aria-label="Search pictures by words" value=${text} onInput=${type} />
    ${text && html`<button type="button" class="inner" aria-label="Clear the text" title="Clear the text" onClick=${clear}>${icon("close")}</button>`}
    <${PictureButton} className="inner" label="Search with a picture" />
  </form>`;
}

/** A button that opens the file chooser; `instead` names an upload that the new picture stands in for. */
export function PictureButton({ className, label, instead, children }) {
  const input = useRef(null);
  const choose = (event) => {
    searchWith(firstPicture(event.currentTarget.files), instead);
    event.currentTarget.value = "";
  };
  return html`<button type="button" class=${className} aria-label=${children ? undefined : label} title=${label} onClick=${() => input.current.click()}>${children ?? icon("picture")}</button>
    <input ref=${input} type="file" accept="image/*" hidden aria-label=${label} onChange=${choose} />`;
}

const THEMES = { "": "as the device", light: "light", dark: "dark" };

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme ?? "");
  const turn = () => {
    const names = Object.keys(THEMES);
    const next = names[(names.indexOf(theme) + 1) % names.length];
    setTheme(next);
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    localStorage.setItem("kindred-theme", next);
  };
  return html`<${Tool} name="theme" label=${`Colours: ${THEMES[theme]}`} onClick=${turn} />`;
}
