// Lines on a canvas: axes of time and values, hover, zoom by dragging, gaps as gaps.

import { el, exact, number, say, time, utc } from "./util.js";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const color = (at) => `--c${at % 8}`;

const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, SECOND, 2 * SECOND, 5 * SECOND, 10 * SECOND, 15 * SECOND, 30 * SECOND,
  MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR,
  DAY, 2 * DAY, 4 * DAY, 7 * DAY, 14 * DAY, 28 * DAY, 91 * DAY, 182 * DAY, 365 * DAY, 730 * DAY, 1825 * DAY];

// Round times, in the browser's zone, that are far enough apart for their labels.
export function timeTicks(from, to, width) {
  const least = (to - from) * 78 / Math.max(width, 1);
  const step = STEPS.find((s) => s >= least) ?? STEPS.at(-1);
  const zone = (t) => -new Date(t).getTimezoneOffset() * MINUTE;
  const ticks = [];
  for (let t = Math.ceil((from + zone(from)) / step) * step - zone(from); t <= to && ticks.length < 100; t += step) {
    // A day that is an hour longer or shorter moves those after it.
    const moved = step >= HOUR ? t - (zone(t) - zone(from)) : t;
    if (moved < from || moved > to) continue;
    const midnight = time(moved, { date: false, seconds: false }) === "00:00";
    const label = step >= DAY || midnight ? time(moved).slice(step >= 365 * DAY ? 0 : 5, step >= 365 * DAY ? 7 : 10)
      : step >= MINUTE ? time(moved, { date: false, seconds: false }) : step >= SECOND ? time(moved, { date: false }) : `${moved % 1000} ms`;
    ticks.push([moved, label]);
  }
  return ticks;
}

// Round values that hold `low` and `high`.
export function valueTicks(low, high, most) {
  if (!(high > low)) {
    const room = Math.abs(low) / 10 || 1;
    [low, high] = [low - room, high + room];
  }
  const least = (high - low) / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((n) => n * power).find((s) => s >= least * (1 - 1e-9));
  const [first, last] = [Math.floor(low / step + 1e-9), Math.ceil(high / step - 1e-9)];
  const ticks = [];
  for (let n = first; n <= last && ticks.length < 50; n += 1) ticks.push(n * step);
  return { low: first * step, high: last * step, step, ticks };
}

function tickLabel(value, step, size) {
  if (Math.abs(value) < step / 2) return "0";
  const [divisor, suffix] = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([least]) => size >= least && size < 1e18) ?? [1, ""];
  if (size < 1e-4 || size >= 1e18) return value.toExponential(1);
  const decimals = Math.min(12, Math.max(0, -Math.floor(Math.log10(step / divisor) + 1e-9)));
  return ((value / divisor).toFixed(decimals) + suffix).replace("-", "−");
}

function sized(canvas, height) {
  const [width, ratio] = [canvas.clientWidth, window.devicePixelRatio || 1];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width];
}

const FONT = "11px system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif";

// Redraws what is shown when colours change.
const shown = new Set();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const redraw of shown) redraw();
});

