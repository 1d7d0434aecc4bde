// Asks for the key of the service, in a dialog that opens when the service first refuses.

import { forget, hold, key, question } from "./access.js";
import { tryKey } from "./api.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { icon } from "./icons.js";

export function Unlock() {
  const dialog = useRef(null);
  const asked = question.value;
  useEffect(() => {
    if (!asked) return dialog.current.close();
    if (!dialog.current.open) dialog.current.showModal();
    return dialog.current.querySelector("input").focus();
  }, [asked]);
  return html`<dialog class="unlock" ref=${dialog} aria-labelledby="unlock-title" onClose=${() => question.peek()?.give(false)}>
    ${asked && html`<${Question} asked=${asked} close=${() => dialog.current.close()} />`}
  </dialog>`;
}

function Question({ asked, close }) {
  const [problem, setProblem] = useState(asked.problem);
  const content = useRef(null);
  const enter = async (given) => {
    try {
      await tryKey(given);
      hold(given);
      asked.give(true);
    } catch (error) {
      setProblem(error.message);
      content.current?.querySelector("input").select();
    }
  };
  const [title, hint] = key.value && !problem ? ["Your key", "It is kept in this tab only."] : ["This service asks for a key", "Whoever runs the service gives keys out. Yours is kept in this tab only."];
  return html`<div class="question" ref=${content}>
    <div class="dialog-head"><h2 id="unlock-title">${title}</h2><button type="button" class="tool" aria-label="Close" title="Close (Esc)" onClick=${close}>${icon("close")}</button></div>
    ${problem ? html`<p class="note" role="alert">${problem}</p>` : html`<p>${hint}</p>`}
    <${KeyForm} label=${key.value && !problem ? "Another key" : "Key"} enter=${enter}>
      ${key.value && html`<button type="button" class="button quiet" onClick=${forget}>Forget the key</button>`}
    <//>
  </div>`;
}

/** A field for a key, and a button; `children` stand beside the button. */
export function KeyForm({ label, enter, children }) {
  const submit = (event) => {
    event.preventDefault();
    enter(new FormData(event.currentTarget).get("key").trim());
  };
  // Other letters than these cannot be sent in a header.
  return html`<form class="key-form" onSubmit=${submit}>
    <label class="written"><span>${label}</span><input type="password" name="key" autocomplete="off" required pattern="[ -ÿ]+" title="letters, digits and signs" /></label>
    <div class="acts"><button type="submit" class="button">Continue</button>${children}</div>
  </form>`;
}
