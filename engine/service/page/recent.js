// The latest queries of this browser.

import { store, stored } from "./storage.js";

const KEY = "hashlight-recent";
const MAX = 8;

export function recent() {
  try {
    return JSON.parse(stored(KEY)) ?? [];
  } catch {
    return []; // for example of another release
  }
}

export function remember(address, name) {
  const others = recent().filter((one) => one.address !== address);
  store(KEY, JSON.stringify([{ address, name }, ...others].slice(0, MAX)));
}

export function forget() {
  store(KEY, "[]");
}