// A chart in an element of its own. `zoom(from, to)` is told of a range that was dragged over;
// `moved(left, right)` of the margins of the plot.
export class Chart {
  constructor({ height = 280, zoom, moved, unit = number, label = "Chart", zero = false } = {}) {
    Object.assign(this, { height, zoom, moved, unit, label, zero, data: { from: 0, to: 1, series: [] } });
    this.canvas = el("canvas", { tabindex: "0", role: "img", "aria-label": label, style: { height: `${height}px` } });
    this.tip = el("div.tip", { hidden: true });
    this.element = el("div.chart", {}, this.canvas, this.tip);
    this.redraw = () => { if (this.canvas.isConnected) this.draw(); else { shown.delete(this.redraw); } };
    this.resized = new ResizeObserver(() => { shown.add(this.redraw); this.redraw(); });
    this.resized.observe(this.canvas);
    const { canvas } = this;
    canvas.addEventListener("pointermove", (event) => this.pointed(event.offsetX));
    canvas.addEventListener("pointerleave", () => { if (this.drag === undefined) this.point(null); });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.zoom) return;
      this.drag = event.offsetX;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", (event) => {
      const start = this.drag;
      this.drag = undefined;
      if (start !== undefined && Math.abs(event.offsetX - start) > 6) {
        const [from, to] = [start, event.offsetX].map((x) => this.timeAt(x)).sort((a, b) => a - b);
        this.zoom(Math.round(from), Math.round(to));
      } else this.redraw();
    });
    canvas.addEventListener("pointercancel", () => { this.drag = undefined; this.redraw(); });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) { event.preventDefault(); this.walk(step); }
      else if (event.key === "Escape") { this.drag = undefined; this.point(null); }
    });
  }

  // `series`: `{ name, color, points: [[time, value], …], gap }`, where points further apart than
  // `gap` are not connected. `limit`: a value that is marked.
  set(data) {
    this.data = data;
    this.times = [...new Set(data.series.flatMap((s) => s.points.map((p) => p[0])))].sort((a, b) => a - b);
    const points = data.series.reduce((sum, s) => sum + s.points.length, 0);
    this.canvas.setAttribute("aria-label", `${this.label}: ${data.series.length} series, ${points} points from ${time(data.from)} to ${time(data.to)}. Arrow keys read values.`);
    if (this.at !== undefined && this.at !== null) this.point(this.at); else this.redraw();
  }

  timeAt(x) {
    const { from, to } = this.data;
    const share = (x - this.left) / (this.right - this.left);
    return from + Math.min(1, Math.max(0, share)) * (to - from);
  }

  x(t) { return this.left + (t - this.data.from) / (this.data.to - this.data.from || 1) * (this.right - this.left); }
  y(v) { return this.bottom - (v - this.axis.low) / (this.axis.high - this.axis.low) * (this.bottom - this.top); }

  draw() {
    const { data, height } = this;
    const [pen, width] = sized(this.canvas, height);
    if (!width) return;
    pen.font = FONT;
    let [low, high] = this.zero ? [0, 0] : [Infinity, -Infinity];
    for (const { points, off } of data.series) {
      if (off) continue;
      for (const [, v] of points) if (Number.isFinite(v)) { if (v < low) low = v; if (v > high) high = v; }
    }
    const empty = low === Infinity || (this.zero && !data.series.some((s) => s.points.length));
    if (low === Infinity) [low, high] = [0, 1];
    if (this.zero && high === 0) high = 1;
    [this.top, this.bottom] = [8, height - 22];
    this.axis = valueTicks(low, high, Math.max(2, Math.floor((this.bottom - this.top) / 42)));
    const size = Math.max(Math.abs(this.axis.low), Math.abs(this.axis.high));
    const label = (v) => (this.unit === number ? tickLabel(v, this.axis.step, size) : this.unit(v));
    const labels = this.axis.ticks.map((v) => [v, label(v)]);
    this.left = Math.ceil(Math.max(36, ...labels.map(([, text]) => pen.measureText(text).width)) + 10);
    this.right = width - 10;
    if (this.moved) this.moved(this.left, width - this.right);
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    for (const [value, text] of labels) {
      const y = Math.round(this.y(value)) + 0.5;
      pen.strokeStyle = css("--grid");
      line(pen, this.left, y, this.right, y);
      pen.fillStyle = css("--quiet");
      pen.fillText(text, this.left - 6, y);
    }
    pen.textBaseline = "top";
    for (const [t, text] of timeTicks(data.from, data.to, this.right - this.left)) {
      const x = Math.round(this.x(t)) + 0.5;
      pen.strokeStyle = css("--line");
      line(pen, x, this.bottom, x, this.bottom + 4);
      const half = pen.measureText(text).width / 2;
      pen.textAlign = x - half < 0 ? "left" : x + half > width ? "right" : "center";
      pen.fillText(text, x - half < 0 ? 0 : x + half > width ? width : x, this.bottom + 7);
    }
    pen.strokeStyle = css("--line");
    line(pen, this.left, this.bottom + 0.5, this.right, this.bottom + 0.5);
    pen.save();
    pen.beginPath();
    pen.rect(this.left - 3, 0, this.right - this.left + 6, this.bottom + 3);
    pen.clip();
    if (data.limit !== undefined && data.limit <= this.axis.high) {
      pen.strokeStyle = css("--expired");
      pen.setLineDash([4, 4]);
      line(pen, this.left, this.y(data.limit), this.right, this.y(data.limit));
      pen.setLineDash([]);
    }
    for (const series of data.series) if (!series.off) this.trace(pen, series);
    pen.restore();
    if (empty) {
      pen.fillStyle = css("--quiet");
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.fillText(data.empty ?? "no points in this range", (this.left + this.right) / 2, (this.top + this.bottom) / 2);
    }
    if (this.at !== undefined && this.at !== null) this.cursor(pen);
    if (this.drag !== undefined && this.hoverX !== undefined) {
      pen.fillStyle = css("--focus");
      pen.globalAlpha = 0.16;
      pen.fillRect(Math.min(this.drag, this.hoverX), this.top, Math.abs(this.hoverX - this.drag), this.bottom - this.top);
      pen.globalAlpha = 1;
    }
  }

  trace(pen, { points, gap, color: name }) {
    pen.strokeStyle = pen.fillStyle = css(name);
    pen.lineWidth = 1.6;
    pen.lineJoin = "round";
    pen.beginPath();
    const dots = [];
    let before = null, length = 0;
    const end = (last) => { if (last && length === 1) dots.push(last); };
    for (const point of points) {
      const [t, v] = point;
      if (!Number.isFinite(v)) { end(before); before = null; continue; }
      if (before && t - before[0] <= gap) { pen.lineTo(this.x(t), this.y(v)); length += 1; }
      else { end(before); pen.moveTo(this.x(t), this.y(v)); length = 1; }
      before = point;
    }
    end(before);
    pen.stroke();
    for (const [t, v] of dots) { pen.beginPath(); pen.arc(this.x(t), this.y(v), 2.2, 0, 7); pen.fill(); }
  }

  cursor(pen) {
    const x = this.x(this.at);
    pen.strokeStyle = css("--quiet");
    pen.lineWidth = 1;
    line(pen, x, this.top, x, this.bottom);
    for (const [series, value] of this.values(this.at)) {
      pen.fillStyle = css(series.color);
      pen.beginPath();
      pen.arc(x, this.y(value), 3, 0, 7);
      pen.fill();
    }
  }

  values(t) {
    const found = [];
    for (const series of this.data.series) {
      if (series.off) continue;
      const at = search(series.points, t);
      const point = series.points[at];
      if (point && point[0] === t && Number.isFinite(point[1])) found.push([series, point[1]]);
    }
    return found;
  }

  pointed(x) {
    this.hoverX = x;
    if (!this.times?.length) { this.redraw(); return; }
    const t = this.timeAt(x);
    const after = this.times.findIndex((time) => time >= t);
    const near = after < 0 ? this.times.at(-1) : after === 0 || this.times[after] - t < t - this.times[after - 1] ? this.times[after] : this.times[after - 1];
    this.point(near);
  }

  walk(step) {
    if (!this.times?.length) return;
    const now = this.at === undefined || this.at === null ? (step > 0 ? -1 : this.times.length) : this.times.indexOf(this.at);
    this.point(this.times[Math.min(this.times.length - 1, Math.max(0, now + step))]);
    say(this.tip.textContent);
  }

  point(t) {
    this.at = t;
    if (t === null) { this.hoverX = undefined; this.tip.hidden = true; this.redraw(); return; }
    this.redraw();
    const values = this.values(t).sort((a, b) => b[1] - a[1]);
    const rows = values.slice(0, 12).map(([series, value]) =>
      el("div.row", {}, el("i", { style: { background: `var(${series.color})` } }), values.length > 1 || this.data.series.length > 1 ? el("span", {}, series.name) : null,
        el("b", {}, this.unit === number ? exact(value) : this.unit(value))));
    if (values.length > 12) rows.push(el("div.quiet", {}, `and ${values.length - 12} more`));
    this.tip.replaceChildren(el("div", {}, time(t)), el("div.quiet", {}, utc(t)), ...rows);
    this.tip.hidden = false;
    const x = this.x(t);
    const flip = x > (this.left + this.right) / 2;
    Object.assign(this.tip.style, { left: flip ? "auto" : `${x + 10}px`, right: flip ? `${this.canvas.clientWidth - x + 10}px` : "auto" });
  }
}

