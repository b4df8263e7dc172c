// What the workers are doing: tables and small plots, changed in place every few seconds.
"use strict";

const STATUS_POLL_MS = 2500;
const STATES = { ready: "ready", late: "late", gone: "gone" };

LlavaServe.status = (element, gradio) => new StatusView(element.firstElementChild, gradio);

class StatusView {
  constructor(root, { server }) {
    this.root = root;
    this.server = server;
    this.rows = new Map();
    this.build();
    new IntersectionObserver(([seen]) => { this.seen = seen.isIntersecting; if (this.seen) this.load(); }).observe(root);
    setInterval(() => this.seen && !document.hidden && this.load(), STATUS_POLL_MS);
  }

  build() {
    this.summary = el("p.ls-summary", { role: "status" });
    this.notice = el("p.ls-inspect-notice", { role: "alert", hidden: true });
    this.tiles = ["Tokens per second", "Answers running", "Waiting", "Prompt tokens reused", "Answers given", "Errors"].map((name) => tileOf(name));
    this.body = el("tbody");
    const heads = [["Worker", ""], ["Tokens/s", "ls-figure"], ["Running", "ls-figure"], ["Waiting", "ls-figure"], ["Reused", "ls-figure"], ["Memory", ""], ["Answers", "ls-figure"], ["Errors", ""]];
    this.table = el("div.ls-table-scroll", { tabindex: "0", role: "region", "aria-label": "Workers" }, el("table.ls-table.ls-status-table", {},
      el("thead", {}, el("tr", {}, heads.map(([head, kind]) => el("th", { scope: "col", class: kind || "ls-name" }, head)))), this.body));
    this.errors = el("ul.ls-unrated");
    this.errorPart = section("Errors by class", this.errors, "Since the servers were started. A class tells what went wrong; the logs have each request’s story.");
    this.events = el("ul.ls-unrated");
    this.eventPart = section("Events", this.events, "Requests that were sent to another worker, and answers that another went on with, as the API’s gateway counts them.");
    this.empty = el("div.ls-empty.ls-board-empty", { hidden: true }, el("span.ls-hello", {}, icon("mark")), el("h1", {}, "No worker is running"),
      el("p", {}, "As soon as one has loaded its model, it shows here."));
    this.root.append(el("header.ls-board-head", {}, el("div", {}, el("h1", {}, "Status"), this.summary)), this.notice,
      el("div.ls-status-tiles", {}, this.tiles.map(({ root }) => root)), this.empty, this.table, this.errorPart, this.eventPart);
    this.table.hidden = this.errorPart.hidden = this.eventPart.hidden = true;
  }

  async load() {
    if (this.asking) return;
    this.asking = true;
    const heard = await this.server.report().catch(() => null);
    this.asking = false;
    if (!heard?.workers) {
      this.warn("the server of this page cannot be reached; figures are as they last were");
      return;
    }
    this.draw(heard);
  }

  warn(problem) {
    const says = problem ? sentence(problem) : "";
    set(this.notice, says);
    this.notice.hidden = !says;
  }

  draw({ workers, totals, trouble }) {
    this.warn(trouble || lateness(workers));
    set(this.summary, totals.there === undefined ? "" : `${plural(totals.there, "worker")}, ${plural(totals.models, "model")}`);
    const errors = Object.values(totals.errors ?? {}).reduce((sum, count) => sum + count, 0);
    const figures = [decimal(totals.tokens_s), totals.running, totals.waiting, shareOf(totals.cache), totals.answers, errors];
    this.tiles.forEach((tile, place) => set(tile.figure, String(figures[place] ?? "–")));
    plot(this.tiles[0].plot, totals.tokens ?? []);
    this.tiles[0].plot.toggleAttribute("hidden", false);
    this.tiles[5].root.classList.toggle("ls-alarm", errors > 0);
    this.empty.hidden = workers.length > 0 || Boolean(trouble);
    this.table.hidden = !workers.length;
    this.drawRows(workers);
    drawCounts(this.errors, totals.errors ?? {});
    this.errorPart.hidden = !errors;
    const events = Object.fromEntries(Object.entries(totals.events ?? {}).map(([name, count]) => [name.replace(/_/g, " "), count]));
    drawCounts(this.events, events);
    this.eventPart.hidden = !Object.keys(events).length;
  }

  drawRows(workers) {
    const there = new Set(workers.map(({ id }) => id));
    for (const [id, row] of this.rows) if (!there.has(id)) { row.root.remove(); this.rows.delete(id); }
    const same = (worker) => workers.filter(({ model }) => model === worker.model);
    workers.forEach((worker, place) => {
      let row = this.rows.get(worker.id);
      if (!row) this.rows.set(worker.id, (row = rowOf()));
      if (this.body.children[place] !== row.root) this.body.insertBefore(row.root, this.body.children[place] ?? null);
      const twins = same(worker);
      fillRow(row, worker, twins.length > 1 ? `${worker.model} #${twins.indexOf(worker) + 1}` : worker.model);
    });
  }
}

