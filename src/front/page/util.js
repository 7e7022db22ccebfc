// Elements, numbers, times: what all views share. Text from stores becomes text nodes, never HTML.

export function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(element.style, value);
    else if (["value", "checked", "disabled", "selected", "open"].includes(key)) element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const say = (text) => { document.getElementById("live").textContent = text; };

const UNITS = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

// A number with at most `digits` significant ones.
export function number(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const unit = UNITS.find(([least]) => size >= least && size < 1e18);
  if (unit && size >= 10 ** Math.max(digits, 3)) return trimmed(value / unit[0], digits) + unit[1];
  if (size !== 0 && (size < 1e-4 || size >= 1e18)) return value.toExponential(digits - 1).replace("-", "−");
  return trimmed(value, digits);
}

function trimmed(value, digits) {
  const text = Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 12, useGrouping: false });
  return text.replace("-", "−");
}

export const exact = (value) => (Number.isFinite(value) ? String(value).replace("-", "−") : number(value));

export function count(value) {
  return value < 1e5 ? Math.round(value).toLocaleString("en").replaceAll(",", "\u202f") : number(value, 3);
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${trimmed(value, at === 0 || value >= 100 ? 3 : 2)} ${units[at]}`;
}

export const percent = (share) =>
  share === null || !Number.isFinite(share) ? "–" : `${share >= 0.9995 || share === 0 ? Math.round(share * 100) : trimmed(share * 100, 3)} %`;

// Seconds as people say them.
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const size = Math.abs(seconds);
  const sign = seconds < 0 ? "−" : "";
  if (size === 0) return "0 s";
  if (size < 0.001) return `${sign}${trimmed(size * 1e6, 3)} µs`;
  if (size < 1) return `${sign}${trimmed(size * 1e3, 3)} ms`;
  if (size < 60) return `${sign}${trimmed(size, size < 10 ? 2 : 2)} s`;
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([unit]) => size >= unit);
  const [unit, name] = parts[first];
  const whole = Math.floor(size / unit);
  const next = parts[first + 1];
  const rest = next ? Math.floor((size - whole * unit) / next[0]) : 0;
  return sign + (rest && whole < 10 ? `${whole} ${name} ${rest} ${next[1]}` : `${whole} ${name}`);
}

const pad = (value, length = 2) => String(value).padStart(length, "0");

// A time in the browser's zone.
export function time(millis, { date = true, seconds = true } = {}) {
  const at = new Date(millis);
  const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
  const ms = at.getMilliseconds();
  const clock = `${pad(at.getHours())}:${pad(at.getMinutes())}${seconds ? `:${pad(at.getSeconds())}` : ""}${seconds && ms ? `.${pad(ms, 3)}` : ""}`;
  return date ? `${day} ${clock}` : clock;
}

export const utc = (millis) => `${new Date(millis).toISOString().replace("T", " ").replace(".000Z", "").replace("Z", "")} UTC`;

// A time with UTC at hover.
export const timed = (millis, options) => el("time", { title: utc(millis), datetime: new Date(millis).toISOString() }, time(millis, options));

export function later(wait, action) {
  let timer;
  return (...values) => { clearTimeout(timer); timer = setTimeout(() => action(...values), wait); };
}

// Shows `content` in the page's one dialog; gives what its form was closed with.
export function ask(title, content, choices) {
  const dialog = document.getElementById("dialog");
  if (dialog.open) dialog.close("");
  const buttons = choices.map(({ name, value, kind }) => el(`button${kind ? `.${kind}` : ""}`, { value, type: "submit" }, name));
  const form = el("form", { method: "dialog" }, el("h2", { id: "dialog-title" }, title), ...content, el("div.buttons", {}, buttons));
  dialog.replaceChildren(form);
  dialog.setAttribute("aria-labelledby", "dialog-title");
  dialog.returnValue = "";
  dialog.showModal();
  // Enter means the first button to a form, and that is the one that does nothing.
  const input = form.querySelector("input");
  input?.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); dialog.close(choices.at(-1).value); } });
  (input ?? buttons[choices.at(-1).kind === "danger" ? 0 : buttons.length - 1]).focus();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

// An empty state or an error: what is the matter, and what to do.
export const notice = (kind, title, ...more) => el(`section.notice.${kind}`, { role: kind === "bad" ? "alert" : undefined }, el("h2", {}, title), ...more);
