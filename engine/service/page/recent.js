// The latest queries of this browser.

const KEY = "hashlight-recent";
const MAX = 8;

export function recent() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? [];
  } catch {
    return []; // for example of another release
  }
}

export function remember(address, name) {
  const others = recent().filter((one) => one.address !== address);
  localStorage.setItem(KEY, JSON.stringify([{ address, name }, ...others].slice(0, MAX)));
}

export function forget() {
  localStorage.removeItem(KEY);
}
