// One turn drawn and kept up to date: the question, the answer as it grows, its figures, its notice, its buttons.
"use strict";

class TurnView {
  constructor(pane) {
    this.pane = pane;
    this.question = el("div.ls-question");
    this.blocks = el("div.ls-answer-text");
    this.wait = el("div.ls-wait", { role: "status" });
    this.head = el("div.ls-answer-head");
    this.notice = el("div.ls-notice-place");
    this.foot = el("div.ls-answer-foot");
    this.answer = el("div.ls-answer", {}, this.head, this.blocks, this.wait, this.notice, this.foot);
    this.root = el("article.ls-turn", {}, this.question, this.answer);
    copyCodeIn(this.blocks);
    this.drawn = {};
  }

  update(turn, last) {
    this.turn = turn;
    const { answer } = turn;
    const running = answer.state === "waiting" || answer.state === "streaming";
    const free = !this.pane.running;
    this.root.dataset.state = answer.state;
    this.root.classList.toggle("ls-last", last);
    this.part("question", [turn.text, turn.pictures, turn.left_out, turn.id, turn.wordings, turn.wording, free], () => this.drawQuestion(turn, free));
    this.part("head", [turn.id, answer.model, turn.answers, turn.shown, free], () => this.drawHead(turn, free));
    this.drawBlocks(answer.blocks);
    this.part("wait", [answer.state], () => this.drawWait(answer));
    this.part("notice", [answer.notice, last], () => this.drawNotice(answer.notice, last));
    this.part("foot", [{ ...answer, blocks: 0 }, last, running, free, this.pane.view.scaleOf?.(this.pane, turn)], () => this.drawFoot(answer, last, running, free));
  }

  // Draws a part only where what it shows has changed, so that buttons keep their focus while text streams.
  part(name, facts, draw) {
    const key = JSON.stringify(facts);
    if (this.drawn[name] === key) return;
    this.drawn[name] = key;
    draw();
  }

  drawQuestion(turn, free) {
    const pictures = el("div.ls-pictures", { data: { count: String(Math.min(turn.pictures.length, 4)) } }, turn.pictures.map((picture) => {
      const image = el("img", { src: pictureUrl(picture), alt: picture.name });
      image.addEventListener("error", () => unshown(image, picture));
      return el("button.ls-picture", { type: "button", title: picture.name, onclick: () => lightbox(pictureUrl(picture), picture.name) }, image);
    }));
    const copy = iconButton("copy", "Copy the question", () => copyText(turn.text, copy));
    this.question.replaceChildren(...[
      turn.pictures.length && pictures,
      turn.text && this.bubble(turn.text),
      turn.left_out && el("p.ls-left-out", {}, "Left out of the chat, since it has no answer"),
      turn.id !== "pending" && el("div.ls-asked", {},
        el("div.ls-actions", {}, turn.text && copy, iconButton("edit", "Edit and ask again", () => this.pane.view.edit(turn.id, this.pane))),
        turn.wordings > 1 && this.stepper("wording", turn.wording, turn.wordings, free, (shown) => ({ do: "show wording", turn: turn.id, shown }))),
    ].filter(Boolean));
  }

  // A very long question shows its beginning.
  bubble(text) {
    const bubble = el("div.ls-bubble", {}, text);
    if (text.length < 1500 && text.split("\n").length < 24) return bubble;
    bubble.classList.add("ls-long");
    const more = el("button.ls-text-button", { type: "button", onclick: () => { bubble.classList.remove("ls-long"); more.remove(); } }, "Show all");
    return el("div.ls-folded", {}, bubble, more);
  }

  drawHead(turn, free) {
    const several = turn.answers > 1 && this.stepper("answer", turn.shown, turn.answers, free, (shown) => ({ do: "show", turn: turn.id, shown }));
    this.head.replaceChildren(...[el("span.ls-model-tag", {}, turn.answer.model), several].filter(Boolean));
  }

  // ‹ 2/3 ›: other wordings of a question, other answers to it, each with what followed it. Focus stays on the arrow, or
  // goes to the other where this one has come to its end.
  stepper(what, at, count, free, message) {
    const step = async (event, by) => {
      const { className } = event.currentTarget;
      const place = [...this.pane.list.children].indexOf(this.root);
      await this.pane.act(message(at + by));
      const arrows = [...(this.pane.list.children[place]?.querySelectorAll(`.ls-variants-${what} .ls-button:enabled`) ?? [])];
      (arrows.find((button) => button.className === className) ?? arrows[0])?.focus({ preventScroll: true });
    };
    const arrow = (name, label, by, end) => iconButton(name, label, (event) => step(event, by), { className: `.ls-step-${name}`, disabled: !free || end });
    return el(`span.ls-variants.ls-variants-${what}`, { role: "group", "aria-label": `${what === "answer" ? "Answer" : "Wording"} ${at + 1} of ${count}` },
      arrow("left", `The ${what} before`, -1, at === 0), el("span", {}, `${at + 1}/${count}`), arrow("right", `The next ${what}`, 1, at === count - 1));
  }

  drawBlocks(blocks) {
    blocks.forEach((html, index) => {
      let node = this.blocks.children[index];
      if (!node) this.blocks.append((node = el("div.ls-block")));
      if (node.source === html) return;
      node.source = html;
      node.innerHTML = html; // made by the server from Markdown with raw HTML escaped
      setMath(node);
    });
    while (this.blocks.childElementCount > blocks.length) this.blocks.lastElementChild.remove();
  }

