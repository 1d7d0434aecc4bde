// The one door to the vendored libraries.

import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export const html = htm.bind(h);

export { useEffect, useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
export { render } from "./vendor/preact.js";
export { computed, effect, signal, untracked } from "./vendor/signals.js";
