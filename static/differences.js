// Where answers differ, marked in their words without touching them: ranges that the browser paints over the text.
"use strict";

const canHighlight = typeof Highlight === "function" && Boolean(CSS.highlights);
const wordsIn = typeof Intl.Segmenter === "function"
  ? ((segmenter) => (text) => [...segmenter.segment(text)].filter((part) => part.isWordLike).map(({ segment, index }) => ({ word: segment, index })))(new Intl.Segmenter(undefined, { granularity: "word" }))
  : (text) => [...text.matchAll(/\S+/g)].map((match) => ({ word: match[0], index: match.index }));

class Differences {
  constructor(view) {
    this.view = view;
    this.on = false;
    this.known = new Map();
    this.side = stored("tab", "compared-with"); // of the column that the others are compared with
  }

  get base() {
    return Math.max(0, this.view.panes.findIndex(({ side }) => side === this.side));
  }

  compareWith(pane) {
    this.side = pane.side;
    stored("tab", "compared-with", this.side);
    this.chosen = pane; // its button goes, so the focus has to stay somewhere
    this.soon();
  }

  turn(on) {
    this.on = on;
    if (on && !canHighlight) toast("This browser cannot mark words; a newer one can.", "error");
    this.soon();
  }

  soon() {
    if (!this.on && !this.painted) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.update(), 60);
  }

  async update() {
    const { panes } = this.view;
    if (!this.on || !canHighlight || panes.length < 2) return this.clear();
    const turns = this.read(panes);
    const { base } = this;
    const asked = { base, turns: turns.map((answers) => answers.map((words) => words.map(({ word }) => word))) };
    const key = JSON.stringify(asked);
    if (turns.length && !this.known.has(key)) {
      const heard = (await this.view.ballot?.server.differences(asked).catch(() => null)) ?? { error: "the server of this page cannot be reached" };
      if (heard.error) return toast(sentence(heard.error), "error");
      this.known = new Map([[key, heard.turns]]);
      return this.soon(); // what was read may have changed while the server looked
    }
    return this.paint(panes, turns, turns.length ? this.known.get(key) : [], base);
  }

  // Per turn the words of all columns, each with where it stands; only turns that all columns have answered.
  read(panes) {
    const most = Math.min(...panes.map((pane) => pane.data.turns.length));
    const complete = (index) => panes.every((pane) => ["done", "stopped"].includes(pane.data.turns[index].answer.state) && pane.data.turns[index].answer.text);
    return [...Array(most).keys()].filter(complete).map((index) => panes.map((pane) => wordsOf(pane.turns.get(pane.data.turns[index].id).blocks)));
  }

  paint(panes, turns, found, base) {
    this.clearMarks();
    panes.forEach((pane, place) => {
      const ranges = turns.flatMap((answers, turn) => found[turn][place].flatMap(([start, end]) => rangesOf(answers[place].slice(start, end))));
      CSS.highlights.set(`ls-differs-${place}`, new Highlight(...ranges));
      const count = found.reduce((sum, spans) => sum + spans[place].reduce((all, [start, end]) => all + end - start, 0), 0);
      pane.differs.hidden = !turns.length;
      this.say(pane, count, place === base, COLUMN_LETTERS[base]);
    });
    for (const pane of this.view.made) if (!panes.includes(pane)) pane.differs.hidden = true;
    this.painted = true;
    this.chosen?.differs.focus({ preventScroll: true });
    this.chosen = null;
  }

  // Below a column: how many of its words are marked, and whether the others are compared with it or could be.
  say(pane, count, isBase, letter) {
    const key = JSON.stringify([count, isBase, letter]);
    if (pane.differs.dataset.key === key) return;
    pane.differs.dataset.key = key;
    const words = count ? `${count.toLocaleString("en")} ${count === 1 ? "word" : "words"}` : "No word";
    const verb = count > 1 ? "differ" : "differs";
    pane.differs.replaceChildren(...(isBase
      ? [el("span", {}, `The others are compared with this column${count ? `; ${words} only here` : ""}`)]
      : [el("span", {}, `${words} ${verb} from ${letter}`),
        el("button.ls-action", { type: "button", onclick: () => this.compareWith(pane) }, icon("differ"), el("span", {}, "Compare the others with this"))]));
  }

  clear() {
    if (!this.painted) return;
    this.clearMarks();
    for (const pane of this.view.made) pane.differs.hidden = true;
    this.painted = false;
  }

  clearMarks() {
    for (const place of COMPARE_SIDES.keys()) CSS.highlights.delete(`ls-differs-${place}`);
  }
}

// The words of an answer as it stands on the page, without the captions of code.
function wordsOf(root) {
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT, (node) =>
    (node.parentElement.closest("figcaption, .ls-math") ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT));
  const words = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    for (const { word, index } of wordsIn(node.data)) words.push({ word, node, from: index, to: index + word.length });
  }
  return words;
}

// One range for words that follow each other in one piece of text, so that the gaps between them are marked too.
function rangesOf(words) {
  const ranges = [];
  for (const { node, from, to } of words) {
    const last = ranges.at(-1);
    if (last?.endContainer === node) last.setEnd(node, to);
    else {
      const range = new Range();
      range.setStart(node, from);
      range.setEnd(node, to);
      ranges.push(range);
    }
  }
  return ranges;
}
