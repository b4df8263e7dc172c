// The ground the other scripts stand on: one namespace, DOM building, icons, storage, small notices.
"use strict";

const LlavaServe = (window.LlavaServe = {});

// el("button.ls-send", {title: "Send", onclick: f}, "text", node): an element; text is always text, never markup.
function el(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const ICON_PATHS = {
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  plus: "M12 5v14M5 12h14",
  picture: "M4 5h16v14H4zM4 16l4.5-4.5 4 4L15 13l5 5M15.5 9.2h.01",
  sliders: "M4 7h9M19 7h1M13 7a3 3 0 1 0 6 0a3 3 0 1 0-6 0M4 17h1M11 17h9M5 17a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.5l4.5 4.5L19 7.5",
  retry: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  resume: "M5 6v12l7-6zM13 6v12l7-6z",
  edit: "M4 20l1-4.5L16.5 4l3.5 3.5L8.5 19zM14.5 6l3.5 3.5",
  undo: "M8 5L4 9l4 4M4 9h10a5.5 5.5 0 0 1 0 11h-4",
  fresh: "M12 5H5v14h14v-7M10 14l1-3.5L18.5 3l2.5 2.5L13.5 13z",
  download: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  up: "M7 11v9H4v-9zM7 11l4-7.5c1.6 0 2.5 1 2.2 2.7L12.600 9.500H18.500a1.800 1.800 0 0 1 1.700 2.200l-1.500 6.600A2.200 2.200 0 0 1 16.600 20H7",
  flag: "M6 21V4M6 4.500h12l-2.500 4 2.500 4H6",
  close: "M6 6l12 12M18 6L6 18",
  together: "M8 4v16M5 7l3-3 3 3M5 17l3 3 3-3M16 4v16M13 7l3-3 3 3M13 17l3 3 3-3",
  differ: "M5 9h14M5 15h14M15.500 4.500l-7 15",
  chat: "M5 5h14v11H11l-4 3.500V16H5z",
  panel: "M4 5h16v14H4zM9.500 5v14",
  search: "M11 4a7 7 0 1 0 0 14a7 7 0 1 0 0-14M16.200 16.200L20.500 20.500",
  more: "M5.500 12h.01M12 12h.01M18.500 12h.01",
  trash: "M5 7h14M10 7V4.500h4V7M7 7l1 13h8l1-13M10.500 11v5.500M13.500 11v5.500",
  link: "M10 14a4 4 0 0 0 5.700 0l3-3A4 4 0 0 0 13 5.300l-1 1M14 10a4 4 0 0 0-5.700 0l-3 3A4 4 0 0 0 11 18.700l1-1",
  upload: "M12 15V4M7 8.500l5-5 5 5M5 20h14",
  caret: "M7 10l5 5 5-5",
  left: "M14 7l-5 5 5 5",
  right: "M10 7l5 5-5 5",
  down: "M12 5v14M6 13l6 6 6-6",
  sun: "M12 8a4 4 0 1 0 0 8a4 4 0 1 0 0-8M12 2.500v2M12 19.500v2M2.500 12h2M19.500 12h2M5.300 5.300l1.400 1.400M17.300 17.300l1.400 1.400M5.300 18.700l1.400-1.400M17.300 6.700l1.400-1.400",
  moon: "M20 14.500A8.500 8.500 0 0 1 9.500 4a8.500 8.500 0 1 0 10.500 10.500z",
  warn: "M12 4l9 16H3zM12 10v4.500M12 17.200h.01",
  mark: "M3.500 19.500h17L14.800 8h-1.600l-1.200 2-1.200-2H9.200zM9 5.200c.2-1 .9-1.600 1.500-2.200M12.400 5.400c.3-1.300 1.300-1.800 1.600-3",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("ls-icon", `ls-icon-${name}`);
  path.setAttribute("d", ICON_PATHS[name]);
  svg.append(path);
  return svg;
}

function iconButton(name, label, onclick, extra = {}) {
  const { className = "", ...attributes } = extra;
  return el(`button.ls-button${className}`, { type: "button", title: label, "aria-label": label, onclick, ...attributes }, icon(name));
}

// Storage that does without where the browser forbids it (in a frame of another site, say).
function stored(area, key, value) {
  try {
    const storage = area === "tab" ? sessionStorage : localStorage;
    if (value === undefined) return storage.getItem(`llava-serve-${key}`);
    if (value === null) storage.removeItem(`llava-serve-${key}`);
    else storage.setItem(`llava-serve-${key}`, value);
  } catch {
    return null;
  }
  return value;
}

function toast(message, kind = "info") {
  let shelf = document.querySelector(".ls-toasts");
  if (!shelf) document.body.append((shelf = el("div.ls-toasts", { role: "status", "aria-live": "polite" })));
  const note = el(`div.ls-toast.ls-toast-${kind}`, {}, message);
  shelf.append(note);
  setTimeout(() => note.remove(), kind === "error" ? 9000 : 3200);
}

// What the server said of a picture that it did not take, out of the words that Gradio puts around it.
function uploadTrouble(error, name) {
  // Gradio shows the same with its own words around it; one sentence is enough.
  for (const wait of [0, 300]) setTimeout(() => document.querySelectorAll(".toast-body.error .toast-close").forEach((button) => button.click()), wait);
  try {
    const { message } = JSON.parse(error.message.slice(error.message.indexOf("{"))).error;
    return `${message[0].toUpperCase()}${message.slice(1)}.`;
  } catch {
    return `${name} could not be uploaded. Remove it or attach it again.`;
  }
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No clipboard without https: select a hidden copy the old way.
    const area = el("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = [...button.childNodes];
  button.replaceChildren(button.querySelector("svg") ? icon("check") : "Copied");
  button.classList.add("ls-done");
  setTimeout(() => {
    button.replaceChildren(...before);
    button.classList.remove("ls-done");
  }, 1400);
}

// The buttons over code blocks, wherever they come to stand in `root`.
function copyCodeIn(root) {
  root.addEventListener("click", (event) => {
    const button = event.target.closest(".ls-code-copy");
    if (button) copyText(button.closest("figure").querySelector("code").textContent, button);
  });
}

function saveFile(name, text, type) {
  const link = el("a", { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A panel that belongs to a button: one at a time, closed by Escape, a click elsewhere or the button.
let openPanel = null;
function popover(button, build, className = "") {
  const close = () => {
    if (!openPanel) return;
    openPanel.panel.remove();
    openPanel.button.setAttribute("aria-expanded", "false");
    openPanel = null;
  };
  if (openPanel?.button === button) return close();
  close();
  const panel = el(`div.ls-popover${className}`, { role: "dialog", "aria-label": button.getAttribute("aria-label") || button.textContent });
  panel.append(build(close));
  document.body.append(panel);
  openPanel = { panel, button, close };
  button.setAttribute("aria-expanded", "true");
  place(panel, button);
  panel.querySelector("[autofocus], button, input, textarea")?.focus({ preventScroll: true });
}

function place(panel, button) {
  const anchor = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = panel;
  const above = anchor.top > window.innerHeight - anchor.bottom;
  panel.style.left = `${Math.max(8, Math.min(anchor.left, window.innerWidth - width - 8))}px`;
  panel.style.top = `${Math.max(8, above ? anchor.top - height - 8 : Math.min(anchor.bottom + 8, window.innerHeight - height - 8))}px`;
}

document.addEventListener("pointerdown", (event) => {
  if (openPanel && !openPanel.panel.contains(event.target) && !openPanel.button.contains(event.target)) openPanel.close();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !openPanel) return;
  const { button } = openPanel;
  openPanel.close();
  button.focus();
  event.stopPropagation();
}, true);
window.addEventListener("resize", () => openPanel?.close());

function lightbox(url, name) {
  const dialog = el("dialog.ls-lightbox", { onclick: () => dialog.close(), onclose: () => dialog.remove() },
    el("img", { src: url, alt: name }), el("p", {}, name), iconButton("close", "Close", () => dialog.close()));
  document.body.append(dialog);
  dialog.showModal();
}
