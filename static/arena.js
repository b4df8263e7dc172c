// Blind battles: panes that know no names, the ballot, and what the vote tells.
"use strict";

const SIDE_LETTERS = { left: "A", right: "B" };
const VERDICTS = [
  { verdict: "a", label: "A is better", said: "A is better" },
  { verdict: "b", label: "B is better", said: "B is better" },
  { verdict: "tie", label: "Tie", said: "it’s a tie" },
  { verdict: "both_bad", label: "Both bad", said: "both are bad" },
];

LlavaServe.arenaPane = (element, gradio) => new ArenaPane(element.firstElementChild, gradio);
LlavaServe.ballot = (element, gradio) => new Ballot(element.firstElementChild, gradio);

// Both panes of a battle are called by one secret, with their side after it.
class ArenaView extends ColumnsView {
  enter(secrets) {
    const whole = secrets.length === this.panes.length && this.panes.every((pane, place) => secrets[place].endsWith(`-${pane.side}`));
    const battle = makeSecret();
    super.enter(whole ? secrets : this.panes.map((pane) => `${battle}-${pane.side}`));
  }

  refresh() {
    super.refresh();
    const label = this.composer?.clearButton.querySelector("span");
    if (label && label.textContent !== "New battle") {
      label.textContent = "New battle";
      this.composer.clearButton.title = "New battle";
      this.composer.clearButton.setAttribute("aria-label", "New battle");
    }
    // After the vote the ballot begins a new battle, and what was voted on stays as it is.
    if (this.battle.voted && this.composer) this.composer.clearButton.hidden = this.composer.undoButton.hidden = true;
    this.ballot?.update();
  }

  get battle() {
    return this.panes.map((pane) => pane.data.battle).find((battle) => battle?.voted) ?? { voted: "" };
  }

  // Whether both were asked, and both said something to its end.
  get complete() {
    return this.panes.length === 2 && this.panes.every((pane) => {
      const answer = pane.data.turns.at(-1)?.answer;
      return !pane.running && answer?.state === "done" && answer.text.trim();
    });
  }
}

views.arena = new ArenaView("arena");

class ArenaPane extends Pane {
  build() {
    super.build();
    const letter = SIDE_LETTERS[this.side];
    this.name = el("span.ls-blind-name", {}, `Model ${letter}`);
    this.picker.button.replaceWith(this.name);
    this.exportButton.hidden = true; // a file would tell the name
    // What stands in for the picker: there is nothing to choose, and nothing to ask with fewer than two models.
    this.picker = { button: this.name, missing: false, update() {}, choose() {}, get chosen() { return offer.models.length > 1 ? `Model ${letter}` : ""; } };
  }

  get title() {
    return this.name.textContent;
  }

  enter() {
    super.enter(`${keptSecret("battle")}-${this.side}`);
  }

  show(secret) {
    if (!secret.endsWith(`-${this.side}`)) return this.view.enter([]);
    stored("tab", "battle", secret.slice(0, -this.side.length - 1));
    return super.show(secret);
  }

  // Both sides are asked with the composer's settings, always.
  adopt() {}

  draw() {
    super.draw();
    const told = this.view.battle.voted;
    const model = told && this.data.turns.at(-1)?.answer.model;
    this.name.textContent = model || `Model ${SIDE_LETTERS[this.side]}`;
    this.name.title = this.name.textContent;
    if (!told) this.exportButton.hidden = true;
    const lonely = offer.known && !offer.lost && offer.models.length < 2 && !this.data.turns.length;
    this.root.closest(".ls-view")?.classList.toggle("ls-lonely", lonely);
    if (!this.shownTurns().length && offer.models.length) this.drawWelcome(lonely);
  }

  drawWelcome(lonely) {
    this.empty.className = "ls-empty ls-arena-empty";
    this.empty.dataset.key = "arena";
    this.empty.replaceChildren(...(lonely ? aloneInTheArena() : this.side === "left" ? arenaWelcome() : arenaRules()));
  }
}

function arenaWelcome() {
  return [
    el("span.ls-letter.ls-letter-a", {}, "A"),
    el("h1", {}, "Which answer is better?"),
    el("p", {}, "Ask about a picture, or anything. Two models answer; you do not know which."),
  ];
}

function arenaRules() {
  return [
    el("span.ls-letter.ls-letter-b", {}, "B"),
    el("h1", {}, "Vote, then see who it was"),
    el("p", {}, "Go on for as many turns as you like. The vote reveals the names and counts on the Leaderboard."),
  ];
}

function aloneInTheArena() {
  return [
    el("span.ls-pulse", {}, icon("mark")),
    el("h1", {}, "A battle needs two models"),
    el("p", {}, `Only ${offer.models[0].name} is running. Start the page with two or more:`),
    el("code.ls-command", {}, "./launch.sh --model PATH_OR_ID --model PATH_OR_ID"),
    el("p.ls-faint", {}, "This page looks every few seconds and is ready as soon as a second one appears."),
  ];
}

