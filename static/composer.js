// Where questions are written: text that grows, pictures by picking, pasting or dropping, and what goes with them.
"use strict";

LlavaServe.composer = (element, gradio) => new Composer(element.firstElementChild, gradio);

class Composer {
  constructor(root, { props, upload }) {
    this.root = root;
    this.props = props;
    this.uploadFile = upload;
    this.view = viewOf(root.dataset.view);
    this.view.composer = this;
    this.pictures = [];
    this.build();
    this.listen();
    // What was being written, or sent but never taken, before a reload.
    this.text.value = stored("tab", `draft-${this.view.name}`) ?? stored("tab", `unsent-${this.view.name}`) ?? "";
    this.grow();
    this.refresh();
    for (const pane of this.view.panes) pane.draw();
  }

  build() {
    this.files = el("input", { type: "file", accept: "image/*", multiple: true, hidden: true, "aria-label": "Pictures" });
    this.shelf = el("div.ls-shelf", { hidden: true });
    this.hints = el("div.ls-hints", { hidden: true });
    this.bar = el("div.ls-bar", { hidden: true });
    this.strip = el("div.ls-strip", { hidden: true });
    this.text = el("textarea.ls-input", { rows: 1, "aria-label": "Your question", enterkeyhint: "send" });
    this.sendButton = iconButton("send", "Send", () => this.primary(), { className: ".ls-send" });
    this.undoButton = iconButton("undo", "Undo the last turn", () => this.view.undo());
    this.clearButton = el("button.ls-button.ls-new", { type: "button", title: "New chat", "aria-label": "New chat", onclick: () => this.view.clear() },
      icon("fresh"), el("span", {}, "New chat"));
    this.settingsButton = iconButton("sliders", "Settings", () => popover(this.settingsButton, () => this.settingsBox(), ".ls-settings-popover"),
      { "aria-haspopup": "dialog", "aria-expanded": "false" });
    this.keptButton = el("button.ls-text-button", { type: "button", onclick: () => popover(this.keptButton, () => this.whatIsKept(), ".ls-kept") }, "What is kept?");
    this.box = el("div.ls-box", {}, this.shelf, this.hints, this.text,
      el("div.ls-tools", {},
        iconButton("picture", "Add pictures", () => this.files.click(), { className: ".ls-attach" }), this.settingsButton, this.view.tools(),
        el("span.ls-gap"), this.undoButton, this.clearButton, this.sendButton), this.files);
    this.root.append(this.strip, this.bar, this.box,
      el("p.ls-foot", {}, "Models make mistakes. Check what matters. ", this.keptButton));
    this.veil = el("div.ls-veil", { hidden: true }, el("div", {}, icon("picture"), el("strong", {}, "Drop pictures here")));
    this.root.append(this.veil);
  }

