// The leaderboard: filters, table, and two drawings: ratings with their intervals, and who wins against whom.
"use strict";

const BOARD_POLL_MS = 10000;
const BOARD_CATEGORIES = [["", "All"], ["picture", "With picture"], ["text", "Text only"], ["long", "Long questions"]];

LlavaServe.board = (element, gradio) => new Board(element.firstElementChild, gradio);

class Board {
  constructor(root, { server }) {
    this.root = root;
    this.server = server;
    this.choice = { category: "", since: "", until: "", style: false };
    this.build();
    new ResizeObserver(() => this.drawn?.width !== this.width && this.data && this.draw()).observe(root);
    new IntersectionObserver(([seen]) => { this.seen = seen.isIntersecting; if (this.seen) this.load(); }).observe(root);
    setInterval(() => this.seen && !document.hidden && this.load(), BOARD_POLL_MS);
  }

  get width() {
    return Math.min(1040, this.body.clientWidth);
  }

  build() {
    const change = (changes) => { Object.assign(this.choice, changes); this.drawFilters(); this.load(); };
    this.categories = BOARD_CATEGORIES.map(([category, label]) => el("button", {
      type: "button", data: { category }, onclick: () => change({ category }),
    }, label));
    const day = (name, label) => el("label.ls-day", {}, el("span", {}, label), el("input", {
      type: "date", name, "aria-label": `Voted ${label.toLowerCase()}`, onchange: (event) => change({ [name]: event.target.value }),
    }));
    this.style = el("button.ls-switch", {
      type: "button", role: "switch", title: "Account for length and layout of the answers (headings, lists, bold)",
      onclick: () => change({ style: !this.choice.style }),
    }, el("i"), el("span", {}, "Style control"));
    const save = (kind, label, title) => el("button.ls-action", { type: "button", title, onclick: () => this.save(kind) }, icon("download"), el("span", {}, label));
    this.summary = el("p.ls-summary", { role: "status" });
    this.body = el("div.ls-board-body");
    this.root.replaceChildren(
      el("header.ls-board-head", {},
        el("div", {}, el("h1", {}, "Leaderboard"), this.summary),
        el("div.ls-board-files", {}, save("leaderboard", "CSV", "The table as CSV"), save("battles", "JSONL", "The battles as JSON lines, with LMArena’s column names"))),
      el("div.ls-filters", {}, el("div.ls-segments", { role: "group", "aria-label": "Which battles" }, this.categories), el("div.ls-days", {}, day("since", "From"), day("until", "To")), this.style),
      this.body);
    this.drawFilters();
  }

  drawFilters() {
    for (const button of this.categories) button.setAttribute("aria-pressed", String(button.dataset.category === this.choice.category));
    this.style.setAttribute("aria-checked", String(this.choice.style));
  }

  async load() {
    const asked = JSON.stringify(this.choice);
    const heard = await this.server.board({ ...this.choice }).catch(() => null);
    if (asked !== JSON.stringify(this.choice)) return;
    if (!heard || heard.error) {
      if (!this.data || heard?.error) this.summary.textContent = sentence(heard?.error ?? "the server of this page cannot be reached; trying again");
      return;
    }
    this.data = heard;
    this.draw();
  }

  async save(kind) {
    const file = await this.server.download({ ...this.choice, kind }).catch(() => null);
    if (!file || file.error) toast(sentence(file?.error ?? "the server of this page cannot be reached"), "error");
    else saveFile(file.name, file.text, kind === "leaderboard" ? "text/csv" : "application/x-ndjson");
  }

  draw() {
    const key = JSON.stringify([this.data, this.choice]);
    if (this.drawn?.key === key && this.drawn.width === this.width) return;
    this.drawn = { key, width: this.width };
    const { data } = this;
    this.summary.textContent = summaryOf(data, this.choice);
    const rated = data.rows.length > 0;
    this.body.replaceChildren(...[
      !data.votes && noVotes(data, this.choice),
      rated && section("Ratings", boardTable(data.rows), "Bradley-Terry points: 400 more are odds of ten to one. Ranks share a place where intervals overlap."),
      rated && section("Intervals", intervalPlot(data.rows, this.width), "95 % intervals. Where they overlap, more votes are needed to tell two models apart."),
      data.models.length > 1 && section("Who wins against whom", [heatMap(data, this.width), pairsTable(data)], "The share of battles that the row’s model won against the column’s, a tie counting half; below it, votes of the pair."),
      data.votes > 0 && data.unrated.length > 0 && section("Not enough votes yet", unratedList(data.unrated),
        "A model is rated once it has both won and lost, or tied, with others that are."),
      data.styled && section("What style is worth", effectsOf(data.effects), "Points that an answer gains by one standard deviation more of it. The ratings above are without."),
    ].filter(Boolean));
  }
}

