// What the upstreams and the service have been doing for the last quarter of an hour.

import { Failure, get } from "./api.js";
import { Chart, spark } from "./chart.js";
import { bytes, count, el, notice, number, percent, span, timed } from "./util.js";

export const EVERY = 5000;

const STEPS = 180;
const sum = (values) => values.reduce((all, one) => all + one, 0);
const recent = (values, seconds, step) => values.slice(-Math.max(1, Math.round(seconds * 1000 / step)));

export function closed(error) {
  if (!(error instanceof Failure) || ![401, 403].includes(error.status)) return null;
  return notice("warn", "The admin API is closed to this page",
    el("p", {}, error.message),
    el("p", {}, "This view, the coverage of an answer, and forgetting need it. Make a token:"),
    el("pre", {}, "heliostat hash --token"),
    el("p", {}, "Put the hash into the configuration, which is read again by itself, and give this page the token when it asks:"),
    el("pre", {}, "[access.admin]\ntokens = [\"sha256:…\"]"));
}

export class Overview {
  constructor() {
    this.element = el("div", { style: { display: "contents" } });
    this.tiles = el("div.tiles");
    this.rate = new Chart({ height: 150, label: "Requests a second by API", unit: (v) => number(v, 3), zero: true });
    this.delay = new Chart({ height: 150, label: "Response time", unit: (v) => span(v / 1000), zero: true });
    this.charts = el("div.pair", {},
      el("section.card", {}, el("header", {}, el("h2", {}, "Requests a second"), el("span.legend.push")), this.rate.element),
      el("section.card", {}, el("header", {}, el("h2", {}, "Response time"), el("span.quiet.small", {}, "99th percentile of each 5 s"), el("span.legend.push")), this.delay.element));
    this.cards = el("div.cards");
  }

  async refresh() {
    let answers;
    try {
      answers = await Promise.all([get("admin/v1/traffic"), get("admin/v1/upstreams"), get("admin/v1/config")]);
    } catch (error) {
      const shut = closed(error);
      if (!shut) throw error;
      this.element.replaceChildren(shut);
      return;
    }
    const [traffic, { upstreams }, config] = answers;
    if (!this.tiles.isConnected) this.element.replaceChildren(this.tiles, this.charts, this.cards);
    this.show_tiles(traffic, config);
    this.show_charts(traffic);
    this.show_cards(traffic, upstreams);
  }

  show_tiles(traffic, config) {
    const { stepMillis: step, apis, upstreams, memory, levels } = traffic;
    const asked = apis.filter((a) => a.api !== "admin");
    const rate = (values) => sum(recent(values, 15, step)) / (recent(values, 15, step).length * step / 1000 || 1);
    const now = sum(asked.map((a) => rate(a.requests)));
    const errors = sum(asked.map((a) => sum(a.errors)));
    const last = (values) => values.findLast((v) => v !== null);
    const lookups = upstreams.map((u) => u.total).reduce((all, t) => [all[0] + t.hit, all[1] + t.hit + t.stale + t.partial + t.miss, all[2] + t.pointsFromCache, all[3] + t.pointsFromCache + t.pointsFromUpstream], [0, 0, 0, 0]);
    const quick = asked.map((a) => [a.api, last(a.p50), last(a.p99)]).filter(([, p50]) => p50 !== undefined);
    const reload = config.reload;
    this.tiles.replaceChildren(
      tile("Requests a second", number(now, 3), `${count(sum(asked.map((a) => sum(a.requests))))} in 15 min, ${errors ? `${count(errors)} failed` : "none failed"}`),
      tile("Response time", quick.length ? span(quick[0][1] / 1000) : "–", quick.length ? quick.map(([api, p50, p99]) => `${api}: half in ${span(p50 / 1000)}, 99 % in ${span(p99 / 1000)}`).join("; ") : "no request in 15 min"),
      tile("Answered from memory", percent(lookups[1] ? lookups[0] / lookups[1] : null), lookups[1] ? `of ${count(lookups[1])} ${lookups[1] === 1 ? "query" : "queries"} since the start; ${percent(lookups[3] ? lookups[2] / lookups[3] : null)} of the points` : "no query since the start"),
      tile("Cache", bytes(memory.bytes), `${memory.bytes / memory.bound < 0.001 ? "less than 0.1 %" : percent(memory.bytes / memory.bound)} of ${bytes(memory.bound)}`, meter(memory.bytes / memory.bound)),
      ...levels.map(level_tile),
      tile("Configuration", reload && reload.error ? el("span.bad-text", {}, "reload failed") : config.warnings.length ? `${config.warnings.length} ${config.warnings.length === 1 ? "warning" : "warnings"}` : "in effect",
        reload?.error ? reload.error : el("span", {}, `read ${span((Date.now() - config.readTime) / 1000)} ago`, config.restart.length ? `; a restart would change ${config.restart.join(", ")}` : "", `; Heliostat ${config.version}`)));
  }

