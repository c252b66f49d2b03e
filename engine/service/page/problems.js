// What went wrong, in the page's own words.

import { OfflineError } from "./api.js";
import { number, t } from "./texts.js";

const BY_STATUS = {
  401: "locked",
  403: "forbidden",
  408: "tooSlow",
  413: "tooLarge",
  429: "busy",
  502: "notReady",
  503: "notReady",
  504: "tooSlow",
};

// {name, title, text}: `name` says which kind it is.
export function told(problem, { collection = null, filter = "", example = "" } = {}) {
  const name = nameOf(problem);
  const values = {};
  if (name === "filter") {
    values.place = filter.slice(Number(/at character (\d+)/.exec(problem.message)?.[1] ?? 0)) || filter;
    values.example = example;
    values.names = Object.keys(collection?.attributes ?? {}).concat("id").join(", ");
  }
  if (name === "tooLarge") values.size = number.format(Math.floor((collection?.limits.body_bytes ?? 0) / 1e6));
  return { name, title: t(`problem.${name}`), text: t(`problem.${name}.text`, values) };
}

function nameOf(problem) {
  if (problem instanceof OfflineError) return "offline";
  const field = problem.field ?? "";
  if (field === "filter") return "filter";
  if (problem.type === "id_not_found") return "notFound";
  if (problem.type === "no_encoder") return "noEncoder";
  if (BY_STATUS[problem.status]) return BY_STATUS[problem.status];
  if (/^images|^image$/.test(field)) return "picture";
  if (/url$/.test(field)) return "address";
  if (/code$/.test(field)) return "code";
  return "other";
}
