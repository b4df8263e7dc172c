// One conversation: the model picker above it, the turns, and the events that go to the server and come back.
"use strict";

LlavaServe.pane = (element, gradio) => new Pane(element.firstElementChild, gradio);

const EMPTY = { born: "", revision: -1, running: false, restorable: false, turns: [] };

class Pane {
  constructor(root, { trigger, props, server, watch }) {
    this.root = root;
    this.trigger = trigger;
    this.server = server;
    this.side = root.dataset.side;
    this.view = viewOf(root.dataset.view);
    this.view.panes = [...this.view.panes.filter((pane) => pane.side !== this.side), this];
    root.classList.toggle("ls-behind", this.side === "right");
    this.data = EMPTY;
    this.pending = null; // a question that is on its way to the server
    this.build();
    watch("value", () => this.take(props.value));
    watchOffer(server, () => { this.picker.update(); this.draw(); this.view.refresh(); });
    whenServerReturns.add(() => this.follow({ do: "open" }));
    this.enter(keptSecret(`room-${this.view.name}-${this.side}`));
  }

  build() {
    this.picker = new Picker(this.side, () => this.view.refresh());
    this.stopButton = el("button.ls-button.ls-stop", { type: "button", hidden: true, onclick: () => this.act({ do: "stop" }) }, icon("stop"), el("span", {}, "Stop"));
    this.exportButton = iconButton("download", "Export this chat", () => popover(this.exportButton, (close) => this.exportMenu(close), ".ls-menu"), { "aria-haspopup": "dialog", "aria-expanded": "false" });
    this.list = el("div.ls-turns");
    this.empty = el("div.ls-empty");
    this.scroller = el("div.ls-scroll", { tabindex: "0", role: "log", "aria-label": "Conversation" }, this.empty, this.list);
    this.latest = iconButton("down", "To the latest answer", () => this.toEnd(true), { className: ".ls-latest", hidden: true });
    this.root.replaceChildren(
      el("div.ls-pane-head", {}, this.side !== "only" && this.sideSwitch(), this.picker.button,
        el("span.ls-gap"), this.view.name !== "chat" && this.stopButton, this.exportButton),
      el("div.ls-pane-body", {}, this.scroller, this.latest));
    this.scroller.addEventListener("scroll", () => this.noticeScroll(), { passive: true });
    const grown = new ResizeObserver(() => this.sticky && this.list.childElementCount && this.toEnd());
    grown.observe(this.scroller);
    grown.observe(this.list);
    this.sticky = true;
    this.turns = new Map();
  }

  // Which column this is; where there is room for one only, the way to the other.
  sideSwitch() {
    const button = (side, label) => el("button.ls-side", {
      type: "button", data: { to: side }, "aria-label": `Column ${label}`, tabindex: "-1", onclick: () => this.view.showSide(side),
    }, label);
    return el("span.ls-sides", {}, button("left", "A"), button("right", "B"));
  }

  enter(secret) {
    this.secret = secret;
    claimSecret(secret, () => {
      const fresh = makeSecret();
      stored("tab", `room-${this.view.name}-${this.side}`, fresh);
      this.data = EMPTY;
      this.enter(fresh);
    });
    this.follow({ do: "open" });
  }

  // What starts an answer, or finds one that is on its way, is streamed back.
  follow(message) {
    this.trigger("act", { ...message, room: this.secret });
  }

  async act(message) {
    const view = await this.fromServer("tell", message);
    if (view.error) toast(sentence(view.error), "error");
    else this.take(view);
  }

  async fromServer(name, message) {
    const heard = await this.server[name]({ ...message, room: this.secret }).catch(() => null);
    return heard ?? { error: "the server of this page cannot be reached" };
  }

  ask(text, pictures, turnId) {
    const model = this.picker.chosen;
    this.pending = { turn: { id: "pending", text, pictures, answers: 1, shown: 0, answer: waitingAnswer(model) }, replaces: turnId, since: this.data.revision };
    const claims = pictures.map(({ path, name, example }) => (example ? { example, name } : { path, name }));
    this.follow({ do: turnId ? "edit" : "ask", turn: turnId, text, pictures: claims, model, settings: { ...settings } });
    stored("tab", `unsent-${this.view.name}`, text || null);
    this.sticky = true;
    this.draw();
    const sent = this.pending;
    setTimeout(() => this.pending === sent && this.giveBack(text, pictures), 20000);
  }

  giveBack(text, pictures) {
    this.pending = null;
    this.draw();
    if (this.view.composer.isEmpty) this.view.composer.load(text, pictures);
    toast("The page's server did not take the question; it is back in the box.", "error");
  }

  retry() {
    this.sticky = true;
    this.follow({ do: "retry", model: this.picker.chosen, settings: { ...settings } });
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
    if (anew && this.data.turns.length) toast("The server of this page was restarted and has lost this chat.", "error");
    this.data = value;
    if (this.pending && (anew || value.revision > this.pending.since)) {
      this.pending = null;
      stored("tab", `unsent-${this.view.name}`, null);
    }
    this.draw();
    this.view.refresh();
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

  showsRunning(panes) {
    for (const { side, running } of panes) this.root.querySelector(`.ls-side[data-to="${side}"]`)?.classList.toggle("ls-busy", running);
  }

  markEdited(index) {
    [...this.list.children].forEach((node, place) => node.classList.toggle("ls-edited", index !== null && place >= index));
  }

  noticeScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.sticky = scrollHeight - scrollTop - clientHeight < 60;
    this.latest.hidden = this.sticky || !this.list.childElementCount;
  }

  toEnd(smooth = false) {
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior: smooth ? "smooth" : "instant" });
  }

  exportMenu(close) {
    const save = async (kind, ending, type) => {
      close();
      const file = await this.fromServer("export", { kind });
      if (file.error) toast(`Not exported: ${file.error}`, "error");
      else saveFile(`chat-${new Date().toISOString().slice(0, 16).replace(/[:T]/g, "-")}.${ending}`, file.text, type);
    };
    return el("div", {},
      el("button", { type: "button", onclick: () => save("markdown", "md", "text/markdown") }, "Markdown", el("small", {}, "to read")),
      el("button", { type: "button", onclick: () => save("json", "json", "application/json") }, "JSON", el("small", {}, "with all figures")));
  }
}

function waitingAnswer(model) {
  return { id: "pending", model, state: "waiting", blocks: [], text: "", notice: null, figures: null, cut: false, rating: "", flagged: false };
}
