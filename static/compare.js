// Comparing: two to four columns, each with a model and, if wished, settings of its own, and what measures them.
"use strict";

const COMPARE_SIDES = ["a", "b", "c", "d"];

LlavaServe.comparePane = (element, gradio) => new ComparePane(element.firstElementChild, gradio);

class CompareView extends ColumnsView {
  constructor(name) {
    super(name);
    const kept = (stored("tab", "columns") ?? "").split(",").filter((side) => COMPARE_SIDES.includes(side));
    this.order = kept.length > 1 ? [...new Set(kept)] : COMPARE_SIDES.slice(0, 2);
    this.seed = stored("tab", "compare-seed") ?? "";
    this.comparison = keptSecret("comparison"); // its columns are kept as one entry of the list
    claimSecret(this.comparison, () => this.compare(makeSecret()));
    this.together = stored("browser", "scroll-together") !== "off";
    this.differences = new Differences(this);
    this.scales = "";
  }

  get panes() {
    return this.order.map((side) => this.made.find((pane) => pane.side === side)).filter(Boolean);
  }

  arrange() {
    const hosts = this.panes.map((pane) => hostOf(pane.root));
    const before = (one, other) => one.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING;
    // Only who stands wrong is moved: what is moved forgets how far it was scrolled.
    hosts.forEach((host, place) => { if (place && !before(hosts[place - 1], host)) hosts[place - 1].after(host); });
    super.arrange();
  }

  refresh() {
    super.refresh();
    // A bar is as long as it is beside the others'.
    const scales = JSON.stringify(this.turns.map((_, index) => this.scale(index)));
    if (scales !== this.scales) {
      this.scales = scales;
      for (const pane of this.panes) pane.draw();
    }
    for (const pane of this.panes) pane.drawSwap();
    if (this.addButton) this.addButton.disabled = this.order.length >= COMPARE_SIDES.length || !offer.models.length;
    this.ballot?.update();
    this.differences.soon();
  }

  // What columns answer with by chance is the same chance for all.
  send(text, pictures) {
    this.seed = settings.seed || String(crypto.getRandomValues(new Uint32Array(1))[0] >>> 1);
    stored("tab", "compare-seed", this.seed);
    super.send(text, pictures);
  }

  // other comparisons ------------------------------------------------------------------------------------------------

  compare(comparison) {
    ownSecrets.delete(this.comparison);
    ownSecrets.set(comparison, { asked: false });
    this.comparison = comparison;
    stored("tab", "comparison", comparison);
  }

  enter(secrets) {
    this.compare(makeSecret());
    super.enter(secrets);
  }

  // One that was left, or is kept, with all its columns; some or all of their panes may not be there yet.
  reopen(comparison, secrets) {
    this.left = [];
    this.editing = null;
    this.compare(comparison);
    this.keep(COMPARE_SIDES.slice(0, Math.max(2, secrets.length)));
    this.order.forEach((side, place) => {
      const secret = secrets[place] ?? makeSecret();
      const pane = this.made.find((each) => each.side === side);
      if (pane) return void pane.show(secret);
      stored("tab", `room-${this.name}-${side}`, secret);
      this.awaited.add(side);
    });
    this.arrange();
    this.markEdited();
  }

  clear() {
    const { comparison } = this;
    super.clear();
    this.before = comparison;
  }

  restore() {
    if (this.left.length) this.reopen(this.before, this.left);
    else super.restore();
  }

  leave(gone) {
    if (gone?.some((secret) => this.panes.some((pane) => pane.secret === secret))) this.compare(makeSecret());
    super.leave(gone);
  }

  // columns that come and go -----------------------------------------------------------------------------------------

  open() {
    const side = COMPARE_SIDES.find((each) => !this.order.includes(each));
    if (!side) return;
    const taken = this.panes.map((pane) => pane.picker.chosen);
    const model = offer.models.find(({ name }) => !taken.includes(name)) ?? offer.models[0];
    const origin = this.panes.find((pane) => pane.data.turns.length);
    this.keep([...this.order, side]);
    this.arrange(); // so that the new column knows its place before it asks
    const pane = this.made.find((each) => each.side === side);
    pane.begin(model?.name ?? "", origin);
    this.refresh();
    if (onePage.matches) this.turnTo(pane.place);
    pane.picker.button.focus({ preventScroll: true });
  }

