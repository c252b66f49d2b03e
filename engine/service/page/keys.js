// The keys of the page; `dialogs.js` lists them.

import { ask, change, chipOfHit } from "./asking.js";
import { showKeys } from "./dialogs.js";
import { inspect, leave } from "./looking.js";
import { page } from "./page.js";
import { byId } from "./view.js";

const KEYS = {
  "/": () => byId("query").focus(),
  "?": () => showKeys(),
  "+": () => step(1),
  "-": () => step(-1),
  m: (hit) => hit && ask([chipOfHit(hit)]),
  n: (hit) => hit && page.answer && page.inspector.acts.less.run(hit),
  c: (hit) => hit && page.answer && page.inspector.acts.compare.run(hit),
  x: (hit) => hit && page.selection.toggle(hit),
};

export function pressed(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || byId("dialog").open) return;
  const isTyping = event.target.matches("input:not([type=range]), select, textarea");
  if (event.key === "Escape") return escape(event.target);
  if (isTyping || !page.collection) return;
  if (moved(event)) return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act(hitOf(event.target) ?? page.inspector.hit);
}

function step(by) {
  if (!page.answer) return;
  const from = page.state.mode === "range_search" ? page.state.radius : (page.answer.hits.at(-1)?.distance ?? 0);
  change({ mode: "range_search", radius: Math.min(page.collection.bits, Math.max(0, from + by)) }, { isLive: true });
}

function hitOf(target) {
  const id = target.closest?.(".tile")?.dataset.id;
  return page.gallery.hits.find((hit) => hit.id === id);
}

function escape(target) {
  if (page.inspector.hit) return leave();
  if (document.body.classList.contains("controls")) return byId("grab").click();
  return target.blur();
}

function moved(event) {
  if (!/^(Arrow|Home|End)/.test(event.key)) return false;
  const tile = event.target.closest(".tile");
  const isNowhere = event.key.startsWith("Arrow") && !event.target.closest("input, select, #inspector");
  const next = tile ? page.gallery.neighbour(tile, event.key) : isNowhere && page.gallery.firstSeen();
  if (!next) return false;
  event.preventDefault();
  for (const one of byId("gallery").querySelectorAll('.open[tabindex="0"]')) one.tabIndex = -1;
  next.querySelector(".open").tabIndex = 0;
  next.querySelector(".open").focus();
  next.scrollIntoView({ block: "nearest" });
  if (page.inspector.hit && !page.inspector.isOver) inspect(hitOf(next), { isQuiet: true });
  return true;
}
