// Pictures in justified rows. A row is put in its place when the shapes of its pictures are known, so that nothing that
// is seen moves; what lies far below is not loaded before somebody scrolls there.

import { cancelWaiting, known, load } from "./pictures.js";
import { element } from "./view.js";

const GAP = 8;
const AHEAD = 16; // pictures asked for before they are placed
const SCREENS = 1.5; // loaded below what is seen
const PATIENCE_MS = 1500; // then a picture gets a square, whatever its shape turns out to be
const [FEW, SQUEEZE] = [2, 0.72]; // at the end of a group, and how much lower a row may be for them
const [NARROWEST, WIDEST] = [0.4, 4];

export function rowHeight(width) {
  return width < 600 ? 118 : width < 1100 ? 164 : 188;
}

function aspectOf(picture) {
  return picture ? Math.min(WIDEST, Math.max(NARROWEST, picture.width / picture.height)) : 1;
}

// Places of pictures with these aspects in rows of at most `height`: rows that fill the width, and the rest at the end.
export function justify(aspects, width, height, gap = GAP) {
  const rows = [];
  let from = 0;
  let sum = 0;
  aspects.forEach((aspect, i) => {
    sum += aspect;
    const free = width - gap * (i - from);
    if (sum * height < free) return;
    rows.push({ from, to: i + 1, height: free / sum, full: true });
    [from, sum] = [i + 1, 0];
  });
  if (from < aspects.length) rows.push({ from, to: aspects.length, height, full: false });
  return rows;
}

// The height at which pictures fill one row.
function squeezed(aspects, width) {
  return (width - GAP * (aspects.length - 1)) / aspects.reduce((sum, aspect) => sum + aspect, 0);
}

export class Gallery {
  // `tileOf(hit)` makes the element of an answer, `fill(tile, hit, picture)` puts its picture into it, and
  // `update(tile, hit)` what depends on the query; `onPlaced()` is called whenever more is in its place.
  constructor(root, { tileOf, fill, update, onPlaced }) {
    Object.assign(this, { root, tileOf, fill, update, onPlaced });
    this.groups = [];
    this.tiles = new Map();
    this.turn = 0;
    this.wake = () => {};
    this.seen = new Promise((resolve) => (this.settle = resolve)); // when all that can be seen first is there
    for (const kind of ["scroll", "resize"]) addEventListener(kind, () => this.wake(), { passive: true });
    let width = root.clientWidth;
    new ResizeObserver(() => {
      if (root.clientWidth === width) return;
      width = root.clientWidth;
      this.show(this.groups, { keepsTiles: true });
    }).observe(root);
  }

  get hits() {
    return this.groups.flatMap((group) => group.hits);
  }

  // `groups`: [{key, heading(), hits}]. With `keepsTiles`, those of items that stay are not made again.
  async show(groups, { keepsTiles = false } = {}) {
    const turn = ++this.turn;
    this.wake();
    const focused = this.root.contains(document.activeElement) ? document.activeElement.closest(".tile")?.dataset.id : null;
    cancelWaiting();
    if (!keepsTiles) this.tiles = new Map();
    this.groups = groups;
    this.isWhole = false;
    const wanted = new Set(this.hits.map((hit) => hit.id));
    for (const id of this.tiles.keys()) if (!wanted.has(id)) this.tiles.delete(id);
    const cursor = this.rowsOf(groups);
    const rows = [];
    // What is known already is placed at once, in one step; only then is anything waited for.
    let step = cursor.next();
    for (; !step.done && step.value.hits; step = cursor.next()) rows.push(step.value);
    this.root.replaceChildren(...this.gathered(rows));
    if (focused) this.tiles.get(focused)?.querySelector("button")?.focus({ preventScroll: true });
    this.onPlaced();
    for (; !step.done; step = cursor.next()) {
      await this.nearTheEnd(turn);
      if (turn === this.turn && !step.value.hits) await this.loaded(step.value);
      if (turn !== this.turn) return;
      if (step.value.hits) this.append(step.value);
    }
    this.rest();
    this.isWhole = true;
    this.onPlaced();
  }

