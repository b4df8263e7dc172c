// TeX in `.ls-math` elements, set with the KaTeX that Gradio carries; where it cannot be loaded the source stays readable.
"use strict";

let katexLoading = null;

function loadKatex() {
  const { katex } = LlavaServe.assets ?? {};
  if (!katex) return Promise.resolve(null);
  katexLoading ??= import(new URL(katex.js, document.baseURI)).then((module) => {
    document.head.append(el("link", { rel: "stylesheet", href: katex.css }));
    return module.default;
  }).catch(() => null);
  return katexLoading;
}

let katexReady = null;

function setMath(root) {
  const spans = root.querySelectorAll(".ls-math:not(.ls-set)");
  if (!spans.length) return;
  if (katexReady) spans.forEach(setOne);
  else loadKatex().then((katex) => {
    katexReady = katex;
    if (katex) spans.forEach(setOne);
  });
}

function setOne(span) {
  const source = span.textContent;
  span.title = source;
  try {
    katexReady.render(source, span, {
      displayMode: span.classList.contains("ls-math-display"),
      throwOnError: true, // what is no TeX stays as it was written
      trust: false,
      maxSize: 20,
      maxExpand: 500,
      output: "htmlAndMathml",
    });
    span.classList.add("ls-set");
  } catch {
    span.textContent = source;
  }
}
