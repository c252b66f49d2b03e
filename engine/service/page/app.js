// The page: `state` is what is asked, and every change to it starts a new search.

import * as api from "./api.js";
import { Chips, isNamed, nameItem, nameOf } from "./chips.js";
import { combine, flip, isRuledOut } from "./codes.js";
import { open, showCompare, showExplain, showKeys } from "./dialogs.js";
import { Facets } from "./facets.js";
import { Gallery } from "./gallery.js";
import { Inspector } from "./inspector.js";
import { known, load, shapeOf } from "./pictures.js";
import { told } from "./problems.js";
import { Radius } from "./radius.js";
import { forget, recent, remember } from "./recent.js";
import { exports, Selection } from "./selection.js";
import { COUNTS, filterOf, parseQuery, readAddress, toAddress } from "./state.js";
import { language, localize, number, switchLanguage, t, time } from "./texts.js";
import { Tiles } from "./tiles.js";
import { announce, button, byId, element, toast } from "./view.js";

const MAX_ANSWERS = 200;
const WALL = 60;
const RING = 6; // pictures of a ring at least
const ADDRESS_MS = 250; // browsers throttle pages that change their address too often, as a moving handle would
const CAPTIONS = ["title", "name", "caption", "label"]; // shown on pictures without being asked

let collection = null;
let state = readAddress(location.hash);
let caption = "";
let answer = null; // {hits, code, coverage, ...} of the latest search; null on the start page
let counts = null; // items at each distance from the code
let countsOf = null; // which code and filter they are of
let duplicates = null; // while they are shown
let running = null;
let queued = false;
const codes = new Map(); // kind and value of a chip -> its code
const uploads = new Map(); // code -> the picture that was sent

const selection = new Selection({ onSearch: (hits) => ask(hits.map(chipOfHit)), onChange: () => retouch() });
const tiles = new Tiles({ context, onOpen: (hit) => inspect(hit), onPick: (hit) => selection.toggle(hit) });
const gallery = new Gallery(byId("gallery"), {
  tileOf: (hit) => tiles.make(hit),
  fill: (...given) => tiles.fill(...given),
  update: (...given) => tiles.update(...given),
  onPlaced: () => placed(),
});
const radius = new Radius((value) => change({ mode: "range_search", radius: value }, { isLive: true }));
const facets = new Facets({ onPick: pick, onFilter: (filter) => change({ filter }, { isNew: true }) });
const chips = new Chips({
  onShow: () => inspect(null),
  onRemove: removeChip,
  onTyped: askTyped,
  onFiles: bring,
  onEdited: () => hint(null),
});
const inspector = new Inspector({
  acts: {
    more: { run: (hit) => ask([chipOfHit(hit)]) },
    compare: { run: (hit) => showCompare(askedFor(), hit, collection.bits) },
    less: { run: (hit) => change({ chips: [...state.chips, { ...chipOfHit(hit), not: true }] }, { isNew: true, keeps: null }) },
    link: { run: () => copyLink() },
    select: { run: (hit) => selection.toggle(hit), text: (hit) => t(selection.has(hit.id) ? "unselect" : "select") },
  },
  onFlip: (bit) => ask([codeChip(flip(answer.code, bit, collection.bits))], { keeps: inspector.hit }),
  onClose: () => leave(),
});

localize();
chips.show(state.chips, () => null);
start();

async function start() {
  try {
    collection = await api.describeCollection();
  } catch (problem) {
    return show(problem);
  }
  byId("locked").hidden = true;
  describe();
  const types = collection.attributes;
  caption = CAPTIONS.find((name) => name in types) ?? "";
  offer("caption", [["", t("showNothing")], ...Object.keys(types).map((name) => [name, name])], caption);
  const ks = [...new Set([...COUNTS, state.k])].filter((k) => k <= collection.limits.k).sort((a, b) => a - b);
  offer("k", ks.map((k) => [k, number.format(k)]), state.k);
  byId("caption-label").hidden = !Object.keys(types).length;
  for (const id of ["file-label", "camera-label"]) byId(id).hidden = !collection.encodes_images;
  facets.start(types).then(() => facets.show(state)).catch(() => {}); // without counts there is nothing to pick from
  return search();
}

