// One conversation: the model picker above it, the turns, and the events that go to the server and come back.
"use strict";

LlavaServe.pane = (element, gradio) => new Pane(element.firstElementChild, gradio);

const EMPTY = { born: "", revision: -1, running: false, restorable: false, turns: [] };

class Pane {
  constructor(root, { server }) {
    this.root = root;
    this.server = server;
    this.side = root.dataset.side;
    this.view = viewOf(root.dataset.view);
    this.data = EMPTY;
    this.pending = null; // a question that is on its way to the server
    this.own = JSON.parse(stored("tab", this.ownKey) ?? "null"); // settings that are not the composer's
    this.build();
    this.view.add(this);
    watchOffer(server, () => { this.picker.update(); this.draw(); this.view.refresh(); });
    whenServerReturns.add(() => this.follow({ do: "open" }));
    this.room = `room-${this.view.name}-${this.side}`;
    this.enter(keptSecret(this.room));
  }

  build() {
    this.picker = new Picker(this.side, () => this.view.refresh(), () => this.view.made.filter((pane) => pane !== this).map((pane) => pane.picker.chosen));
    this.stopButton = el("button.ls-button.ls-stop", { type: "button", title: "Stop", "aria-label": "Stop", hidden: true, onclick: () => this.act({ do: "stop" }) }, icon("stop"), el("span", {}, "Stop"));
    this.exportButton = iconButton("download", "Export this chat", () => popover(this.exportButton, (close) => this.exportMenu(close), ".ls-menu"), { "aria-haspopup": "dialog", "aria-expanded": "false" });
    this.letter = el("span.ls-side", { "aria-hidden": "true" });
    this.list = el("div.ls-turns");
    this.empty = el("div.ls-empty");
    this.scroller = el("div.ls-scroll", { tabindex: "0", role: "log", "aria-label": "Conversation" }, this.empty, this.list);
    this.latest = iconButton("down", "To the latest answer", () => this.toEnd(true), { className: ".ls-latest", hidden: true });
    this.root.replaceChildren(
      el("div.ls-pane-head", {}, this.view.name === "chat" && document.querySelector(".ls-history") && chatListButton(), this.side !== "only" && this.letter, this.picker.button,
        el("span.ls-gap"), this.view.name !== "chat" && this.stopButton, this.actions()),
      el("div.ls-pane-body", {}, this.scroller, this.latest));
    this.scroller.addEventListener("scroll", () => this.noticeScroll(), { passive: true });
    const grown = new ResizeObserver(() => this.sticky && this.list.childElementCount && this.toEnd());
    grown.observe(this.scroller);
    grown.observe(this.list);
    this.sticky = true;
    this.turns = new Map();
  }

  // What stands at the end of the pane's head.
  actions() {
    return this.exportButton;
  }

  get title() {
    return this.picker.chosen || "no model";
  }

  // What answers are drawn with.
  parameters() {
    return { ...(this.own ?? settings) };
  }

  get ownKey() {
    return `settings-${this.view.name}-${this.side}`;
  }

  setOwn(own) {
    this.own = own;
    stored("tab", this.ownKey, own && JSON.stringify(own));
    this.showOwn();
  }

  showOwn() {
    this.view.refresh();
  }

  enter(secret) {
    this.secret = secret;
    this.arriving = this.view.awaited.delete(this.side);
    if (this.arriving) ownSecrets.set(secret, { asked: false }); // other tabs may show it as well
    else claimSecret(secret, () => this.show(makeSecret()));
    this.follow({ do: "open" });
  }

  // Leave this chat for another, which other tabs may show as well.
  show(secret) {
    stored("tab", this.room, secret);
    ownSecrets.delete(this.secret);
    ownSecrets.set(secret, { asked: false });
    this.secret = secret;
    if (this.own?.adopted) this.setOwn(null); // which came with the chat that is left
    this.data = EMPTY;
    this.pending = null;
    this.sticky = true;
    this.arriving = true;
    this.follow({ do: "open" });
    this.draw();
    this.view.refresh();
  }