function tileOf(name) {
  const figure = el("strong");
  const plotted = sparkline();
  plotted.setAttribute("hidden", "");
  return { figure, plot: plotted, root: el("div.ls-status-tile", {}, el("span", {}, name), figure, plotted) };
}

function rowOf() {
  const cells = {
    name: el("span.ls-status-name"), state: el("span.ls-status-state"), about: el("small"), tokens: el("span"), tokenPlot: sparkline(), running: el("span"),
    capacity: el("small"), loadPlot: sparkline(), waiting: el("span"), cache: el("span"), memory: el("span"), room: el("small"), answers: el("span"), errors: el("span"),
  };
  const cell = (label, kind, ...inside) => el(`td${kind}`, { data: { label } }, inside);
  const root = el("tr", {}, el("th.ls-name", { scope: "row" }, el("div", {}, cells.name, cells.state), cells.about),
    cell("Tokens/s", ".ls-figure", cells.tokens, cells.tokenPlot), cell("Running", ".ls-figure", el("span", {}, cells.running, cells.capacity), cells.loadPlot),
    cell("Waiting", ".ls-figure", cells.waiting), cell("Reused", ".ls-figure", cells.cache), cell("Memory", ".ls-status-memory", cells.memory, cells.room),
    cell("Answers", ".ls-figure", cells.answers), cell("Errors", ".ls-status-errors", cells.errors));
  return { root, cells };
}

function fillRow({ root, cells }, worker, name) {
  set(cells.name, name);
  const state = worker.state === "ready" ? STATES.ready : `${STATES[worker.state]} for ${ago(worker.silent_s)}`;
  set(cells.state, state);
  if (root.dataset.state !== worker.state) root.dataset.state = worker.state;
  set(cells.about, [worker.engine, worker.device, worker.dtype === "none" ? "" : worker.dtype].filter(Boolean).join(" · "));
  set(cells.tokens, decimal(worker.tokens_s));
  set(cells.running, String(worker.running));
  set(cells.capacity, ` of ${worker.capacity}`);
  set(cells.waiting, String(worker.waiting));
  set(cells.cache, shareOf(worker.cache));
  const device = worker.device_total ? `${gibibytes(worker.device_used)} of ${gibibytes(worker.device_total)}` : worker.memory ? gibibytes(worker.memory) : "–";
  set(cells.memory, device);
  set(cells.room, worker.room === null ? "" : `chats ${shareOf(worker.room)}, kept ${shareOf(worker.kept)}`);
  set(cells.answers, worker.answers.toLocaleString("en"));
  set(cells.errors, Object.entries(worker.errors).map(([code, count]) => `${code} ${count}`).join(", ") || "none");
  plot(cells.tokenPlot, worker.tokens);
  plot(cells.loadPlot, worker.load);
}

function lateness(workers) {
  const gone = workers.filter(({ state }) => state === "gone").map(({ model, silent_s: silent }) => `the worker of ${model} has gone ${ago(silent)} ago`);
  const late = workers.filter(({ state }) => state === "late").map(({ model, silent_s: silent }) => `the worker of ${model} is late: nothing heard for ${ago(silent)}`);
  return [...late, ...gone].join("; ");
}

function drawCounts(list, counts) {
  const entries = Object.entries(counts).sort(([, one], [, other]) => other - one);
  while (list.children.length > entries.length) list.lastElementChild.remove();
  entries.forEach(([name, count], place) => {
    if (!list.children[place]) list.append(el("li", {}, el("span"), el("small")));
    const [label, figure] = list.children[place].children;
    set(label, name);
    set(figure, count.toLocaleString("en"));
  });
}

function sparkline() {
  return svg("svg", { class: "ls-spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("path", { class: "ls-spark-area" }), svg("path", { class: "ls-spark-line" }));
}

// The latest at the right; the highest of what is shown fills the height.
function plot(drawing, values) {
  const most = Math.max(1, ...values);
  const span = 119;
  const points = values.map((value, place) => `${(100 - ((values.length - 1 - place) * 100) / span).toFixed(1)} ${(22 - (20 * value) / most).toFixed(1)}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  const area = line && `${line}L100 24L${points[0].split(" ")[0]} 24Z`;
  [area, line].forEach((path, place) => { if (drawing.children[place].getAttribute("d") !== path) drawing.children[place].setAttribute("d", path); });
}

// Only what differs is touched, so that nothing flickers and what is selected stays so.
function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function plural(number, what) {
  return `${number} ${what}${number === 1 ? "" : "s"}`;
}

function decimal(value) {
  return value === undefined ? "–" : value >= 100 ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}

function shareOf(share) {
  return share === null || share === undefined ? "–" : `${Math.round(100 * share)} %`;
}

function gibibytes(bytes) {
  return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
}

function ago(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}