  show_charts({ times, stepMillis: step, apis }) {
    const names = { mirror: "--c0", prometheus: "--c1", admin: "--whole" };
    const used = apis.filter((a) => a.api !== "admin" && (a.requests.some(Boolean) || a.api === "mirror"));
    const to = times.at(-1) ?? Date.now();
    const range = { from: to - STEPS * step, to, empty: "the first numbers come within 5 s" };
    const series = (pick) => used.map((a) => ({ name: a.api, color: names[a.api], gap: step * 1.5, points: pick(a).map((v, n) => [times[n], v]).filter(([, v]) => v !== null) }));
    this.rate.set({ ...range, series: series((a) => a.requests.map((n) => n / step * 1000)) });
    this.delay.set({ ...range, empty: "no request in 15 min", series: series((a) => a.p99) });
    for (const legend of this.charts.querySelectorAll(".legend")) legend.replaceChildren(...used.map((a) => el("span.small.nowrap", {}, el("i", { style: { background: `var(${names[a.api]})` } }), ` ${a.api} `)));
  }

  show_cards(traffic, upstreams) {
    const by = new Map(traffic.upstreams.map((u) => [u.upstream, u]));
    this.cards.replaceChildren(...upstreams.map((u) => card(u, by.get(u.upstream), traffic.stepMillis)));
  }
}

// Metered stores bill thousandths of a cent.
const money = (value, currency) => `${value.toFixed(value < 1 ? 4 : 2)} ${currency}`;

const tile = (name, value, more, extra) => el("div.tile", {}, el("span.name", {}, name), el("span.value", {}, value), extra, el("span.more", {}, more));

// A second level of the cache: how full, who shares it, and whether it answers.
function level_tile({ level, usable, bytes: held, limitBytes: limit, values, liveReplicas: replicas, breakers }) {
  const failure = breakers.read.failure ?? breakers.write.failure;
  const value = !usable || breakers.read.open === breakers.read.of ? el("span.bad-text", {}, "away") : limit ? bytes(held) : "in use";
  const more = failure ?? (limit ? `${percent(held / limit)} of ${bytes(limit)}; ${count(values)} values` : `${replicas} ${replicas === 1 ? "replica" : "replicas"}`);
  return tile(`Second level: ${level}`, value, more, limit ? meter(held / limit) : null);
}

const meter = (share) => el(`div.meter${share > 0.98 ? ".full" : ""}`, {}, el("i", { style: { width: `${Math.min(100, share * 100)}%` } }));

