// What is known of one answer, beside the answers: the two pictures, the bits, the attributes, and what to do next.

import { bitsOf, differing } from "./codes.js";
import { titleOf } from "./chips.js";
import { load } from "./pictures.js";
import { t } from "./texts.js";
import { button, byId, codePattern, element, factsOf, icon, pictureOf } from "./view.js";

const WIDE = matchMedia("(min-width: 1100px)");

export class Inspector {
  // `acts`: what its buttons do with an answer, by name; `onFlip(bit)`, `onClose()`.
  constructor({ acts, onFlip, onClose }) {
    Object.assign(this, { acts, onFlip, onClose });
    this.root = byId("inspector");
    this.hit = null;
    this.query = null;
    byId("veil").addEventListener("click", () => onClose());
    this.root.addEventListener("keydown", (event) => this.moveInGrid(event));
  }

  get isOver() {
    return !WIDE.matches;
  }

  // `query`: {code, picture, name}; `hit`: an answer, or null for the query alone.
  show(query, hit, bits) {
    const focusedBit = this.root.contains(document.activeElement) ? document.activeElement.dataset.bit : undefined;
    Object.assign(this, { query, hit, bits });
    this.root.replaceChildren(this.top(), this.pair(), ...(hit ? [this.actions(), this.code(), this.about()] : [this.code()]));
    document.body.classList.toggle("inspecting", hit !== null);
    this.root.ariaLabel = hit ? t("aboutItem", { id: hit.id }) : t("aboutQuery");
    if (focusedBit !== undefined) this.root.querySelector(`[data-bit="${focusedBit}"]`)?.focus({ preventScroll: true });
  }

  hide() {
    this.hit = null;
    document.body.classList.remove("inspecting");
    this.root.replaceChildren();
  }

  top() {
    const close = button([icon("close")], () => this.onClose(), { className: "quiet close", ariaLabel: t("close") });
    return element("div", { className: "top" }, element("h2", {}, this.hit ? t("answer") : t("query")), this.hit && close);
  }

  pair() {
    const { query, hit, bits } = this;
    const framed = (caption, picture) => element("figure", {}, picture, caption && element("figcaption", {}, caption));
    const asked = framed(hit || query.name !== t("query") ? query.name || t("query") : null, pictureOf(query.picture, query.code, bits, query.name));
    if (!hit) return element("div", { className: "pair single" }, asked);
    const answer = framed(titleOf(hit), codePattern(hit.code, bits));
    load(hit).then((picture) => picture && answer.firstChild.replaceWith(pictureOf(picture, hit.code, bits)));
    return element("div", { className: "pair" }, asked, answer);
  }

  // The bits of the query; those in which the answer differs are lit. A click flips one, and searches from there.
  code() {
    const { query, hit, bits } = this;
    const own = bitsOf(query.code, bits);
    const lit = new Set(hit ? differing(query.code, hit.code, bits) : []);
    const squares = Array.from(own, (bit, i) => {
      const told = t(lit.has(i) ? "bitDiffers" : "bitIs", { bit: i, value: bit });
      const className = `${bit ? "one" : "zero"}${lit.has(i) ? " differs" : ""}`;
      const square = button([], () => this.onFlip(i), { className, ariaLabel: told, title: told, tabIndex: i ? -1 : 0 });
      square.dataset.bit = i;
      return square;
    });
    const grid = element("div", { className: "bits", role: "group", ariaLabel: t("bitsLabel") }, ...squares);
    grid.style.setProperty("--columns", bits > 256 ? 32 : 16);
    const told = hit ? element("span", { className: "differing" }, t("differ", { count: lit.size })) : null;
    const title = element("h3", {}, element("span", {}, t("bits", { count: bits })), told);
    const hint = element("p", { className: "hint" }, hit ? t("flipTowards") : t("flip"));
    return element("section", { className: "code" }, title, grid, hint);
  }

  about() {
    const pairs = [...Object.entries(this.hit.attributes ?? {}), ["id", this.hit.id], [t("code"), this.hit.code]];
    return element("section", { className: "about" }, element("h3", {}, t("about")), factsOf(pairs));
  }

  actions() {
    const made = Object.entries(this.acts).map(([name, act], place) => {
      const text = act.text?.(this.hit) ?? t(name);
      return button(text, () => act.run(this.hit), { className: place ? "" : "primary", dataset: { act: name } });
    });
    return element("div", { className: "acts" }, ...made);
  }

  moveInGrid(event) {
    const bit = event.target.dataset?.bit;
    if (bit === undefined) return;
    const columns = Number(getComputedStyle(event.target.parentElement).getPropertyValue("--columns"));
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = step && this.root.querySelector(`[data-bit="${Number(bit) + step}"]`);
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}
