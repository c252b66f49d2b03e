// The query bar: each part of a query is a chip, and several chips are one query.

import { t } from "./texts.js";
import { brief, button, byId, codePattern, element, icon } from "./view.js";

const NAMES = ["title", "name", "caption", "filename", "file", "path", "uri", "url"]; // attributes that name a picture
const names = new Map(); // id -> what the picture is called

// What an item is called.
export function titleOf({ id, attributes }) {
  const named = NAMES.find((name) => typeof attributes?.[name] === "string" && attributes[name]);
  return named ? brief(attributes[named]) : t("item", { id });
}

export function nameItem(id, attributes) {
  names.set(id, titleOf({ id, attributes }));
}

export function isNamed(id) {
  return names.has(id);
}

export class Chips {
  // `onShow(chip)`, `onRemove(place)`, `onTyped(text)`, `onFiles(files)`.
  constructor({ onShow, onRemove, onTyped, onFiles, onEdited }) {
    Object.assign(this, { onShow, onRemove });
    this.root = byId("chips");
    this.input = byId("query");
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.input.value.trim()) onTyped(this.input.value);
    });
    this.input.addEventListener("input", () => onEdited());
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Backspace" && !this.input.value && this.root.children.length) {
        onRemove(this.root.children.length - 1);
      }
    });
    for (const id of ["file", "camera"]) {
      byId(id).addEventListener("change", ({ target }) => {
        onFiles([...target.files]);
        target.value = ""; // the same file may be chosen again
      });
    }
  }

  show(chips, pictureOfChip, { bits = 0, encodes_texts: takesTexts = false } = {}) {
    const isMore = chips.length > this.root.children.length;
    this.root.replaceChildren(...chips.map((chip, place) => this.chip(chip, place, pictureOfChip(chip), bits)));
    if (isMore) this.root.scrollLeft = this.root.scrollWidth;
    this.input.placeholder = t(chips.length ? "another" : takesTexts ? "askWords" : "ask");
  }

  chip(chip, place, picture, bits) {
    const name = nameOf(chip);
    const face = element("span", { className: "face" });
    if (chip.progress !== undefined) face.classList.add("sending");
    if (chip.progress !== undefined) face.style.setProperty("--done", chip.progress);
    if (picture) face.append(element("img", { src: picture.url, alt: "" }));
    else if (chip.code) face.append(codePattern(chip.code, bits));
    const label = element("span", { className: "name" }, chip.progress === undefined ? name : t("sending"));
    const open = button([face, label], () => this.onShow(chip), { className: "open", title: name });
    if (chip.not) open.ariaLabel = t("notChip", { name });
    const told = chip.progress === undefined ? t("remove", { name }) : t("cancel");
    const remove = button([icon("close")], () => this.onRemove(place), { className: "remove", ariaLabel: told });
    return element("li", { className: chip.not ? "chip not" : "chip" }, open, remove);
  }
}

export function nameOf({ kind, value, name }) {
  if (name) return name;
  if (kind === "id") return names.get(value) ?? t("item", { id: value });
  if (kind === "code") return value.length > 10 ? `${value.slice(0, 8)}…` : value;
  return value;
}
