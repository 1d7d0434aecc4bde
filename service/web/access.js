// The key that a service may ask for. It is kept in this tab only.

import { signal } from "./html.js";

const NAME = "kindred-key";

export const key = signal(sessionStorage.getItem(NAME) ?? "");
/** What the visitor is asked at the moment: what was wrong with the key before, and where their answer goes. */
export const question = signal(null);

export function hold(given) {
  sessionStorage.setItem(NAME, given);
  key.value = given;
}

/** Forget the key, and with it all that it let this page show. */
export function forget() {
  sessionStorage.removeItem(NAME);
  location.reload();
}

let answer = null;

/** Have the visitor enter a key; tells whether they did. Whoever asks meanwhile waits for the same answer. */
export function askForKey(problem = "") {
  answer ??= new Promise((give) => (question.value = { problem, give })).finally(() => {
    answer = null;
    question.value = null;
  });
  return answer;
}