  close(pane) {
    if (this.order.length <= 2) return;
    const asked = pane.running || pane.data.turns.length;
    if (pane.running) pane.act({ do: "stop" });
    pane.joining = false;
    if (asked) pane.act({ do: "part" }).then(() => chatList?.soon());
    this.keep(this.order.filter((side) => side !== pane.side));
    this.arrange();
    this.refresh();
    for (const each of this.panes) each.draw();
    this.addButton.focus({ preventScroll: true });
  }

  keep(order) {
    this.order = order;
    stored("tab", "columns", order.join());
  }

  // what stands beside the composer's buttons ------------------------------------------------------------------------

  tools() {
    this.addButton = el("button.ls-button.ls-tool", { type: "button", title: "Add a model, with the conversation so far", "aria-label": "Add a model", onclick: () => this.open() },
      icon("plus"), el("span", {}, "Add a model"));
    const together = toolSwitch("together", "Scroll together", this.together, (on) => {
      this.together = on;
      stored("browser", "scroll-together", on ? null : "off");
    });
    const differ = toolSwitch("differ", "Differences", false, (on) => this.differences.turn(on));
    return [this.addButton, together, differ];
  }

  // figures ------------------------------------------------------------------------------------------------------------

  // The largest figure of each kind among the answers to one question.
  scale(index) {
    const all = this.panes.map((pane) => pane.data.turns[index]?.answer.figures).filter(Boolean);
    return Object.fromEntries(METERS.map(({ key }) => [key, Math.max(0, ...all.map((figures) => figures[key] ?? 0))]).concat([["of", all.length]]));
  }

  scaleOf(pane, turn) {
    return this.scale(pane.data.turns.findIndex(({ id }) => id === turn.id));
  }

  figures(pane, turn) {
    const { figures } = turn.answer;
    if (!figures) return null;
    const scale = this.scaleOf(pane, turn);
    const left = figuresOf(turn.answer).filter(([, , kind]) => kind !== "metered");
    return el("div.ls-measured", {},
      el("dl.ls-meters", {}, METERS.map(({ key, label, says, mayBeNone }) => figures[key] !== null && (scale[key] > 0 || !mayBeNone) && el("div", { title: label.title },
        el("dt", {}, label.text),
        el("dd", {}, el("span.ls-meter", {}, el("i", { style: `width:${figures[key] > 0 ? Math.max(2, (100 * figures[key]) / scale[key]) : 0}%` })), el("b", {}, says(figures[key])))))),
      left.length > 0 && el("div.ls-figures", {}, left.map(([text, title]) => el("span", { title }, text))));
  }
}

const METERS = [
  { key: "first_token_s", label: { text: "First token", title: "From sending the question to the first word" }, says: (value) => seconds(value) },
  { key: "tokens_per_s", label: { text: "Speed", title: "Tokens per second after the first" }, says: (value) => `${value.toFixed(value < 10 ? 1 : 0)} /s` },
  { key: "completion_tokens", label: { text: "Length", title: "Tokens of the answer" }, says: countedTokens },
  { key: "image_tokens", label: { text: "Image", title: "Tokens that the pictures of the conversation took" }, says: countedTokens, mayBeNone: true },
  { key: "cached_tokens", label: { text: "Cached", title: "Tokens read that were known from earlier turns" }, says: countedTokens, mayBeNone: true },
];

function countedTokens(value) {
  return `${value.toLocaleString("en")} tokens`;
}

function toolSwitch(name, label, on, turn) {
  const button = el("button.ls-button.ls-tool", {
    type: "button", role: "switch", title: label, "aria-label": label, "aria-checked": String(on),
    onclick: () => {
      const now = button.getAttribute("aria-checked") !== "true";
      button.setAttribute("aria-checked", String(now));
      turn(now);
    },
  }, icon(name), el("span", {}, label));
  return button;
}

// What Gradio put around a pane, the child of its row.
function hostOf(root) {
  let host = root;
  while (host.parentElement && !host.parentElement.classList.contains("ls-columns")) host = host.parentElement;
  return host;
}

views.compare = new CompareView("compare");

class ComparePane extends Pane {
  build() {
    this.moreButton = iconButton("more", "What to do with this column", () => popover(this.moreButton, (close) => this.menu(close), ".ls-menu"),
      { className: ".ls-column-more", "aria-haspopup": "dialog", "aria-expanded": "false" });
    this.swap = el("div.ls-swap", { hidden: true });
    this.differs = el("div.ls-differs", { hidden: true, tabindex: "-1" });
    super.build();
    this.list.after(this.differs, this.swap);
    this.showOwn();
  }

