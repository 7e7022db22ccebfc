// What is cached, and forgetting it.

import { change, get } from "./api.js";
import { closed } from "./overview.js";
import { ask, bytes, count, el, notice, say, time } from "./util.js";

export const EVERY = 15000;

export function describe(lane) {
  if (lane.query !== undefined) return lane.query;
  const said = (lane.conditions ?? []).map(({ key, value }) => `${key}=${shown(value)}`).join("  ");
  return said || "everything";
}

export const shown = (value) => (value !== null && typeof value === "object" ? (Array.isArray(value) ? value.map(shown).join("|") : shown(value.value)) : String(value));

function how(lane) {
  if (lane.query !== undefined) return `step ${lane.stepMillis / 1000} s`;
  return lane.aggregation ? `${lane.aggregation.method} of ${lane.aggregation.bucketSizeMillis / 1000} s` : "raw";
}

export function explore_link(upstream, lane) {
  const to = new URLSearchParams({ upstream });
  if (lane.query !== undefined) { to.set("mode", "promql"); to.set("query", lane.query); }
  else {
    for (const { key, value } of lane.conditions ?? []) to.append("c", `${key}=${shown(value)}`);
    if (!lane.aggregation) to.set("method", "raw"); else to.set("method", lane.aggregation.method);
  }
  return `#/explore?${to}`;
}

export class Cache {
  constructor() {
    this.element = el("div", { style: { display: "contents" } });
    this.list = el("div.cards");
    this.form = this.build_form();
  }

  build_form() {
    this.upstream = el("select", { name: "upstream" });
    this.conditions = el("input", { placeholder: "name=cpu.usage_percent host=web-1", size: "26", spellcheck: "false" });
    this.query = el("input", { placeholder: "rate(http_requests_total[5m])", size: "22", spellcheck: "false" });
    this.from = el("input", { type: "datetime-local", step: "1" });
    this.to = el("input", { type: "datetime-local", step: "1" });
    const form = el("form.form", { id: "forget", onsubmit: (event) => { event.preventDefault(); this.forget(); } },
      el("label", {}, "Upstream", this.upstream), el("label", {}, "Conditions", this.conditions), el("label", {}, "or expression", this.query),
      el("label", {}, "From", this.from), el("label", {}, "To", this.to), el("button.danger", { type: "submit" }, "Forget…"));
    return el("section.card", {}, el("header", {}, el("h2", {}, "Forget"), el("span.small.quiet", {}, "What is forgotten is fetched again when it is asked for. Empty fields mean everything.")), form);
  }

  async refresh() {
    let answer;
    try { answer = await get("admin/v1/cache"); } catch (error) {
      const shut = closed(error);
      if (!shut) throw error;
      this.element.replaceChildren(shut);
      return;
    }
    const { upstreams } = answer;
    const names = upstreams.map((u) => u.upstream);
    if ([...this.upstream.options].map((o) => o.value).join() !== names.join()) this.upstream.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    const all = upstreams.reduce((sum, u) => sum + u.bytes, 0) || 1;
    this.list.replaceChildren(...upstreams.map((u) => el("section.card", { "data-upstream": u.upstream },
      el("header", {}, el("h2", {}, u.upstream), el("span.small.quiet.push", {}, `${bytes(u.bytes)} · ${count(u.chunks)} chunks · ${count(u.lanes)} lanes`)),
      el("div.meter", {}, el("i", { style: { width: `${u.bytes / all * 100}%` } })),
      u.hottest.length ? el("div.scroll", { tabindex: "0", style: { marginTop: "8px" } }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "Hottest series"), el("th", {}, ""), el("th.num", {}, "Answers"), el("th.num", {}, "Bytes"), el("th", {}, ""))),
        el("tbody", {}, u.hottest.map((lane) => el("tr", {}, el("td.wide", {}, el("a", { href: explore_link(u.upstream, lane) }, describe(lane))), el("td.nowrap.quiet", {}, how(lane)),
          el("td.num", {}, count(lane.answers)), el("td.num", {}, bytes(lane.bytes)),
          el("td.num", {}, el("button.link", { type: "button", "aria-label": `Forget ${describe(lane)}`, onclick: () => this.confirm({ upstream: u.upstream, ...(lane.query !== undefined ? { query: lane.query } : { conditions: lane.conditions }) }) }, "forget")))))))
        : el("p.quiet.small", { style: { marginTop: "8px" } }, "Nothing of it is cached yet. ", el("a", { href: `#/explore?upstream=${encodeURIComponent(u.upstream)}` }, "Look at a series")))));
    if (!this.list.isConnected) this.element.replaceChildren(this.form, this.list);
  }

  forget() {
    const what = { upstream: this.upstream.value };
    const conditions = this.conditions.value.trim().split(/\s+/).filter(Boolean);
    const wrong = conditions.find((c) => !/^[^=]+=/.test(c));
    if (wrong) { this.said(notice("bad", `${wrong} is not a condition`, el("p", {}, "Write conditions as FIELD=VALUE, with blanks between them."))); return; }
    if (conditions.length) what.conditions = conditions.map((c) => ({ key: c.slice(0, c.indexOf("=")), value: c.slice(c.indexOf("=") + 1) }));
    if (this.query.value.trim()) what.query = this.query.value.trim();
    if (this.from.value) what.startTime = new Date(this.from.value).getTime();
    if (this.to.value) what.endTime = new Date(this.to.value).getTime();
    this.confirm(what);
  }

  async confirm(what) {
    const range = what.startTime || what.endTime ? ` from ${what.startTime ? time(what.startTime) : "the beginning"} to ${what.endTime ? time(what.endTime) : "now"}` : "";
    const done = await ask("Forget what is cached?", [
      el("p", {}, el("b", {}, describe(what)), ` of ${what.upstream}${range}`),
      el("p.quiet", {}, "It is fetched again when somebody asks, which costs the store calls. Names, values and whole answers of this upstream go as well.")],
      [{ name: "Keep it", value: "" }, { name: "Forget", value: "forget", kind: "danger" }]);
    if (done !== "forget") return;
    try {
      const { chunks } = await change("POST", "admin/v1/invalidate", what, "invalidate");
      const text = chunks ? `Forgot ${chunks} ${chunks === 1 ? "chunk" : "chunks"} of ${what.upstream}.` : `Nothing of that was cached of ${what.upstream}.`;
      say(text);
      this.said(notice("", text));
      await this.refresh();
    } catch (error) { this.said(notice("bad", "Not forgotten", el("p", {}, error.message))); }
  }

  said(section) {
    this.last?.remove();
    this.last = section;
    this.form.after(section);
  }
}
