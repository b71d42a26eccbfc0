// Keeps the main part of the page as the server sends it. Without it pages are as whole, and stand.
"use strict";

// Changes what differs alone, so that focus, what is typed, and what is open or scrolled stay.
function patch(old, made) {
  if (old.nodeType !== made.nodeType || old.nodeName !== made.nodeName) {
    old.replaceWith(made.cloneNode(true));
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== made.data) old.data = made.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && !made.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of made.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const [was, is] = [[...old.childNodes], [...made.childNodes]];
  is.forEach((child, i) => (was[i] ? patch(was[i], child) : old.append(child.cloneNode(true))));
  was.slice(is.length).forEach((child) => child.remove());
}

const main = document.querySelector("main[data-live]");
if (main) {
  const events = new EventSource("/live?at=" + encodeURIComponent(main.dataset.live));
  events.onmessage = (event) => {
    // What is parsed so runs no script; the server has escaped all that is not its own.
    const made = new DOMParser().parseFromString("<main>" + JSON.parse(event.data) + "</main>", "text/html");
    const fresh = made.querySelector("main");
    for (const { name, value } of main.attributes) fresh.setAttribute(name, value);
    // A form that somebody fills in is left to them.
    if (!main.querySelector("details.verb[open]")) patch(main, fresh);
  };
  window.addEventListener("pagehide", () => events.close());
}