  actions() {
    return this.moreButton;
  }

  // A column opened anew: empty, or with the conversation so far and its last question asked of this model.
  begin(model, origin) {
    this.setOwn(null);
    this.show(makeSecret());
    this.arriving = false;
    this.picker.choose(model);
    if (!origin) return;
    this.joining = true;
    const { secret } = this;
    this.follow({ do: "join", from: origin.secret, model, settings: this.parameters(true) }).then(() => {
      if (this.secret !== secret || !this.joining) return;
      this.joining = false;
      this.view.refresh();
    });
  }

  get running() {
    return super.running || Boolean(this.joining);
  }

  addressed(message) {
    return { ...super.addressed(message), comparison: this.view.comparison, slot: this.place };
  }

  show(secret) {
    this.joining = false;
    super.show(secret);
  }

  take(value) {
    if (value?.room === this.secret && value.turns.length) this.joining = false;
    return super.take(value);
  }

  draw() {
    super.draw();
    this.drawSwap();
  }

  // After another model was chosen in the middle of a conversation.
  drawSwap() {
    const turns = this.shownTurns();
    const model = this.picker.chosen;
    const last = turns.at(-1)?.answer.model;
    const swapped = turns.length > 0 && !this.running && last && model && last !== model;
    this.swap.hidden = !swapped;
    if (!swapped || this.swap.dataset.key === model) return;
    this.swap.dataset.key = model;
    this.swap.replaceChildren(el("p", {}, el("strong", {}, model), " goes on from here and gets the conversation so far."),
      el("button.ls-action", { type: "button", onclick: () => this.retry() }, icon("retry"), el("span", {}, "Answer the last question too")));
    this.swap.scrollIntoView({ block: "nearest" });
  }

  // settings -----------------------------------------------------------------------------------------------------------

  parameters(asOthers = false) {
    const chosen = this.own ?? settings;
    const failed = this.data.turns.at(-1)?.answer.state === "failed";
    return { ...chosen, seed: chosen.seed || settings.seed || (asOthers || failed ? this.view.seed : "") };
  }

  showOwn() {
    this.moreButton.classList.toggle("ls-changed", Boolean(this.own));
    this.moreButton.title = this.own ? "What to do with this column, which has settings of its own" : "What to do with this column";
  }

  settingsPanel() {
    const box = el("div.ls-own");
    const draw = () => {
      const same = el("button.ls-switch", {
        type: "button", role: "switch", "aria-checked": String(!this.own),
        onclick: () => { this.setOwn(this.own ? null : { ...settings }); draw(); box.querySelector(".ls-switch").focus(); },
      }, el("i"), "As in the composer");
      box.replaceChildren(el("header", {}, el("h2", {}, `Settings of column ${COLUMN_LETTERS[this.place]}`), same),
        this.own ? settingsPanel({ values: this.own, keep: (own) => this.setOwn(own), seed: "as the others" })
          : el("p.ls-faint", {}, "This column answers with the settings of the composer, and with the same seed as the others."));
    };
    draw();
    return box;
  }

  // the menu -------------------------------------------------------------------------------------------------------------

  menu(close) {
    const item = (name, label, act, off = false) => el("button", { type: "button", disabled: off, onclick: () => { close(); act(); } }, el("span", {}, icon(name), label));
    const none = !this.data.turns.length;
    return el("div", {},
      item("sliders", "Settings of this column", () => popover(this.moreButton, () => this.settingsPanel(), ".ls-settings-popover")),
      item("chat", "Continue in Chat", () => this.carry(), none),
      item("download", "Export as Markdown", () => this.saveAs("markdown"), none),
      item("download", "Export as JSON", () => this.saveAs("json"), none),
      this.view.panes.length > 2 && item("close", "Close this column", () => this.view.close(this)));
  }

  // A copy goes on in the Chat tab; the comparison stays as it is.
  async carry() {
    const fresh = makeSecret();
    const message = { ...this.addressed({ do: "copy", from: this.secret }), room: fresh, place: "chat" };
    const heard = await live.act(message);
    if (heard.error) return toast(sentence(heard.error.message), "error");
    const chat = viewOf("chat");
    chat.left = [];
    chat.enter([fresh]);
    chatList?.soon();
    document.getElementById("ls-tab-chat-button")?.click();
    return toast("A copy of the conversation goes on here.");
  }
}
