// Any series, and where each stretch of it came from.

import { Failure, get, post, request } from "./api.js";
import { shown } from "./cache.js";
import { Chart, color } from "./chart.js";
import { completed } from "./complete.js";
import { Coverage, outcome } from "./coverage.js";
import { bytes, el, exact, notice, number, say, span, time, timed } from "./util.js";

const HOUR = 3600e3;
const RANGES = [["15m", 0.25], ["1h", 1], ["3h", 3], ["6h", 6], ["12h", 12], ["1d", 24], ["2d", 48], ["7d", 168], ["30d", 720]];
const METHODS = ["MEAN", "MAX", "MIN", "SUM", "EVENT_COUNT", "PERCENTILE_25", "PERCENTILE_50", "PERCENTILE_75", "PERCENTILE_90", "PERCENTILE_95", "PERCENTILE_98", "PERCENTILE_99"];
const STEPS = [1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200, 86400];
const REFRESHES = [["off", ""], ["5 s", "5"], ["10 s", "10"], ["30 s", "30"], ["1 min", "60"]];
const FUNCTIONS = ["rate", "increase", "irate", "sum by ()", "avg by ()", "max by ()", "histogram_quantile", "avg_over_time", "max_over_time", "sum", "avg", "max", "min", "count", "topk", "delta", "deriv", "abs", "time"];
const MOST_LINES = 100;

// A round bucket size, in seconds, that makes a chart of about so many of them.
const suitable = (millis, of) => STEPS.find((s) => s >= millis / of / 1000) ?? 86400;

export class Explore {
  constructor({ navigate }) {
    this.navigate = navigate;
    this.element = el("div", { style: { display: "contents" } });
    this.types = new Map();
    this.form = el("form.card", { onsubmit: (event) => { event.preventDefault(); this.submit(); } });
    this.coverage = new Coverage();
    this.chart = new Chart({ height: 300, label: "Values", zoom: (from, to) => this.zoom(from, to), moved: (left, right) => this.coverage.moved(left, right) });
    this.legend = el("div.legend");
    this.result = el("div.outcome", { "aria-live": "polite" });
    this.messages = el("div", { style: { display: "contents" } });
    this.table = el("div.scroll", { tabindex: "0", hidden: true });
    this.out = el("section.card", { "aria-label": "Answer" }, this.result, this.chart.element, this.legend, this.coverage.element,
      el("details", { ontoggle: (event) => { this.table.hidden = !event.target.open; this.show_table(); }, style: { marginTop: "10px" } }, el("summary.small.quiet", {}, "Table"), this.table));
  }

  // Shows what the address says.
  async enter(params) {
    this.known ??= await get("admin/v1/upstreams").then(({ upstreams }) => upstreams).catch(() => {
      // Without the admin API only the names are known.
      const names = document.querySelector("meta[name=upstreams]").content.split(" ").filter(Boolean);
      return names.length ? names.map((upstream) => ({ upstream, kind: null })) : null;
    });
    const names = (this.known ?? []).map((u) => u.upstream);
    const usual = this.known?.find((u) => u.default)?.upstream ?? names[0] ?? "";
    const asked = Object.fromEntries(params);
    this.state = {
      upstream: asked.upstream ?? usual, mode: asked.mode ?? "mirror", query: asked.query ?? "", kind: asked.kind ?? "range",
      conditions: params.getAll("c").map((c) => [c.slice(0, c.indexOf("=")), c.slice(c.indexOf("=") + 1)]),
      method: asked.method ?? "MEAN", bucket: asked.bucket ?? "", last: asked.last ?? "1h", from: Number(asked.from) || null, to: Number(asked.to) || null, refresh: asked.refresh ?? "",
    };
    if (!params.size && this.known?.find((u) => u.upstream === usual)?.kind === "demo") this.state.conditions = [["name", "cpu.usage_percent"], ["host", "web-1"]];
    this.build();
    this.element.replaceChildren(this.form, this.messages, this.out);
    const { state } = this;
    if (state.mode === "promql" ? state.query : state.conditions.length) await this.run();
    else this.hint();
  }

