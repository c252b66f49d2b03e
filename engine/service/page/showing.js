// What is shown of an answer, and where there is none.

import * as api from "./api.js";
import { change } from "./asking.js";
import { distance, isRuledOut } from "./codes.js";
import { askedFor, inspect } from "./looking.js";
import { page } from "./page.js";
import { start } from "./opening.js";
import { known, load } from "./pictures.js";
import { told } from "./problems.js";
import { forget, recent } from "./recent.js";
import { more, ownCounts, search } from "./searching.js";
import { exports } from "./selection.js";
import { filterOf, readAddress, toAddress } from "./state.js";
import { t, time } from "./texts.js";
import { announce, button, byId, element } from "./view.js";

const RING = 6; // pictures of a ring at least, unless what follows is much further away
const GAP = 1 / 8; // of the bits: as far apart, near-duplicates are not in a ring with what is only alike

export function view(name) {
  document.body.dataset.view = name;
  byId("hero").hidden = name !== "start";
  byId("dial").hidden = name !== "answers";
  byId("filters").hidden = !["start", "answers"].includes(name);
  byId("problem").hidden = true;
  byId("note").hidden = name !== "answers" || byId("note").hidden;
  if (name !== "duplicates") page.duplicates = null;
  byId("banner").hidden = true;
}

export function showAnswer({ keeps, keepsTiles }) {
  view("answers");
  const { bits } = page.collection;
  const seen = page.answer.hits.filter((hit) => !isRuledOut(hit.code, page.answer.code, page.answer.ruledOut, bits));
  page.answer.seen = seen;
  showChips();
  showDial();
  showNote(page.answer.hits.length - seen.length);
  page.gallery.show(rings(seen), { keepsTiles });
  showFoot();
  inspect(keeps && (seen.find((hit) => hit.id === keeps.id) ?? moved(keeps)), { isQuiet: true });
  announce(`${readout()}. ${t(page.answer.coverage.complete ? "exact" : "partial")}: ${badgeTexts().proof}`);
}

// An answer that is no longer among those shown keeps its place in the inspector, at its new distance.
function moved(hit) {
  return { ...hit, distance: distance(hit.code, page.answer.code, page.collection.bits) };
}