function describe() {
  const { rows, bits } = collection;
  const named = /\/collections\/([^/]+)\//.exec(location.pathname)?.[1];
  const name = element("b", {}, named ? decodeURIComponent(named) : t("pictures", { count: rows }));
  const rest = named ? `${t("pictures", { count: rows })} · ` : "";
  byId("collection").replaceChildren(name, element("span", {}, `${rest}${t("bits", { count: bits })}`));
  if (named) document.title = `${decodeURIComponent(named)} · Hashlight`;
  byId("duplicates").hidden = !collection.duplicates;
  byId("hero-text").textContent = `${t("heroText", { count: rows, bits })} ${rows ? t("heroClick") : ""}`;
}

function offer(id, choices, chosen) {
  byId(id).replaceChildren(...choices.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
}

// What is asked.

function chipOfHit({ id, code, attributes }) {
  codes.set(`id ${id}`, code);
  if (attributes) nameItem(id, attributes);
  return { kind: "id", value: String(id), not: false, name: "" };
}

function codeChip(code, name = "") {
  return { kind: "code", value: code, not: false, name };
}

// A new query: gets its own step in the history.
function ask(given, { keeps = null } = {}) {
  scrollTo({ top: 0, behavior: "instant" });
  return change({ chips: given, view: "" }, { isNew: true, keeps });
}

function change(update, { isNew = false, isLive = false, keeps = inspector.hit } = {}) {
  if (isNew) history.replaceState(null, "", toAddress(state)); // where a handle was left
  state = { ...state, ...update };
  hint(null);
  if (isNew) history.pushState(null, "", toAddress(state));
  else writeAddress();
  return search({ isLive, keeps: isNew && update.chips ? keeps : inspector.hit, keepsTiles: !(isNew && update.chips) });
}

let writing;
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => history.replaceState(null, "", toAddress(state)), ADDRESS_MS);
}

function pick(column, value) {
  if (column === null) return change({ filter: "", picked: {} }, { isNew: true });
  const before = state.picked[column] ?? [];
  const after = before.includes(value) ? before.filter((one) => one !== value) : [...before, value];
  return change({ picked: { ...state.picked, [column]: after } }, { isNew: true });
}

function removeChip(place) {
  const [gone] = state.chips.slice(place, place + 1);
  if (gone.upload) return gone.upload.abort();
  return change({ chips: state.chips.filter((_, i) => i !== place) }, { isNew: true, keeps: null });
}

async function askTyped(text) {
  const query = parseQuery(text, collection);
  if (!query) return hint(t("unreadable", { digits: 2 * Math.ceil(collection.bits / 8) }));
  const [[kind, value]] = Object.entries(query);
  let chip = { kind, value, not: false, name: "" };
  try {
    if (kind === "url" || kind === "vector") {
      const name = kind === "url" ? new URL(value).pathname.split("/").at(-1) || value : t("code");
      chip = codeChip(await api.encodeQuery(query), name);
    }
    await codeOf(chip);
  } catch (problem) {
    return hint(problem.status === 401 ? null : told(problem, { collection }).title, problem);
  }
  byId("query").value = "";
  return ask([...state.chips.filter((one) => !one.upload), chip]);
}

function hint(text, problem = null) {
  byId("hint").hidden = !text;
  byId("hint").textContent = text ?? "";
  if (problem?.status === 401) show(problem);
}

async function codeOf(chip) {
  if (chip.kind === "code") return chip.value;
  const key = `${chip.kind} ${chip.value}`;
  if (!codes.has(key)) {
    if (chip.kind === "id") chipOfHit((await api.items([chip.value]))[0]);
    else codes.set(key, await api.encodeQuery({ text: chip.value }));
  }
  return codes.get(key);
}

// Send pictures, one after the other; each is a chip from the beginning, with its progress.
async function bring(files) {
  const images = files.filter((file) => file.type.startsWith("image/"));
  if (!images.length || !collection) return;
  if (!collection.encodes_images) return hint(t("problem.noEncoder"));
  for (const image of images) {
    const upload = new AbortController();
    const picture = await shapeOf(image);
    const chip = { ...codeChip("", image.name || t("query")), upload, progress: 0, picture };
    state = { ...state, chips: [...state.chips, chip] };
    showChips();
    try {
      const code = await api.encodeImage(image, { signal: upload.signal, onProgress: (share) => progressed(chip, share) });
      if (picture) uploads.set(code, picture);
      await replaceChip(chip, codeChip(code, image.name.replaceAll("~", "-")));
    } catch (problem) {
      state = { ...state, chips: state.chips.filter((one) => one !== chip) };
      showChips();
      if (problem.name === "AbortError") toast(t("cancelled"));
      else if (problem.status === 401) show(problem);
      else hint(`${told(problem, { collection }).title}. ${told(problem, { collection }).text}`);
    }
  }
}

