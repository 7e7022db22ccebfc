// Where the points of a look came from: what an explanation said before, on the chart's time axis.

import { el, span, time } from "./util.js";

export const KINDS = {
  settled: ["settled, in memory", "known for good"],
  second: ["second level", "read from disk or a shared store"],
  tail: ["newest, in memory", "may still change, fresh"],
  fetched: ["fetched for this look", "was not known"],
  expired: ["expired", "was known and too old"],
  whole: ["kept whole", "one answer, not by time"],
};

// Disjoint parts of `stretch` within `from` and `to`, in order: `{ from, to, kind, age }`. What
// would be fetched counts before what is cached.
export function parts(stretch, from, to) {
  const layers = [];
  for (const known of stretch.cached ?? []) {
    const kind = known.freshSeconds < 0 ? "expired" : known.secondLevel ? "second" : known.settled ? "settled" : "tail";
    layers.push({ from: known.startTime, to: known.endTime, kind, age: known.ageSeconds, order: 0 });
  }
  for (const missing of stretch.missing ?? []) {
    for (const why of missing.why ?? []) {
      if (why.reason === "ahead") continue;
      layers.push({ from: why.startTime, to: why.endTime, kind: why.reason === "expired" ? "expired" : "fetched", order: 1 });
    }
  }
  const edges = [...new Set(layers.flatMap((l) => [l.from, l.to]).concat(from, to))].filter((t) => t >= from && t <= to).sort((a, b) => a - b);
  const found = [];
  for (let n = 0; n + 1 < edges.length; n += 1) {
    const [start, end] = [edges[n], edges[n + 1]];
    const over = layers.filter((l) => l.from <= start && l.to >= end).sort((a, b) => b.order - a.order)[0];
    if (!over) continue;
    const last = found.at(-1);
    if (last && last.kind === over.kind && last.to === start) {
      last.to = end;
      if (over.age !== undefined) last.age = Math.max(last.age ?? 0, over.age);
    } else found.push({ from: start, to: end, kind: over.kind, age: over.age });
  }
  return found;
}

// The bar and its key. `times` are those of the points that were answered.
export class Coverage {
  constructor() {
    this.lines = el("div.lines");
    this.key = el("div.key");
    this.element = el("section.coverage", { "aria-label": "Where the points came from", hidden: true }, this.lines, this.key);
    this.margins = [40, 10];
  }

  moved(left, right) {
    this.margins = [left, right];
    for (const line of this.lines.children) {
      line.firstChild.style.width = `${left}px`;
      line.style.paddingRight = `${right}px`;
    }
  }

  clear() { this.element.hidden = true; }

  set(explanation, { from, to, times }) {
    const rows = [];
    const stretches = explanation.stretches ?? [];
    if (stretches.length) {
      rows.push(["answer", stretches.flatMap((s) => parts(s, Math.max(from, s.startTime), Math.min(to, s.endTime)))]);
      const raw = stretches.map((s) => s.madeOf).filter(Boolean);
      if (raw.length) rows.push(["raw", raw.flatMap((s) => parts(s, Math.max(from, s.startTime), Math.min(to, s.endTime)))]);
    } else {
      const { held, ageSeconds, secondLevel } = explanation.whole ?? { held: "miss" };
      const kind = held === "hit" ? (secondLevel ? "second" : "whole") : held === "stale" ? "expired" : "fetched";
      rows.push(["answer", [{ from, to, kind, age: ageSeconds ?? undefined }]]);
    }
    this.lines.replaceChildren(...rows.map(([name, found]) => el("div.line", {}, el("span", {}, name),
      el("div.bar", { role: "img", "aria-label": found.map((p) => `${KINDS[p.kind][0]} from ${time(p.from)} to ${time(p.to)}`).join("; ") }, found.map((part) => {
        const [title] = KINDS[part.kind];
        return el(`i.${part.kind}`, {
          "data-from": part.from, "data-to": part.to, "data-kind": part.kind,
          title: `${title}: ${time(part.from)} – ${time(part.to)}${part.age !== undefined ? `, ${span(part.age)} old` : ""}`,
          style: { left: `${(part.from - from) / (to - from) * 100}%`, width: `${(part.to - part.from) / (to - from) * 100}%` },
        });
      })))));
    const answer = rows[0][1];
    const raw = rows[1]?.[1] ?? [];
    this.key.replaceChildren(...Object.keys(KINDS).filter((kind) => [...answer, ...raw].some((p) => p.kind === kind)).map((kind) => {
      const of = answer.filter((p) => p.kind === kind);
      const points = times.filter((t) => of.some((p) => t >= p.from && t < p.to)).length;
      const ages = [...of, ...raw.filter((p) => p.kind === kind)].map((p) => p.age).filter((age) => age !== undefined);
      const note = of.length ? `${points} ${points === 1 ? "point" : "points"}${ages.length && kind !== "settled" ? `, ${span(Math.max(...ages))} old` : ""}` : "raw points";
      return el("span", { title: KINDS[kind][1] }, el(`i.${kind}`), `${KINDS[kind][0]} `, el("small", {}, note));
    }));
    this.element.hidden = false;
    this.moved(...this.margins);
  }
}

// What `Cache-Status` says, in words.
export function outcome(header) {
  if (!header) return ["", "no word of the cache"];
  const has = (name) => new RegExp(`;\\s*${name}(?![\\w-])`).test(header);
  const detail = /detail="([^"]*)"/.exec(header)?.[1];
  const ttl = /ttl=(-?\d+)/.exec(header)?.[1];
  if (has("hit") && Number(ttl) < 0) return ["warn", `expired ${span(-Number(ttl))} ago, the upstream failed: ${detail ?? ""}`];
  if (has("hit")) return ["good", detail ? `from memory: ${detail}` : `from memory, fresh for ${span(Number(ttl ?? 0))}`];
  const forward = /fwd=([\w-]+)/.exec(header)?.[1];
  const words = { miss: "fetched: nothing was known", partial: "what was missing was fetched", stale: "what had expired was fetched again", bypass: `passed through${detail ? `: ${detail}` : ""}` };
  return ["", `${words[forward] ?? forward}${has("collapsed") ? ", with another request's fetch" : ""}${detail && forward !== "bypass" ? `: ${detail}` : ""}`];
}