  hint() {
    this.out.hidden = true;
    this.messages.replaceChildren(notice("", this.state.mode === "promql" ? "Type an expression" : "Choose a field and a value", el("p.quiet", {}, this.state.mode === "promql" ? "Metric names, labels and values are offered as you type. Ctrl+Enter runs it." : "Fields and values of the upstream are offered as you type, as in StackState's stream wizard.")));
  }

  leave() { this.abort?.abort(); clearTimeout(this.timer); }

  build() {
    const { state } = this;
    const upstream = this.known?.find((u) => u.upstream === state.upstream);
    const speaks = upstream && (upstream.kind === "prometheus" || upstream.kind === null);
    if (!speaks && upstream) state.mode = "mirror";
    const select = (name, options, value, label) => el("label", {}, label, el("select", { name, onchange: (event) => { state[name] = event.target.value; if (name === "last") { state.from = state.to = null; } if (name === "upstream") { state.conditions = []; state.query = ""; this.fields = null; this.build(); } else if (name === "last" && state.last === "custom") this.build(); else this.submit(); } },
      options.map(([text, v]) => el("option", { value: v, selected: v === value }, text))));
    const custom = Boolean(state.from && state.to) || state.last === "custom";
    const local = (t) => time(t).replace(" ", "T").slice(0, 19);
    const [from, to] = this.range();
    this.rows = el("div.conditions", {}, ...(state.mode === "mirror" ? [...state.conditions.map((_, at) => this.condition(at)), el("button", { type: "button", id: "add", onclick: () => { state.conditions.push(["", ""]); this.build(); this.rows.querySelectorAll("input[data-part=field]").item(state.conditions.length - 1).focus(); } }, "+ condition")] : [this.expression()]));
    this.form.replaceChildren(
      el("div.form", {},
        this.known ? select("upstream", this.known.map((u) => [u.upstream, u.upstream]), state.upstream, "Upstream") : null,
        speaks ? el("span.segmented", { role: "group", "aria-label": "How to ask" }, [["mirror", "Conditions"], ["promql", "PromQL"]].map(([mode, text]) => el("button", { type: "button", "aria-pressed": String(state.mode === mode), onclick: () => { state.mode = mode; this.build(); } }, text))) : null,
        state.mode === "mirror" ? select("method", [...METHODS.map((m) => [m, m]), ["raw points", "raw"]], state.method, "Method") : select("kind", [["range", "range"], ["instant", "instant"]], state.kind, "Kind"),
        state.method === "raw" && state.mode === "mirror" ? null : select("bucket", [[`auto`, ""], ...STEPS.map((s) => [span(s), String(s)])], state.bucket, state.mode === "mirror" ? "Bucket" : "Step"),
        select("last", [...RANGES.map(([name]) => [`last ${name}`, name]), ["from … to", "custom"]], custom ? "custom" : state.last, "Range"),
        ...(custom ? [["from", from], ["to", to]].map(([name, t]) => el("label", {}, name === "from" ? "From" : "To", el("input", { type: "datetime-local", step: "1", value: local(t), onchange: (event) => { state[name] = new Date(event.target.value).getTime(); if (name === "from") state.to ??= to; else state.from ??= from; this.submit(); } }))) : []),
        select("refresh", REFRESHES, state.refresh, "Refresh"),
        el("button.primary.push", { type: "submit", id: "run" }, "Run")),
      el("div", { style: { marginTop: "10px" } }, this.rows));
  }