  listen() {
    this.files.addEventListener("change", () => { this.add(this.files.files); this.files.value = ""; });
    this.text.addEventListener("input", () => { this.grow(); this.keepDraft(); this.refresh(); });
    this.text.addEventListener("keydown", (event) => this.key(event));
    this.text.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (!files.length) return;
      event.preventDefault();
      this.add(files);
    });
    settingsListeners.add(() => this.refresh());
    this.listenForDrops();
  }

  // Pictures may be dropped anywhere on the page while this tab is the one that shows.
  listenForDrops() {
    let depth = 0;
    const shown = () => this.root.offsetParent !== null;
    const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
    const veil = (on) => { this.veil.hidden = !on; };
    document.addEventListener("dragenter", (event) => { if (shown() && carriesFiles(event)) { depth += 1; veil(true); } });
    document.addEventListener("dragleave", (event) => { if (shown() && carriesFiles(event)) { depth = Math.max(0, depth - 1); veil(depth > 0); } });
    document.addEventListener("dragover", (event) => { if (shown()) event.preventDefault(); });
    document.addEventListener("drop", (event) => {
      if (!shown() || !event.dataTransfer) return;
      event.preventDefault();
      depth = 0;
      veil(false);
      if (event.dataTransfer.files.length) this.add(event.dataTransfer.files);
      else if (event.dataTransfer.types.includes("text/uri-list")) toast("That is only a link; save the picture and drop the file.", "error");
    });
  }

  key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!this.view.running) this.submit();
      else if (!this.isEmpty) toast("Still answering: stop it first, or wait.");
    } else if (event.key === "Escape") {
      if (this.view.editing !== null) this.view.cancelEdit();
      else if (this.view.running) this.view.stop();
    } else if (event.key === "ArrowUp" && this.isEmpty && this.view.turns.length) {
      event.preventDefault();
      this.view.edit(this.view.turns.at(-1).id, this.view.panes[0]);
    }
  }

  get isEmpty() {
    return !this.text.value.trim() && !this.pictures.length;
  }

  primary() {
    if (this.view.running) this.view.stop();
    else this.submit();
  }

  async submit() {
    if (this.isEmpty || this.waiting || !this.canAsk) return;
    this.waiting = true;
    this.refresh();
    await Promise.all(this.pictures.map((picture) => picture.arrival));
    this.waiting = false;
    const failed = this.pictures.find((picture) => picture.failed);
    if (failed) toast(failed.failed, "error");
    else {
      this.view.send(this.text.value.trim(), this.pictures.map(({ arrival, questions, ...picture }) => picture));
      this.load("", []);
    }
    this.refresh();
    this.focus();
  }

  // A column whose model is not there says so itself; with none to answer there is nobody to ask.
  get canAsk() {
    const { panes } = this.view;
    return !offer.lost && panes.length > 0 && panes.every(({ picker }) => picker.chosen) && panes.some(({ picker }) => !picker.missing);
  }

  load(text, pictures) {
    this.text.value = text;
    this.pictures = pictures.map((picture) => ({ ...picture, arrival: null }));
    this.keepDraft();
    this.grow();
    this.drawShelf();
    this.refresh();
    if (text || pictures.length) this.focus();
  }

  focus() {
    // A phone would open its keyboard over the answer.
    if (window.matchMedia("(pointer: fine)").matches) this.text.focus({ preventScroll: true });
  }

  keepDraft() {
    stored("tab", `draft-${this.view.name}`, this.text.value || null);
  }

  grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, window.innerHeight * 0.38)}px`;
  }

  // settings ---------------------------------------------------------------------------------------------------

  // The only chat here, where it has settings of its own.
  get chatWithOwn() {
    return this.view.made.length === 1 && this.view.made[0].own ? this.view.made[0] : null;
  }

  settingsBox() {
    const box = el("div");
    const draw = () => {
      const chat = this.chatWithOwn;
      if (!chat) return void box.replaceChildren(settingsPanel());
      const back = el("button.ls-text-button", {
        type: "button", title: "Go on with the settings that new chats begin with", onclick: () => { chat.setOwn(null); draw(); box.querySelector("button").focus(); },
      }, "As in new chats");
      box.replaceChildren(settingsPanel({ values: chat.own, keep: (own) => chat.setOwn(own), seed: "random", title: "Settings of this chat", back }));
    };
    draw();
    return box;
  }

  // pictures ---------------------------------------------------------------------------------------------------

  add(files) {
    for (const file of files) this.addOne(file);
    this.drawShelf();
    this.refresh();
  }

  addOne(file) {
    const most = this.props.max_bytes;
    const name = file.name || "pasted.png";
    if (this.pictures.length >= this.props.max_images) return toast(`At most ${this.props.max_images} pictures fit in one chat.`, "error");
    if (!file.type.startsWith("image/")) return toast(`${name} is not a picture, as far as its name tells.`, "error");
    if (file.size > most) return toast(`${name} is ${megabytes(file.size)}; at most ${megabytes(most)} are allowed. Make it smaller and try again.`, "error");
    if (!file.size) return toast(`${name} is empty.`, "error");
    const picture = { name, url: URL.createObjectURL(file), size: file.size, path: "" };
    picture.arrival = this.uploadFile(file).then(({ path }) => { picture.path = path; localPictures.set(path, picture.url); })
      .catch((error) => {
        picture.failed = uploadTrouble(error, name);
        if (!this.waiting) toast(picture.failed, "error");
      })
      .finally(() => { picture.arrival = null; this.drawShelf(); this.refresh(); });
    this.pictures.push(picture);
    return undefined;
  }

  addExample(example, question) {
    this.load(question, [{ questions: example.questions, name: example.title, url: `examples/${encodeURIComponent(example.file)}`, example: example.file, size: 0 }]);
  }

  drawShelf() {
    this.shelf.hidden = !this.pictures.length;
    this.shelf.replaceChildren(...this.pictures.map((picture) => {
      const image = el("img", { src: pictureUrl(picture), alt: picture.name, onclick: () => lightbox(pictureUrl(picture), picture.name) });
      const chip = el("figure.ls-chip", { title: picture.name }, image,
        iconButton("close", `Remove ${picture.name}`, () => {
          this.pictures = this.pictures.filter((other) => other !== picture);
          this.drawShelf();
          this.refresh();
          this.text.focus();
        }, { className: ".ls-chip-remove" }));
      image.addEventListener("error", () => unshown(image, picture));
      chip.classList.toggle("ls-arriving", Boolean(picture.arrival));
      chip.classList.toggle("ls-failed", Boolean(picture.failed));
      return chip;
    }));
  }

  // what depends on the rest -------------------------------------------------------------------------------------

  refresh() {
    const { view } = this;
    const running = view.running;
    this.text.placeholder = offer.known && !offer.models.length ? "No model is running yet" : view.turns.length ? "Ask a follow-up" : "Ask about a picture, or anything";
    const mode = running ? "stop" : "send";
    if (this.sendButton.dataset.mode !== mode) {
      this.sendButton.dataset.mode = mode;
      this.sendButton.replaceChildren(icon(mode));
      this.sendButton.title = running ? "Stop" : "Send";
      this.sendButton.setAttribute("aria-label", this.sendButton.title);
    }
    this.sendButton.disabled = !running && (this.isEmpty || this.waiting || !this.canAsk);
    this.undoButton.hidden = this.clearButton.hidden = !view.turns.length;
    this.settingsButton.classList.toggle("ls-changed", settingsDiffer(this.chatWithOwn?.own ?? settings));
    this.drawBar();
    this.drawStrip();
    this.drawHints();
  }

  drawBar() {
    const { view } = this;
    const editing = view.editing !== null;
    const taken = { clear: "This is a new chat.", undo: "The last turn was taken back." };
    const trouble = offer.trouble && (view.turns.length || offer.lost) ? sentence(offer.trouble) : "";
    const warning = trouble || this.missing() || unkept();
    const says = editing ? "Rewriting a question; the chat so far stays as another branch."
      : warning || (view.restorable ? taken[view.taken] ?? "Something was taken away." : refused());
    this.bar.hidden = !says;
    if (this.bar.dataset.says === says) return;
    this.bar.dataset.says = says;
    const warns = !editing && Boolean(warning || !view.restorable);
    this.bar.classList.toggle("ls-bar-warn", warns);
    this.bar.replaceChildren(el("span", {}, says), warns ? "" : el("button.ls-text-button", {
      type: "button", onclick: () => (view.editing !== null ? view.cancelEdit() : view.restore()),
    }, editing ? "Cancel" : "Bring it back"));
  }

  // Which chosen models are not there, and which are.
  missing() {
    const gone = [...new Set(this.view.panes.filter(({ picker }) => picker.missing).map(({ picker }) => picker.chosen))];
    if (!gone.length || !offer.models.length) return "";
    const names = offer.models.map(({ name }) => name);
    const shown = names.length > 6 ? `${names.slice(0, 6).join(", ")} and ${names.length - 6} more` : names.join(", ");
    return `${gone.join(" and ")} ${gone.length > 1 ? "are" : "is"} not running. Running: ${shown}.`;
  }

  // Columns have no room for the large examples, so the composer carries small ones.
  drawStrip() {
    const wanted = this.view.panes.length > 1 && !this.view.turns.length && this.isEmpty && offer.models.length > 0;
    this.strip.hidden = !wanted;
    if (!wanted || this.strip.childElementCount) return;
    this.strip.append(...this.props.examples.map((example) => el("button.ls-strip-item", {
      type: "button", title: `${example.title}: ${example.questions[0]}`, onclick: () => this.addExample(example, example.questions[0]),
    }, el("img", { src: `examples/${encodeURIComponent(example.file)}`, alt: example.title, loading: "lazy" }))));
  }

  // The other questions that go with an example's picture.
  drawHints() {
    const { questions = [] } = this.pictures.length === 1 ? this.pictures[0] : {};
    const others = questions.includes(this.text.value) || !this.text.value ? questions.filter((question) => question !== this.text.value) : [];
    this.hints.hidden = !others.length;
    if (this.hints.dataset.key === others.join()) return;
    this.hints.dataset.key = others.join();
    this.hints.replaceChildren(...others.map((question) => el("button.ls-hint", {
      type: "button", onclick: () => { this.text.value = question; this.grow(); this.keepDraft(); this.refresh(); this.focus(); },
    }, question)));
  }

  whatIsKept() {
    return el("div.ls-kept-text", {}, el("h2", {}, "What is kept?"),
      el("p", {}, this.props.kept),
      this.props.more && el("p", {}, this.props.more),
      el("p", {}, this.props.promise),
      chatList && el("button.ls-action", { type: "button", onclick: () => chatList.askToDeleteAll(this.keptButton) }, icon("trash"), el("span", {}, "Delete all my chats")));
  }
}

// Why chats would not survive a restart at the moment; empty while all is well.
function unkept() {
  const { trouble, unsaved } = offer.store ?? {};
  if (!trouble) return "";
  const waiting = unsaved ? ` ${unsaved} ${unsaved === 1 ? "chat waits" : "chats wait"} to be written.` : "";
  return `Chats go on but are not kept at the moment: ${trouble}.${waiting}`;
}

// Which of this browser's chats could not be kept though others are.
function refused() {
  const { unkept: titles = [] } = offer.store ?? {};
  if (!titles.length) return "";
  const named = titles.slice(0, 2).map((title) => `“${title}”`);
  const more = titles.length - named.length;
  const all = more ? `${named.join(", ")} and ${more} more` : named.join(" and ");
  return `${all} could not be kept as ${titles.length > 1 ? "they are" : "it is"} now. Export what you do not want to lose.`;
}

// Uploaded files by their path on the server: what the browser has at hand it need not fetch again.
const localPictures = new Map();

function pictureUrl(picture) {
  return localPictures.get(picture.path) ?? picture.url;
}

// A file that calls itself a picture but that the browser cannot show, HEIC say: its name stands for it.
function unshown(image, picture) {
  image.replaceWith(el("span.ls-unshown", { title: picture.name }, icon("picture"), el("small", {}, picture.name)));
}

function megabytes(bytes) {
  return `${(bytes / 1048576).toFixed(1)} MB`;
}