function line(pen, fromX, fromY, toX, toY) {
  pen.beginPath();
  pen.moveTo(fromX, fromY);
  pen.lineTo(toX, toY);
  pen.stroke();
}

function search(points, t) {
  let [low, high] = [0, points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < t) low = middle + 1; else high = middle;
  }
  return low;
}

// Columns without axes: `parts` are lists of numbers that are stacked, each with a colour.
export function spark(parts, { height = 46, length, limit, label }) {
  const canvas = el("canvas.spark", { role: "img", "aria-label": label, style: { height: `${height}px` } });
  const draw = () => {
    if (!canvas.isConnected) { shown.delete(draw); return; }
    const [pen, width] = sized(canvas, height);
    // The newest is at the right, however much there is.
    const known = Math.max(...parts.map(([values]) => values.length));
    const sums = Array.from({ length: known }, (_, at) => parts.reduce((sum, [values]) => sum + (values[at] ?? 0), 0));
    const most = Math.max(...sums, 1e-9);
    const top = limit && limit < most * 4 ? Math.max(most, limit) * 1.06 : most * 1.06;
    const step = width / length;
    for (let at = 0; at < known; at += 1) {
      const x = (length - known + at) * step;
      let base = height - 1;
      for (const [values, name] of parts) {
        const tall = (values[at] ?? 0) / top * (height - 2);
        if (tall <= 0) continue;
        pen.fillStyle = css(name);
        pen.fillRect(x, base - tall, Math.max(step - 0.6, 0.8), tall);
        base -= tall;
      }
    }
    pen.strokeStyle = css("--line");
    line(pen, 0, height - 0.5, width, height - 0.5);
    if (limit && limit <= top) {
      pen.strokeStyle = css("--expired");
      pen.setLineDash([3, 3]);
      const y = height - 1 - limit / top * (height - 2);
      line(pen, 0, y, width, y);
    }
  };
  new ResizeObserver(() => { shown.add(draw); draw(); }).observe(canvas);
  return canvas;
}
