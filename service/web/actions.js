// What visitors do to pictures.

import { close, go, place } from "./place.js";
import { keep } from "./uploads.js";
import { found, notice } from "./search.js";

const STEP = 0.5;
const MOST = 5;

export const isUpload = (name) => name.startsWith("upload.");

/** What to call a picture. */
export const nameOf = ({ caption, label, path }) => caption || label || path?.split("/").pop() || "a picture";

export function open(id, panel = "about") {
  if (place.peek().item) go({ item: id, panel }, { replace: true });
  else go({ item: id, panel }, { opened: true });
}

export const shut = () => close({ item: "", panel: "about" });

export function similar(part) {
  go({ text: "", parts: [{ weight: 1, ...part }], item: "", panel: "about", view: "results" });
}

/** Ask for more, or less, like a picture; asking again asks for it more strongly. */
export function refine(id, sign) {
  const { parts, text } = place.peek();
  const there = parts.find((part) => part.id === id && !part.box);
  const alone = !text.trim() && !parts.length;
  if (there) return weigh(there, there.weight + sign * STEP);
  go({ parts: [...parts, { id, weight: sign * (alone ? 1 : STEP) }], item: "", panel: "about", view: "results" });
}

/** Change how much a part of the query counts; at 0 it is gone. */
export function weigh(part, weight) {
  const rounded = Math.round(Math.min(MOST, Math.max(-MOST, weight)) * 100) / 100;
  const parts = place.peek().parts.flatMap((each) => (each !== part ? [each] : rounded ? [{ ...each, weight: rounded }] : []));
  go({ parts, item: "", panel: "about" });
}

export const remove = (part) => go({ parts: place.peek().parts.filter((each) => each !== part) });

/** Search with a picture of the visitor's; in place of one that a reload lost, if there is one. */
export async function searchWith(file, instead = null) {
  if (!file) {
    notice.value = "That is not a picture: choose a JPEG, PNG, WebP or GIF file.";
    return;
  }
  notice.value = "";
  const upload = await keep(file);
  if (!instead) return similar({ upload });
  go({ parts: place.peek().parts.map((part) => (part.upload === instead ? { ...part, upload } : part)) }, { replace: true });
}

/** Open the picture before or after the one that is open. */
export function step(by) {
  const { items } = found.peek();
  const now = items.findIndex(({ id }) => id === place.peek().item);
  const next = items[now + by];
  if (now >= 0 && next) open(next.id, place.peek().panel);
}