function progressed(chip, share) {
  chip.progress = share;
  showChips();
}

function replaceChip(old, made) {
  const after = state.chips.map((chip) => (chip === old ? made : chip));
  state = { ...state, chips: state.chips.filter((chip) => !chip.upload) };
  return ask(after);
}

// Searching.

function context() {
  const code = answer?.code ?? null;
  const isSelected = (id) => selection.has(id);
  return { code, bits: collection.bits, caption, current: inspector.hit?.id ?? null, isSelected };
}

// Only the latest search is shown. One that is live follows the one that is under way; others end it.
async function search({ isLive = false, keeps = null, keepsTiles = false } = {}) {
  if (isLive && running?.isLive) {
    queued = true;
    return;
  }
  running?.abort();
  const mine = (running = Object.assign(new AbortController(), { isLive }));
  document.body.classList.add("busy");
  if (!isLive) showChips();
  try {
    const isAsked = state.chips.some((chip) => !chip.not && !chip.upload);
    await (state.view ? searchDuplicates : isAsked ? searchAnswers : searchWall)(mine, { keeps, keepsTiles });
  } catch (problem) {
    if (problem.name !== "AbortError") show(problem);
  } finally {
    if (running === mine) {
      running = null;
      document.body.classList.remove("busy");
      if (queued) search({ isLive: true, keeps: inspector.hit, keepsTiles: true });
      queued = false;
    }
  }
}

async function searchWall(mine) {
  const filter = filterOf(state, collection.attributes);
  const most = Math.min(WALL, collection.limits.queries);
  const items = await api.representatives(most, filter, mine.signal).catch((problem) => {
    if (problem.status !== 503) throw problem;
    return []; // parts of the collection are missing, the others can be searched
  });
  const bare = items.filter((item) => item.code === undefined);
  const whole = bare.length ? await api.items(items.map((item) => item.id), mine.signal) : items;
  if (running !== mine) return;
  answer = null;
  leave({ isQuiet: true });
  view("start");
  showChips();
  showRecent();
  facets.show(state, mine.signal).catch(() => {});
  gallery.show(whole.length ? [{ key: "wall", heading: null, hits: whole }] : []);
  byId("foot").replaceChildren(...(whole.length ? [] : [emptyWall(filter)]));
  announce(t("pictures", { count: collection.rows }));
}

function emptyWall(filter) {
  if (filter) return nothing(t("noneMatch"), t("nothingAtAll"));
  return collection.rows
    ? nothing(t("problem.notReady"), t("problem.notReady.text"))
    : nothing(t("emptyCollection"), t("emptyCollectionText"));
}

async function searchDuplicates(mine) {
  const { Duplicates } = await import("./duplicates.js");
  const found = new Duplicates();
  const isKnown = await found.more(mine.signal);
  if (running !== mine) return;
  answer = null;
  duplicates = found;
  leave({ isQuiet: true });
  view("duplicates");
  showChips();
  byId("note").hidden = false;
  byId("note").textContent = isKnown ? found.title() : t("duplicatesUnknown");
  announce(byId("note").textContent);
  showDuplicates();
}

function showDuplicates() {
  gallery.show(duplicates.shown(), { keepsTiles: true });
  const next = async () => {
    try {
      await duplicates.more();
      showDuplicates();
    } catch (problem) {
      show(problem);
    }
  };
  byId("foot").replaceChildren(...(duplicates.found ? duplicates.foot(next) : []));
}

