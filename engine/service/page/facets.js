// Filters: values of attributes with their counts to pick from, and a condition to type, with suggestions.

import { facets } from "./api.js";
import { filterOf, literal, nameIn } from "./state.js";
import { number, t } from "./texts.js";
import { brief, button, byId, element } from "./view.js";

const [MAX_COLUMNS, MAX_VALUES] = [4, 12];
// Attributes that may have few values; others are not worth a count.
const COUNTED = /^(u?int|bool|string|large_string|dictionary)/;

export class Facets {
  // `onPick(column, value)`, `onFilter(text)`.
  constructor({ onPick, onFilter }) {
    Object.assign(this, { onPick });
    this.root = byId("facets");
    this.all = byId("all-facets");
    this.all.addEventListener("click", () => (this.all.ariaExpanded = String(this.root.classList.toggle("whole"))));
    this.input = byId("filter");
    this.values = new Map(); // column -> [{value, count}] of the whole collection
    this.input.addEventListener("change", () => onFilter(this.input.value.trim()));
    this.input.addEventListener("input", () => this.suggest());
    this.input.addEventListener("focus", () => this.suggest());
    this.root.addEventListener("wheel", (event) => this.roll(event), { passive: false });
  }

  // A wheel that turns one way moves the row.
  roll(event) {
    if (event.deltaX || this.root.scrollWidth <= this.root.clientWidth) return;
    event.preventDefault();
    this.root.scrollLeft += event.deltaY;
  }

  // Find out which attributes have few enough values to pick from.
  async start(types) {
    this.types = types;
    byId("filter-label").hidden = !Object.keys(types).length;
    const columns = Object.keys(types).filter((column) => COUNTED.test(types[column]));
    const counted = await Promise.all(columns.map((column) => this.count(column, "", MAX_VALUES)));
    this.values = new Map(columns.map((column, i) => [column, counted[i]]));
    this.columns = columns.filter((column) => isWorthPicking(this.values.get(column))).slice(0, MAX_COLUMNS);
    this.input.placeholder = this.example();
  }

  // A filter as it is written here.
  example() {
    const column = this.columns?.[0];
    const value = column && this.values.get(column)[0].value;
    return column ? `${nameIn(column)} == ${literal(value, this.types[column])}` : "id == 7";
  }

  async count(column, filter, limit, signal) {
    const values = await facets(column, filter, limit, signal);
    return values.filter(({ value }) => value !== null && value !== "");
  }

  // Values of an attribute are what its other filters leave. With `hits`, these are counted.
  async show(state, signal, hits = null) {
    if (document.activeElement !== this.input) this.input.value = state.filter;
    if (!this.columns?.length) return;
    const columns = this.columns;
    const counted = await Promise.all(columns.map((column) => {
      const filter = filterOf(state, this.types, column);
      return filter ? this.count(column, filter, MAX_VALUES, signal) : this.values.get(column);
    }));
    const groups = columns.map((column, i) => this.group(column, counted[i], state.picked[column] ?? [], hits));
    const isFree = !state.filter && !columns.some((column) => state.picked[column]?.length);
    const all = button(t("everything"), () => this.onPick(null), { className: "facet", ariaPressed: String(isFree) });
    const focused = this.root.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    this.root.replaceChildren(all, ...groups);
    this.all.hidden = !this.root.matches(".whole") && this.root.scrollWidth <= this.root.clientWidth;
    if (focused) [...this.root.querySelectorAll("button")].find((one) => one.dataset.name === focused)?.focus();
  }

  group(column, counted, picked, hits) {
    const among = (value) => (picked.length ? null : hits.filter((hit) => String(hit.attributes?.[column]) === String(value)).length);
    const values = counted.map(({ value, count }) => ({ value: String(value), count: hits ? among(value) : count }));
    const missing = picked.filter((value) => !values.some((one) => one.value === value));
    const offered = [...missing.map((value) => ({ value, count: 0 })), ...values];
    const buttons = offered.map(({ value, count }) => {
      const isOn = picked.includes(value);
      const parts = [brief(value), count === null ? null : element("b", {}, number.format(count))].filter(Boolean);
      const name = `${column} ${value}`;
      const told = `${column}: ${value}${count === null ? "" : `, ${t("pictures", { count })}`}`;
      const one = { className: "facet", ariaPressed: String(isOn), ariaLabel: told, title: value, dataset: { name } };
      return button(parts, () => this.onPick(column, value), one);
    });
    return element("div", { className: "group", role: "group", ariaLabel: column }, element("span", {}, column), ...buttons);
  }

  // Ways to go on with what stands in the field.
  suggest() {
    const text = this.input.value;
    const [, head, word] = /^(.*?)([\w`.]*)$/su.exec(text);
    const named = [...Object.keys(this.types ?? {}), "id"];
    const column = named.find((name) => new RegExp(`${escaped(nameIn(name))}\\s*(==|=|!=|<>)\\s*$`).test(head));
    const ways = column
      ? (this.values.get(column) ?? []).map(({ value }) => literal(value, this.types[column]))
      : named.filter((name) => name.toLowerCase().startsWith(word.toLowerCase())).map((name) => `${nameIn(name)} == `);
    const offered = ways.slice(0, 20).map((way) => element("option", { value: `${head}${way}` }));
    byId("suggestions").replaceChildren(...offered);
  }
}

function escaped(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

function isWorthPicking(values) {
  return values.length > 1 && values[0].count > 1;
}
