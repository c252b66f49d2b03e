// The beginning: what the collection is, and what it offers.

import * as api from "./api.js";
import { codeOf } from "./asking.js";
import { page } from "./page.js";
import { search } from "./searching.js";
import { show } from "./showing.js";
import { COUNTS } from "./state.js";
import { number, t } from "./texts.js";
import { byId, element } from "./view.js";

const PATIENCE_MS = 2000;
const CAPTIONS = ["title", "name", "caption", "label"]; // shown on pictures without being asked

export async function start() {
  // What items of a link are is looked up meanwhile; what is wrong with one, the search says.
  const looked = page.state.chips.filter(({ kind }) => kind === "id").map((chip) => codeOf(chip).catch(() => {}));
  try {
    page.collection = await api.describeCollection();
    await Promise.all(looked);
  } catch (problem) {
    return show(problem);
  }
  byId("locked").hidden = true;
  page.described.resolve();
  describe();
  const types = page.collection.attributes;
  page.caption = CAPTIONS.find((name) => name in types) ?? "";
  offer("caption", [["", t("showNothing")], ...Object.keys(types).map((name) => [name, name])], page.caption);
  const ks = [...new Set([...COUNTS, page.state.k])].filter((k) => k <= page.collection.limits.k).sort((a, b) => a - b);
  offer("k", ks.map((k) => [k, number.format(k)]), page.state.k);
  byId("caption-label").hidden = !Object.keys(types).length;
  for (const id of ["file-label", "camera-label"]) byId(id).hidden = !page.collection.encodes_images;
  await search();
  // Counting takes its time, and the answers and their pictures come first.
  await Promise.race([page.gallery.seen, new Promise((resolve) => setTimeout(resolve, PATIENCE_MS))]);
  page.facets.start(types).then(() => page.facets.show(page.state, undefined, page.answer?.hits)).catch(() => {}); // else there is nothing to pick from
}

function describe() {
  const { rows, bits } = page.collection;
  const named = /\/collections\/([^/]+)\//.exec(location.pathname)?.[1];
  const name = element("b", {}, named ? decodeURIComponent(named) : t("pictures", { count: rows }));
  const rest = named ? `${t("pictures", { count: rows })} · ` : "";
  byId("collection").replaceChildren(name, element("span", {}, `${rest}${t("bits", { count: bits })}`));
  if (named) document.title = `${decodeURIComponent(named)} · Hashlight`;
  byId("duplicates").hidden = !page.collection.duplicates;
  byId("hero-text").textContent = `${t("heroText", { count: rows, bits })} ${rows ? t("heroClick") : ""}`;
}

function offer(id, choices, chosen) {
  byId(id).replaceChildren(...choices.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
}