async function searchAnswers(mine, { keeps, keepsTiles }) {
  const asked = state;
  const parts = asked.chips.filter((chip) => !chip.upload);
  const begin = performance.now();
  const found = await Promise.all(parts.map(codeOf));
  const code = combine(found.filter((_, i) => !parts[i].not), collection.bits);
  const filter = filterOf(asked, collection.attributes);
  const most = Math.min(MAX_ANSWERS, collection.limits.k);
  const wanted = parts.filter((chip) => !chip.not);
  const own = wanted.length === 1 && wanted[0].kind === "id" ? wanted[0].value : null; // is not among its answers
  const k = Math.min(asked.k + Number(own !== null), most);
  const options = asked.mode === "search" ? { k } : { radius: Math.min(asked.radius, collection.bits), limit: most };
  if (filter) options.filter = filter;
  options.allow_partial = true; // which is said then
  count(code, filter, mine.signal);
  const made = await api.find(asked.mode, code, options, mine.signal);
  if (running !== mine) return;
  answer = { ...made, code, filter, options, mode: asked.mode, elapsedMs: performance.now() - begin };
  answer.ruledOut = found.filter((_, i) => parts[i].not);
  answer.own = own;
  answer.hasOwn = made.results[0].hits.some((hit) => hit.id === own); // a filter may leave it out
  answer.hits = made.results[0].hits.filter((hit) => hit.id !== own);
  showAnswer({ keeps, keepsTiles });
  facets.show(asked, mine.signal).catch(() => {});
  await nameChips();
  remember(toAddress(asked), parts.map((chip) => (chip.not ? `− ${nameOf(chip)}` : nameOf(chip))).join(" + "));
}

// The histogram is drawn when it is there; the answers do not wait for it.
async function count(code, filter, signal) {
  const key = `${code} ${filter}`;
  if (countsOf === key) return;
  try {
    const made = await api.histogram(code, filter, signal);
    if (signal.aborted) return;
    [counts, countsOf] = [made, key];
    if (answer?.code === code) showDial();
  } catch {
    // The search says what is wrong.
  }
}

// The histogram of what is shown, not of the query before, and without the item that is the query.
function ownCounts() {
  if (counts === null || countsOf !== `${answer.code} ${answer.filter}`) return null;
  return answer.own !== null && answer.hasOwn ? [counts[0] - 1, ...counts.slice(1)] : counts;
}

// Items that are only known by their ids get their names.
async function nameChips() {
  const unnamed = state.chips.filter(({ kind, value }) => kind === "id" && !isNamed(value)).map(({ value }) => value);
  if (!unnamed.length) return;
  for (const { id, attributes } of await api.items(unnamed)) nameItem(id, attributes);
  showChips();
  if (answer && !inspector.hit) inspect(null, { isQuiet: true });
}

async function more() {
  const { next } = answer.results[0];
  const asked = answer;
  byId("foot").replaceChildren();
  try {
    const made = await api.find(asked.mode, asked.code, { ...asked.options, after: next });
    if (answer !== asked) return;
    answer = { ...asked, results: made.results, hits: [...asked.hits, ...made.results[0].hits.filter((hit) => hit.id !== asked.own)] };
    showAnswer({ keeps: inspector.hit, keepsTiles: true });
  } catch (problem) {
    show(problem);
  }
}

// What is shown.

function view(name) {
  document.body.dataset.view = name;
  byId("hero").hidden = name !== "start";
  byId("dial").hidden = name !== "answers";
  byId("filters").hidden = !["start", "answers"].includes(name);
  byId("problem").hidden = true;
  byId("note").hidden = name !== "answers" || byId("note").hidden;
  if (name !== "duplicates") duplicates = null;
  byId("banner").hidden = true;
}

function showAnswer({ keeps, keepsTiles }) {
  view("answers");
  const { bits } = collection;
  const seen = answer.hits.filter((hit) => !isRuledOut(hit.code, answer.code, answer.ruledOut, bits));
  answer.seen = seen;
  showChips();
  showDial();
  showNote(answer.hits.length - seen.length);
  gallery.show(rings(seen), { keepsTiles });
  showFoot();
  inspect(keeps && (seen.find((hit) => hit.id === keeps.id) ?? again(keeps)), { isQuiet: true });
  announce(`${readout()}. ${t(answer.coverage.complete ? "exact" : "partial")}: ${badgeTexts().proof}`);
}

// An answer that is no longer among those shown keeps its place in the inspector, at its new distance.
function again(hit) {
  return { ...hit, distance: combineDistance(hit) };
}

function combineDistance({ code }) {
  return [...code].reduce((sum, digit, i) => sum + ones(parseInt(digit, 16) ^ parseInt(answer.code[i], 16)), 0);
}

function ones(value) {
  return value.toString(2).replaceAll("0", "").length;
}