  condition(at) {
    const row = this.state.conditions[at];
    const [key, value] = [["field", 0], ["value", 1]].map(([part, n]) => el("input", { value: row[n], placeholder: part, "aria-label": `${part} of condition ${at + 1}`, "data-part": part, "data-search": part === "field" && at === 0, oninput: (event) => { row[n] = event.target.value; } }));
    const take = () => { row[0] = key.value; row[1] = value.value; };
    return el("span.condition", {}, completed(key, (text) => this.field_offers(text, at), { chosen: () => { take(); value.focus(); } }), el("span.sign", {}, "="),
      completed(value, (text) => this.value_offers(text, at), { chosen: () => { take(); this.submit(); } }),
      el("button.drop", { type: "button", "aria-label": `Remove condition ${at + 1}`, onclick: () => { this.state.conditions.splice(at, 1); this.submit(); } }, "×"));
  }

  typed(key, text) {
    const type = this.types.get(key);
    if (type === "NUMBER" && text.trim() !== "" && Number.isFinite(Number(text))) return Number(text);
    if (type === "BOOLEAN" && ["true", "false"].includes(text)) return text === "true";
    return text;
  }

  conditions(except) {
    return this.state.conditions.filter(([key, value], at) => at !== except && key && value).map(([key, value]) => ({ key, value: this.typed(key, value) }));
  }

  details() { return this.state.upstream ? { upstream: this.state.upstream } : {}; }

  async names(except) {
    const answer = await post("api/field/name", { connectionDetails: this.details(), query: { conditions: this.conditions(except), limit: 500 } });
    const { fields } = await answer.json();
    for (const { fieldName, fieldType } of fields) this.types.set(fieldName, fieldType);
    return fields;
  }

  async field_offers(text, at) {
    const fields = await this.names(at);
    return fields.filter((f) => f.fieldName.toLowerCase().includes(text.toLowerCase())).map((f) => ({ text: f.fieldName, note: f.fieldType.toLowerCase() }));
  }

  async value_offers(text, at) {
    const key = this.state.conditions[at][0];
    if (!key) return { error: "choose a field first" };
    if (!this.types.has(key)) await this.names(at).catch(() => []);
    const query = { conditions: this.conditions(at), limit: 100, offset: 0, fieldValuePrefix: text, field: { fieldName: key, fieldType: this.types.get(key) ?? "STRING", classified: false } };
    const { values } = await (await post("api/field/value", { connectionDetails: this.details(), query })).json();
    return values.map((v) => (v._type === "FieldValuePattern" ? { text: v.value, note: "more", apply: v.value.replace(/\*$/, ""), more: true } : { text: v.value }));
  }