// The row of votes; after the vote, who was who.
class Ballot {
  constructor(root, { props, server }) {
    this.root = root;
    this.props = props;
    this.server = server;
    this.view = views.arena;
    this.view.ballot = this;
    this.root.setAttribute("role", "region");
    this.root.setAttribute("aria-label", "Your vote");
    voteByKeys(this.root);
    this.update();
  }

  update() {
    const { battle, complete, turns, running } = this.view;
    const asked = turns.length > 0 || running;
    const state = battle.voted ? "told" : asked ? (complete ? "ready" : "waiting") : "new";
    const key = JSON.stringify([state, battle, this.trouble, this.sending]);
    if (this.drawn === key) return;
    this.drawn = key;
    this.root.dataset.state = state;
    this.root.replaceChildren(...(state === "told" ? this.told(battle) : asked ? this.votes(complete) : this.terms()));
  }

  // Before the first question: what becomes of what is said here, where it is more than a vote.
  terms() {
    return this.props.recording ? [el("p.ls-terms", {}, icon("warn"), el("span", {}, this.props.promise))] : [];
  }

  votes(complete) {
    const button = ({ verdict, label }, place) => el(`button.ls-vote.ls-vote-${verdict}`, {
      type: "button", disabled: !complete || Boolean(this.sending), "aria-keyshortcuts": String(place + 1), onclick: () => this.vote(verdict),
    }, el("span", {}, label), el("kbd", { "aria-hidden": "true" }, String(place + 1)));
    return [
      el("div.ls-votes", { role: "group", "aria-label": "Which answer is better?" }, VERDICTS.map(button)),
      el("p.ls-vote-hint", { role: "status" }, complete ? "Your vote reveals the names." : "You can vote once both answers are complete."),
    ];
  }

  told(battle) {
    const { said } = VERDICTS.find(({ verdict }) => verdict === battle.voted);
    const card = (model, place) => el(`div.ls-who.ls-who-${"ab"[place]}`, { data: { won: String(battle.voted === "ab"[place]) } },
      el("span.ls-letter", {}, "AB"[place]),
      el("div", {}, el("strong", { title: model.name }, model.name), moved(model, battle.left_out)));
    return [
      el("div.ls-reveal", { role: "status" }, battle.models.map(card)),
      battle.left_out && el("p.ls-terms", {}, icon("warn"), el("span", {}, `This battle is left out of the ratings: ${battle.left_out}, which tells its model.`)),
      el("div.ls-after", {}, el("span.ls-said", {}, `You said ${said}.`), this.reason(battle),
        el("button.ls-action.ls-next", { type: "button", onclick: () => this.view.clear() }, icon("fresh"), el("span", {}, "New battle"))),
      this.trouble && el("p.ls-vote-hint", {}, this.trouble),
    ].filter(Boolean);
  }

  reason(battle) {
    if (battle.reason) return el("q.ls-reason-given", { title: battle.reason }, battle.reason);
    const text = el("input", { type: "text", maxlength: 2000, placeholder: "Say why, if you like", "aria-label": "Why, if you like to say" });
    return el("form.ls-reason", { onsubmit: (event) => { event.preventDefault(); if (text.value.trim()) this.vote(battle.voted, text.value); } }, text,
      el("button.ls-button", { type: "submit", title: "Add the reason", "aria-label": "Add the reason" }, icon("check")));
  }

  async vote(verdict, reason = "") {
    if (this.sending) return;
    this.sending = verdict;
    this.update();
    const [pane] = this.view.panes;
    const heard = await this.server.vote({ room: pane.secret, owner, verdict, reason }).catch(() => null);
    this.sending = "";
    if (!heard || heard.error) toast(sentence(heard?.error ?? "the server of this page cannot be reached"), "error");
    else this.trouble = heard.trouble;
    await Promise.all(this.view.panes.map((each) => each.act({ do: "open" })));
    this.update();
    if (heard && !heard.error) this.root.querySelector(".ls-next")?.focus({ preventScroll: true });
  }
}

// "1012 → 1019 +7", or why there is no such thing.
function moved({ before, after }, leftOut) {
  if (after === null) return el("small", {}, "not enough votes for a rating yet");
  const now = Math.round(after);
  if (before === null) return el("small", {}, `rated ${now} from now on`);
  const by = now - Math.round(before);
  return el("small", {}, leftOut || !by ? `stays at ${now}` : `${Math.round(before)} → ${now} `,
    !leftOut && by !== 0 && el(`b.ls-${by > 0 ? "gain" : "loss"}`, {}, `${by > 0 ? "+" : "−"}${Math.abs(by)}`));
}
