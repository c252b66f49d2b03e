// The query as part of the address, so that a link keeps it.

export const DEFAULTS = { mode: "search", k: 24, radius: 4, filter: "" };

const ID = /^\d{1,19}$/;

// Parses an id or a code. A code of decimal digits only is recognised by its length.
export function parseQuery(text, bits) {
  const word = text.trim().toLowerCase();
  const digits = 2 * Math.ceil(bits / 8);
  if (word === "") return null;
  if (ID.test(word) && word.length !== digits) return { id: word.replace(/^0+(?=\d)/, "") };
  if (/^[0-9a-f]+$/.test(word) && word.length === digits) return { code: word };
  throw new Error(`expected an id, or a code of ${bits} bits as ${digits} hexadecimal digits`);
}

export function randomCode(bits) {
  const bytes = crypto.getRandomValues(new Uint8Array(Math.ceil(bits / 8)));
  if (bits % 8) bytes[bytes.length - 1] &= (1 << bits % 8) - 1;
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function readAddress(address) {
  const given = new URLSearchParams(address.hash.slice(1));
  const state = { ...DEFAULTS, query: null };
  if (given.has("id")) state.query = { id: given.get("id") };
  else if (given.has("code")) state.query = { code: given.get("code") };
  else if (given.get("text")) state.query = { text: given.get("text") };
  if (given.get("mode") === "range_search") state.mode = "range_search";
  for (const name of ["k", "radius"]) {
    if (/^\d+$/.test(given.get(name) ?? "")) state[name] = Number(given.get(name));
  }
  state.filter = given.get("filter") ?? "";
  return state;
}

export function toAddress(state) {
  const given = new URLSearchParams(state.query ?? {});
  for (const name of ["mode", "k", "radius", "filter"]) {
    if (state[name] !== DEFAULTS[name]) given.set(name, state[name]);
  }
  return `#${given}`;
}
