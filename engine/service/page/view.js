// Elements of the page. Text is inserted as text, never as HTML.

import { bitsOf, differing } from "./codes.js";
import { t } from "./texts.js";

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  close: "M5 5l10 10M15 5L5 15",
  check: "M4 10.5l4 4 8-9",
};

export const byId = (id) => document.getElementById(id);

export function element(name, properties = {}, ...children) {
  const { dataset, style, ...own } = properties;
  const made = Object.assign(document.createElement(name), own);
  Object.assign(made.dataset, dataset);
  for (const [property, value] of Object.entries(style ?? {})) made.style.setProperty(property, value);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

export function icon(name) {
  return drawn("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, drawn("path", { d: ICONS[name] }));
}

export function button(text, onClick, properties = {}) {
  const made = element("button", { type: "button", ...properties }, ...(Array.isArray(text) ? text : [text]));
  made.addEventListener("click", onClick);
  return made;
}

// The bits of a code as squares, where there is no picture.
export function codePattern(code, bits) {
  const all = bitsOf(code, bits);
  const side = Math.ceil(Math.sqrt(bits));
  const squares = Array.from(all, (bit, i) => (bit ? `M${i % side} ${Math.floor(i / side)}h.86v.86h-.86z` : ""));
  return drawn(
    "svg",
    { class: "pattern", viewBox: `-1 -1 ${side + 2} ${side + 2}`, "aria-hidden": "true" },
    drawn("path", { d: squares.join("") }),
  );
}

// The bits of a code in a line, those that differ from the query's lit.
export function strip(code, query, bits) {
  const lit = new Set(differing(code, query, bits));
  const bar = (i) => `M${i + 0.1} 0h.8v1h-.8z`;
  const paths = [0, 1].map((isLit) =>
    drawn("path", {
      class: isLit ? "differs" : "same",
      d: Array.from({ length: bits }, (_, i) => (lit.has(i) === Boolean(isLit) ? bar(i) : "")).join(""),
    }),
  );
  return drawn("svg", { class: "strip", viewBox: `0 0 ${bits} 1`, preserveAspectRatio: "none", "aria-hidden": "true" }, ...paths);
}

// A picture in a frame of its own, or the pattern of the code.
export function pictureOf(picture, code, bits, alt = "") {
  if (!picture) return codePattern(code, bits);
  return element("img", { src: picture.url, alt, width: picture.width, height: picture.height, draggable: false });
}

export function shown(value) {
  if (value === null || value === undefined) return t("none");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

// The last part of a path or an address says more than its beginning.
export function brief(value) {
  const text = shown(value);
  return text.includes("/") ? text.replace(/\/+$/, "").split("/").at(-1) : text;
}

// Of a path that is too long, the end is seen.
function factOf(text) {
  const isPath = /^\S*\/\S*$/.test(text);
  return element("dd", { title: text, className: isPath ? "path" : "" }, element("bdi", {}, text));
}

export function factsOf(pairs) {
  const rows = pairs.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), factOf(shown(value))),
  );
  return element("dl", { className: "facts" }, ...rows);
}

let announcing;
export function announce(text) {
  clearTimeout(announcing); // only the last of many is worth hearing
  announcing = setTimeout(() => (byId("status").textContent = text), 120);
}

export function save(name, kind, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type: kind }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

let toasting;
export function toast(text) {
  byId("toast").textContent = text;
  byId("toast").hidden = false;
  clearTimeout(toasting);
  toasting = setTimeout(() => (byId("toast").hidden = true), 2500);
}
