// Pictures from the visitor's device. They live as long as the page does, and are not in its URL.

import { signal } from "./html.js";

const MOST_BYTES = 8_000_000; // what is larger is made smaller before it is sent: base64 adds a third
const LONGEST_SIDE = 2_048;

/** By name: the picture's URL on this page, its file name, and its bytes as a data URI. */
export const uploads = signal(new Map());

/** Keep a picture; returns the name it is known by. */
export async function keep(file) {
  const blob = file.size > MOST_BYTES ? await smaller(file) : file;
  const name = Math.random().toString(36).slice(2, 10);
  const upload = { url: URL.createObjectURL(blob), title: file.name || "a picture you pasted", data: await dataUri(blob) };
  uploads.value = new Map(uploads.peek()).set(name, upload);
  return name;
}

export const firstPicture = (files) => [...(files ?? [])].find((file) => file.type.startsWith("image/"));

async function smaller(file) {
  const picture = await createImageBitmap(file);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(picture.width, picture.height));
  const canvas = new OffscreenCanvas(Math.round(picture.width * scale), Math.round(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
