// The configuration in effect, where each value comes from, and what can be changed at once.

import { change, get } from "./api.js";
import { closed } from "./overview.js";
import { ask, el, notice, say, span, timed } from "./util.js";

export const EVERY = 15000;
const LEVELS = ["error", "warn", "info", "debug", "trace"];

export class Configuration {
  constructor() {
    this.element = el("div", { style: { display: "contents" } });
    this.head = el("div", { style: { display: "grid", gap: "8px" } });
    this.filter = el("input", { type: "search", placeholder: "Filter keys (/)", "aria-label": "Filter keys", "data-search": true, oninput: () => this.show() });
    this.only = el("input", { type: "checkbox", id: "only-set", onchange: () => this.show(), style: { minHeight: "0" } });
    this.level = el("select", { "aria-label": "Level of the log", onchange: () => this.set_level() }, LEVELS.map((level) => el("option", { value: level }, level)));
    this.body = el("tbody");
    this.card = el("section.card", {}, el("header", {}, el("h2", {}, "Configuration"), this.filter, el("span", {}, this.only, el("label", { for: "only-set", style: { display: "inline" } }, " only what is set")),
      el("span.push", {}, el("label", { style: { flexDirection: "row", alignItems: "center", gap: "6px" } }, "log level", this.level)), el("button", { type: "button", id: "reload", onclick: () => this.reload() }, "Reload…")),
      el("div.scroll", { tabindex: "0", style: { maxHeight: "none" } }, el("table.settings", {}, el("thead", {}, el("tr", {}, el("th", {}, "Key"), el("th", {}, "Value"), el("th", {}, "From"))), this.body)));
  }

  async refresh() {
    try {
      const [config, { level }] = await Promise.all([get("admin/v1/config"), get("admin/v1/log")]);
      this.config = config;
      if (document.activeElement !== this.level) this.level.value = level;
    } catch (error) {
      const shut = closed(error);
      if (!shut) throw error;
      this.element.replaceChildren(shut);
      return;
    }
    const { file, readTime, reload, restart, warnings, version } = this.config;
    this.head.replaceChildren(
      el("p.quiet", {}, `Heliostat ${version}, `, file ? el("code", {}, file) : "built-in defaults, no file", ", read ", timed(Math.floor(readTime / 1000) * 1000), ` (${span((Date.now() - readTime) / 1000)} ago)`),
      ...(reload?.error ? [notice("bad", "The last reload failed; the configuration before it is in use", el("p", {}, reload.error))] : []),
      ...(restart.length ? [notice("warn", `Only a restart applies ${restart.join(", ")}`)] : []),
      ...warnings.map((text) => notice("warn", "Warning", el("p", {}, text))));
    this.show();
    if (!this.card.isConnected) this.element.replaceChildren(this.head, this.card);
  }

  show() {
    const wanted = this.filter.value.toLowerCase();
    const rows = [];
    const names = new Map((this.config?.settings ?? []).filter((s) => /^upstream\[\d+\]\.name$/.test(s.key)).map((s) => [s.key.slice(0, -5), s.value.replaceAll("\"", "")]));
    let section = null;
    for (const { key, value, origin, at } of this.config?.settings ?? []) {
      if ((this.only.checked && origin === "default") || (wanted && !`${key} ${value}`.toLowerCase().includes(wanted))) continue;
      const [, of, rest] = /^(upstream\[\d+\]|[^.[]+)\.?(.*)$/.exec(key) ?? [null, key, key];
      if (of !== section) { section = of; rows.push(el("tr.section", {}, el("th", { colspan: "3" }, of, names.has(of) ? ` · ${names.get(of)}` : ""))); }
      rows.push(el(`tr${origin === "default" ? ".is-default" : ""}`, { "data-key": key }, el("td", {}, el("code", {}, rest || of)), el("td.wide", {}, el("code", {}, value)), el("td.nowrap.quiet", {}, at ?? origin)));
    }
    this.body.replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td.quiet", { colspan: "3" }, "No key matches."))]));
  }

  async reload() {
    if (await ask("Read the configuration again?", [el("p", {}, "It is checked first; one that is not valid changes nothing.")], [{ name: "Cancel", value: "" }, { name: "Reload", value: "reload", kind: "primary" }]) !== "reload") return;
    try {
      const said = await change("POST", "admin/v1/reload", {}, "reload");
      const words = ["kept", "changed", "added", "removed"].filter((name) => said[name]?.length).map((name) => `${name}: ${said[name].join(", ")}`).join("; ");
      say(`Reloaded; ${words}`);
      await this.refresh();
      this.head.append(notice("", "Reloaded", el("p", {}, words)));
    } catch (error) { await this.refresh(); this.head.append(notice("bad", "Not reloaded", el("p", {}, error.message))); }
  }

  async set_level() {
    try { say(`The log's level is ${(await change("PUT", "admin/v1/log", { level: this.level.value }, "log")).level}`); } catch (error) { this.head.append(notice("bad", "The level is as it was", el("p", {}, error.message))); }
  }
}
