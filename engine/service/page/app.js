// The page: its parts, and what happens to them.

import * as api from "./api.js";
import { ask, askTyped, bring, change, chipOfHit, hint, nearChip, pick, removeChip } from "./asking.js";
import { Chips } from "./chips.js";
import { flip } from "./codes.js";
import { showCompare, showExplain, showKeys } from "./dialogs.js";
import { Facets } from "./facets.js";
import { Gallery } from "./gallery.js";
import { Inspector } from "./inspector.js";
import { pressed } from "./keys.js";
import { askedFor, context, copyLink, inspect, leave, placed, retouch } from "./looking.js";
import { start } from "./opening.js";
import { page } from "./page.js";
import { Radius } from "./radius.js";
import { search } from "./searching.js";
import { Selection } from "./selection.js";
import { showOffline } from "./showing.js";
import { readAddress } from "./state.js";
import { language, localize, switchLanguage, t } from "./texts.js";
import { Tiles } from "./tiles.js";
import { byId } from "./view.js";

page.selection = new Selection({ onSearch: (hits) => ask(hits.map(chipOfHit)), onChange: () => retouch() });
page.tiles = new Tiles({ context, onOpen: (hit) => inspect(hit), onPick: (hit) => page.selection.toggle(hit) });
page.gallery = new Gallery(byId("gallery"), {
  tileOf: (hit) => page.tiles.make(hit),
  fill: (...given) => page.tiles.fill(...given),
  update: (...given) => page.tiles.update(...given),
  onPlaced: () => placed(),
});
page.radius = new Radius((value) => change({ mode: "range_search", radius: value }, { isLive: true }));
page.facets = new Facets({ onPick: pick, onFilter: (filter) => change({ filter }, { isNew: true }) });
page.chips = new Chips({
  onShow: () => inspect(null),
  onRemove: removeChip,
  onTyped: askTyped,
  onFiles: bring,
  onEdited: () => hint(null),
});
page.inspector = new Inspector({
  acts: {
    more: { run: (hit) => ask([chipOfHit(hit)]) },
    compare: { run: (hit) => showCompare(askedFor(), hit, page.collection.bits) },
    less: { run: (hit) => change({ chips: [...page.state.chips, { ...chipOfHit(hit), not: true }] }, { isNew: true, keeps: null }) },
    link: { run: () => copyLink() },
    select: { run: (hit) => page.selection.toggle(hit), text: (hit) => t(page.selection.has(hit.id) ? "unselect" : "select") },
  },
  onFlip: (bit) => ask([nearChip(flip(page.answer.code, bit, page.collection.bits))], { keeps: page.inspector.hit }),
  onClose: () => leave(),
});

localize();
page.chips.show(page.state.chips, () => null);
start();

byId("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  api.setKey(byId("secret").value.trim());
  start();
});
byId("home").addEventListener("click", (event) => {
  event.preventDefault();
  if (page.collection) change({ chips: [], filter: "", picked: {}, view: "" }, { isNew: true, keeps: null });
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("gallery").querySelector('.open[tabindex="0"]')?.focus();
});
for (const one of document.querySelectorAll("[data-mode]")) {
  one.addEventListener("click", () => turn(one.dataset.mode));
}
byId("k").addEventListener("change", ({ target }) => change({ k: Number(target.value) }));
byId("caption").addEventListener("change", ({ target }) => {
  page.caption = target.value;
  retouch();
});
byId("badge").addEventListener("click", () => showExplain(page.answer, page.answer.elapsedMs));
byId("grab").addEventListener("click", () => {
  const isOpen = document.body.classList.toggle("controls");
  byId("grab").ariaExpanded = String(isOpen);
  document.body.style.setProperty("--sheet", `${byId("more-controls").offsetHeight}px`);
});

for (const [kind, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", over);
  });
}
document.addEventListener("drop", (event) => brought(event.dataTransfer));
document.addEventListener("paste", (event) => brought(event.clipboardData));

document.addEventListener("keydown", pressed);

addEventListener("popstate", () => {
  page.state = readAddress(location.hash);
  if (page.collection) search();
});
addEventListener("offline", () => page.answer && showOffline());
addEventListener("online", () => page.collection && search({ keeps: page.inspector.hit, keepsTiles: true }));

byId("duplicates").addEventListener("click", () => change({ chips: [], view: "duplicates" }, { isNew: true, keeps: null }));
byId("help").addEventListener("click", showKeys);
byId("language").addEventListener("click", switchLanguage);
byId("language").lang = language === "en" ? "de" : "en";

// A radius begins where the nearest end.
function turn(mode) {
  const last = page.state.mode === "search" ? page.answer?.hits.at(-1)?.distance : undefined;
  change({ mode, ...(mode === "range_search" && last !== undefined && { radius: last }) });
}

function brought(transfer) {
  if (transfer.files.length) return bring([...transfer.files]);
  const address = transfer.getData("text/uri-list").split("\n")[0];
  if (/^https:/.test(address)) askTyped(address);
}
