// How large a picture is shown: as large as there is room, in its own proportions, small ones not beyond a measure.

import { useState } from "./html.js";

const MOST_TIMES = 3;

/** Return the style of a picture's box, and what to call when the picture has loaded, should its size be unknown. */
export function useFit({ width, height }) {
  const [size, setSize] = useState([width, height]);
  const measure = ({ currentTarget }) => setSize([currentTarget.naturalWidth, currentTarget.naturalHeight]);
  const [across, down] = size;
  if (!across) return [{}, measure];
  const most = `min(100%, ${across * MOST_TIMES}px, calc(var(--most-high) * ${across / down}))`;
  return [{ aspectRatio: `${across} / ${down}`, width: most }, measure];
}
