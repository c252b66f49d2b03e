// Looking closely: one answer in the inspector, or beside another.

import { ask, chipOfHit } from "./asking.js";
import { nameOf, titleOf } from "./chips.js";
import { open, showCompare } from "./dialogs.js";
import { page } from "./page.js";
import { known, load } from "./pictures.js";
import { t } from "./texts.js";
import { button, byId, element, toast } from "./view.js";

export function context() {
  const code = page.answer?.code ?? null;
  const isSelected = (id) => page.selection.has(id);
  return { code, bits: page.collection.bits, caption: page.caption, current: page.inspector.hit?.id ?? null, isSelected };
}

// The query as the inspector and the comparison show it.
export function askedFor() {
  const asked = page.state.chips.filter((chip) => !chip.not && !chip.upload);
  const [only] = asked;
  if (asked.length !== 1) return { code: page.answer.code, name: t("query"), picture: null };
  const picture = page.uploads.get(page.answer.code) ?? (only.kind === "id" ? known({ id: only.value, code: page.answer.code }) : null);
  return { code: page.answer.code, name: nameOf(only), picture };
}

export function inspect(hit, { isQuiet = false } = {}) {
  if (page.duplicates && hit) return compareInGroup(hit);
  if (!page.answer) return hit ? ask([chipOfHit(hit)]) : undefined;
  const asked = askedFor();
  page.inspector.show(asked, hit, page.collection.bits);
  const only = page.state.chips.find((chip) => !chip.not);
  if (!asked.picture && only?.kind === "id") {
    const item = { id: only.value, code: page.answer.code };
    if (known(item) === undefined) load(item).then((picture) => picture && page.inspector.query === asked && inspect(page.inspector.hit, { isQuiet: true }));
  }
  retouch();
  if (hit && !isQuiet && page.inspector.isOver) byId("inspector").querySelector(".close").focus();
}

// Beside the picture that stands for its group.
async function compareInGroup(hit) {
  const group = page.duplicates.groupOf(hit);
  const first = group.hits.find((one) => one.id === String(group.representative.id)) ?? group.hits[0];
  const other = hit === first ? (group.hits[1] ?? first) : hit;
  const query = { code: first.code, picture: await load(first), name: titleOf(first) };
  const again = button(t("more"), () => {
    byId("dialog").close();
    ask([chipOfHit(hit)]);
  });
  await showCompare(query, other, page.collection.bits, again);
}

// Close the inspector, back to the answer that it was of.
export function leave({ isQuiet = false } = {}) {
  const id = page.inspector.hit?.id;
  if (page.answer && !isQuiet) inspect(null, { isQuiet: true });
  else page.inspector.hide();
  if (id && !isQuiet) page.gallery.tiles.get(id)?.querySelector(".open").focus();
}

// Bring the tiles that are there up to date.
export function retouch() {
  for (const hit of page.gallery.hits) {
    const tile = page.gallery.tiles.get(hit.id);
    if (tile) page.tiles.update(tile, hit);
  }
  const select = byId("inspector").querySelector('[data-act="select"]');
  if (select && page.inspector.hit) select.textContent = t(page.selection.has(page.inspector.hit.id) ? "unselect" : "select");
}

// One tile is reached by Tab, the others from it by arrows.
export function placed() {
  const all = byId("gallery");
  document.body.dataset.whole = String(page.gallery.isWhole);
  if (!all.querySelector('.open[tabindex="0"]')) all.querySelector(".open")?.setAttribute("tabindex", "0");
}

export async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    toast(t("copied"));
  } catch {
    open("link", t("link"), element("input", { type: "text", readOnly: true, value: location.href, ariaLabel: t("link") }));
  }
}
