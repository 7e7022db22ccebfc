// Which view is shown, what is refreshed when, and the keyboard.

import { Failure, ask_again } from "./api.js";
import * as cache from "./cache.js";
import * as configuration from "./configuration.js";
import { Explore } from "./explore.js";
import * as overview from "./overview.js";
import { ask, el, notice } from "./util.js";

const NAMES = ["overview", "explore", "cache", "configuration"];
const main = document.getElementById("main");
const banner = document.getElementById("banner");

const views = {
  overview: [new overview.Overview(), overview.EVERY],
  explore: [new Explore({ navigate })],
  cache: [new cache.Cache(), cache.EVERY],
  configuration: [new configuration.Configuration(), configuration.EVERY],
};

let [current, timer, lost] = [null, null, 0];

function navigate(hash) {
  if (location.hash === hash) route(); else location.hash = hash;
}

function where() {
  const [name, query = ""] = location.hash.replace(/^#\//, "").split(/\?(.*)/s);
  return [NAMES.includes(name) ? name : "overview", new URLSearchParams(query)];
}

async function route() {
  const [name, params] = where();
  const [view] = views[name];
  clearTimeout(timer);
  if (current && current !== name) views[current][0].leave?.();
  if (current !== name) {
    current = name;
    main.replaceChildren(view.element);
    if (!view.element.childElementCount) view.element.replaceChildren(el("p.quiet", {}, "Loading…"));
    document.title = `${name[0].toUpperCase()}${name.slice(1)} – Heliostat`;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.view === name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
    }
  }
  await tick(() => (view.enter ? view.enter(params) : view.refresh()));
}

// Does `work`, says what became of it, and looks again later.
async function tick(work) {
  const name = current;
  const [view, every] = views[name];
  try {
    await work();
    lost = 0;
    banner.hidden = true;
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Failure)) throw error;
    lost += 1;
    banner.textContent = error.status ? `${error.message} (HTTP ${error.status})` : "Heliostat does not answer. Trying again…";
    banner.hidden = false;
    if (!view.element.childElementCount || view.element.textContent === "Loading…") view.element.replaceChildren(notice("bad", "Nothing to show yet", el("p", {}, "Is heliostat running, and does this address lead to it?")));
  }
  if (name !== current || !(every || lost)) return;
  clearTimeout(timer);
  timer = setTimeout(() => {
    if (document.hidden) return;
    tick(() => (view.refresh ? view.refresh() : view.enter(where()[1])));
  }, lost ? Math.min(30000, 2000 * 2 ** lost) : every);
}

addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => { if (!document.hidden && views[current]?.[1]) route(); });

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("dialog").open) return;
  if (event.target.closest("input, textarea, select")) { if (event.key === "Escape") event.target.blur(); return; }
  if (/^[1-4]$/.test(event.key)) navigate(`#/${NAMES[event.key - 1]}`);
  else if (event.key === "r") { ask_again(); views[current][0].run?.() ?? route(); }
  else if (event.key === "?") help();
  else if (event.key === "/") {
    event.preventDefault();
    const field = main.querySelector("[data-search]");
    if (field) field.focus(); else { navigate("#/explore"); setTimeout(() => main.querySelector("[data-search]")?.focus(), 300); }
  }
});

function help() {
  const keys = [["1 – 4", "the views"], ["/", "search, or the first field of Explore"], ["r", "refresh"], ["Ctrl Enter", "run the expression"], ["← →", "read values, with the chart focused"], ["Esc", "leave a field, close"], ["?", "this list"]];
  ask("Keyboard", [el("div.keys", {}, keys.flatMap(([key, what]) => [el("span", {}, el("kbd", {}, key)), el("span", {}, what)]))], [{ name: "Close", value: "", kind: "primary" }]);
}
document.getElementById("help").addEventListener("click", help);
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });

route();
