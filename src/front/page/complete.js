// A field that offers what can be typed into it.

import { el, later } from "./util.js";

let numbered = 0;

// `offers(text, position)` gives, perhaps later, a list of `{ text, note, apply, more }`: `apply` is
// put into the field (or is a function of the field), `more` says that there is more behind it.
export function completed(field, offers, { chosen } = {}) {
  numbered += 1;
  const list = el("ul.options", { id: `options-${numbered}`, role: "listbox", hidden: true });
  const box = el("span.completes", {}, field, list);
  let [all, active, turn] = [[], -1, 0];
  for (const [name, value] of Object.entries({ role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": list.id, autocomplete: "off", spellcheck: "false" })) field.setAttribute(name, value);

  const close = () => { turn += 1; list.hidden = true; active = -1; field.setAttribute("aria-expanded", "false"); field.removeAttribute("aria-activedescendant"); };
  const mark = (at) => {
    active = at;
    for (const [n, item] of [...list.children].entries()) item.setAttribute("aria-selected", n === at ? "true" : "false");
    if (at >= 0) { list.children[at].scrollIntoView({ block: "nearest" }); field.setAttribute("aria-activedescendant", list.children[at].id); }
  };
  const take = (offer) => {
    if (typeof offer.apply === "function") offer.apply(field); else field.value = offer.apply ?? offer.text;
    if (offer.more) { show(); return; }
    close();
    chosen?.(field.value);
  };
  const show = async () => {
    turn += 1;
    const mine = turn;
    let found;
    try { found = await offers(field.value, field.selectionStart ?? field.value.length); } catch (error) {
      if (error.name === "AbortError") return;
      found = { error: error.message };
    }
    if (mine !== turn || document.activeElement !== field) return;
    all = Array.isArray(found) ? found.slice(0, 200) : [];
    const said = found?.error ?? (Array.isArray(found) && !found.length ? "nothing that begins so" : null);
    list.replaceChildren(...(said ? [el("li.none", {}, said)] : all.map((offer, at) =>
      el("li", { id: `${list.id}-${at}`, role: "option", "aria-selected": "false", onpointerdown: (event) => { event.preventDefault(); take(offer); } },
        el("span", {}, offer.text), offer.note ? el("small", {}, offer.note) : null))));
    active = -1;
    list.hidden = !found || (!all.length && !said);
    field.setAttribute("aria-expanded", String(!list.hidden));
  };
  const soon = later(120, show);
  field.addEventListener("input", soon);
  field.addEventListener("focus", soon);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !list.hidden) { event.stopPropagation(); close(); return; }
    if (list.hidden || !all.length) {
      if (event.key === "ArrowDown" && event.target.tagName === "INPUT") show();
      return;
    }
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      mark((active + (event.key === "ArrowDown" ? 1 : -1) + all.length) % all.length);
    } else if ((event.key === "Enter" || event.key === "Tab") && active >= 0) {
      event.preventDefault();
      event.stopImmediatePropagation();
      take(all[active]);
    } else if (event.key === "Enter") close();
  });
  return box;
}