// A ring ends with a distance at which it has enough pictures for a row, so that it stays as it is when the radius grows.
function rings(hits) {
  const groups = [];
  for (const hit of hits) {
    const last = groups.at(-1);
    if (last && (last.length < RING || last.at(-1).distance === hit.distance)) last.push(hit);
    else groups.push([hit]);
  }
  return groups.map((inRing) => {
    const [first, last] = [inRing[0].distance, inRing.at(-1).distance];
    const told = first === last ? t("bits", { count: first }) : t("bitsFromTo", { first, last });
    const count = t("pictures", { count: inRing.length });
    const heading = () => element("h3", {}, element("b", {}, told), element("span", {}, count));
    return { key: `${first} ${last}`, heading, hits: inRing };
  });
}

function showChips() {
  const pictureOfChip = (chip) => {
    chip.code = chip.kind === "code" ? chip.value : codes.get(`${chip.kind} ${chip.value}`);
    if (chip.picture) return chip.picture;
    if (uploads.has(chip.code)) return uploads.get(chip.code);
    if (chip.kind !== "id" || !chip.code) return null;
    const item = { id: chip.value, code: chip.code };
    if (known(item) === undefined) load(item).then((picture) => picture && showChips());
    return known(item);
  };
  chips.show(state.chips, pictureOfChip, collection);
}

function showDial() {
  const { mode } = state;
  for (const one of document.querySelectorAll("[data-mode]")) one.ariaPressed = String(one.dataset.mode === mode);
  byId("k-label").hidden = mode !== "search";
  byId("k").value = state.k;
  const reach = mode === "range_search" ? state.radius : (answer.hits.at(-1)?.distance ?? null);
  radius.show({ counts: ownCounts(), radius: reach, bits: collection.bits });
  byId("readout").textContent = readout();
  const isWhole = answer.coverage.complete;
  const { proof, took } = badgeTexts();
  const parts = [element("b", {}, t(isWhole ? "exact" : "partial")), element("span", {}, took), element("span", {}, proof)];
  byId("badge").replaceChildren(element("i"), ...parts);
  byId("badge").classList.toggle("partial", !isWhole);
  const banner = byId("banner");
  banner.hidden = isWhole;
  banner.className = "partial";
  banner.textContent = t("partialBanner", { some: answer.coverage.answered, all: answer.coverage.shards });
}

function readout() {
  const found = answer.results[0].truncated ? (radius.within(state.radius) ?? answer.hits.length) : answer.hits.length;
  if (state.mode === "search") return t("readoutNearest", { count: answer.hits.length });
  return t("readoutWithin", { bits: state.radius, count: found });
}

function badgeTexts() {
  const { coverage, results } = answer;
  const { explain } = results[0];
  const some = t("badgeCodes", { some: coverage.searched, all: coverage.codes });
  return {
    proof: explain ? `${some} · ${t("badgeLooked", { count: Math.min(explain.candidates, coverage.codes) })}` : some,
    took: explain ? `${time.format(1000 * explain.seconds)} ms` : "",
  };
}

function showNote(hidden) {
  const asked = state.chips.filter((chip) => !chip.not && !chip.upload).length;
  const told = [];
  if (asked > 1) told.push(t("combined", { count: asked }));
  if (hidden) told.push(t("hidden", { count: hidden }));
  byId("note").textContent = told.join(" ");
  byId("note").hidden = !told.length;
}

function showFoot() {
  const { hits, results, seen, mode } = answer;
  const parts = [];
  if (!hits.length && mode === "range_search") parts.push(nothingNear());
  else if (!hits.length) parts.push(nothing(t("noneMatch"), t("nothingAtAll")));
  else if (mode === "search") parts.push(element("p", {}, t("nearestShown", { count: hits.length })));
  if (results[0].truncated) parts.push(button(t("showMore"), more, { className: "primary" }));
  if (seen.length) {
    const card = button(t("card"), async () => (await import("./card.js")).saveCard(askedFor(), answer));
    parts.push(element("div", { className: "save" }, element("span", {}, t("saveAnswers")), ...exports(() => answer.seen), card));
  }
  byId("foot").replaceChildren(...parts);
}