  // What starts an answer, or finds one that is on its way. Whether the server took it.
  async follow(message) {
    const heard = await live.act(this.addressed(message));
    if (message.do === "open" && heard.unreachable) return false; // asked again when the server returns
    this.hear(heard);
    return !heard.error;
  }

  addressed(message) {
    return { ...message, room: this.secret, owner, place: this.view.name };
  }

  async act(message) {
    this.hear(await live.act(this.addressed(message)));
  }

  // What came of a message, or news from the stream.
  hear(heard) {
    if (heard.error?.code === "Unauthorized" && heard.error.param === "room") {
      if (heard.room === this.secret) this.show(makeSecret()); // begun under another owner, whose key this browser has lost
    } else if (heard.error) toast(sentence(heard.error.message), "error");
    else if (heard.turns) this.take(heard);
    else this.grow(heard);
  }

  ask(text, pictures, turnId) {
    const model = this.picker.chosen;
    this.pending = { turn: { id: "pending", text, pictures, answers: 1, shown: 0, wordings: 1, wording: 0, answer: waitingAnswer(model) }, replaces: turnId, since: this.data.revision };
    const claims = pictures.map(({ path, name, example }) => (example ? { example, name } : { path, name }));
    const taken = this.follow({ do: turnId ? "edit" : "ask", turn: turnId, text, pictures: claims, model, settings: this.parameters(true) });
    stored("tab", `unsent-${this.view.name}`, text || null);
    this.sticky = true;
    this.draw();
    const sent = this.pending;
    const giveBack = () => this.pending === sent && this.giveBack(text, pictures);
    setTimeout(() => giveBack() && toast("The page's server did not take the question; it is back in the box.", "error"), 20000);
    taken.then((well) => well || giveBack());
  }

  giveBack(text, pictures) {
    this.pending = null;
    this.draw();
    if (this.view.composer.isEmpty) this.view.composer.load(text, pictures);
    return true;
  }

  retry(turnId) {
    this.sticky = true;
    this.follow({ do: "retry", turn: turnId, model: this.picker.chosen, settings: this.parameters() });
  }

  resume() {
    this.sticky = true;
    this.follow({ do: "resume" });
  }

  get running() {
    return this.data.running || this.pending !== null;
  }

  take(value) {
    // Late news of a chat that was left, or older than what is shown.
    if (!value || value.room !== this.secret) return;
    const anew = value.born !== this.data.born;
    if (!anew && value.revision < this.data.revision) return;
    if (anew && value.turns.length < this.data.turns.length) toast("The server of this page was restarted and has lost this chat.", "error");
    const news = value.turns.length !== this.data.turns.length || value.running !== this.data.running;
    this.data = value;
    if (this.arriving) this.arrive();
    if (news) chatList?.soon();
    if (this.pending && (anew || value.revision > this.pending.since)) {
      this.pending = null;
      stored("tab", `unsent-${this.view.name}`, null);
    }
    this.draw();
    this.view.refresh();
    if (value.running) live.follow(this);
    return undefined;
  }

  // More of the answer on its way: its blocks from the first that is another one.
  grow({ born, revision, from, blocks }) {
    const turn = this.data.turns.at(-1);
    if (!turn || born !== this.data.born || revision <= this.data.revision) return;
    this.data.revision = revision;
    turn.answer.blocks.splice(from, Infinity, ...blocks);
    this.turns.get(turn.id)?.drawBlocks(turn.answer.blocks);
    if (this.sticky) this.toEnd();
  }

  // A chat that was opened again goes on with the model it was held with, its system prompt and its parameters.
  arrive() {
    this.arriving = false;
    const model = this.data.turns.at(-1)?.answer.model;
    if (model) this.adopt(this.data.settings);
    if (model && offer.models.some(({ name }) => name === model)) this.picker.choose(model);
  }

  adopt(kept) {
    const own = settingsFrom(kept, settings);
    this.setOwn(settingsDiffer(own, settings) ? { ...own, adopted: true } : null);
  }