  drawWait(answer) {
    clearInterval(this.clock);
    this.wait.replaceChildren();
    if (answer.state !== "waiting") return;
    const since = Date.now();
    const label = el("span");
    this.wait.append(el("span.ls-dots", {}, el("i"), el("i"), el("i")), label);
    // A short wait needs no words.
    this.clock = setInterval(() => {
      if (!this.root.isConnected) return clearInterval(this.clock);
      const seconds = Math.floor((Date.now() - since) / 1000);
      label.textContent = seconds < 2 ? "" : `${this.turn.pictures.length ? "Looking closely" : "Thinking"}… ${seconds} s`;
      return undefined;
    }, 500);
  }

  drawNotice(notice, last) {
    if (!notice) return this.notice.replaceChildren();
    const { pane, turn } = this;
    const retry = el("button.ls-action.ls-retry", { type: "button", onclick: () => pane.retry() }, icon("retry"), el("span", {}, "Retry"));
    this.notice.replaceChildren(el("div.ls-notice", { role: "alert", data: { code: notice.code } }, icon("warn"),
      el("div", {}, el("strong", {}, notice.title), el("p", {}, sentence(notice.message)),
        last && el("div.ls-notice-actions", {},
          notice.retry && retry,
          notice.retry && turn.answer.text && el("button.ls-action", { type: "button", onclick: () => pane.resume() }, icon("resume"), el("span", {}, "Continue")),
          el("button.ls-action", { type: "button", onclick: () => pane.view.edit(turn.id, pane) }, icon("edit"), el("span", {}, "Edit the question")),
          notice.code === "ContextOverflow" && el("button.ls-action", { type: "button", onclick: () => pane.view.clear() }, icon("fresh"), el("span", {}, "New chat"))))));
    if (notice.after && last && notice.retry) countDown(retry, notice.after);
    return undefined;
  }

  drawFoot(answer, last, running, free) {
    if (running) return this.foot.replaceChildren();
    const { pane, turn } = this;
    const copy = iconButton("copy", "Copy the answer", () => copyText(answer.text, copy));
    const rate = (changes) => {
      pane.act({ do: "rate", answer: answer.id, rating: answer.rating, flagged: answer.flagged, ...changes });
      if (changes.rating || changes.flagged) toast("Noted. " + pane.view.composer.props.promise);
    };
    const rating = (kind, label) => iconButton("up", label, () => rate({ rating: answer.rating === kind ? "" : kind }),
      { className: `.ls-${kind}`, "aria-pressed": String(answer.rating === kind) });
    this.foot.replaceChildren(...[
      pane.view.figures?.(pane, turn) ?? el("div.ls-figures", {}, figuresOf(answer).map(([text, title]) => el("span", { title }, text))),
      answer.text && el("div.ls-actions", {}, copy,
        last && !answer.notice && (answer.cut || answer.state === "stopped") && iconButton("resume", "Continue", () => pane.resume(), { className: ".ls-resume" }),
        last && !answer.notice && iconButton("retry", "Answer again", () => pane.retry(), { className: ".ls-again" }),
        !last && free && iconButton("retry", "Answer again from here", () => pane.retry(turn.id), { className: ".ls-again" }),
        rating("like", "Good answer"), rating("dislike", "Bad answer"),
        iconButton("flag", "Flag as harmful or wrong", () => rate({ flagged: !answer.flagged }), { className: ".ls-flag", "aria-pressed": String(answer.flagged) })),
      !answer.text && answer.state === "stopped" && last && el("div.ls-actions", {}, iconButton("retry", "Answer again", () => pane.retry(), { className: ".ls-again" })),
    ].filter(Boolean));
    return undefined;
  }
}

function figuresOf(answer) {
  const figures = answer.figures;
  const count = (number) => number.toLocaleString("en");
  return [
    answer.state === "stopped" && ["stopped", "You stopped this answer; what it said stays in the chat"],
    answer.cut && ["cut off at the token limit", "The longest answer can be changed in the settings"],
    figures && [`${seconds(figures.first_token_s)} to first token`, "From sending the question to the first word", "metered"],
    figures?.tokens_per_s && [`${figures.tokens_per_s.toFixed(figures.tokens_per_s < 10 ? 1 : 0)} tokens/s`, `${count(figures.completion_tokens)} tokens in all`, "metered"],
    figures?.image_tokens > 0 && [`${count(figures.image_tokens)} image tokens`, `Of ${count(figures.prompt_tokens)} tokens read`, "metered"],
    figures?.cached_tokens > 0 && [`${count(figures.cached_tokens)} cached`, `Of ${count(figures.prompt_tokens)} tokens read, these were known from earlier turns`, "metered"],
  ].filter(Boolean);
}

function seconds(value) {
  return value < 10 ? `${value.toFixed(2)} s` : `${value.toFixed(0)} s`;
}

function countDown(button, from) {
  const label = button.querySelector("span");
  const until = Date.now() + from * 1000;
  const tick = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.disabled = left > 0;
    label.textContent = left > 0 ? `Retry in ${left} s` : "Retry";
    if (left > 0 && button.isConnected) setTimeout(tick, 250);
  };
  setTimeout(tick);
}