  // Yields rows as they can be placed, and {hit, ahead}: what must be loaded before the next.
  *rowsOf(groups) {
    const width = this.root.clientWidth;
    const height = rowHeight(width);
    const all = groups.flatMap((group) => group.hits);
    let place = 0;
    for (const group of groups) {
      let shapes = [];
      let first = 0;
      for (const [i, hit] of group.hits.entries()) {
        if (known(hit) === undefined) yield { hit, ahead: all.slice(place, place + AHEAD) };
        place += 1;
        shapes.push(aspectOf(known(hit)));
        const left = group.hits.length - 1 - i;
        const [row] = justify(shapes, width, height);
        if (left && (!row.full || left <= FEW)) continue;
        // A few at the end of a group are squeezed in rather than left alone in a row.
        const isFull = row.full && squeezed(shapes, width) >= SQUEEZE * height;
        const rows = isFull ? [{ from: 0, to: shapes.length, height: squeezed(shapes, width), full: true }] : justify(shapes, width, height);
        for (const { from, to, height: high, full } of rows) {
          const hits = group.hits.slice(first + from, first + to);
          yield { group, height: high, aspects: shapes.slice(from, to), hits, isFull: full };
        }
        [first, shapes] = [i + 1, []];
      }
    }
  }

  async loaded({ hit, ahead }) {
    for (const one of ahead) load(one);
    let patience;
    const enough = new Promise((resolve) => (patience = setTimeout(resolve, PATIENCE_MS)));
    await Promise.race([load(hit), enough]);
    clearTimeout(patience);
  }

  gathered(rows) {
    const sections = [];
    for (const row of rows) {
      if (sections.at(-1)?.dataset.key !== String(row.group.key)) sections.push(this.sectionOf(row.group));
      sections.at(-1).querySelector("ol").append(...this.tilesOf(row));
    }
    return sections;
  }

  append(row) {
    const last = this.root.lastElementChild;
    if (last?.dataset.key === String(row.group.key)) last.querySelector("ol").append(...this.tilesOf(row));
    else this.root.append(...this.gathered([row]));
    this.onPlaced();
  }

  sectionOf({ key, heading }) {
    const list = element("ol", { className: "rows" });
    return element("section", { className: "ring", dataset: { key } }, heading?.() ?? null, list);
  }

  tilesOf({ hits, aspects, height, isFull }) {
    const free = this.root.clientWidth - GAP * (hits.length - 1);
    let left = free;
    return hits.map((hit, i) => {
      const exact = aspects[i] * height;
      // Rounding must not push the last picture of a row into the next.
      const width = isFull && i === hits.length - 1 ? left : Math.floor(exact);
      left -= width;
      const tile = this.tile(hit);
      tile.style.width = `${Math.floor(width * 100) / 100}px`;
      tile.style.height = `${Math.round(height)}px`;
      return tile;
    });
  }

  tile(hit) {
    let tile = this.tiles.get(hit.id);
    if (tile?.dataset.code !== hit.code) {
      tile = this.tileOf(hit);
      Object.assign(tile.dataset, { id: hit.id, code: hit.code });
      this.tiles.set(hit.id, tile);
      this.fill(tile, hit, known(hit));
      if (known(hit) === undefined) load(hit).then((late) => late && this.fill(tile, hit, late));
    }
    this.update(tile, hit);
    return tile;
  }

  // Wait until the end of what is placed is near the screen.
  async nearTheEnd(turn) {
    const isNear = () => this.root.getBoundingClientRect().bottom < innerHeight * (1 + SCREENS);
    while (!isNear() && turn === this.turn) {
      this.rest();
      await new Promise((resolve) => (this.wake = resolve));
    }
    this.root.ariaBusy = "true";
  }

  rest() {
    this.root.ariaBusy = "false";
    this.settle();
  }

  // The first tile that can be seen.
  firstSeen() {
    const top = document.querySelector("header").getBoundingClientRect().bottom;
    return [...this.root.querySelectorAll(".tile")].find((tile) => tile.getBoundingClientRect().top >= top);
  }

  // The tile beside this one: a step along the order, or the nearest one in the row above or below.
  neighbour(tile, key) {
    const all = [...this.root.querySelectorAll(".tile")];
    const place = all.indexOf(tile);
    if (key === "ArrowLeft") return all[place - 1];
    if (key === "ArrowRight") return all[place + 1];
    if (key === "Home") return all[0];
    if (key === "End") return all.at(-1);
    const box = tile.getBoundingClientRect();
    const middle = box.left + box.width / 2;
    const down = key === "ArrowDown" ? 1 : -1;
    const others = all.map((one) => ({ one, at: one.getBoundingClientRect() })).filter(({ at }) => down * (at.top - box.top) > 4);
    const next = Math.min(...others.map(({ at }) => down * at.top));
    const row = others.filter(({ at }) => Math.abs(down * at.top - next) < 4);
    const off = ({ at }) => Math.abs(at.left + at.width / 2 - middle);
    return row.sort((a, b) => off(a) - off(b))[0]?.one;
  }
}
