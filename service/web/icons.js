// Icons: outlines on a grid of 24, drawn with the colour of the text around them. Buttons carry the words.

import { html } from "./html.js";

const PATHS = {
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14ZM20 20l-4-4",
  picture: "M4 6.5A1.5 1.5 0 0 1 5.5 5h13A1.5 1.5 0 0 1 20 6.5v11a1.5 1.5 0 0 1-1.5 1.5h-13A1.5 1.5 0 0 1 4 17.5zM4 16l4.5-4.5 4 4 2.5-2.5 5 5M15.5 9.2h.01",
  close: "M6 6l12 12M18 6L6 18",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  similar: "M9 12a5 5 0 1 0 0-.01M5 12a5 5 0 0 0 10 0 5 5 0 0 0-10 0M9 12a5 5 0 0 0 10 0 5 5 0 0 0-10 0",
  grid: "M5 5h5v5H5zM14 5h5v5h-5zM5 14h5v5H5zM14 14h5v5h-5z",
  map: "M4 4h4v4H4zM10 4h4v4h-4zM16 4h4v4h-4zM4 10h4v4H4zM10 10h4v4h-4zM16 10h4v4h-4zM4 16h4v4H4zM10 16h4v4h-4zM16 16h4v4h-4z",
  filters: "M4 7h10M18 7h2M4 17h2M10 17h10M16 5v4M8 15v4",
  keys: "M4 7h16v10H4zM8 14h8M8 10.5h.01M12 10.5h.01M16 10.5h.01",
  key: "M7.5 11a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9ZM10.8 12.4L19.5 4M15.5 7.9l3 3M18.5 5l2 2",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  admin: "M12 3.5l7 3v5c0 4.5-3 7.5-7 9-4-1.5-7-4.5-7-9v-5zM9.5 12l2 2 3.5-4",
  before: "M14.5 6l-6 6 6 6",
  after: "M9.5 6l6 6-6 6",
  crop: "M7 3v14h14M3 7h14v14",
};

export function icon(name) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;
}
