// The models on offer, asked for every few seconds while somebody looks, and the picker that shows them.
"use strict";

const POLL_MS = 2500;

const offer = { models: [], trouble: "", known: false, lost: false };
const offerListeners = new Set();
const whenServerReturns = new Set();
let askForOffer = null;
let failedPolls = 0;

function watchOffer(server, listener) {
  offerListeners.add(listener);
  const first = !askForOffer;
  askForOffer = () => server.models({ owner });
  if (first) pollOffer();
  else if (offer.known) listener();
}

async function pollOffer() {
  if (!document.hidden || !offer.known) await refreshOffer();
  setTimeout(pollOffer, POLL_MS);
}

async function refreshOffer() {
  const before = JSON.stringify(offer);
  const wasLost = offer.lost;
  try {
    const heard = await askForOffer();
    if (!heard?.models) throw new Error("no answer"); // Gradio swallows what went wrong on the way
    Object.assign(offer, heard, { known: true, lost: false });
    failedPolls = 0;
    if (wasLost) whenServerReturns.forEach((listener) => listener());
  } catch {
    failedPolls += 1;
    if (failedPolls > 1) Object.assign(offer, { trouble: "the server of this page cannot be reached; trying again", known: true, lost: true });
  }
  if (JSON.stringify(offer) !== before) offerListeners.forEach((listener) => listener());
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && askForOffer) refreshOffer();
});

// A button that shows the chosen model and opens the list. The choice stays when its model goes away for a while.
class Picker {
  // `taken` gives the choices of the other columns.
  constructor(side, onchange, taken) {
    this.taken = taken;
    this.onchange = onchange;
    this.key = `model-${side}`;
    const asked = !["only", "left", "a", "inspect"].includes(side) ? null : new URLSearchParams(location.search).get("model");
    this.chosen = asked || stored("tab", this.key) || "";
    this.byHand = Boolean(this.chosen);
    this.label = el("span.ls-picker-name");
    this.note = el("span.ls-picker-note");
    this.button = el("button.ls-picker", {
      type: "button", "aria-haspopup": "dialog", "aria-expanded": "false",
      onclick: () => offer.models.length && popover(this.button, (close) => this.list(close), ".ls-models"),
    }, el("span.ls-picker-text", {}, this.label, this.note), icon("caret"));
    this.update();
  }

  get model() {
    return offer.models.find((model) => model.name === this.chosen);
  }

  // Whether what is chosen cannot be asked now.
  get missing() {
    return Boolean(this.chosen && offer.known && !this.model);
  }

  update() {
    if (!this.byHand && !this.model && offer.models.length) {
      // Further columns start with further models where there are any.
      const taken = this.taken();
      this.chosen = (offer.models.find(({ name }) => !taken.includes(name)) ?? offer.models[0]).name;
    }
    const name = this.chosen || (offer.known ? "No model" : "Looking for models…");
    if (this.label.textContent !== name) this.label.textContent = name;
    const { missing } = this;
    const note = missing ? "not running at the moment" : this.model?.note || "";
    if (this.note.textContent !== note) this.note.textContent = note;
    this.button.classList.toggle("ls-missing", missing);
    this.button.disabled = !offer.models.length;
    this.button.title = `${name}${note ? ` (${note})` : ""}`;
    this.button.setAttribute("aria-label", `Model: ${this.button.title}`);
    if (openPanel?.button === this.button) {
      // Only what has changed is drawn anew: a press that has begun on an entry must end on it.
      const list = this.list(openPanel.close);
      if (list.innerHTML !== openPanel.panel.firstElementChild?.innerHTML) openPanel.panel.replaceChildren(list);
    }
  }

  choose(name) {
    this.chosen = name;
    this.byHand = true;
    stored("tab", this.key, name);
    this.update();
    this.onchange();
  }

  list(close) {
    const rows = offer.models.map((model) => el("button.ls-model", {
      type: "button", role: "option", "aria-selected": String(model.name === this.chosen),
      onclick: () => { this.choose(model.name); close(); this.button.focus(); },
    },
    el("span.ls-model-name", {}, model.name, model.name === this.chosen && icon("check")),
    model.note && el("span.ls-model-note", {}, model.note),
    el("span.ls-model-facts", {}, facts(model))));
    const list = el("div.ls-model-list", { role: "listbox", "aria-label": "Models" }, rows);
    list.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      const index = rows.indexOf(document.activeElement);
      rows[(index + step + rows.length) % rows.length].focus();
      event.preventDefault();
    });
    return list;
  }
}

function facts(model) {
  const facts = [
    `${model.workers} ${model.workers === 1 ? "worker" : "workers"}`,
    model.device && model.engine !== "echo" && [model.device, model.dtype].filter(Boolean).join(" "),
    model.context && `${model.context.toLocaleString("en")} tokens of context`,
    model.images === false && "text only",
  ];
  return facts.filter(Boolean).join(" · ");
}
