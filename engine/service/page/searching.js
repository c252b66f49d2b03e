// Searching: only the latest answer is shown.

import * as api from "./api.js";
import { codeOf } from "./asking.js";
import { isNamed, nameItem, nameOf } from "./chips.js";
import { combine } from "./codes.js";
import { inspect, leave } from "./looking.js";
import { page } from "./page.js";
import { remember } from "./recent.js";
import { emptyWall, show, showAnswer, showChips, showDial, showDuplicates, showRecent, view } from "./showing.js";
import { filterOf, toAddress } from "./state.js";
import { t } from "./texts.js";
import { announce, byId } from "./view.js";

const MAX_ANSWERS = 200;
const WALL = 60;

// Only the latest search is shown. One that is live follows the one that is under way; others end it.
export async function search({ isLive = false, keeps = null, keepsTiles = false } = {}) {
  if (!page.collection) return; // the page begins with a search of what is asked by then
  if (isLive && page.running?.isLive) {
    page.queued = true;
    return;
  }
  page.running?.abort();
  const mine = (page.running = Object.assign(new AbortController(), { isLive }));
  document.body.classList.add("busy");
  if (!isLive) showChips();
  try {
    const isAsked = page.state.chips.some((chip) => !chip.not && !chip.upload);
    await (page.state.view ? searchDuplicates : isAsked ? searchAnswers : searchWall)(mine, { keeps, keepsTiles });
  } catch (problem) {
    if (problem.name !== "AbortError") show(problem);
  } finally {
    if (page.running === mine) {
      page.running = null;
      document.body.classList.remove("busy");
      if (page.queued) search({ isLive: true, keeps: page.inspector.hit, keepsTiles: true });
      page.queued = false;
    }
  }
}

async function searchWall(mine) {
  const filter = filterOf(page.state, page.collection.attributes);
  const most = Math.min(WALL, page.collection.limits.queries);
  const items = await api.representatives(most, filter, mine.signal).catch((problem) => {
    if (problem.status !== 503) throw problem;
    return []; // parts of the collection are missing, the others can be searched
  });
  const bare = items.filter((item) => item.code === undefined);
  const whole = bare.length ? await api.items(items.map((item) => item.id), mine.signal) : items;
  if (page.running !== mine) return;
  page.answer = null;
  leave({ isQuiet: true });
  view("start");
  showChips();
  showRecent();
  page.facets.show(page.state, mine.signal).catch(() => {});
  page.gallery.show(whole.length ? [{ key: "wall", heading: null, hits: whole }] : []);
  byId("foot").replaceChildren(...(whole.length ? [] : [emptyWall(filter)]));
  announce(t("pictures", { count: page.collection.rows }));
}

async function searchDuplicates(mine) {
  const { Duplicates } = await import("./duplicates.js");
  const found = new Duplicates();
  const isKnown = await found.more(mine.signal);
  if (page.running !== mine) return;
  page.answer = null;
  page.duplicates = found;
  leave({ isQuiet: true });
  view("duplicates");
  showChips();
  byId("note").hidden = false;
  byId("note").textContent = isKnown ? found.title() : t("duplicatesUnknown");
  announce(byId("note").textContent);
  showDuplicates();
}

async function searchAnswers(mine, { keeps, keepsTiles }) {
  const asked = page.state;
  const parts = asked.chips.filter((chip) => !chip.upload);
  const begin = performance.now();
  const found = await Promise.all(parts.map(codeOf));
  const code = combine(found.filter((_, i) => !parts[i].not), page.collection.bits);
  const filter = filterOf(asked, page.collection.attributes);
  const wanted = parts.filter((chip) => !chip.not);
  const own = wanted.length === 1 && wanted[0].kind === "id" ? wanted[0].value : null; // is not among its answers
  const most = Math.min(MAX_ANSWERS + Number(own !== null), page.collection.limits.k);
  const k = Math.min(asked.k + Number(own !== null), most);
  const options = asked.mode === "search" ? { k } : { radius: Math.min(asked.radius, page.collection.bits), limit: most };
  if (filter) options.filter = filter;
  options.allow_partial = true; // which is said then
  count(code, filter, mine.signal);
  const made = await api.find(asked.mode, code, options, mine.signal);
  if (page.running !== mine) return;
  page.answer = { ...made, code, filter, options, mode: asked.mode, elapsedMs: performance.now() - begin };
  page.answer.ruledOut = found.filter((_, i) => parts[i].not);
  page.answer.own = own;
  page.answer.hasOwn = made.results[0].hits.some((hit) => hit.id === own); // a filter may leave it out
  page.answer.hits = made.results[0].hits.filter((hit) => hit.id !== own);
  showAnswer({ keeps, keepsTiles });
  page.facets.show(asked, mine.signal, page.answer.hits).catch(() => {});
  await nameChips();
  remember(toAddress(asked), parts.map((chip) => (chip.not ? `− ${nameOf(chip)}` : nameOf(chip))).join(" + "));
}

// The histogram is drawn when it is there; the answers do not wait for it.
async function count(code, filter, signal) {
  const key = `${code} ${filter}`;
  if (page.countsOf === key) return;
  try {
    const made = await api.histogram(code, filter, signal);
    if (signal.aborted) return;
    [page.counts, page.countsOf] = [made, key];
    if (page.answer?.code === code) showDial();
  } catch {
    // The search says what is wrong.
  }
}

// The histogram of what is shown, not of the query before, and without the item that is the query.
export function ownCounts() {
  if (page.counts === null || page.countsOf !== `${page.answer.code} ${page.answer.filter}`) return null;
  return page.answer.own !== null && page.answer.hasOwn ? [page.counts[0] - 1, ...page.counts.slice(1)] : page.counts;
}

// Items that are only known by their ids get their names.
async function nameChips() {
  const unnamed = page.state.chips.filter(({ kind, value }) => kind === "id" && !isNamed(value)).map(({ value }) => value);
  if (!unnamed.length) return;
  for (const { id, attributes } of await api.items(unnamed)) nameItem(id, attributes);
  showChips();
  if (page.answer && !page.inspector.hit) inspect(null, { isQuiet: true });
}

export async function more() {
  const { next } = page.answer.results[0];
  const asked = page.answer;
  byId("foot").replaceChildren();
  try {
    const made = await api.find(asked.mode, asked.code, { ...asked.options, after: next });
    if (page.answer !== asked) return;
    page.answer = { ...asked, results: made.results, hits: [...asked.hits, ...made.results[0].hits.filter((hit) => hit.id !== asked.own)] };
    showAnswer({ keeps: page.inspector.hit, keepsTiles: true });
  } catch (problem) {
    show(problem);
  }
}
