// One tab: its panes (one conversation each) and its composer, which asks all of them at once.
"use strict";

const views = {};

function viewOf(name) {
  return (views[name] ??= new View(name));
}

class View {
  constructor(name) {
    this.name = name;
    this.made = []; // every pane there is
    this.composer = null;
    this.editing = null; // the index of the question that is being rewritten
    this.taken = "";
    this.left = []; // the rooms of the chats that a new one was begun instead of
    this.awaited = new Set(); // the sides of panes that are there once the tab is looked at, and find a chat then
  }

  // The panes that are asked.
  get panes() {
    return this.made;
  }

  add(pane) {
    this.made = [...this.made.filter(({ side }) => side !== pane.side), pane];
  }

  get turns() {
    return this.panes[0]?.data.turns ?? [];
  }

  get running() {
    return this.panes.some((pane) => pane.running);
  }

  get restorable() {
    return this.left.length > 0 || this.panes.some((pane) => pane.data.restorable);
  }

  // Something in a pane or the offer changed: what depends on all of them follows.
  refresh() {
    this.composer?.refresh();
  }

  // A person scrolled this pane.
  scrolled() {}

  // More buttons for the composer.
  tools() {
    return [];
  }

  send(text, pictures) {
    const index = this.editing;
    this.editing = null;
    this.taken = "";
    this.left = [];
    for (const pane of this.panes) {
      const turn = index === null ? null : pane.data.turns[index];
      pane.ask(text, pictures, turn?.id);
    }
    this.refresh();
  }

  stop() {
    for (const pane of this.panes) if (pane.running) pane.act({ do: "stop" });
  }

  edit(turnId, pane) {
    const index = pane.data.turns.findIndex((turn) => turn.id === turnId);
    if (index < 0) return;
    const turn = pane.data.turns[index];
    this.editing = index;
    this.composer.load(turn.text, turn.pictures);
    this.markEdited();
  }

  cancelEdit() {
    if (this.editing === null) return;
    this.editing = null;
    this.composer.load("", []);
    this.markEdited();
  }

  markEdited() {
    for (const pane of this.panes) pane.markEdited(this.editing);
    this.refresh();
  }

  // Take the last turn back into the composer, unless something is being written there.
  undo() {
    const last = this.turns.at(-1);
    if (!last) return;
    this.editing = null;
    this.taken = "undo";
    if (this.composer.isEmpty) this.composer.load(last.text, last.pictures);
    this.all({ do: "undo" });
  }

  // A new chat is a new room; the one before stays as it is, and an answer there goes on.
  clear() {
    if (this.turns.length) this.left = this.panes.map((pane) => pane.secret);
    this.taken = "clear";
    this.enter(this.panes.map(() => makeSecret()));
    this.composer.focus();
  }

  // Show other chats, one in each pane.
  enter(secrets) {
    this.editing = null;
    this.panes.forEach((pane, place) => pane.show(secrets[place] ?? makeSecret()));
    this.markEdited();
  }

  // Chats that were deleted, or all of them, are not shown any more, nor brought back.
  leave(gone) {
    if (!gone || this.left.some((secret) => gone.includes(secret))) this.left = [];
    if (!gone) return void this.enter(this.panes.map(() => makeSecret()));
    const shown = this.made.filter(({ secret }) => gone.includes(secret));
    if (!shown.length) return;
    this.editing = null;
    for (const pane of shown) pane.show(makeSecret());
    this.markEdited();
  }

  restore() {
    if (this.left.length) {
      const back = this.left;
      this.left = [];
      this.enter(back);
      return;
    }
    if (this.taken === "undo") this.composer.load("", []);
    this.taken = "";
    this.all({ do: "restore" });
  }

  all(message) {
    for (const pane of this.panes) pane.act(message);
    this.refresh();
  }
}

// What this browser's chats are kept under. Whoever has it has them all, so it goes to the page's own server only.
const owner = stored("browser", "owner") || makeSecret();
stored("browser", "owner", owner);

// Each pane's conversation is found again by a secret that this browser tab keeps; it outlives a reload.
function makeSecret() {
  const bytes = crypto.getRandomValues(new Uint8Array(24));
  return btoa(String.fromCharCode(...bytes)).replace(/\+/g, "-").replace(/\//g, "_");
}

function keptSecret(key) {
  const secret = stored("tab", key) || makeSecret();
  stored("tab", key, secret);
  return secret;
}

// A duplicated tab inherits the secrets; whoever had them first answers, and the duplicate makes new ones.
const tabId = makeSecret();
const neighbours = "BroadcastChannel" in window ? new BroadcastChannel("llava-serve") : null;
const ownSecrets = new Map();

neighbours?.addEventListener("message", ({ data }) => {
  const taken = ownSecrets.get(data.secret);
  if (!taken || data.tab === tabId) return;
  if (data.ask) neighbours.postMessage({ secret: data.secret, tab: tabId, mine: true });
  else if (data.mine && taken.asked) taken.lose();
});

// Deleted chats, all without a list of them, are left by whichever tab of the page and of the browser shows them.
function leaveChats(gone = null, tell = true) {
  for (const view of Object.values(views)) view.leave(gone);
  if (tell) neighbours?.postMessage({ gone });
}

neighbours?.addEventListener("message", ({ data }) => data.gone !== undefined && leaveChats(data.gone, false));

function claimSecret(secret, lose) {
  const claim = { asked: true, lose };
  ownSecrets.set(secret, claim);
  neighbours?.postMessage({ secret, tab: tabId, ask: true });
  setTimeout(() => { claim.asked = false; }, 1500);
}
