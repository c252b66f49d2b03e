// Pictures of items, loaded a few at once, in the order in which they are asked for, and kept in memory.

import { thumbnail } from "./api.js";

const MAX_AT_ONCE = 8;
const MAX_KEPT = 1000;

const kept = new Map(); // name -> {url, width, height}, or null for an item without a picture
const loading = new Map(); // name -> promise of the same
const waiting = [];
let atOnce = 0;

const nameOf = ({ id, code }) => `${id} ${code}`;

// What is known of a picture now: undefined until it is loaded, null of an item without one.
export function known(item) {
  return kept.get(nameOf(item));
}

export function load(item) {
  const name = nameOf(item);
  if (kept.has(name)) return Promise.resolve(kept.get(name));
  if (!loading.has(name)) {
    loading.set(name, new Promise((resolve) => waiting.push({ item, name, resolve })));
    next();
  }
  return loading.get(name);
}

// Give up what is not being loaded yet: those who asked get undefined.
export function cancelWaiting() {
  for (const { name, resolve } of waiting.splice(0)) {
    loading.delete(name);
    resolve(undefined);
  }
}

async function next() {
  if (atOnce >= MAX_AT_ONCE || !waiting.length) return;
  const { item, name, resolve } = waiting.shift();
  atOnce += 1;
  const picture = await fetched(item);
  atOnce -= 1;
  loading.delete(name);
  if (picture !== undefined) keep(name, picture);
  resolve(picture);
  next();
}

// Undefined if it cannot be had now.
async function fetched({ id, code }) {
  try {
    const file = await thumbnail(id, code);
    return file && (await shapeOf(file));
  } catch {
    return undefined;
  }
}

export async function shapeOf(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(image.src);
    return null;
  }
  return { url: image.src, width: image.naturalWidth, height: image.naturalHeight };
}

function keep(name, picture) {
  kept.set(name, picture);
  if (kept.size <= MAX_KEPT) return;
  const [oldest, gone] = kept.entries().next().value;
  kept.delete(oldest);
  if (gone) URL.revokeObjectURL(gone.url);
}