  shownTurns() {
    if (!this.pending) return this.data.turns;
    const cut = this.pending.replaces ? this.data.turns.findIndex((turn) => turn.id === this.pending.replaces) : -1;
    return [...(cut < 0 ? this.data.turns : this.data.turns.slice(0, cut)), this.pending.turn];
  }

  draw() {
    const turns = this.shownTurns();
    const ids = new Set(turns.map((turn) => turn.id));
    for (const [id, drawn] of this.turns) if (!ids.has(id)) { drawn.root.remove(); this.turns.delete(id); }
    turns.forEach((turn, index) => {
      let drawn = this.turns.get(turn.id);
      if (!drawn) this.turns.set(turn.id, (drawn = new TurnView(this)));
      if (this.list.children[index] !== drawn.root) this.list.insertBefore(drawn.root, this.list.children[index] ?? null);
      drawn.update(turn, index === turns.length - 1);
    });
    this.list.hidden = !turns.length;
    this.empty.hidden = turns.length > 0;
    if (!turns.length) drawEmpty(this);
    this.stopButton.hidden = !this.running;
    this.exportButton.hidden = !this.data.turns.length;
    this.root.classList.toggle("ls-running", this.running);
    this.scroller.setAttribute("aria-busy", String(this.running)); // read out when it is complete
    if (this.sticky && turns.length) this.toEnd();
  }

  markEdited(index) {
    [...this.list.children].forEach((node, place) => node.classList.toggle("ls-edited", index !== null && place >= index));
  }

  noticeScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.sticky = scrollHeight - scrollTop - clientHeight < 60;
    this.latest.hidden = this.sticky || !this.list.childElementCount;
    if (Math.abs(scrollTop - this.put) > 2) this.view.scrolled(this);
  }

  // Where in the conversation one is, whatever its turns measure here: which turn, and how far into it.
  spot() {
    if (this.sticky) return { end: true };
    const top = this.scroller.getBoundingClientRect().top;
    const turns = [...this.list.children].map((node) => node.getBoundingClientRect());
    const turn = Math.max(0, turns.findIndex(({ bottom }) => bottom > top));
    const { top: from = 0, height = 0 } = turns[turn] ?? {};
    return { turn, share: height ? (top - from) / height : 0 };
  }

  goTo({ end, turn, share }) {
    if (end) return this.toEnd();
    const node = this.list.children[Math.min(turn, this.list.childElementCount - 1)];
    if (!node) return undefined;
    const { top, height } = node.getBoundingClientRect();
    this.scroller.scrollTop += top - this.scroller.getBoundingClientRect().top + share * height;
    this.put = this.scroller.scrollTop;
    return undefined;
  }

  toEnd(smooth = false) {
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior: smooth ? "smooth" : "instant" });
    this.put = smooth ? -1 : this.scroller.scrollTop; // where a script put it, not a person
  }

  exportMenu(close) {
    const save = (kind) => { close(); this.saveAs(kind); };
    return el("div", {},
      el("button", { type: "button", onclick: () => save("markdown") }, "Markdown", el("small", {}, "to read")),
      el("button", { type: "button", onclick: () => save("json") }, "JSON", el("small", {}, "with all figures")));
  }

  saveAs(kind) {
    return saveChat(this.server, this.addressed({ kind }));
  }
}

// The chat in this message's room, or the comparison in its rooms, as a file of the message's kind.
async function saveChat(server, message) {
  const [ending, type] = message.kind === "json" ? ["json", "application/json"] : ["md", "text/markdown"];
  const heard = await server.export(message).catch(() => null);
  const file = heard ?? { error: "the server of this page cannot be reached" };
  const name = message.rooms ? "comparison" : "chat";
  if (file.error) toast(`Not exported: ${file.error}`, "error");
  else saveFile(`${name}-${new Date().toISOString().slice(0, 16).replace(/[:T]/g, "-")}.${ending}`, file.text, type);
}

function waitingAnswer(model) {
  return { id: "pending", model, state: "waiting", blocks: [], text: "", notice: null, figures: null, cut: false, rating: "", flagged: false };
}
