// Requests to the server that this page came from, and the tokens that it asks for.

import { ask, el } from "./util.js";

export class Failure extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

const NAMES = { mirror: "mirror API", prometheus: "Prometheus API", admin: "admin API", metrics: "metrics" };

// Tokens are of this tab, and gone with it.
const stored = (api) => sessionStorage.getItem(`token.${api}`) ?? sessionStorage.getItem("token");

function store(api, token) {
  sessionStorage.setItem(`token.${api}`, token);
  if (!sessionStorage.getItem("token")) sessionStorage.setItem("token", token);
}

let asking = null;

async function token(api, refused) {
  asking ??= (async () => {
    const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false", "aria-label": "Token" });
    const text = refused ? "That token is not one that is known." : `[access.${api}] asks for one.`;
    const done = await ask(`A token for the ${NAMES[api]}`, [el("p", {}, `${text} It stays in this tab.`), input], [
      { name: "Without", value: "" }, { name: "Use it", value: "use", kind: "primary" }]);
    return done === "use" && input.value ? input.value.trim() : null;
  })().finally(() => { setTimeout(() => { asking = null; }); });
  return asking;
}

// APIs for which nobody gave a token: they are not asked again by a timer.
const declined = new Set();
export const ask_again = () => declined.clear();

const api_of = (path) => (path.startsWith("admin/") ? "admin" : path.startsWith("metrics") ? "metrics"
  : path.startsWith("prometheus/") || path.startsWith("api/v1/") ? "prometheus" : "mirror");

async function send(path, { method, body, headers = {}, signal }, given) {
  const all = new Headers(headers);
  if (given) all.set("Authorization", `Bearer ${given}`);
  // No mode of caching: a browser would send Cache-Control, and a look would cost the store a call.
  return fetch(new URL(path, document.baseURI), { method, body, headers: all, signal, credentials: "same-origin" });
}

async function message(response) {
  const text = await response.text();
  try {
    const said = JSON.parse(text);
    return said.details ?? said.error ?? said.summary ?? text;
  } catch { return text.slice(0, 300) || response.statusText || `HTTP ${response.status}`; }
}

// The whole response of `path`; an error says what the server said.
export async function request(path, options = {}) {
  const api = api_of(path);
  let given = stored(api);
  for (;;) {
    let response;
    try { response = await send(path, options, given); } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure(0, "Heliostat does not answer.");
    }
    if (response.status === 401 && !declined.has(api)) {
      const known = stored(api);
      const entered = known && known !== given ? known : await token(api, Boolean(given));
      if (entered) { store(api, entered); given = entered; continue; }
      declined.add(api);
    }
    if (!response.ok) throw new Failure(response.status, await message(response));
    return response;
  }
}

export const get = async (path, signal) => (await request(path, { signal })).json();

export const post = async (path, body, signal) =>
  request(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal });

// A change: the header shows that it is this page that asks, and no other in this browser.
export const change = async (method, path, body, action) =>
  (await request(path, { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json", "X-Heliostat-Action": action } })).json();
