// The list beside the Chat tab: this browser's conversations, to search, open, rename, share, bring in and delete.
"use strict";

let chatList = null;

LlavaServe.history = (element, gradio) => { chatList = new ChatList(element.firstElementChild, gradio); };

const asideFits = window.matchMedia("(width >= 900px)");
const sideShown = () => document.documentElement.classList.contains("ls-side-open");

class ChatList {
  constructor(root, { props, server }) {
    this.root = root;
    this.server = server;
    this.limit = props.max_import;
    this.chats = [];
    this.known = false;
    this.looks = 1; // how many times as many as the list has at first
    this.build();
    asideFits.addEventListener("change", () => this.toggle(asideFits.matches && stored("browser", "side") !== "closed"));
    this.toggle(asideFits.matches && stored("browser", "side") !== "closed");
    document.addEventListener("visibilitychange", () => document.hidden || this.soon());
    whenServerReturns.add(() => this.soon());
    neighbours?.addEventListener("message", ({ data }) => data.chats && this.soon(false));
    this.soon();
  }

  build() {
    this.search = el("input.ls-history-search", { type: "search", placeholder: "Search your chats", "aria-label": "Search your chats", oninput: () => { this.looks = 1; this.soon(false); }, onkeydown: (event) => this.searchKey(event) });
    this.list = el("div.ls-history-list", { onkeydown: (event) => this.key(event) });
    this.trouble = el("p.ls-history-trouble", { role: "status", hidden: true });
    this.file = el("input", { type: "file", accept: ".json,.md,.markdown,application/json,text/markdown", hidden: true, "aria-label": "A chat's file" });
    this.file.addEventListener("change", () => { this.bring(this.file.files[0]); this.file.value = ""; });
    this.root.replaceChildren(
      el("div.ls-history-head", {},
        el("button.ls-action.ls-history-new", { type: "button", onclick: () => { viewOf("chat").clear(); this.leave(); } }, icon("fresh"), el("span", {}, "New chat")),
        iconButton("upload", "Bring in a chat from a file", () => this.file.click()),
        iconButton("close", "Close the list", () => this.toggle(false, true), { className: ".ls-history-close" })),
      el("label.ls-history-find", {}, icon("search"), this.search),
      this.trouble, this.list, this.file);
    this.veil = el("div.ls-side-veil", { onclick: () => this.toggle(false) });
    this.root.after(this.veil);
    this.root.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || asideFits.matches) return;
      this.toggle(false, true);
    });
  }

  // Beside the chat where there is room, else a drawer over it.
  toggle(open, byHand = false) {
    document.documentElement.classList.toggle("ls-side-open", open);
    this.root.inert = !open;
    if (byHand && asideFits.matches) stored("browser", "side", open ? null : "closed");
    for (const button of document.querySelectorAll(".ls-side-toggle")) {
      button.setAttribute("aria-expanded", String(open));
      if (byHand && !open) button.focus();
    }
    if (byHand && open) this.search.focus({ preventScroll: true });
  }

  leave() {
    if (!asideFits.matches) this.toggle(false);
  }

  // what the server knows ----------------------------------------------------------------------------------------

  // Ask again in a moment, once for all that happens until then.
  soon(tell = true) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh(), this.known ? 250 : 0);
    if (tell) neighbours?.postMessage({ chats: true });
  }

  async refresh() {
    const query = this.search.value.trim();
    const { looks } = this;
    const heard = (await this.server.chats({ owner, query, looks }).catch(() => null)) ?? { error: "the server of this page cannot be reached" };
    if (query !== this.search.value.trim() || looks !== this.looks) return;
    this.trouble.hidden = !heard.error;
    this.trouble.textContent = heard.error ? `Your chats cannot be listed: ${heard.error}.` : "";
    if (!heard.error) {
      this.chats = heard.chats;
      this.older = heard.older;
      this.known = true;
      this.draw(query);
    }
    clearTimeout(this.timer);
    if (heard.error || this.busy || this.chats.some((chat) => chat.running)) this.timer = setTimeout(() => this.refresh(), this.busy ? 700 : 3000);
  }

  async tend(message) {
    const heard = (await this.server.tend({ ...message, owner }).catch(() => null)) ?? { error: "the server of this page cannot be reached" };
    if (heard.error) toast(sentence(heard.error), "error");
    this.soon();
    return heard;
  }

  // drawing ------------------------------------------------------------------------------------------------------

  get open() {
    return viewOf("chat").panes[0]?.secret;
  }

  // While a row is being renamed or its menu is open, the rows stay where they are.
  get busy() {
    return this.renaming || Boolean(openPanel && this.list.contains(openPanel.button));
  }

  draw(query) {
    const focused = this.list.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    if (this.busy) return;
    const groups = new Map();
    for (const chat of this.chats) {
      const title = query ? "Found" : period(new Date(chat.updated * 1000));
      groups.set(title, [...(groups.get(title) ?? []), chat]);
    }
    const nothing = query ? "No chat has these words." : "Your chats will be listed here.";
    this.list.replaceChildren(...(this.chats.length ? [...groups].map(([title, chats]) =>
      el("section", { "aria-label": title }, el("h2", {}, title), el("ul", {}, chats.map((chat) => this.row(chat))))) : [el("p.ls-history-none", {}, nothing)]));
    if (this.older) this.list.append(el("button.ls-text-button.ls-history-older", { type: "button", onclick: () => this.showOlder() }, "Show older chats"));
    if (focused) this.list.querySelector(`li[data-id="${CSS.escape(focused)}"] .ls-chat-open`)?.focus({ preventScroll: true });
  }

  async showOlder() {
    const known = this.chats.length;
    this.looks += 1;
    await this.refresh();
    this.list.querySelectorAll(".ls-chat-open")[known]?.focus();
  }

  row(chat) {
    const here = chat.id === this.open;
    const columns = chat.columns.length;
    const about = [columns ? `compare, ${columns} ${columns === 1 ? "column" : "columns"}` : chat.place !== "chat" && chat.place, chat.models.join(", ")].filter(Boolean).join(" · ");
    const more = iconButton("more", `What to do with “${chat.title}”`, () => popover(more, (close) => this.menu(chat, more, close), ".ls-menu"),
      { className: ".ls-chat-more", "aria-haspopup": "dialog", "aria-expanded": "false" });
    return el("li.ls-chat-item", { data: { id: chat.id } },
      el("button.ls-chat-open", { type: "button", title: chat.title, "aria-current": here ? "true" : null, onclick: () => this.enter(chat) },
        el("span.ls-chat-title", {}, chat.title),
        el("small", {}, chat.running && el("i.ls-chat-running", { title: "Answering" }), (chat.shared || chat.columns.some(({ shared }) => shared)) && icon("link"), chat.pictures > 0 && icon("picture"), el("span", {}, chat.found || about))),
      more);
  }

  enter(chat) {
    const tab = chat.columns.length && document.getElementById("ls-tab-compare-button");
    if (tab) {
      if (chat.id !== views.compare.comparison) views.compare.reopen(chat.id, chat.columns.map(({ id }) => id));
      tab.click();
      return void this.leave();
    }
    const id = chat.columns[0]?.id ?? chat.id; // where there is no tab for comparisons, as in frames
    if (id !== this.open) {
      viewOf("chat").left = [];
      viewOf("chat").enter([id]);
    }
    for (const item of this.list.querySelectorAll(".ls-chat-open")) item.removeAttribute("aria-current");
    this.list.querySelector(`li[data-id="${CSS.escape(chat.id)}"] .ls-chat-open`)?.setAttribute("aria-current", "true");
    this.leave();
  }

  // keys ---------------------------------------------------------------------------------------------------------

  searchKey(event) {
    if (event.key === "ArrowDown") this.list.querySelector(".ls-chat-open")?.focus();
    else if (event.key === "Escape" && this.search.value) {
      this.search.value = "";
      this.soon(false);
      event.stopPropagation();
    }
  }

  key(event) {
    const row = event.target.closest("li");
    if (!row || event.target.matches("input")) return;
    const opens = [...this.list.querySelectorAll(".ls-chat-open")];
    const at = opens.indexOf(row.querySelector(".ls-chat-open"));
    const chat = this.chats.find(({ id }) => id === row.dataset.id);
    if (event.key === "ArrowDown") opens[at + 1]?.focus();
    else if (event.key === "ArrowUp") (opens[at - 1] ?? this.search).focus();
    else if (event.key === "F2") this.rename(chat);
    else if (event.key === "Delete") this.askToDelete(chat, row.querySelector(".ls-chat-more"));
    else return;
    event.preventDefault();
  }

  // what can be done with a chat -----------------------------------------------------------------------------------

  menu(chat, more, close) {
    const item = (name, label, act, kind = "") => el(`button${kind}`, { type: "button", onclick: () => { close(); act(); } }, el("span", {}, icon(name), label));
    return el("div", {},
      item("edit", "Rename", () => this.rename(chat)),
      chat.columns.length ? chat.columns.map((column, place) => item("link", `Share ${COLUMN_LETTERS[place]}, ${column.models.join(", ")}…`, () => this.sharing(column, more)))
        : item("link", "Share…", () => this.sharing(chat, more)),
      item("download", "Export as Markdown", () => this.export(chat, "markdown")),
      item("download", "Export as JSON", () => this.export(chat, "json")),
      item("trash", "Delete…", () => this.askToDelete(chat, more), ".ls-danger"));
  }

  export({ id, columns }, kind) {
    saveChat(this.server, columns.length ? { kind, owner, place: "compare", rooms: columns.map((column) => column.id) } : { kind, owner, place: "chat", room: id });
  }

  rename(chat) {
    const row = this.list.querySelector(`li[data-id="${CSS.escape(chat.id)}"]`);
    const field = el("input.ls-chat-name", { type: "text", value: chat.title, maxlength: 200, "aria-label": "The chat's name" });
    this.renaming = true;
    const end = async (keep) => {
      if (!this.renaming) return;
      this.renaming = false;
      const title = field.value.trim();
      if (keep && title && title !== chat.title) {
        chat.title = title;
        await this.tend({ do: "rename", id: chat.id, title });
      }
      this.draw(this.search.value.trim());
      this.list.querySelector(`li[data-id="${CSS.escape(chat.id)}"] .ls-chat-open`)?.focus({ preventScroll: true });
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) end(true);
      else if (event.key === "Escape") end(false);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    field.addEventListener("blur", () => end(true));
    row.replaceChildren(field);
    field.focus();
    field.select();
  }

  askToDelete(chat, button) {
    const compared = chat.columns.length > 0;
    this.ask(button, `Delete “${chat.title}”?`, `It is deleted from the server for good, with its ${compared ? "columns, " : ""}pictures and ratings.`, "Delete", async () => {
      const done = await this.tend({ do: "delete", id: chat.id });
      if (done.error) return;
      leaveChats(done.gone);
      toast(`The ${compared ? "comparison" : "chat"} was deleted.`);
      this.search.focus({ preventScroll: true });
    });
  }

  askToDeleteAll(button) {
    this.ask(button, "Delete all your chats?", "Every chat of this browser is deleted from the server for good.", "Delete all", async () => {
      const done = await this.tend({ do: "delete all" });
      if (done.error) return;
      leaveChats();
      toast("All your chats were deleted.");
    });
  }

  ask(button, question, consequence, label, act) {
    openPanel?.close();
    popover(button, (close) => el("div.ls-question-box", {}, el("h2", {}, question), el("p", {}, consequence),
      el("div.ls-notice-actions", {},
        el("button.ls-action.ls-danger", { type: "button", onclick: () => { close(); act(); } }, icon("trash"), el("span", {}, label)),
        el("button.ls-action", { type: "button", onclick: close }, "Keep"))), ".ls-asking");
  }

  sharing(chat, button) {
    popover(button, (close) => {
      const box = el("div.ls-question-box");
      const draw = () => box.replaceChildren(...(chat.shared ? this.shared(chat, draw) : this.unshared(chat, draw)));
      draw();
      return box;
    }, ".ls-asking");
  }

  unshared(chat, draw) {
    return [el("h2", {}, "Share this chat"),
      el("p", {}, "Whoever has the link can read the chat as it is now, pictures included, until you withdraw it. What is said later stays with you."),
      el("div.ls-notice-actions", {}, el("button.ls-action", { type: "button", onclick: () => this.makeLink(chat, draw) }, icon("link"), el("span", {}, "Make a link")))];
  }

  shared(chat, draw) {
    const address = new URL(`shared/${chat.shared}`, location.href.split("?")[0]).href;
    const field = el("input.ls-chat-name", { type: "text", readonly: true, value: address, "aria-label": "The link", onfocus: () => field.select() });
    const copy = el("button.ls-action", { type: "button", onclick: () => copyText(address, copy.lastElementChild) }, icon("copy"), el("span", {}, "Copy"));
    return [el("h2", {}, "Shared"), el("p", {}, "Whoever has this link can read the chat as it was when the link was made."), field,
      el("div.ls-notice-actions", {}, copy,
        el("button.ls-action", { type: "button", title: "The old link ends to work", onclick: () => this.makeLink(chat, draw) }, icon("retry"), el("span", {}, "New link")),
        el("button.ls-action.ls-danger", { type: "button", onclick: async () => {
          const done = await this.tend({ do: "withdraw", id: chat.id });
          if (!done.error) { chat.shared = null; draw(); toast("The link no longer works."); }
        } }, icon("close"), el("span", {}, "Withdraw")))];
  }

  async makeLink(chat, draw) {
    const made = await this.tend({ do: "share", id: chat.id });
    if (made.error) return;
    chat.shared = made.token;
    draw();
  }

  async bring(file) {
    if (!file) return;
    if (file.size > this.limit) return void toast(`${file.name} is larger than the ${megabytes(this.limit)} that can be brought in.`, "error");
    const id = makeSecret();
    const done = await this.tend({ do: "import", id, name: file.name, text: await file.text() });
    if (done.error) return;
    this.enter({ id, columns: done.columns.map((column) => ({ id: column })) });
    toast(`The ${done.columns.length ? "comparison" : "chat"} was brought in.`);
  }
}

function chatListButton() {
  const button = iconButton("panel", "Your chats", () => chatList?.toggle(!sideShown(), true), { className: ".ls-side-toggle", "aria-expanded": String(sideShown()) });
  return button;
}

function period(when) {
  const day = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
  const days = Math.round((day(new Date()) - day(when)) / 86400000);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days <= 7) return "The last seven days";
  return when.toLocaleDateString("en", { month: "long", year: "numeric" });
}