function nothingNear() {
  const nearest = ownCounts()?.findIndex((count) => count > 0) ?? -1;
  const block = nothing(t("nothing", { count: state.radius }), nearest < 0 ? t("nothingTextUnknown") : t("nothingText", { count: nearest }));
  const go = nearest < 0 ? { mode: "search" } : { radius: nearest };
  block.append(button(nearest < 0 ? t("nearest") : t("goTo", { count: nearest }), () => change(go), { className: "primary" }));
  return block;
}

function nothing(title, text) {
  return element("div", { className: "nothing" }, element("h3", {}, title), element("p", {}, text));
}

function showRecent() {
  const own = recent().filter(({ address }) => address !== toAddress(state));
  byId("recent").hidden = !own.length;
  const buttons = own.map(({ address, name }) =>
    button(name, () => {
      history.pushState(null, "", address);
      state = readAddress(address);
      search();
    }, { className: "facet" }),
  );
  const clear = button(t("clear"), () => {
    forget();
    showRecent();
  }, { className: "quiet" });
  byId("recent").replaceChildren(element("span", {}, t("recent")), ...buttons, clear);
}

// The query as the inspector and the comparison show it.
function askedFor() {
  const asked = state.chips.filter((chip) => !chip.not && !chip.upload);
  const [only] = asked;
  if (asked.length !== 1) return { code: answer.code, name: t("query"), picture: null };
  const picture = uploads.get(answer.code) ?? (only.kind === "id" ? known({ id: only.value, code: answer.code }) : null);
  return { code: answer.code, name: nameOf(only), picture };
}

function inspect(hit, { isQuiet = false } = {}) {
  if (duplicates && hit) return compareInGroup(hit);
  if (!answer) return hit ? ask([chipOfHit(hit)]) : undefined;
  const asked = askedFor();
  inspector.show(asked, hit, collection.bits);
  const only = state.chips.find((chip) => !chip.not);
  if (!asked.picture && only?.kind === "id") {
    const item = { id: only.value, code: answer.code };
    if (known(item) === undefined) load(item).then((picture) => picture && inspector.query === asked && inspect(inspector.hit, { isQuiet: true }));
  }
  retouch();
  if (hit && !isQuiet && inspector.isOver) byId("inspector").querySelector(".close").focus();
}

// Beside the picture that stands for its group.
async function compareInGroup(hit) {
  const group = duplicates.groupOf(hit);
  const first = group.hits.find((one) => one.id === String(group.representative.id)) ?? group.hits[0];
  const other = hit === first ? (group.hits[1] ?? first) : hit;
  const query = { code: first.code, picture: await load(first), name: t("item", { id: first.id }) };
  const again = button(t("more"), () => {
    byId("dialog").close();
    ask([chipOfHit(hit)]);
  });
  await showCompare(query, other, collection.bits, again);
}

// Close the inspector, back to the answer that it was of.
function leave({ isQuiet = false } = {}) {
  const id = inspector.hit?.id;
  if (answer && !isQuiet) inspect(null, { isQuiet: true });
  else inspector.hide();
  if (id && !isQuiet) gallery.tiles.get(id)?.querySelector(".open").focus();
}

// Bring the tiles that are there up to date.
function retouch() {
  for (const hit of gallery.hits) {
    const tile = gallery.tiles.get(hit.id);
    if (tile) tiles.update(tile, hit);
  }
  const select = byId("inspector").querySelector('[data-act="select"]');
  if (select && inspector.hit) select.textContent = t(selection.has(inspector.hit.id) ? "unselect" : "select");
}

// One tile is reached by Tab, the others from it by arrows.
function placed() {
  const all = byId("gallery");
  document.body.dataset.whole = String(gallery.isWhole);
  if (!all.querySelector('.open[tabindex="0"]')) all.querySelector(".open")?.setAttribute("tabindex", "0");
}

function show(problem) {
  const { name, title, text } = told(problem, { collection, filter: filterOf(state, collection?.attributes ?? {}) });
  document.body.classList.remove("busy");
  if (name === "locked") return showLock();
  if (name === "offline" && answer) return showOffline();
  view("problem");
  byId("filters").hidden = name !== "filter";
  inspector.hide();
  gallery.show([]);
  byId("foot").replaceChildren();
  const again = button(t("tryAgain"), () => (collection ? search() : start()), { className: "primary" });
  byId("problem").replaceChildren(element("h2", {}, title), element("p", {}, text), again);
  byId("problem").hidden = false;
}