  expression() {
    const area = el("textarea", { rows: "2", placeholder: "rate(http_requests_total[5m])", "aria-label": "Expression", "data-search": true, value: this.state.query, oninput: (event) => { this.state.query = event.target.value; },
      onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); this.submit(); } } });
    area.value = this.state.query;
    return completed(area, (text, at) => this.promql_offers(text, at));
  }

  prometheus(path) { return `prometheus/${encodeURIComponent(this.state.upstream)}/api/v1/${path}`; }

  async listed(path) {
    this.lists ??= new Map();
    const whole = this.prometheus(path);
    if (!this.lists.has(whole)) this.lists.set(whole, get(whole).then(({ data }) => data).catch((error) => { this.lists.delete(whole); throw error; }));
    return this.lists.get(whole);
  }

  async promql_offers(text, at) {
    const before = text.slice(0, at);
    const put = (from, word, back = 0) => (field) => {
      field.setRangeText(word, from, at, "end");
      field.setSelectionRange(from + word.length - back, from + word.length - back);
      this.state.query = field.value;
    };
    const inside = /([\w:]*)\{([^{}]*)$/.exec(before);
    const only = inside?.[1] ? `?match[]=${encodeURIComponent(inside[1])}` : "";
    const label = inside && /(?:^|,)\s*(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)$/.exec(inside[2]);
    if (label) {
      const values = await this.listed(`label/${encodeURIComponent(label[1])}/values${only}`);
      return values.filter((v) => v.toLowerCase().includes(label[2].toLowerCase())).map((v) => ({ text: v, apply: put(at - label[2].length, `${v.replaceAll("\\", "\\\\").replaceAll("\"", "\\\"")}"`) }));
    }
    if (inside) {
      const word = /(\w*)$/.exec(before)[1];
      return (await this.listed(`labels${only}`)).filter((l) => l !== "__name__" && l.startsWith(word)).map((l) => ({ text: l, note: "label", apply: put(at - word.length, `${l}=""`, 1), more: true }));
    }
    const word = /([a-zA-Z_:][\w:]*)$/.exec(before)?.[1] ?? "";
    if (!word && before.trim()) return null;
    const names = await this.listed("label/__name__/values");
    const low = word.toLowerCase();
    const found = [...names.filter((n) => n.toLowerCase().startsWith(low)), ...names.filter((n) => n.toLowerCase().includes(low) && !n.toLowerCase().startsWith(low))];
    const functions = word ? FUNCTIONS.filter((f) => f.startsWith(low)) : [];
    return [...functions.map((f) => ({ text: f, note: "function", apply: put(at - word.length, f.includes("(") ? f : `${f}()`, f.includes("(") ? 0 : 1) })), ...found.map((n) => ({ text: n, note: "metric", apply: put(at - word.length, n) }))];
  }

  range() {
    const { state } = this;
    if (state.from && state.to && state.to > state.from) return [state.from, state.to];
    const to = Date.now();
    return [to - (RANGES.find(([name]) => name === state.last)?.[1] ?? 1) * HOUR, to];
  }

  zoom(from, to) {
    if (to - from < 1000) return;
    Object.assign(this.state, { from, to });
    say(`Zoomed to ${time(from)} – ${time(to)}`);
    this.submit();
  }

  // Runs what the form says, as an address that can be shared and gone back from.
  submit() {
    const { state } = this;
    const params = new URLSearchParams();
    for (const [name, value, usual] of [["upstream", state.upstream, ""], ["mode", state.mode, "mirror"], ["query", state.mode === "promql" ? state.query : "", ""], ["kind", state.kind, "range"], ["method", state.method, "MEAN"], ["bucket", state.bucket, ""], ["refresh", state.refresh, ""]]) if (value !== usual) params.set(name, value);
    if (state.mode === "mirror") for (const [key, value] of state.conditions) if (key && value) params.append("c", `${key}=${value}`);
    if (state.from && state.to) { params.set("from", state.from); params.set("to", state.to); } else if (state.last !== "custom") params.set("last", state.last);
    this.navigate(`#/explore?${params}`);
  }

  async run() {
    this.leave();
    this.abort = new AbortController();
    const { signal } = this.abort;
    const [from, to] = this.range();
    const { upstream, mode, query, conditions } = this.state;
    const asked = JSON.stringify([upstream, mode, mode === "promql" ? query : conditions]);
    // An answer to something else says nothing of this.
    if (this.asked !== asked) this.look = null;
    this.asked = asked;
    this.out.hidden = !this.look;
    this.out.setAttribute("aria-busy", "true");
    try {
      const look = this.state.mode === "promql" ? await this.ask_promql(from, to, signal) : await this.ask_mirror(from, to, signal);
      if (signal.aborted) return;
      this.show(look);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Failure)) throw error;
      this.out.hidden = !this.look;
      this.messages.replaceChildren(notice("bad", error.status ? `HTTP ${error.status}` : "No answer", el("p", {}, error.message), this.look ? el("p.quiet", {}, "Below is the answer before.") : null));
    } finally { this.out.removeAttribute("aria-busy"); }
    if (this.state.refresh && !signal.aborted) this.timer = setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", () => this.run(), { once: true, signal }) : this.run()), Number(this.state.refresh) * 1000);
  }

  // What would be done, told by who may tell it. A look goes on without.
  async explained(call) {
    try { return await call(); } catch (error) {
      if (error.name === "AbortError") throw error;
      return { closed: error.message };
    }
  }

  async ask_mirror(from, to, signal) {
    const { state } = this;
    if (state.conditions.some(([key]) => !this.types.has(key))) await this.names().catch(() => []);
    const size = Number(state.bucket) || suitable(to - from, 240);
    const query = { conditions: this.conditions(), startTime: from, endTime: to };
    if (state.method !== "raw") query.aggregation = { method: state.method, bucketSizeMillis: size * 1000 };
    const body = { connectionDetails: this.details(), query };
    const explanation = await this.explained(async () => (await post("admin/v1/explain/api/metric", body, signal)).json());
    const began = performance.now();
    const response = await post("api/metric", body, signal);
    const text = await response.text();
    const took = performance.now() - began;
    const { telemetry } = JSON.parse(text);
    const [value, start] = [telemetry.dataFormat.indexOf("value"), telemetry.dataFormat.findIndex((name) => name !== "value")];
    const end = telemetry.dataFormat.indexOf("endTimestamp");
    const points = telemetry.points.map((p) => [p[start], p[value]]);
    const cell = end >= 0 && telemetry.points.length ? telemetry.points[0][end] - telemetry.points[0][start] : usual(points);
    const name = state.conditions.map((c) => c.join("=")).join(" ");
    return { from, to, explanation, response, took, size: text.length, partial: telemetry.isPartial, series: [{ name, points, gap: cell * (end >= 0 ? 1.5 : 3), color: "--c0" }], what: state.method === "raw" ? "raw" : `${state.method} of ${span(cell / 1000)}` };
  }

  async ask_promql(from, to, signal) {
    const { state } = this;
    const step = Number(state.bucket) || Math.max(suitable(to - from, 400), 5);
    const instant = state.kind === "instant";
    const [start, end] = [Math.floor(from / 1000 / step) * step, Math.floor(to / 1000 / step) * step];
    const params = new URLSearchParams({ query: state.query, ...(instant ? { time: String(to / 1000) } : { start: String(start), end: String(end), step: String(step) }) });
    const path = this.prometheus(`${instant ? "query" : "query_range"}?${params}`);
    const explanation = await this.explained(() => get(`admin/v1/explain/${path}`, signal));
    const began = performance.now();
    const response = await request(path, { signal });
    const text = await response.text();
    const took = performance.now() - began;
    const { data, warnings = [], infos = [], isPartial } = JSON.parse(text);
    const found = data.resultType === "scalar" || data.resultType === "string" ? [{ metric: {}, value: data.result }] : data.result ?? [];
    const series = found.slice(0, MOST_LINES).map(({ metric = {}, values, value, histogram, histograms }, at) => {
      const numbers = values ?? (value ? [value] : []);
      return { name: named(metric), color: color(at), gap: step * 1500, points: numbers.map(([t, v]) => [Math.round(t * 1000), Number(v.replace("Inf", "Infinity"))]), histogram: Boolean(histogram ?? histograms) };
    });
    return { from, to, explanation, response, took, size: text.length, series, more: found.length - series.length, warnings: [...warnings, ...infos], partial: isPartial, what: instant ? "instant" : `step ${span(step)}`, instant };
  }

  show(look) {
    this.look = look;
    this.out.hidden = false;
    const { response, series, took } = look;
    const status = response.headers.get("Cache-Status");
    const [kind, words] = outcome(status);
    const timing = Object.fromEntries((response.headers.get("Server-Timing") ?? "").split(",").map((part) => /([\w-]+);dur=([\d.]+)/.exec(part)).filter(Boolean).map(([, name, ms]) => [name, Number(ms)]));
    const points = series.reduce((all, s) => all + s.points.length, 0);
    this.result.replaceChildren(
      el(`span.badge${kind ? `.${kind}` : ""}`, { title: status ?? "", id: "outcome" }, words),
      el("span", {}, el("b", {}, String(points)), ` ${points === 1 ? "point" : "points"}${series.length > 1 ? ` of ${series.length} series` : ""}, ${look.what}`),
      el("span", { title: response.headers.get("Server-Timing") ?? "" }, ...["plan", "second", "fetch", "render"].filter((name) => timing[name] !== undefined).flatMap((name, at) => [at ? " · " : "", `${name} `, el("b", {}, span(timing[name] / 1000))])),
      el("span.quiet", {}, `${span(took / 1000)} to this page, ${bytes(look.size)}`));
    const messages = [];
    if (look.partial) messages.push(notice("warn", "The answer was cut short (isPartial)"));
    for (const text of look.warnings ?? []) messages.push(notice("warn", "The store says", el("p", {}, text)));
    if (look.more > 0) messages.push(notice("", `${look.more} more series are not shown`, el("p.quiet", {}, "Narrow the expression, or aggregate: sum by (…), topk(…).")));
    if (series.some((s) => s.histogram)) messages.push(notice("", "Native histograms are not drawn", el("p.quiet", {}, "Use histogram_quantile(…) or histogram_avg(…).")));
    this.messages.replaceChildren(...messages);
    this.chart.element.hidden = Boolean(look.instant);
    if (!look.instant) this.chart.set({ from: look.from, to: look.to, series });
    this.legend.replaceChildren(...(series.length > 1 && !look.instant ? series.map((s) => el("button", { type: "button", "aria-pressed": "true", title: s.name, onclick: (event) => { s.off = !s.off; event.currentTarget.setAttribute("aria-pressed", String(!s.off)); this.chart.redraw(); } }, el("i", { style: { background: `var(${s.color})` } }), el("span", {}, s.name))) : []));
    if (look.explanation.closed) { this.coverage.clear(); this.messages.append(notice("", "Where the points came from is told by the admin API", el("p.quiet", {}, look.explanation.closed))); }
    else this.coverage.set(look.explanation, { from: look.from, to: look.to, times: series.flatMap((s) => s.points.map((p) => p[0])) });
    const details = this.out.querySelector("details");
    if (look.instant) details.open = true;
    this.show_table();
  }

  show_table() {
    if (this.table.hidden || !this.look) return;
    const { series, instant } = this.look;
    const row = (...cells) => el("tr", {}, cells);
    if (instant || series.length > 1) {
      const of = (points) => points.filter((p) => Number.isFinite(p[1])).map((p) => p[1]);
      const heads = instant ? ["Series", "Value"] : ["Series", "Min", "Mean", "Max", "Last"];
      this.table.replaceChildren(el("table", {}, el("thead", {}, row(...heads.map((h, n) => el(n ? "th.num" : "th", {}, h)))), el("tbody", {}, series.map((s) => {
        const values = of(s.points);
        const mean = values.reduce((a, b) => a + b, 0) / values.length;
        const cells = instant ? [exact(s.points[0]?.[1])] : [values.reduce((a, b) => Math.min(a, b), Infinity), mean, values.reduce((a, b) => Math.max(a, b), -Infinity), values.at(-1)].map((v) => number(v));
        return row(el("td.wide", {}, s.name), ...cells.map((c) => el("td.num", {}, c)));
      }))));
      return;
    }
    const points = (series[0]?.points ?? []).slice(-1000).reverse();
    this.table.replaceChildren(points.length ? el("table", {}, el("thead", {}, row(el("th", {}, "Time, the newest first"), el("th.num", {}, "Value"))), el("tbody", {}, points.map(([t, v]) => row(el("td", {}, timed(t)), el("td.num", {}, exact(v)))))) : el("p.quiet", {}, "No points."));
  }
}

const named = (metric) => {
  const labels = Object.entries(metric).filter(([name]) => name !== "__name__").map(([name, value]) => `${name}="${shown(value)}"`).join(", ");
  return `${metric.__name__ ?? ""}${labels || !metric.__name__ ? `{${labels}}` : ""}`;
};

// The median distance between points.
function usual(points) {
  const apart = points.slice(1).map((p, n) => p[0] - points[n][0]).filter((d) => d > 0).sort((a, b) => a - b);
  return apart[apart.length >> 1] ?? 0;
}