function summaryOf(data, choice) {
  const count = (number, what) => `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
  return [
    `${count(data.votes, "blind vote")} ${data.votes === 1 ? "counts" : "count"}`,
    data.left_out > 0 && `${data.left_out.toLocaleString("en")} left out because an answer told its model`,
    choice.style && !data.styled && `style control needs ${data.least_for_style} votes and answers that differ in style`,
    data.trouble && data.trouble.replace(/\.$/, ""),
  ].filter(Boolean).join(" · ");
}

function section(title, content, note) {
  return el("section.ls-board-part", {}, el("h2", {}, title), content, el("p.ls-board-note", {}, note));
}

function noVotes(data, choice) {
  const narrowed = choice.category || choice.since || choice.until;
  const toArena = () => [...document.querySelectorAll("[role=tab]")].find((tab) => tab.textContent.trim() === "Arena")?.click();
  return el("div.ls-empty.ls-board-empty", {}, el("span.ls-hello", {}, icon("mark")),
    el("h1", {}, narrowed ? "No votes of this kind" : "No votes yet"),
    el("p", {}, narrowed ? "Choose other days or all battles." : "Every vote in the Arena counts here: ask two models without names, and say who answered better."),
    !narrowed && el("button.ls-action.ls-next", { type: "button", onclick: toArena }, el("span", {}, "To the Arena")));
}

function boardTable(rows) {
  const heads = ["Rank", "Model", "Rating", "95 % interval", "Battles", "Wins", "Ties"];
  const figure = (value) => el("td.ls-figure", {}, value.toLocaleString("en"));
  return el("div.ls-table-scroll", { tabindex: "0", role: "region", "aria-label": "Ratings" }, el("table.ls-table", {},
    el("thead", {}, el("tr", {}, heads.map((head, place) => el("th", { scope: "col", class: place === 1 ? "ls-name" : "ls-figure" }, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {},
      el("td.ls-figure.ls-rank", {}, String(row.rank)),
      el("th.ls-name", { scope: "row", title: row.model }, row.model),
      el("td.ls-figure.ls-points", {}, String(Math.round(row.rating))),
      el("td.ls-figure", {}, `${Math.round(row.low)} – ${Math.round(row.high)}`),
      figure(row.battles), figure(row.wins), figure(row.ties))))));
}

function unratedList(models) {
  return el("ul.ls-unrated", {}, models.map(({ model, battles }) => el("li", {}, el("span", { title: model }, model), el("small", {}, battles === 1 ? "1 vote" : `${battles} votes`))));
}

function effectsOf(effects) {
  return el("ul.ls-unrated", {}, Object.entries(effects).map(([name, points]) => el("li", {}, el("span", {}, name),
    el("small", {}, `${points >= 0 ? "+" : "−"}${Math.abs(Math.round(points))}`))));
}

// drawings -------------------------------------------------------------------------------------------------------

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function clipped(name, room) {
  const most = Math.max(4, Math.floor(room / 7.3));
  return name.length <= most ? name : `${name.slice(0, Math.ceil(most / 2) - 1)}…${name.slice(1 - Math.floor(most / 2))}`;
}

function intervalPlot(rows, width) {
  const named = Math.min(width * 0.36, 250);
  const [row, top, right] = [32, 8, 46];
  const low = Math.min(...rows.map((each) => each.low));
  const high = Math.max(...rows.map((each) => each.high));
  const step = tickStep((high - low) / Math.max(2, (width - named) / 80));
  const [from, to] = [low - step / 5, high + step / 5];
  const x = (points) => named + ((points - from) / (to - from)) * (width - named - right);
  const height = top + rows.length * row + 26;
  const ticks = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) ticks.push(at);
  return svg("svg", { class: "ls-drawing", width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Ratings with intervals: ${rows.map((each) => `${each.model} ${Math.round(each.rating)}`).join(", ")}` },
    ...ticks.map((at) => svg("g", {}, svg("line", { class: "ls-grid", x1: x(at), x2: x(at), y1: top, y2: height - 24 }),
      svg("text", { class: "ls-tick", x: x(at), y: height - 7, "text-anchor": "middle" }, String(Math.round(at))))),
    ...rows.map((each, place) => {
      const y = top + place * row + row / 2;
      return svg("g", {}, svg("title", {}, `${each.model}: ${Math.round(each.rating)}, between ${Math.round(each.low)} and ${Math.round(each.high)}`),
        svg("text", { class: "ls-drawn-name", x: 0, y: y + 4.5 }, clipped(each.model, named - 14)),
        svg("line", { class: "ls-whisker", x1: x(each.low), x2: x(each.high), y1: y, y2: y }),
        svg("line", { class: "ls-cap", x1: x(each.low), x2: x(each.low), y1: y - 5, y2: y + 5 }),
        svg("line", { class: "ls-cap", x1: x(each.high), x2: x(each.high), y1: y - 5, y2: y + 5 }),
        svg("circle", { class: "ls-dot", cx: x(each.rating), cy: y, r: 5.5 }));
    }));
}

