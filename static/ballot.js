// The open vote of a comparison: which answer is best, a tie, or all bad; it may be changed and taken back.
"use strict";

LlavaServe.openBallot = (element, gradio) => new OpenBallot(element.firstElementChild, gradio);

const NO_VOTE = { verdict: "", best: null, reason: "" };

class OpenBallot {
  constructor(root, { server }) {
    this.root = root;
    this.server = server;
    this.view = views.compare;
    this.view.ballot = this;
    this.kept = NO_VOTE;
    this.root.setAttribute("role", "region");
    this.root.setAttribute("aria-label", "Your vote");
    voteByKeys(root);
    this.update();
  }

  // The columns as far as they can be voted on; a vote is about exactly these.
  get field() {
    return this.view.panes.map((pane) => {
      const answer = pane.data.turns.at(-1)?.answer;
      const asked = JSON.stringify(pane.data.turns.map(({ text }) => text));
      return { room: pane.secret, asked, model: answer?.model, answer: answer?.id, complete: !pane.running && answer?.state === "done" && Boolean(answer.text.trim()) };
    });
  }

  update() {
    const { field } = this;
    const { turns, running } = this.view;
    const alike = new Set(field.map(({ asked }) => asked)).size < 2;
    const ready = !running && alike && field.filter(({ complete }) => complete).length > 1;
    const about = ready ? JSON.stringify(field) : "";
    if (about && about !== this.about) this.ask(about);
    this.root.hidden = !turns.length;
    const key = JSON.stringify([field, ready, this.kept, this.sending, turns.length > 0]);
    if (this.drawn === key || !turns.length) return;
    this.drawn = key;
    const writing = this.root.contains(document.activeElement) && document.activeElement.matches("input") ? document.activeElement.value : null;
    this.root.replaceChildren(this.votes(field, ready), ready && this.kept.verdict ? this.after() : el("p.ls-vote-hint", {}, ready ? "" : alike || running ? "You can vote once the answers are complete." : "The models were not asked the same; to vote, show the same wording in all columns."));
    this.root.lastElementChild.hidden = ready && !this.kept.verdict;
    if (writing !== null) this.root.querySelector("input")?.focus();
  }

  // How one voted about what stands here now, before a reload for one.
  async ask(about) {
    this.about = about;
    this.kept = NO_VOTE;
    const heard = await this.server.standing(this.addressed({})).catch(() => null);
    if (this.about !== about || !heard || heard.error) return;
    this.kept = heard;
    this.update();
  }

  addressed(message) {
    return { ...message, owner, place: "compare", rooms: this.view.panes.map((pane) => pane.secret) };
  }

  votes(field, ready) {
    const better = field.length > 2 ? "is best" : "is better";
    const button = (verdict, best, label, place, title, off) => {
      const pressed = this.kept.verdict === verdict && this.kept.best === best;
      return el("button.ls-vote", {
        type: "button", title, "aria-label": title, "aria-pressed": String(pressed), "aria-keyshortcuts": String(place + 1), disabled: off || Boolean(this.sending),
        data: best === null ? {} : { place: String(best) }, onclick: () => this.vote(pressed ? "" : verdict, best),
      }, ...label, el("kbd", { "aria-hidden": "true" }, String(place + 1)));
    };
    const columns = field.map(({ complete, model }, place) => button("best", place,
      [el("b", {}, COLUMN_LETTERS[place]), el("span.ls-vote-word", {}, better)], place, `${COLUMN_LETTERS[place]} ${better}: ${model ?? ""}`, !ready || !complete));
    const bad = field.length > 2 ? "All bad" : "Both bad";
    return el("div.ls-votes", { role: "group", "aria-label": "Which answer is best?", data: { count: String(field.length) } }, columns,
      button("tie", null, [el("span", {}, "Tie")], field.length, "Tie", !ready), button("all_bad", null, [el("span", {}, bad)], field.length + 1, bad, !ready));
  }

  after() {
    const { reason } = this.kept;
    const text = el("input", { type: "text", maxlength: 2000, placeholder: "Say why, if you like", "aria-label": "Why, if you like to say", value: reason });
    const form = el("form.ls-reason", { onsubmit: (event) => { event.preventDefault(); this.vote(this.kept.verdict, this.kept.best, text.value); } }, text,
      el("button.ls-button", { type: "submit", title: "Keep the reason", "aria-label": "Keep the reason" }, icon("check")));
    return el("div.ls-after", {}, el("span.ls-said", { role: "status" }, reason ? "Your vote and its reason count." : "Your vote counts."), form,
      el("button.ls-text-button", { type: "button", onclick: () => this.vote("", null) }, "Take it back"));
  }

  async vote(verdict, best, reason = "") {
    if (this.sending) return;
    this.sending = verdict || "none";
    this.update();
    const heard = await this.server.vote(this.addressed({ verdict, best, reason })).catch(() => null);
    this.sending = "";
    if (!heard || heard.error) toast(sentence(heard?.error ?? "the server of this page cannot be reached"), "error");
    else this.kept = heard;
    this.update();
    const voted = this.root.querySelector(".ls-vote[aria-pressed=true]") ?? this.root.querySelector(".ls-vote:enabled");
    voted?.focus({ preventScroll: true });
  }
}
