// What is asked: every change to it gets its address and starts a new search.

import * as api from "./api.js";
import { nameItem, nameOf } from "./chips.js";
import { page } from "./page.js";
import { shapeOf } from "./pictures.js";
import { told } from "./problems.js";
import { search } from "./searching.js";
import { show, showChips } from "./showing.js";
import { parseQuery, toAddress } from "./state.js";
import { t } from "./texts.js";
import { byId, toast } from "./view.js";

const ADDRESS_MS = 250; // browsers throttle pages that change their address too often, as a moving handle would

let writing;

export function chipOfHit({ id, code, attributes }) {
  page.codes.set(`id ${id}`, code);
  if (attributes) nameItem(id, attributes);
  return { kind: "id", value: String(id), not: false, name: "" };
}

export function codeChip(code, name = "") {
  return { kind: "code", value: code, not: false, name };
}

// A code of which a bit was flipped: it is called after what was asked.
export function nearChip(code) {
  const asked = page.state.chips.filter((chip) => !chip.not);
  const [{ kind, name }] = asked;
  if (asked.length > 1 || (kind === "code" && !name)) return codeChip(code);
  return codeChip(code, `≈ ${nameOf(asked[0]).replace(/^≈ /, "")}`);
}

// A new query: gets its own step in the history.
export function ask(given, { keeps = null } = {}) {
  scrollTo({ top: 0, behavior: "instant" });
  return change({ chips: given, view: "" }, { isNew: true, keeps });
}

export function change(update, { isNew = false, isLive = false, keeps = page.inspector.hit } = {}) {
  if (isNew) history.replaceState(null, "", toAddress(page.state)); // where a handle was left
  page.state = { ...page.state, ...update };
  hint(null);
  if (isNew) history.pushState(null, "", toAddress(page.state));
  else writeAddress();
  return search({ isLive, keeps: isNew && update.chips ? keeps : page.inspector.hit, keepsTiles: !(isNew && update.chips) });
}

function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => history.replaceState(null, "", toAddress(page.state)), ADDRESS_MS);
}

export function pick(column, value) {
  if (column === null) return change({ filter: "", picked: {} }, { isNew: true });
  const before = page.state.picked[column] ?? [];
  const after = before.includes(value) ? before.filter((one) => one !== value) : [...before, value];
  return change({ picked: { ...page.state.picked, [column]: after } }, { isNew: true });
}

export function removeChip(place) {
  const [gone] = page.state.chips.slice(place, place + 1);
  if (gone.upload) return gone.upload.abort();
  return change({ chips: page.state.chips.filter((_, i) => i !== place) }, { isNew: true, keeps: null });
}

export async function askTyped(text) {
  await page.described.promise;
  const query = parseQuery(text, page.collection);
  if (!query) return hint(t("unreadable", { digits: 2 * Math.ceil(page.collection.bits / 8) }));
  const [[kind, value]] = Object.entries(query);
  let chip = { kind, value, not: false, name: "" };
  try {
    if (kind === "url" || kind === "vector") {
      const name = kind === "url" ? new URL(value).pathname.split("/").at(-1) || value : t("code");
      chip = codeChip(await api.encodeQuery(query), name);
    }
    await codeOf(chip);
  } catch (problem) {
    return hint(problem.status === 401 ? null : sentence(problem), problem);
  }
  byId("query").value = "";
  return ask([...page.state.chips.filter((one) => !one.upload), chip]);
}

function sentence(problem) {
  const { title, text } = told(problem, { collection: page.collection });
  return `${title}. ${text}`;
}

export function hint(text, problem = null) {
  byId("hint").hidden = !text;
  byId("hint").textContent = text ?? "";
  if (problem?.status === 401) show(problem);
}

export async function codeOf(chip) {
  if (chip.kind === "code") return checked(chip.value);
  const key = `${chip.kind} ${chip.value}`;
  if (!page.codes.has(key)) {
    if (chip.kind === "id") chipOfHit((await api.items([chip.value]))[0]);
    else page.codes.set(key, await api.encodeQuery({ text: chip.value }));
  }
  return page.codes.get(key);
}

// A code of another collection would become another code when it is combined with others.
function checked(code) {
  if (/^[0-9a-f]+$/.test(code) && code.length === 2 * Math.ceil(page.collection.bits / 8)) return code;
  throw new api.ApiError(422, { field: "code" });
}

// Send pictures, one after the other; each is a chip from the beginning, with its progress.
export async function bring(files) {
  const images = files.filter((file) => file.type.startsWith("image/"));
  if (!images.length) return;
  await page.described.promise;
  if (!page.collection.encodes_images) return hint(t("problem.noEncoder"));
  for (const image of images) {
    const upload = new AbortController();
    const picture = await shapeOf(image);
    const chip = { ...codeChip("", image.name || t("query")), upload, progress: 0, picture };
    page.state = { ...page.state, chips: [...page.state.chips, chip] };
    showChips();
    try {
      const code = await api.encodeImage(image, { signal: upload.signal, onProgress: (share) => progressed(chip, share) });
      if (picture) page.uploads.set(code, picture);
      await replaceChip(chip, codeChip(code, image.name.replaceAll("~", "-")));
    } catch (problem) {
      page.state = { ...page.state, chips: page.state.chips.filter((one) => one !== chip) };
      showChips();
      if (problem.name === "AbortError") toast(t("cancelled"));
      else if (problem.status === 401) show(problem);
      else hint(sentence(problem));
    }
  }
}

function progressed(chip, share) {
  chip.progress = share;
  showChips();
}

function replaceChip(old, made) {
  const after = page.state.chips.map((chip) => (chip === old ? made : chip));
  page.state = { ...page.state, chips: page.state.chips.filter((chip) => !chip.upload) };
  return ask(after);
}
