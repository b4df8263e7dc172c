// What the model sees: a picture's tiles, the prompt token by token, the answer's probabilities, and where it looked.
"use strict";

const INSPECT_PAUSE_MS = 450; // after the last change of a question, before the prompt is asked for anew
const CANVAS_SIDE = 960;
const SAVED_SIDE = 2048;

LlavaServe.inspect = (element, gradio) => new Inspect(element.firstElementChild, gradio);

class Inspect {
  constructor(root, { props, server, upload }) {
    Object.assign(this, { root, props, server, uploadFile: upload });
    this.picture = null; // {name, url, path or example, image}
    this.seen = null; // the prompt as the model reads it
    this.answer = null; // the run that is shown: text, tokens, ids
    this.looked = null; // where it looked for the chosen word
    this.word = null;
    this.mode = "rollout";
    this.layer = 0;
    this.special = false;
    this.asked = 0;
    this.build();
    watchOffer(server, () => { this.picker.update(); this.refresh(); if (!this.seen) this.look(); });
    new ResizeObserver(() => this.drawPicture()).observe(this.stage);
  }

  build() {
    this.picker = new Picker("inspect", () => this.changed(), () => []);
    this.files = el("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Picture", onchange: () => { this.open(this.files.files[0]); this.files.value = ""; } });
    this.text = el("input.ls-inspect-text", {
      type: "text", "aria-label": "Question", placeholder: "Ask about the picture", enterkeyhint: "go",
      oninput: () => this.changed(INSPECT_PAUSE_MS), onkeydown: (event) => event.key === "Enter" && !event.isComposing && this.ask(),
    });
    this.askButton = el("button.ls-action.ls-inspect-ask", { type: "button", onclick: () => this.ask() }, el("span", {}, "Ask"));
    this.strip = el("div.ls-inspect-strip", { role: "group", "aria-label": "Pictures to try" },
      el("button.ls-inspect-own", { type: "button", onclick: () => this.files.click() }, icon("picture"), el("span", {}, "Your picture")),
      this.props.examples.map((example) => el("button", { type: "button", title: example.title, data: { example: example.file }, onclick: () => this.example(example) },
        el("img", { src: `examples/${encodeURIComponent(example.file)}`, alt: example.title, loading: "lazy" }))));
    this.notice = el("p.ls-inspect-notice", { role: "status" });
    this.canvas = el("canvas.ls-inspect-canvas", { role: "img" });
    this.stage = el("div.ls-inspect-stage", {}, this.canvas);
    this.views = el("div.ls-segments", { role: "group", "aria-label": "What to show over the picture" });
    this.controls = el("div.ls-inspect-controls");
    this.facts = el("div.ls-inspect-facts");
    this.answerPart = el("section.ls-inspect-part");
    this.promptPart = el("section.ls-inspect-part");
    this.body = el("div.ls-inspect-body", { hidden: true },
      el("div.ls-inspect-left", {}, this.stage, this.views, this.controls, this.facts),
      el("div.ls-inspect-right", {}, this.answerPart, this.promptPart));
    this.empty = el("div.ls-empty.ls-board-empty", {}, el("span.ls-hello", {}, icon("mark")), el("h1", {}, "See what the model sees"),
      el("p", {}, "Choose a picture: you see the tiles it is cut into, the prompt as the model reads it, how sure it is of each word, and where it looked as it said it."));
    this.root.append(
      el("header.ls-inspect-head", {}, el("h1", {}, "Inspect"), this.picker.button),
      this.strip, el("div.ls-inspect-form", {}, this.text, this.askButton), this.notice, this.empty, this.body, this.files);
    this.listenForPictures();
    this.refresh();
  }

  listenForPictures() {
    const shown = () => this.root.offsetParent !== null;
    const take = (event, transfer) => {
      if (!shown() || !transfer?.files.length) return;
      event.preventDefault();
      this.open(transfer.files[0]);
    };
    document.addEventListener("dragover", (event) => { if (shown()) event.preventDefault(); });
    document.addEventListener("drop", (event) => take(event, event.dataTransfer));
    document.addEventListener("paste", (event) => take(event, event.clipboardData));
  }

  // what is looked at ------------------------------------------------------------------------------------------

  async open(file) {
    if (!file) return;
    const name = file.name || "pasted.png";
    if (!file.type.startsWith("image/")) { toast(`${name} is not a picture, as far as its name tells.`, "error"); return; }
    if (file.size > this.props.max_bytes) { toast(`${name} is ${megabytes(file.size)}; at most ${megabytes(this.props.max_bytes)} are allowed.`, "error"); return; }
    const picture = { name, url: URL.createObjectURL(file) };
    try {
      picture.path = (await this.uploadFile(file)).path;
    } catch (error) {
      toast(uploadTrouble(error, name), "error");
      return;
    }
    this.show(picture);
  }

  example(example) {
    if (!this.text.value || this.props.examples.some(({ questions }) => questions.includes(this.text.value))) this.text.value = example.questions[0] ?? "";
    this.show({ name: example.title, url: `examples/${encodeURIComponent(example.file)}`, example: example.file });
  }

  async show(picture) {
    const image = new Image();
    image.src = picture.url;
    this.picture = picture;
    this.seen = null;
    for (const button of this.strip.querySelectorAll("[data-example]")) button.setAttribute("aria-pressed", String(button.dataset.example === picture.example));
    try {
      await image.decode();
      picture.image = image;
    } catch {
      toast(`This browser cannot show ${picture.name}; the model may still read it.`, "error");
    }
    if (this.picture === picture) this.changed();
  }

  // Model, picture or question are others now: what was said no longer belongs to them.
  changed(pause = 0) {
    this.answer = this.word = this.looked = null;
    this.run = "";
    this.asking?.abort();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), pause);
    this.refresh();
    this.drawAnswer();
    this.drawPicture();
  }

  get model() {
    return offer.models.find(({ name }) => name === this.picker.chosen);
  }

  message() {
    const { name, path, example } = this.picture ?? {};
    const pictures = this.picture ? [example ? { example, name } : { path, name }] : [];
    return { model: this.picker.chosen, text: this.text.value.trim(), pictures, owner };
  }

  async look() {
    if (!this.picture || !this.model) { this.refresh(); return; }
    const run = (this.asked += 1);
    if (!this.model.inspects) {
      this.seen = null;
      this.trouble = "";
      this.drawAll();
      return;
    }
    this.root.setAttribute("aria-busy", "true");
    const seen = await this.server.look(this.message()).catch(() => null);
    if (run !== this.asked) return;
    this.root.removeAttribute("aria-busy");
    this.seen = seen && !seen.error ? seen : null;
    this.trouble = seen?.error ?? (seen ? "" : "the server of this page cannot be reached");
    this.drawAll();
  }

  // the answer --------------------------------------------------------------------------------------------------

  async ask() {
    if (this.askButton.disabled) return;
    const run = crypto.randomUUID?.() ?? String(Math.random());
    this.run = run;
    this.answer = { state: "waiting", text: "", tokens: [], ids: [] };
    this.word = this.looked = null;
    this.trouble = "";
    this.refresh();
    this.drawAnswer();
    const error = await this.follow(run);
    if (this.run === run && this.isAnswering) this.take({ ...this.answer, run, state: "failed", error });
  }

  // What went wrong on the way, should the stream end before the answer does.
  async follow(run) {
    this.asking = new AbortController();
    try {
      const heard = await fetch("live/inspect", { ...asJson({ ...this.message(), run }), signal: this.asking.signal });
      if (!heard.ok) return (await heard.json()).error.message;
      await readEvents(heard, (value) => this.take(value));
    } catch { /* said below */ }
    return "the server of this page was lost before the answer was there; ask again";
  }

  get isAnswering() {
    return ["waiting", "streaming"].includes(this.answer?.state);
  }

  take(value) {
    if (value.run !== this.run) return;
    this.answer = value;
    this.refresh();
    this.drawAnswer();
    const first = this.words().find(({ text }) => /\p{L}|\p{N}/u.test(text));
    if (value.state === "done" && this.canAttend && first) this.choose(longest(this.words()) ?? first);
  }

  get canAttend() {
    return Boolean(this.answer?.state === "done" && this.answer.ids.length && this.seen?.pictures.length);
  }

  // Tokens that make a word together: the next begins with white space, or where letters end.
  words() {
    const words = [];
    (this.answer?.tokens ?? []).forEach((token, place) => {
      const last = words.at(-1);
      const begins = !last || /^\s/.test(token.text) || /\s$/.test(last.text) || (!/[\p{L}\p{N}]/u.test(token.text) && token.text !== "") || !/[\p{L}\p{N}]$/u.test(last.text);
      if (begins) words.push({ first: place, count: 1, text: token.text });
      else { last.count += 1; last.text += token.text; }
    });
    return words;
  }

  async choose(word) {
    this.word = word;
    this.drawAnswer();
    this.drawAlternatives(word.first);
    if (!this.canAttend) return;
    const { answer } = this;
    const heard = await this.server.attend({ ...this.message(), answer: answer.text, ids: answer.ids, first: word.first, count: word.count }).catch(() => null);
    if (this.answer !== answer || this.word !== word) return;
    if (!heard || heard.error) { toast(sentence(heard?.error ?? "the server of this page cannot be reached"), "error"); return; }
    const [{ layers, rollout, usual }] = heard.pictures;
    this.looked = { word, layers: unpackLooks(layers), rollout: unpackLooks(rollout)[0], usual: unpackLooks(usual), from: heard.rollout_from };
    this.layer = Math.min(this.layer || Math.round(this.looked.layers.length * 0.6), this.looked.layers.length);
    this.view = "heat";
    this.drawPicture();
  }

  // The shares that are shown: of one layer, of their mean, or through all of them.
  shares() {
    const { layers, rollout, usual } = this.looked;
    const mean = (rows) => rows[0].map((_, token) => rows.reduce((sum, row) => sum + row[token], 0) / rows.length);
    const pick = (rows, through) => (this.mode === "rollout" ? through : this.mode === "mean" ? mean(rows) : rows[this.layer - 1]);
    const own = pick(layers, rollout);
    if (!this.special) return own;
    const other = pick(usual.slice(0, -1), usual.at(-1));
    return own.map((share, token) => Math.max(0, share - other[token]));
  }

  // what is drawn -------------------------------------------------------------------------------------------------

  refresh() {
    const ready = Boolean(this.picture && this.model);
    this.askButton.disabled = !ready || !this.text.value.trim() || this.isAnswering;
    this.empty.hidden = Boolean(this.picture);
    this.body.hidden = !this.picture;
    const cannot = this.model && !this.model.inspects
      ? `the model ${this.model.name} is run by another engine (${this.model.engine}), which tells nothing of tiles, prompt and attention. ${this.answer?.tokens?.length ? "Its words' probabilities are shown." : "Where it tells how sure it is of its words, that is shown."}`
      : "";
    const none = offer.known && !offer.models.length ? offer.trouble || "no model is running yet" : "";
    const problem = this.answer?.error || this.trouble || none || (this.picture ? cannot : "");
    const says = problem && sentence(problem);
    if (this.notice.textContent !== says) this.notice.textContent = says;
    this.notice.hidden = !says;
  }

  drawAll() {
    this.refresh();
    this.drawAnswer();
    this.drawPrompt();
    this.drawPicture();
  }

  drawPicture() {
    if (!this.picture || this.stage.clientWidth < 40) return;
    const { image } = this.picture;
    const seen = this.seen?.pictures[0];
    const views = [["picture", "Picture"], seen && ["tiles", "Tiles"], seen && ["heat", "Where it looked"]].filter(Boolean);
    let view = this.view ?? "tiles";
    if (view === "heat" && !this.looked) view = "tiles";
    if (!seen) view = "picture";
    this.shown = view;
    this.views.replaceChildren(...views.map(([name, label]) => el("button", {
      type: "button", "aria-pressed": String(view === name), disabled: name === "heat" && !this.looked,
      title: name === "heat" && !this.looked ? "Ask, then choose a word of the answer" : undefined,
      onclick: () => { this.view = name; this.drawPicture(); this.views.querySelector("[aria-pressed=true]")?.focus(); },
    }, label)));
    this.views.hidden = views.length < 2;
    if (!image) { this.canvas.hidden = true; this.drawSide(seen); return; }
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const scale = Math.min(1, CANVAS_SIDE / Math.max(width, height)) || 1;
    Object.assign(this.canvas, { hidden: false, width: Math.max(2, Math.round(width * scale)), height: Math.max(2, Math.round(height * scale)) });
    if (view === "tiles") {
      drawTiles(this.canvas, image, seen, partsOf(seen), this.tile);
      this.canvas.setAttribute("aria-label", `${this.picture.name}, cut into ${counted(seen.tiles.length, "tile")} of ${counted(seen.tokens, "token")} together`);
    } else if (view === "heat") {
      drawHeat(this.canvas, image, seen, this.shares());
      this.canvas.setAttribute("aria-label", `Where the model looked in ${this.picture.name} as it said “${this.looked.word.text.trim()}”: ${this.placesOf(seen).slice(0, 3).map(({ label, share }) => `${label} ${percent(share)}`).join(", ")}`);
    } else {
      this.canvas.getContext("2d").drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
      this.canvas.setAttribute("aria-label", this.picture.name);
    }
    this.drawSide(seen);
  }

  drawSide(seen) {
    this.controls.hidden = this.shown !== "heat";
    if (this.shown === "heat") this.drawControls();
    this.facts.replaceChildren(...(!seen ? [] : this.shown === "heat" ? this.lookFacts(seen) : this.tileFacts(seen)));
  }

  drawControls() {
    const most = this.looked.layers.length;
    const key = `${most}`;
    if (this.controls.dataset.key !== key) {
      this.controls.dataset.key = key;
      const set = (changes) => { Object.assign(this, changes); this.drawPicture(); };
      this.modes = [["rollout", "Through all layers"], ["mean", "Mean of layers"], ["layer", "One layer"]].map(([mode, label]) => el("button", { type: "button", data: { mode }, onclick: () => set({ mode }) }, label));
      this.range = el("input", { type: "range", min: 1, max: most, step: 1, "aria-label": "Layer", oninput: (event) => set({ layer: Number(event.target.value), mode: "layer" }) });
      this.layerName = el("output");
      this.layerRow = el("label.ls-inspect-layer", {}, this.layerName, this.range);
      this.only = el("button.ls-switch", { type: "button", role: "switch", title: "Take away what it looks at for every word of this answer", onclick: () => set({ special: !this.special }) }, el("i"), el("span", {}, "Only what is special to this word"));
      this.controls.replaceChildren(el("div.ls-segments", { role: "group", "aria-label": "Which attention" }, this.modes), this.layerRow,
        el("div.ls-inspect-row", {}, this.only, el("button.ls-action", { type: "button", onclick: () => this.save() }, icon("download"), el("span", {}, "PNG"))));
    }
    for (const button of this.modes) button.setAttribute("aria-pressed", String(button.dataset.mode === this.mode));
    this.range.value = this.layer;
    this.layerName.textContent = `Layer ${this.layer} of ${most}`;
    this.layerRow.hidden = this.mode !== "layer";
    this.only.setAttribute("aria-checked", String(this.special));
  }

  // Tiles, or what single tokens stand for, by the share they got.
  placesOf(seen) {
    const shares = this.shares();
    if (seen.spots.length > 1) {
      const sums = new Map();
      for (const { token, label } of seen.spots) sums.set(label, (sums.get(label) ?? 0) + shares[token]);
      return [...sums].map(([label, share]) => ({ label, share })).sort((one, other) => other.share - one.share);
    }
    return seen.grids.map((grid, place) => {
      let share = 0;
      for (let row = 0; row < grid.rows; row += 1) for (let column = 0; column < grid.columns; column += 1) share += shares[grid.start + row * grid.stride + column];
      return { label: seen.grids.length === 1 ? "the picture" : gridName(seen, place), share };
    });
  }

  lookFacts(seen) {
    const shares = this.shares();
    const total = shares.reduce((sum, share) => sum + share, 0);
    const what = { rollout: "of what flows into the word comes", mean: "of its attention went", layer: "of this layer’s attention went" }[this.mode];
    const word = this.looked.word.text.trim() || "this token";
    const places = this.placesOf(seen).filter(({ share }) => share > 0).slice(0, 6);
    const most = Math.max(...places.map(({ share }) => share), 1e-9);
    return [
      el("p", {}, `As it chose “${word}”, ${percent(total)} ${what} ${this.mode === "rollout" ? "from" : "to"} the picture${this.special ? ", beyond what every word got" : ""}.`),
      places.length > 1 && el("ul.ls-inspect-bars", {}, places.map(({ label, share }) => el("li", {}, el("span", {}, label),
        el("i", { style: `--part: ${(share / most).toFixed(3)}` }), el("small", {}, percent(share))))),
      el("p.ls-board-note", {}, this.mode === "rollout"
        ? "Attention rollout (Abnar and Zuidema, 2020): half of each layer stays in place, heads are averaged, layers multiplied. Followed from the word through the text behind the picture; how the picture’s own tokens mix is left out."
        : "The mean over the heads of attention weights. Attention shows where information could come from, not why the word was chosen."),
    ].filter(Boolean);
  }

  tileFacts(seen) {
    const rows = seen.tiles.map((tile, place) => {
      const canvas = el("canvas", { width: 96, height: Math.max(24, Math.min(160, Math.round((96 * tile.height) / tile.width))), role: "img", "aria-label": tileName(seen, place) });
      if (this.picture.image) drawView(canvas, this.picture.image, seen, tile);
      const mark = (on) => { this.tile = on ? tile : null; if (this.shown === "tiles") drawTiles(this.canvas, this.picture.image, seen, partsOf(seen), this.tile); };
      return el("li", { onpointerenter: () => mark(true), onpointerleave: () => mark(false) }, canvas, el("strong", {}, tileName(seen, place)), el("small", {}, `${tile.width} × ${tile.height}, ${counted(tile.tokens, "token")}`));
    });
    return [
      el("p", {}, `${seen.width} × ${seen.height} pixels become ${counted(seen.tokens, "token")} in ${counted(seen.tiles.length, "tile")}${seen.separators ? `; ${counted(seen.separators, "token")} of them end rows` : ""}.${unseen(seen)}`),
      el("ul.ls-inspect-tiles", {}, rows),
      seen.spots.length > 1 && el("details", {}, el("summary", {}, "What the tokens stand for"), el("ol.ls-inspect-spots", { start: 0 }, seen.spots.map(({ label }) => el("li", {}, label)))),
    ].filter(Boolean);
  }

  drawAnswer() {
    const { answer } = this;
    this.answerPart.hidden = !answer;
    if (!answer) return;
    const waiting = this.isAnswering;
    if (!answer.tokens.length) {
      this.answerPart.replaceChildren(el("h2", {}, "Answer"), el("p.ls-inspect-plain", {}, answer.text || (waiting ? "…" : "")),
        !waiting && answer.text && el("p.ls-board-note", {}, "This engine does not tell how sure it is of its words.") || "");
      return;
    }
    if (this.drawnAnswer !== answer) {
      this.drawnAnswer = answer;
      this.tokens = answer.tokens.map((token, place) => this.tokenButton(token, place));
      this.line = el("div.ls-inspect-answer", { role: "group", "aria-label": "The answer’s tokens", "aria-busy": String(waiting) }, this.words().map(({ first, count }) => el("span", {}, this.tokens.slice(first, first + count).flatMap((button, nth) => [isSpaced(answer.tokens[first + nth]) && " ", button]))));
      this.alternatives = el("div.ls-inspect-alternatives", { "aria-live": "polite" });
      this.answerPart.replaceChildren(el("h2", {}, "Answer"), this.line,
        el("p.ls-inspect-legend", {}, el("span", {}, "unsure"), el("i"), el("span", {}, "sure"), el("small", {}, this.seen ? "Choose a word to see where it looked." : "Choose a word to see what else it might have been.")),
        this.alternatives);
      if (!this.word) this.alternatives.append(el("p.ls-board-note", {}, waiting ? "…" : "What else might have stood there shows here."));
    }
    this.tokens.forEach((button, place) => button.classList.toggle("ls-chosen", Boolean(this.word && place >= this.word.first && place < this.word.first + this.word.count)));
    this.tokens.forEach((button) => button.setAttribute("aria-pressed", String(button.classList.contains("ls-chosen"))));
  }

  tokenButton(token, place) {
    const sure = Math.exp(token.logprob);
    return el("button.ls-token", {
      type: "button", data: { place }, style: `--unsure: ${(100 * (1 - sure)).toFixed(0)}%`, "aria-label": `${visible(token.text)}, ${percent(sure)}`,
      onclick: () => this.choose(this.words().find(({ first, count }) => place >= first && place < first + count)).then?.(() => {}),
      onpointerenter: () => this.drawAlternatives(place), onfocus: () => this.drawAlternatives(place),
    }, shownText(isSpaced(token) ? token.text.slice(1) : token.text));
  }

  drawAlternatives(place) {
    const token = this.answer?.tokens[place];
    if (!token || !this.alternatives) return;
    const rows = token.top.some(([text]) => text === token.text) || !token.top.length ? token.top : token.top;
    this.alternatives.replaceChildren(el("table.ls-inspect-top", {},
      el("caption", {}, `Instead of “${visible(token.text)}” (${percent(Math.exp(token.logprob))})`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Token"), el("th", { scope: "col" }, "Probability"))),
      el("tbody", {}, rows.map(([text, logprob]) => el("tr", { class: Math.abs(logprob - token.logprob) < 1e-4 ? "ls-taken" : "" },
        el("th", { scope: "row" }, visible(text)), el("td", {}, el("i", { style: `--part: ${Math.exp(logprob).toFixed(4)}` }), el("span", {}, percent(Math.exp(logprob)))))))));
  }

  drawPrompt() {
    this.promptPart.hidden = !this.seen;
    if (!this.seen) return;
    const { pieces, tokens } = this.seen;
    const draw = ({ kind, texts, picture, tokens: count }) => {
      if (kind === "picture") return el("span.ls-piece-picture", {}, icon("picture"), `picture ${picture + 1} × ${count}`);
      if (kind === "special") return el("span.ls-piece-special", {}, texts[0]);
      return texts.map((text) => el("span.ls-piece", {}, shownText(text)));
    };
    this.promptPart.replaceChildren(el("h2", {}, "Prompt"), el("div.ls-inspect-prompt", { tabindex: "0", role: "region", "aria-label": "The prompt as the model reads it" }, pieces.flatMap(draw)),
      el("p.ls-board-note", {}, `${counted(tokens, "token")}. Framed: special tokens of the model’s template; what people write is never one. Light and dark change with every token.`));
  }

  save() {
    const { image, name } = this.picture;
    const scale = Math.min(1, SAVED_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
    const canvas = el("canvas", { width: Math.round(image.naturalWidth * scale), height: Math.round(image.naturalHeight * scale) });
    drawHeat(canvas, image, this.seen.pictures[0], this.shares());
    const where = this.mode === "layer" ? `layer-${this.layer}` : this.mode;
    canvas.toBlob((blob) => blob && saveBlob(`${name.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}]+/gu, "-")}-${this.looked.word.text.trim().replace(/[^\p{L}\p{N}]+/gu, "") || "token"}-${where}.png`, blob), "image/png");
  }
}

function saveBlob(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The tiles that lie side by side; the whole picture's own one is left out where there are others.
function partsOf(seen) {
  const parts = seen.tiles.filter(({ kind }) => kind === "tile");
  return parts.length ? parts : seen.tiles;
}

function tileName(seen, place) {
  const tile = seen.tiles[place];
  if (tile.kind === "whole") return seen.tiles.length > 1 ? "Whole picture" : "The only tile";
  return `Tile ${seen.tiles.slice(0, place + 1).filter(({ kind }) => kind === "tile").length}`;
}

function gridName(seen, place) {
  const same = ({ left, top, right, bottom }, other) => left === other.left && top === other.top && right === other.right && bottom === other.bottom;
  const at = seen.tiles.findIndex(({ box }) => same(box, seen.grids[place].box));
  return at < 0 ? "the tiles together" : tileName(seen, at).replace(/^W/, "w").replace(/^T/, "t");
}

// What the model never sees of the picture, and what it sees beside it.
function unseen(seen) {
  const parts = partsOf(seen);
  const [left, top] = [Math.min(...parts.map(({ box }) => box.left)), Math.min(...parts.map(({ box }) => box.top))];
  const [right, bottom] = [Math.max(...parts.map(({ box }) => box.right)), Math.max(...parts.map(({ box }) => box.bottom))];
  const whole = seen.width * seen.height;
  const inside = Math.max(0, Math.min(right, seen.width) - Math.max(left, 0)) * Math.max(0, Math.min(bottom, seen.height) - Math.max(top, 0));
  const missing = parts.length === seen.tiles.length ? 1 - inside / whole : 0;
  const padding = 1 - inside / ((right - left) * (bottom - top));
  return [missing > 0.005 && ` ${percent(missing)} of the picture is cut off and never seen.`, padding > 0.005 && ` ${percent(padding)} of the tiles is padding.`].filter(Boolean).join("");
}

function longest(words) {
  return words.filter(({ text }) => /\p{L}{3,}/u.test(text)).sort((one, other) => other.text.trim().length - one.text.trim().length)[0];
}

function percent(share) {
  const value = 100 * share;
  return `${value >= 99.95 || value === 0 ? value.toFixed(0) : value >= 10 ? value.toFixed(0) : value >= 0.1 ? value.toFixed(1) : "<0.1"} %`;
}

function counted(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}

// White space that would not be seen, by signs.
function visible(text) {
  return text === "" ? "(part of a character)" : text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));
}

// The space before a word stands outside its button, so that it does not indent the next line.
function isSpaced(token) {
  return /^ \S/.test(token.text);
}

function shownText(text) {
  return text === "" ? "·" : text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥");
}