function showLock() {
  const isWrong = api.hasKey();
  api.forgetKey();
  view("locked");
  inspector.hide();
  gallery.show([]);
  byId("foot").replaceChildren();
  byId("locked").hidden = false;
  byId("wrong-key").hidden = !isWrong;
  byId("secret").focus();
}

function showOffline() {
  byId("banner").className = "offline";
  byId("banner").replaceChildren(t(navigator.onLine ? "problem.offline" : "offlineBanner"), " ", button(t("tryAgain"), () => search({ keeps: inspector.hit, keepsTiles: true })));
  byId("banner").hidden = false;
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    toast(t("copied"));
  } catch {
    open("link", t("link"), element("input", { type: "text", readOnly: true, value: location.href, ariaLabel: t("link") }));
  }
}

// Events.

byId("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setKey(byId("secret").value.trim());
  start();
});
byId("home").addEventListener("click", (event) => {
  event.preventDefault();
  if (collection) change({ chips: [], filter: "", picked: {}, view: "" }, { isNew: true, keeps: null });
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("gallery").querySelector('.open[tabindex="0"]')?.focus();
});
for (const one of document.querySelectorAll("[data-mode]")) {
  one.addEventListener("click", () => change({ mode: one.dataset.mode }));
}
byId("k").addEventListener("change", ({ target }) => change({ k: Number(target.value) }));
byId("caption").addEventListener("change", ({ target }) => {
  caption = target.value;
  retouch();
});
byId("badge").addEventListener("click", () => showExplain(answer, answer.elapsedMs));
byId("grab").addEventListener("click", () => {
  const isOpen = document.body.classList.toggle("controls");
  byId("grab").ariaExpanded = String(isOpen);
});

for (const [kind, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", over);
  });
}
document.addEventListener("drop", (event) => brought(event.dataTransfer));
document.addEventListener("paste", (event) => brought(event.clipboardData));

function brought(transfer) {
  if (transfer.files.length) return bring([...transfer.files]);
  const address = transfer.getData("text/uri-list").split("\n")[0];
  if (/^https:/.test(address)) askTyped(address);
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || byId("dialog").open) return;
  const isTyping = event.target.matches("input:not([type=range]), select, textarea");
  if (event.key === "Escape") return escape(event.target);
  if (isTyping || !collection) return;
  if (event.target.closest("#gallery") && moved(event)) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act(inspector.hit ?? hitOf(event.target));
});

const KEYS = {
  "/": () => byId("query").focus(),
  "?": () => showKeys(),
  "+": () => step(1),
  "-": () => step(-1),
  m: (hit) => hit && ask([chipOfHit(hit)]),
  n: (hit) => hit && answer && inspector.acts.less.run(hit),
  c: (hit) => hit && answer && inspector.acts.compare.run(hit),
  x: (hit) => hit && selection.toggle(hit),
};

function step(by) {
  if (!answer) return;
  const from = state.mode === "range_search" ? state.radius : (answer.hits.at(-1)?.distance ?? 0);
  change({ mode: "range_search", radius: Math.min(collection.bits, Math.max(0, from + by)) }, { isLive: true });
}

function hitOf(target) {
  const id = target.closest?.(".tile")?.dataset.id;
  return gallery.hits.find((hit) => hit.id === id);
}

function escape(target) {
  if (inspector.hit) return leave();
  if (document.body.classList.contains("controls")) return byId("grab").click();
  return target.blur();
}

function moved(event) {
  if (!/^(Arrow|Home|End)/.test(event.key)) return false;
  const tile = event.target.closest(".tile");
  const next = tile && gallery.neighbour(tile, event.key);
  if (!next) return false;
  event.preventDefault();
  tile.querySelector(".open").tabIndex = -1;
  next.querySelector(".open").tabIndex = 0;
  next.querySelector(".open").focus();
  next.scrollIntoView({ block: "nearest" });
  return true;
}

addEventListener("popstate", () => {
  state = readAddress(location.hash);
  if (collection) search();
});
addEventListener("offline", () => answer && showOffline());
addEventListener("online", () => collection && search({ keeps: inspector.hit, keepsTiles: true }));

byId("duplicates").addEventListener("click", () => change({ chips: [], view: "duplicates" }, { isNew: true, keeps: null }));
byId("help").addEventListener("click", showKeys);
byId("language").addEventListener("click", switchLanguage);
byId("language").lang = language === "en" ? "de" : "en";
