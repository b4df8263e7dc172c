// How answers are drawn: a small panel, remembered by this browser, sent along with every question.
"use strict";

const SETTING_FIELDS = [
  { key: "temperature", label: "Temperature", min: 0, max: 1, step: 0.05, start: 0.2, hint: "0 always takes the likeliest word" },
  { key: "top_p", label: "Top-p", min: 0, max: 1, step: 0.05, start: 0.7, hint: "words from the likeliest part only" },
  { key: "max_tokens", label: "Longest answer", min: 64, max: 4096, step: 64, start: 512, hint: "in tokens" },
];
const SETTING_START = { ...Object.fromEntries(SETTING_FIELDS.map((field) => [field.key, field.start])), seed: "", system: "" };

const settings = readSettings();
const settingsListeners = new Set();

function readSettings() {
  try {
    return settingsFrom(JSON.parse(stored("browser", "settings") ?? "{}"));
  } catch {
    return { ...SETTING_START };
  }
}

// What was kept, as far as it can be set here, else as `otherwise` has it.
function settingsFrom(kept, otherwise = SETTING_START) {
  const read = { ...otherwise };
  for (const { key, min, max } of SETTING_FIELDS) {
    const value = Number(kept[key] ?? NaN);
    if (value >= min && value <= max) read[key] = value;
  }
  for (const key of ["seed", "system"]) if (typeof kept[key] === "string") read[key] = kept[key];
  return read;
}

function settingsDiffer(some, others = SETTING_START) {
  return Object.keys(SETTING_START).some((key) => some[key] !== others[key]);
}

// The composer's, which this browser remembers.
const sharedSettings = {
  values: settings,
  keep: (values) => {
    stored("browser", "settings", JSON.stringify(values));
    settingsListeners.forEach((listener) => listener());
  },
  seed: "random",
  title: "Settings",
};

// `box` holds values, is told when they change, and says what an empty seed means; `back` leads out of it, where it can.
function settingsPanel(box = sharedSettings) {
  const set = (key, value) => { box.values[key] = value; box.keep(box.values); };
  const panel = el("form.ls-settings", { onsubmit: (event) => event.preventDefault() });
  const draw = () => panel.replaceChildren(
    box.title && el("header", {}, el("h2", {}, box.title),
      box.back ?? el("button.ls-text-button", {
        type: "button",
        onclick: () => { for (const key in SETTING_START) set(key, SETTING_START[key]); draw(); },
      }, "Reset")) || "",
    ...SETTING_FIELDS.map((field) => slider(field, box.values, set)),
    el("label.ls-field", {}, el("span", {}, "Seed"),
      el("input", {
        type: "text", inputmode: "numeric", name: "seed", value: box.values.seed, placeholder: box.seed,
        oninput: (event) => {
          event.target.value = event.target.value.replace(/[^\d]/g, "").slice(0, 18);
          set("seed", event.target.value);
        },
      })),
    el("label.ls-field.ls-field-tall", {}, el("span", {}, "System prompt"),
      el("textarea", {
        rows: 3, name: "system", placeholder: "Optional: how the model should behave", maxlength: 20000,
        oninput: (event) => set("system", event.target.value),
      }, box.values.system)),
  );
  draw();
  return panel;
}

function slider(field, values, set) {
  const number = el("input", {
    type: "number", name: field.key, min: field.min, max: field.max, step: field.step, value: String(values[field.key]),
    "aria-label": field.label,
  });
  const range = el("input", {
    type: "range", min: field.min, max: field.max, step: field.step, value: String(values[field.key]),
    "aria-label": field.label, title: field.hint, tabindex: "-1",
  });
  const take = (value) => {
    if (!Number.isFinite(value)) return;
    const kept = Math.min(field.max, Math.max(field.min, value));
    set(field.key, field.key === "max_tokens" ? Math.round(kept) : kept);
    fill();
  };
  const fill = () => range.style.setProperty("--ls-fill", `${(100 * (values[field.key] - field.min)) / (field.max - field.min)}%`);
  range.addEventListener("input", () => { take(Number(range.value)); number.value = String(values[field.key]); });
  number.addEventListener("input", () => { take(number.valueAsNumber); range.value = String(values[field.key]); });
  number.addEventListener("change", () => { number.value = String(values[field.key]); });
  fill();
  return el("div.ls-field", {}, el("span", {}, field.label, el("small", {}, field.hint)), range, number);
}