function tickStep(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= least) ?? 10 * power;
}

function heatMap({ models, rates, met }, width) {
  const named = Math.min(width * 0.36, 250);
  const cell = Math.max(30, Math.min(76, Math.floor((width - named - 4) / models.length)));
  const tall = Math.min(cell, 54);
  const head = 26;
  const whole = named + cell * models.length + 4;
  const height = head + tall * models.length + 4;
  const letters = models.map((_, place) => String(place + 1));
  return el("div.ls-table-scroll", { tabindex: "0", role: "region", "aria-label": "Win rates of pairs" },
    svg("svg", { class: "ls-drawing", width: whole, height, viewBox: `0 0 ${whole} ${height}`, role: "img", "aria-label": "Win rates of every pair of models, which follow as a table" },
      ...letters.map((letter, place) => svg("text", { class: "ls-tick", x: named + cell * (place + 0.5), y: 16, "text-anchor": "middle" }, svg("title", {}, models[place]), letter)),
      ...models.flatMap((model, i) => [
        svg("text", { class: "ls-drawn-name", x: 0, y: head + tall * (i + 0.5) + 4.5 }, svg("title", {}, model), `${letters[i]}  ${clipped(model, named - 34)}`),
        ...models.map((other, j) => heatCell({ model, other, rate: rates[i][j], votes: met[i][j], same: i === j, x: named + cell * j, y: head + tall * i, cell, tall })),
      ])));
}

// What the heat map shows, for who hears the page.
function pairsTable({ models, rates, met }) {
  const says = (i, j) => (i === j ? "–" : rates[i][j] === null ? "never met" : `${Math.round(rates[i][j] * 100)} % of ${met[i][j].toLocaleString("en")}`);
  return el("div.ls-spoken", {}, el("table", {}, el("caption", {}, "Win rates of pairs"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Model"), models.map((model) => el("th", { scope: "col" }, `against ${model}`)))),
    el("tbody", {}, models.map((model, i) => el("tr", {}, el("th", { scope: "row" }, model), models.map((_, j) => el("td", {}, says(i, j))))))));
}

function heatCell({ model, other, rate, votes, same, x, y, cell, tall }) {
  const known = rate !== null && !same;
  const says = same ? model : known ? `${model} won ${Math.round(rate * 100)} % of ${votes} against ${other}` : `${model} never met ${other}`;
  const box = { x: x + 1.5, y: y + 1.5, width: cell - 3, height: tall - 3, rx: 7 };
  return svg("g", {}, svg("title", {}, says),
    svg("rect", { ...box, class: "ls-cell-ground" }),
    known && svg("rect", { ...box, class: rate >= 0.5 ? "ls-cell-won" : "ls-cell-lost", "fill-opacity": (0.06 + Math.abs(rate - 0.5) * 0.94).toFixed(3) }),
    known && svg("text", { class: "ls-cell-rate", x: x + cell / 2, y: y + tall / 2 + (cell >= 44 ? -1 : 4.5), "text-anchor": "middle" }, cell >= 44 ? `${Math.round(rate * 100)} %` : String(Math.round(rate * 100))),
    known && cell >= 44 && svg("text", { class: "ls-cell-votes", x: x + cell / 2, y: y + tall / 2 + 14, "text-anchor": "middle" }, votes.toLocaleString("en")),
    !known && svg("text", { class: "ls-cell-votes", x: x + cell / 2, y: y + tall / 2 + 4, "text-anchor": "middle" }, same ? "–" : ""));
}