// A ring ends with a distance at which it has enough pictures for a row, or before a gap, so that it stays as it is when
// the radius grows.
function rings(hits) {
  const groups = [];
  for (const hit of hits) {
    const last = groups.at(-1);
    const step = hit.distance - (last?.at(-1).distance ?? 0);
    if (last && (step === 0 || (last.length < RING && step < GAP * page.collection.bits))) last.push(hit);
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

export function showChips() {
  const pictureOfChip = (chip) => {
    chip.code = chip.kind === "code" ? chip.value : page.codes.get(`${chip.kind} ${chip.value}`);
    if (chip.picture) return chip.picture;
    if (page.uploads.has(chip.code)) return page.uploads.get(chip.code);
    if (chip.kind !== "id" || !chip.code) return null;
    const item = { id: chip.value, code: chip.code };
    if (known(item) === undefined) load(item).then((picture) => picture && showChips());
    return known(item);
  };
  page.chips.show(page.state.chips, pictureOfChip, page.collection);
}

export function showDial() {
  const { mode } = page.state;
  for (const one of document.querySelectorAll("[data-mode]")) one.ariaPressed = String(one.dataset.mode === mode);
  byId("k-label").hidden = mode !== "search";
  byId("k").value = page.state.k;
  const reach = mode === "range_search" ? page.state.radius : (page.answer.hits.at(-1)?.distance ?? null);
  page.radius.show({ counts: ownCounts(), radius: reach, bits: page.collection.bits });
  byId("readout").textContent = readout();
  const isWhole = page.answer.coverage.complete;
  const { proof, took } = badgeTexts();
  const parts = [element("b", {}, t(isWhole ? "exact" : "partial")), element("span", {}, took), element("span", {}, proof)];
  byId("badge").replaceChildren(element("i"), ...parts);
  byId("badge").classList.toggle("partial", !isWhole);
  const banner = byId("banner");
  banner.hidden = isWhole;
  banner.className = "partial";
  banner.replaceChildren(t("partialBanner", { some: page.answer.coverage.answered, all: page.answer.coverage.shards }), " ", again());
}

function readout() {
  const found = page.answer.results[0].truncated ? (page.radius.within(page.state.radius) ?? page.answer.hits.length) : page.answer.hits.length;
  if (page.state.mode === "search") return page.answer.hits.length ? t("readoutNearest", { count: page.answer.hits.length }) : t("noneMatch");
  return `${t("withinBits", { count: page.state.radius })} · ${t("found", { count: found })}`;
}

function badgeTexts() {
  const { coverage, results } = page.answer;
  const { explain } = results[0];
  const some = t("badgeCodes", { some: coverage.searched, all: coverage.codes });
  return {
    proof: explain ? `${some} · ${t("badgeLooked", { count: Math.min(explain.candidates, coverage.codes) })}` : some,
    took: explain ? `${time.format(1000 * explain.seconds)} ms` : "",
  };
}

function showNote(hidden) {
  const asked = page.state.chips.filter((chip) => !chip.not && !chip.upload).length;
  const told = [];
  if (asked > 1) told.push(t("combined", { count: asked }));
  if (hidden) told.push(t("hidden", { count: hidden }));
  byId("note").textContent = told.join(" ");
  byId("note").hidden = !told.length;
}

function showFoot() {
  const { hits, results, seen, mode } = page.answer;
  const parts = [];
  if (!hits.length && mode === "range_search") parts.push(nothingNear());
  else if (!hits.length) parts.push(noneMatch());
  else if (mode === "search") parts.push(element("p", {}, t("nearestShown", { count: hits.length })));
  if (results[0].truncated) parts.push(button(t("showMore"), more, { className: "primary" }));
  if (seen.length) {
    const card = button(t("card"), async () => (await import("./card.js")).saveCard(askedFor(), page.answer));
    parts.push(element("div", { className: "save" }, element("span", {}, t("saveAnswers")), ...exports(() => page.answer.seen), card));
  }
  byId("foot").replaceChildren(...parts);
}

function nothingNear() {
  const nearest = ownCounts()?.findIndex((count) => count > 0) ?? -1;
  const block = nothing(t("nothing", { count: page.state.radius }), nearest < 0 ? t("nothingTextUnknown") : t("nothingText", { count: nearest }));
  const go = nearest < 0 ? { mode: "search" } : { radius: nearest };
  block.append(button(nearest < 0 ? t("nearest") : t("goTo", { count: nearest }), () => change(go), { className: "primary" }));
  return block;
}

function noneMatch() {
  const block = nothing(t("noneMatch"), "");
  block.append(button(t("clearFilter"), () => change({ filter: "", picked: {} }, { isNew: true }), { className: "primary" }));
  return block;
}

function nothing(title, text) {
  return element("div", { className: "nothing" }, element("h3", {}, title), element("p", {}, text));
}

export function emptyWall(filter) {
  if (filter) return noneMatch();
  return page.collection.rows
    ? nothing(t("problem.notReady"), t("problem.notReady.text"))
    : nothing(t("emptyCollection"), t("emptyCollectionText"));
}

export function showDuplicates() {
  page.gallery.show(page.duplicates.shown(), { keepsTiles: true });
  const next = async () => {
    try {
      await page.duplicates.more();
      showDuplicates();
    } catch (problem) {
      show(problem);
    }
  };
  byId("foot").replaceChildren(...(page.duplicates.found ? page.duplicates.foot(next) : []));
}

export function showRecent() {
  const own = recent().filter(({ address }) => address !== toAddress(page.state));
  byId("recent").hidden = !own.length;
  const buttons = own.map(({ address, name }) =>
    button(name, () => {
      history.pushState(null, "", address);
      page.state = readAddress(address);
      search();
    }, { className: "facet" }),
  );
  const clear = button(t("clear"), () => {
    forget();
    showRecent();
  }, { className: "quiet" });
  byId("recent").replaceChildren(element("span", {}, t("recent")), ...buttons, clear);
}

export function show(problem) {
  const filter = filterOf(page.state, page.collection?.attributes ?? {});
  const { name, title, text } = told(problem, { collection: page.collection, filter, example: page.facets.example() });
  document.body.classList.remove("busy");
  if (name === "locked") return showLock();
  if (name === "offline" && page.answer) return showOffline();
  // A filter is mended where it was typed, with what was found before in sight.
  const isBeside = name === "filter" && page.gallery.hits.length > 0;
  byId("problem").classList.toggle("beside", isBeside);
  if (!isBeside) {
    view("problem");
    byId("filters").hidden = name !== "filter";
    page.inspector.hide();
    page.gallery.show([]);
    byId("foot").replaceChildren();
  }
  const again =
    name === "filter"
      ? button(t("clearFilter"), () => change({ filter: "" }, { isNew: true }), { className: "primary" })
      : button(t("tryAgain"), () => (page.collection ? search() : start()), { className: "primary" });
  byId("problem").replaceChildren(element("h2", {}, title), element("p", {}, text), again);
  byId("problem").hidden = false;
}

function showLock() {
  const isWrong = api.hasKey();
  api.forgetKey();
  view("locked");
  page.inspector.hide();
  page.gallery.show([]);
  byId("foot").replaceChildren();
  byId("locked").hidden = false;
  byId("wrong-key").hidden = !isWrong;
  byId("secret").focus();
}

export function showOffline() {
  byId("banner").className = "offline";
  byId("banner").replaceChildren(t(navigator.onLine ? "problem.offline" : "offlineBanner"), " ", again());
  byId("banner").hidden = false;
}

function again() {
  return button(t("tryAgain"), () => search({ keeps: page.inspector.hit, keepsTiles: true }));
}
