// Light or dark: what the person chose here, else what `?__theme=` says, else what the system prefers.
"use strict";

const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");

function wantsDark() {
  const asked = new URLSearchParams(location.search).get("__theme");
  if (asked === "dark" || asked === "light") return asked === "dark";
  const chosen = stored("browser", "theme");
  return chosen ? chosen === "dark" : darkSystem.matches;
}

function applyTheme(dark = wantsDark()) {
  document.body.classList.toggle("dark", dark);
  for (const button of document.querySelectorAll(".ls-theme")) {
    button.replaceChildren(icon(dark ? "sun" : "moon"));
    button.title = dark ? "Light colours" : "Dark colours";
    button.setAttribute("aria-label", button.title);
  }
}

LlavaServe.header = (element) => {
  const button = iconButton("moon", "Dark colours", () => {
    const dark = !document.body.classList.contains("dark");
    stored("browser", "theme", dark ? "dark" : "light");
    const address = new URL(location.href);
    address.searchParams.delete("__theme");
    history.replaceState(null, "", address);
    applyTheme(dark);
  }, { className: ".ls-theme" });
  element.firstElementChild.append(
    el("span.ls-brand", {}, icon("mark"), el("span", {}, "LLaVA Serve")),
    button,
  );
  applyTheme();
};

applyTheme();
// After Gradio's own listener, which knows nothing of the choice made here.
darkSystem.addEventListener("change", () => setTimeout(applyTheme));
