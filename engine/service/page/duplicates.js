// Groups of near-duplicates, as the job of that name found them, side by side and page by page.

import * as api from "./api.js";
import { titleOf } from "./chips.js";
import { t } from "./texts.js";
import { button, element } from "./view.js";

const PAGE = 20;

export class Duplicates {
  constructor() {
    this.groups = [];
    this.next = 0;
    this.found = null;
  }

  // The next page; false if this server knows no groups.
  async more(signal) {
    const page = await api.duplicates(this.next, PAGE, signal);
    if (!page) return false;
    const ids = [...new Set(page.groups.flatMap((group) => group.items.map((item) => item.id)))];
    const stored = ids.length ? await api.items(ids, signal) : [];
    const byId = new Map(stored.map((item) => [item.id, item]));
    for (const group of page.groups) {
      const hits = group.items.filter(({ id }) => byId.has(id)).map((item) => ({ ...byId.get(item.id), distance: item.distance ?? undefined }));
      hits.sort((one, other) => one.distance - other.distance || 0);
      if (hits.length) this.groups.push({ ...group, hits });
    }
    Object.assign(this, { next: page.next, found: page.found });
    return true;
  }

  // As the gallery shows them.
  shown() {
    return this.groups.map(({ hits, size, representative }) => {
      const name = titleOf(hits.find((hit) => hit.id === String(representative.id)) ?? representative);
      const some = hits.length < size ? t("someShown", { count: hits.length }) : "";
      const texts = [t("pictures", { count: size }), some + t("groupOf", { name })];
      const heading = () => element("h3", {}, element("b", {}, texts[0]), element("span", {}, texts[1]));
      return { key: `group ${representative.id}`, heading, hits };
    });
  }

  groupOf(hit) {
    return this.groups.find((group) => group.hits.some((one) => one.id === hit.id));
  }

  title() {
    return t("duplicatesFound", { count: this.found.clusters, removable: this.found.removable });
  }

  foot(onMore) {
    return this.next === null ? [] : [button(t("showMore"), onMore, { className: "primary" })];
  }
}
