// A picture of the service. A tag cannot send a key: with one, the picture is fetched, and shown from memory.

import { key } from "./access.js";
import { fetchPicture } from "./api.js";
import { html, useLayoutEffect, useRef, useState } from "./html.js";

const NEAR = "600px";
const NO_PICTURE = "data:,"; // shown, and told of, as any picture that is broken

export function Shown(props) {
  return key.value && props.src?.startsWith("/") ? html`<${Fetched} ...${props} />` : html`<img ...${props} />`;
}

function Fetched({ src, ...others }) {
  const image = useRef(null);
  const [url, setUrl] = useState(undefined);
  // Not after the first paint, as other effects: the pictures are what is waited for.
  useLayoutEffect(() => {
    const asked = new AbortController();
    let made = "";
    const get = async () => {
      const picture = await fetchPicture(src, asked.signal).catch(() => null);
      if (asked.signal.aborted) return;
      made = picture ? URL.createObjectURL(picture) : NO_PICTURE;
      setUrl(made);
    };
    setUrl(undefined);
    let watcher = null;
    if (others.loading === "lazy") watcher = whenNear(image.current, get);
    else get();
    return () => {
      watcher?.disconnect();
      asked.abort();
      URL.revokeObjectURL(made);
    };
  }, [src, key.value]);
  return html`<img ref=${image} src=${url} ...${others} />`;
}

function whenNear(element, act) {
  const look = (seen) => {
    if (!seen.some(({ isIntersecting }) => isIntersecting)) return;
    watcher.disconnect();
    act();
  };
  const watcher = new IntersectionObserver(look, { rootMargin: NEAR, scrollMargin: NEAR });
  watcher.observe(element);
  return watcher;
}

/** Wait until a picture can be painted, also one that is still fetched and has no address yet. */
export async function painted(image) {
  if (!image.src) await new Promise((done) => ["load", "error"].forEach((event) => image.addEventListener(event, done, { once: true })));
  await image.decode();
}
