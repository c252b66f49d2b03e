// The radius: a handle on the histogram of distances. A range input lies over the drawing, so that keys, fingers and
// screen readers move what everyone sees.

import { t } from "./texts.js";
import { byId, drawn } from "./view.js";

const [INSET, HEIGHT, FOOT] = [14, 62, 16];
const SHORTEST = 16; // bits that are shown at least
const NARROWEST = 5; // pixels for a bar

export class Radius {
  constructor(onInput) {
    this.root = byId("histogram");
    this.input = byId("radius");
    this.counts = null;
    this.bits = SHORTEST;
    this.radius = 0;
    this.input.addEventListener("input", () => onInput(this.input.valueAsNumber));
    new ResizeObserver(() => this.draw()).observe(this.root);
  }

  // `counts`: items at each distance, or null if the server does not tell; `radius`: null while there is none.
  show({ counts, radius, bits }) {
    Object.assign(this, { counts, bits, radius });
    this.input.max = Math.max(this.end(), radius ?? 0);
    this.input.value = radius ?? 0;
    this.input.ariaValueText = this.told(radius ?? 0);
    this.draw();
  }

  within(radius) {
    return this.counts && this.counts.slice(0, radius + 1).reduce((sum, count) => sum + count, 0);
  }

  told(radius) {
    const within = this.within(radius);
    const told = t("withinBits", { count: radius });
    return within === null ? told : `${told}: ${t("pictures", { count: within })}`;
  }

  // Beyond most of the collection there is nothing to look for.
  end() {
    if (!this.counts) return Math.max(Math.min(this.bits, SHORTEST), this.bits >> 1);
    const half = this.counts.reduce((sum, count) => sum + count, 0) / 2;
    let [end, sum] = [0, this.counts[0]];
    while (sum < half) sum += this.counts[++end];
    return Math.min(this.bits, Math.max(SHORTEST, end + 2));
  }

  draw() {
    const width = this.root.clientWidth;
    if (!width) return;
    const end = Number(this.input.max);
    const step = (width - 2 * INSET) / Math.max(1, end);
    const place = (distance) => INSET + distance * step;
    const base = HEIGHT - FOOT;
    const parts = this.bars(end, step, place, base);
    parts.push(drawn("path", { class: "axis", d: `M${INSET - step / 2} ${base + 0.5}h${width - 2 * INSET + step}` }));
    for (const distance of [0, end]) {
      if (Math.abs(distance - (this.radius ?? -9)) * step < 22) continue;
      parts.push(label(place(distance), distance, "end"));
    }
    if (this.radius !== null) {
      const x = place(this.radius);
      parts.push(drawn("path", { class: "hand", d: `M${x} 12V${base}` }));
      parts.push(drawn("circle", { class: "knob", cx: x, cy: 9, r: 6.5 }), label(x, this.radius, "here"));
    }
    const drawing = drawn("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" }, ...parts);
    this.root.querySelector("svg")?.remove();
    this.root.prepend(drawing);
  }

  // Heights are logarithms: three near answers show beside a thousand far ones. A bar stands for several distances if
  // there is no room for each.
  bars(end, step, place, base) {
    if (!this.counts) return [];
    const each = Math.max(1, Math.ceil(NARROWEST / step));
    const first = Array.from({ length: Math.floor(end / each) + 1 }, (_, i) => i * each);
    const sums = first.map((from) => this.counts.slice(from, from + each).reduce((sum, count) => sum + count, 0));
    const highest = Math.log1p(Math.max(...sums));
    const wide = Math.max(1, Math.min(each * step - 2, 14));
    return sums.flatMap((count, i) => {
      if (!count) return [];
      const middle = place(first[i] + (each - 1) / 2);
      const high = Math.max(3, ((base - 18) * Math.log1p(count)) / highest);
      const bar = { x: middle - wide / 2, y: base - high, width: wide, height: high, rx: Math.min(2, wide / 2) };
      return [drawn("rect", { ...bar, class: first[i] <= (this.radius ?? -1) ? "in" : "out" })];
    });
  }
}

function label(x, distance, kind) {
  return drawn("text", { class: kind, x, y: HEIGHT - 3, "text-anchor": "middle" }, String(distance));
}
