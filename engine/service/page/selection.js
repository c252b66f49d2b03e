// Answers that are picked out, and files of answers.

import { t } from "./texts.js";
import { button, byId, element, save } from "./view.js";

const FORMS = {
  csv: { kind: "text/csv", of: csvOf },
  json: { kind: "application/json", of: jsonOf },
  ids: { kind: "text/plain", of: (hits) => hits.map((hit) => `${hit.id}\n`).join("") },
};

export class Selection {
  // `onSearch(hits)` searches with those that are selected, `onChange()` is called whenever that are others.
  constructor({ onSearch, onChange }) {
    Object.assign(this, { onSearch, onChange });
    this.root = byId("selection");
    this.hits = new Map();
  }

  has(id) {
    return this.hits.has(id);
  }

  toggle(hit) {
    if (!this.hits.delete(hit.id)) this.hits.set(hit.id, hit);
    this.show();
  }

  clear() {
    this.hits.clear();
    this.show();
  }

  show() {
    const chosen = [...this.hits.values()];
    this.root.hidden = !chosen.length;
    document.body.classList.toggle("selecting", chosen.length > 0);
    this.root.replaceChildren(
      element("b", {}, t("selected", { count: chosen.length })),
      button(t("searchThese", { count: chosen.length }), () => this.onSearch(chosen), { className: "primary" }),
      ...exports(() => chosen),
      button(t("clear"), () => this.clear(), { className: "quiet" }),
    );
    this.onChange();
  }
}

// A button for each form of a file.
export function exports(hits) {
  return Object.entries(FORMS).map(([form, { kind, of }]) =>
    button(t(form), () => save(`hashlight.${form === "ids" ? "txt" : form}`, kind, of(hits())), {
      ariaLabel: t("saveAs", { form: t(form) }),
    }),
  );
}

export function csvOf(hits) {
  const columns = [...new Set(hits.flatMap((hit) => Object.keys(hit.attributes ?? {})))];
  const cells = (hit) => [hit.id, hit.distance ?? "", hit.code, ...columns.map((column) => hit.attributes?.[column] ?? "")];
  return [["id", "distance", "code", ...columns], ...hits.map(cells)].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

function cell(value) {
  const text = typeof value === "object" ? JSON.stringify(value) : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// Ids are numbers in the file, of all their digits.
export function jsonOf(hits) {
  const written = hits.map(({ id, distance, code, attributes }) => ({ id, distance, code, attributes }));
  return `${JSON.stringify(written, null, 1).replace(/^(\s*"id": )"(\d+)"/gm, "$1$2")}\n`;
}
