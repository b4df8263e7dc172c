// What stands where no conversation is yet: a welcome with examples, a wait for models, or why there are none.
"use strict";

function drawEmpty(pane) {
  const state = !offer.known ? "loading" : offer.models.length ? "welcome" : offer.trouble ? "trouble" : "none";
  const key = `${state} ${offer.trouble} ${Boolean(pane.view.composer)}`;
  if (pane.empty.dataset.key === key) return;
  pane.empty.dataset.key = key;
  pane.empty.className = `ls-empty ls-empty-${state}`;
  pane.empty.replaceChildren(...EMPTY_STATES[state](pane));
}

const EMPTY_STATES = {
  loading: () => [el("div.ls-skeleton", { "aria-label": "Looking for models" }, el("i"), el("i"), el("i"))],

  none: () => [
    el("span.ls-pulse", {}, icon("mark")),
    el("h1", {}, "No model is running yet"),
    el("p", {}, "This page looks every few seconds and is ready as soon as one appears. Start one with"),
    el("code.ls-command", {}, "./launch.sh --model PATH_OR_ID"),
    el("p.ls-faint", {}, "A large model may need some minutes to load."),
  ],

  trouble: () => [
    el("span.ls-pulse.ls-pulse-warn", {}, icon("warn")),
    el("h1", {}, "The models cannot be listed"),
    el("p", {}, sentence(offer.trouble)),
    el("p.ls-faint", {}, "This page keeps trying and goes on by itself."),
  ],

  welcome: (pane) => (pane.side === "only" ? welcome(pane) : columnWelcome(pane)),
};

function welcome(pane) {
  const examples = pane.view.composer?.props.examples ?? [];
  return [
    el("span.ls-hello", {}, icon("mark")),
    el("h1", {}, "Ask about any picture"),
    el("p", {}, howToBegin(examples.length > 0)),
    el("div.ls-examples", {}, examples.map((example) => exampleCard(pane, example))),
    el("button.ls-text-button.ls-more", {
      type: "button", onclick: (event) => { event.target.previousElementSibling.classList.add("ls-all"); event.target.remove(); },
    }, "More examples"),
  ];
}

function howToBegin(examples) {
  const ways = window.matchMedia("(pointer: coarse)").matches ? "Add one with the picture button" : "Drop it anywhere on this page or paste it";
  return examples ? `${ways}, or start from one of these.` : `${ways}.`;
}

function exampleCard(pane, example) {
  return el("button.ls-example", {
    type: "button", title: [example.title, example.credit].filter(Boolean).join(" · "),
    onclick: () => pane.view.composer.addExample(example, example.questions[0]),
  },
  el("img", { src: `examples/${encodeURIComponent(example.file)}`, alt: example.title, loading: "lazy" }),
  el("span", {}, example.questions[0]));
}

function columnWelcome(pane) {
  return [el("p.ls-faint", {}, ["One question goes to all models.", "Each answers at its own pace.", "Shift its settings in the menu above.", "Swap its model whenever you like."][pane.place ?? 0])];
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}
