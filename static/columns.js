// Conversations side by side: their letters, pages to swipe where one fits, scrolling together, one voice for all.
"use strict";

const COLUMN_LETTERS = "ABCD";
const onePage = window.matchMedia("(width < 640px)");

class ColumnsView extends View {
  constructor(name) {
    super(name);
    this.together = false;
    this.page = 0;
    // One voice: each conversation would read out its whole answer, all of them at once.
    this.spoken = el("p.ls-spoken", { role: "status" });
    this.pages = el("div.ls-pages", { role: "tablist", "aria-label": "Columns", onkeydown: (event) => this.pageKey(event) });
    onePage.addEventListener("change", () => this.arrange());
  }

  add(pane) {
    super.add(pane);
    this.arrange();
  }

  get row() {
    return this.made[0]?.root.closest(".ls-columns");
  }

  // Who stands where. Letters and colours go by place, so that they always read A, B, C from the left.
  arrange() {
    const { row, panes } = this;
    if (!row) return;
    if (!this.pages.isConnected) {
      row.before(this.spoken, this.pages);
      row.addEventListener("scroll", () => this.noticePage(), { passive: true });
    }
    for (const pane of this.made) pane.root.hidden = !panes.includes(pane);
    panes.forEach((pane, place) => this.stand(pane, place));
    row.dataset.count = String(panes.length);
    this.noticePage();
    this.drawPages();
  }

  stand(pane, place) {
    const { root, scroller } = pane;
    pane.place = place;
    root.dataset.place = String(place);
    root.id = `ls-pane-${this.name}-${pane.side}`;
    root.setAttribute("role", onePage.matches ? "tabpanel" : "region");
    pane.letter.textContent = COLUMN_LETTERS[place];
    scroller.setAttribute("aria-live", "off");
    scroller.setAttribute("aria-label", `Conversation ${COLUMN_LETTERS[place]}`);
    this.nameColumn(pane);
  }

  nameColumn(pane) {
    pane.root.setAttribute("aria-label", `Column ${COLUMN_LETTERS[pane.place]}: ${pane.title}`);
  }

  refresh() {
    super.refresh();
    for (const pane of this.panes) {
      this.hear(pane);
      if (pane.place !== undefined) this.nameColumn(pane);
    }
    this.drawPages();
  }

  hear(pane) {
    const was = pane.wasRunning;
    pane.wasRunning = pane.running;
    const how = { done: "has answered", stopped: "was stopped", failed: "failed" }[pane.data.turns.at(-1)?.answer.state];
    if (was && !pane.running && how) this.spoken.textContent = `${COLUMN_LETTERS[pane.place]}, ${pane.title}, ${how}.`;
  }

  // pages --------------------------------------------------------------------------------------------------------

  noticePage() {
    const { row } = this;
    const page = onePage.matches && row.clientWidth ? Math.min(this.panes.length - 1, Math.round(row.scrollLeft / row.clientWidth)) : 0;
    if (page === this.page) return;
    this.page = page;
    this.drawPages();
  }

  turnTo(place) {
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.row.scrollTo({ left: place * this.row.clientWidth, behavior: calm ? "instant" : "smooth" });
  }

  drawPages() {
    const shown = this.panes.map((pane) => [pane.title, pane.running, pane.data.turns.at(-1)?.answer.state === "failed"]);
    const key = JSON.stringify([shown, this.page, onePage.matches]);
    if (this.pages.dataset.key === key) return;
    this.pages.dataset.key = key;
    const focused = this.pages.contains(document.activeElement);
    this.pages.replaceChildren(...(onePage.matches ? this.panes.map((pane, place) => this.pageTab(pane, place, ...shown[place])) : []));
    if (focused) this.pages.querySelector("[aria-selected=true]")?.focus({ preventScroll: true });
  }

  pageTab(pane, place, title, running, failed) {
    const chosen = place === this.page;
    const tab = el("button.ls-page", {
      type: "button", role: "tab", "aria-selected": String(chosen), "aria-controls": pane.root.id, tabindex: chosen ? "0" : "-1", title,
      data: { place: String(place) }, onclick: () => this.turnTo(place),
    }, el("b", {}, COLUMN_LETTERS[place]), el("span", {}, title));
    tab.classList.toggle("ls-busy", running);
    if (failed) tab.append(icon("warn"));
    return tab;
  }

  pageKey(event) {
    const to = { ArrowRight: this.page + 1, ArrowLeft: this.page - 1, Home: 0, End: this.panes.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.turnTo(Math.max(0, Math.min(this.panes.length - 1, to)));
  }

  // scrolling together ---------------------------------------------------------------------------------------------

  scrolled(leader) {
    if (!this.together) return;
    const spot = leader.spot();
    for (const pane of this.panes) if (pane !== leader) pane.goTo(spot);
  }
}

// The votes of a ballot by the keys 1, 2, 3…, in their order, unless somebody writes.
function voteByKeys(root) {
  document.addEventListener("keydown", (event) => {
    const place = "123456".indexOf(event.key);
    if (place < 0 || event.ctrlKey || event.altKey || event.metaKey || openPanel || root.offsetParent === null) return;
    if (event.target.closest?.("input, textarea, select, [contenteditable]")) return;
    root.querySelectorAll(".ls-vote")[place]?.click();
  });
}