function card({ upstream: name, kind, default: usual, failure, state }, seen, step) {
  const { limiter, budgets, units, endpoints } = state;
  const broken = endpoints.filter((e) => e.breaker !== "closed");
  const lines = seen ?? { calls: [], failed: [], hit: [], stale: [], partial: [], miss: [], running: [], waiting: [], refused: [], total: null };
  const failing = sum(recent(lines.failed, 60, step));
  const well = broken.length === endpoints.length ? ["bad", "failing"] : broken.length ? ["warn", `${endpoints.length - broken.length} of ${endpoints.length} URLs well`]
    : limiter.pausedSeconds ? ["warn", `pauses for ${span(limiter.pausedSeconds)}`] : failing ? ["warn", "calls fail"] : sum(lines.calls) || sum(lines.hit) ? ["good", "well"] : ["", "idle"];
  const total = lines.total ?? { hit: 0, stale: 0, partial: 0, miss: 0, pointsFromCache: 0, pointsFromUpstream: 0, calls: 0 };
  const queries = total.hit + total.stale + total.partial + total.miss;
  const points = total.pointsFromCache + total.pointsFromUpstream;
  const now = recent(lines.calls, 15, step);
  const rate = now.length ? sum(now) / (now.length * step / 1000) : 0;
  const fact = (title, value, more, extra) => el("div", {}, el("dt", {}, title), el("dd", {}, value, more ? el("small", {}, ` ${more}`) : null), extra);
  const mix = [["settled", total.hit, "from memory"], ["expired", total.stale, "expired part fetched again"], ["tail", total.partial, "partly from memory"], ["fetched", total.miss, "fetched"]];
  return el("section.card.upstream", { "data-upstream": name }, el("header", {}, el("h2", {}, name), kind ? el("span.badge", {}, kind) : null, usual ? el("span.badge", { title: "serves requests that name no upstream" }, "default") : null, el(`span.badge.push${well[0] ? `.${well[0]}` : ""}`, {}, well[1])),
    ...endpoints.map((e) => el("div.small.quiet", {}, el("span", {}, e.url), e.breaker !== "closed" ? el("span.bad-text", {}, ` breaker ${e.breaker}${e.openSeconds ? `, next trial in ${span(e.openSeconds)}` : ""}`) : null)),
    failure ? el("div.error", {}, failure.message, el("div.small", {}, "failing since ", timed(failure.since, { seconds: true }), `, ${span((Date.now() - failure.since) / 1000)}`)) : null,
    spark([[lines.calls.map((n, at) => (n - (lines.failed[at] ?? 0)) / step * 1000), "--c0"], [lines.failed.map((n) => n / step * 1000), "--expired"]], { length: STEPS, limit: limiter.perSecond, label: `Calls a second to ${name} in the last 15 minutes` }),
    el("dl.facts", {},
      fact("Calls a second", number(rate, 3), `of ${number(limiter.perSecond, 3)}`, meter(rate / limiter.perSecond)),
      fact("In flight", String(limiter.running), `of ${limiter.mayRun}`, meter(limiter.running / limiter.mayRun)),
      fact("Waiting", String(limiter.waiting), `of ${count(limiter.queue)}`, meter(limiter.waiting / limiter.queue)),
      units ? fact("Billed", money(units.cost, units.currency), `${count(units.asked)} units; ${money(units.costAvoided, units.currency)} avoided`) : null,
      ...budgets.map((b) => fact(`Left this ${b.per}`, count(b.left), `of ${count(b.allowed)} ${b.of}, anew in ${span(b.renewedSeconds)}`, meter(1 - b.left / b.allowed))),
      fact("Queries from memory", percent(queries ? total.hit / queries : null), `of ${count(queries)}`),
      fact("Queries without a call", count(total.hit), `${count(total.pointsFromCache)} points spared`),
      fact("Points from memory", percent(points ? total.pointsFromCache / points : null), `of ${count(points)}`),
      fact("Calls", count(total.calls), total.failed ? `${count(total.failed)} failed` : "none failed"),
      sum(lines.refused) ? fact("Refused", count(sum(lines.refused)), "in 15 min") : null),
    queries ? el("div", { style: { marginTop: "10px" } }, el("div.mixbar", { role: "img", "aria-label": mix.map(([, n, text]) => `${n} ${text}`).join(", ") }, mix.filter(([, n]) => n).map(([cls, n, text]) => el(`i.${cls}`, { title: `${count(n)} ${text}`, style: { width: `${n / queries * 100}%` } }))),
      el("div.key", {}, mix.filter(([, n]) => n).map(([cls, n, text]) => el("span", {}, el(`i.${cls}`), text, el("small", {}, ` ${count(n)}`))))) : total.calls ? null : el("p.small.quiet", { style: { marginTop: "8px" } }, "Nobody has asked it yet. ", el("a", { href: `#/explore?upstream=${encodeURIComponent(name)}` }, "Explore it")));
}
