// What is asked, as part of the address, so that a link keeps it.

export const DEFAULTS = { mode: "search", k: 200, radius: 8, filter: "", picked: {} };
export const KINDS = ["id", "code", "text"];
export const COUNTS = [24, 60, 200];

const KEYWORDS = new Set(["and", "or", "not", "in", "like", "is", "null", "true", "false"]);
const BARE = /(^|<values=)(u?int|float|double|halffloat|decimal|bool)/; // written without quotes in a filter
const ID = /^\d{1,19}$/;

// What somebody typed: {id}, {code}, {url}, {vector} or {text}; null if it is none that this server takes.
export function parseQuery(text, { bits, encodes_texts: takesTexts, encodes_vectors: dims }) {
  const word = text.trim();
  const digits = 2 * Math.ceil(bits / 8);
  const code = word.toLowerCase();
  // A code of decimal digits only is recognised by its length.
  if (/^[0-9a-f]+$/.test(code) && code.length === digits) return { code };
  if (ID.test(word)) return { id: word.replace(/^0+(?=\d)/, "") };
  if (/^https:\/\/\S+$/.test(word)) return { url: word };
  const vector = dims && vectorOf(word);
  if (vector) return vector.length === dims ? { vector } : null;
  return takesTexts && word ? { text: word } : null;
}

function vectorOf(word) {
  const parts = word.replace(/^\[|\]$/g, "").split(/[\s,;]+/).filter(Boolean);
  const numbers = parts.map(Number);
  return parts.length > 1 && numbers.every(Number.isFinite) ? numbers : null;
}

// A chip is one part of the query: {kind, value, not, name}. Its picture, if it was uploaded, is not in the address.
function chipOf(kind, text, not) {
  const [value, name] = kind === "code" ? [text.split("~", 1)[0], text.split("~").slice(1).join("~")] : [text, ""];
  return { kind, value, not, name };
}

export function readAddress(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...DEFAULTS, picked: {}, chips: [], view: given.get("view") === "duplicates" ? "duplicates" : "" };
  for (const [name, text] of given) {
    const kind = name.replace(/^not\./, "");
    if (KINDS.includes(kind) && text) state.chips.push(chipOf(kind, text, name !== kind));
    else if (name.startsWith("is.") && !(name.slice(3) in Object.prototype)) (state.picked[name.slice(3)] ??= []).push(text);
  }
  if (given.get("mode") === "range_search") state.mode = "range_search";
  for (const name of ["k", "radius"]) {
    if (/^\d{1,5}$/.test(given.get(name) ?? "")) state[name] = Number(given.get(name));
  }
  state.filter = given.get("filter") ?? "";
  return state;
}

export function toAddress(state) {
  const given = new URLSearchParams(state.view && { view: state.view });
  for (const { kind, value, not, name } of state.chips) {
    given.append(not ? `not.${kind}` : kind, kind === "code" && name ? `${value}~${name}` : value);
  }
  for (const name of ["mode", "k", "radius", "filter"]) {
    if (state[name] !== DEFAULTS[name]) given.set(name, state[name]);
  }
  for (const [column, values] of Object.entries(state.picked)) {
    for (const value of values) given.append(`is.${column}`, value);
  }
  return `#${given}`;
}

// The filter of the server: what was typed, and the values that were picked.
export function filterOf({ filter, picked }, types, without = null) {
  const clauses = Object.entries(picked).filter(([column, values]) => values.length && column !== without);
  const written = clauses.map(([column, values]) => {
    const listed = values.map((value) => literal(value, types[column]));
    return listed.length === 1 ? `${nameIn(column)} == ${listed[0]}` : `${nameIn(column)} in (${listed.join(", ")})`;
  });
  if (filter) written.unshift(written.length ? `(${filter})` : filter);
  return written.join(" and ");
}

export function nameIn(column) {
  const isPlain = /^[A-Za-z_]\w*$/.test(column) && !KEYWORDS.has(column.toLowerCase());
  return isPlain ? column : `\`${column.replaceAll("`", "``")}\``;
}

export function literal(value, type) {
  return BARE.test(type ?? "") ? String(value) : `"${String(value).replaceAll('"', '""')}"`;
}
