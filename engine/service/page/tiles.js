// The tiles of the gallery: a picture, its distance, one attribute, and the bits that differ.

import { titleOf } from "./chips.js";
import { t } from "./texts.js";
import { brief, button, codePattern, element, icon, strip } from "./view.js";

export class Tiles {
  // `context()`: {code, bits, caption, current, isSelected(id)} of what is shown now; `onOpen(hit)`, `onPick(hit)`.
  constructor({ context, onOpen, onPick }) {
    Object.assign(this, { context, onOpen, onPick });
    this.hits = new WeakMap(); // tile -> the answer that it shows now
  }

  make({ id }) {
    const tile = element("li", { className: "tile" });
    const open = button([], () => this.onOpen(this.hits.get(tile)), { className: "open", tabIndex: -1 });
    const pick = button([icon("check")], () => this.onPick(this.hits.get(tile)), { className: "pick", tabIndex: -1 });
    pick.ariaLabel = t("selectItem", { id });
    tile.append(open, element("span", { className: "labels", ariaHidden: "true" }), pick);
    return tile;
  }

  fill(tile, hit, picture) {
    const { bits } = this.context();
    const open = tile.querySelector(".open");
    const face = picture
      ? element("img", { src: picture.url, alt: "", draggable: false })
      : codePattern(hit.code, bits);
    open.replaceChildren(face);
    tile.classList.toggle("bare", !picture);
  }

  update(tile, hit) {
    const { code, bits, caption, current, isSelected } = this.context();
    this.hits.set(tile, hit);
    const told = caption && hit.attributes?.[caption];
    const isNamed = told !== undefined && told !== null && told !== "";
    const name = isNamed ? brief(told) : titleOf(hit);
    const open = tile.querySelector(".open");
    open.ariaLabel = hit.distance === undefined ? name : t("open", { name, count: hit.distance });
    tile.classList.toggle("current", hit.id === current);
    tile.classList.toggle("selected", isSelected(hit.id));
    tile.querySelector(".pick").ariaPressed = String(isSelected(hit.id));
    const shown = `${code} ${hit.distance} ${isNamed && name}`;
    if (tile.dataset.shown === shown) return;
    tile.dataset.shown = shown;
    const distance = hit.distance === undefined ? null : element("span", { className: "distance" }, String(hit.distance));
    const label = isNamed ? element("span", { className: "caption" }, name) : null;
    tile.querySelector(".labels").replaceChildren(...[distance, label].filter(Boolean));
    tile.querySelector(".strip")?.remove();
    if (code) tile.append(strip(hit.code, code, bits));
  }
}
