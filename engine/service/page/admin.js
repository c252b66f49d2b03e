// The page for operators: what /v1/admin tells, as tables, and going back to an earlier version.

import "./admin-texts.js";
import { language, localize, number, switchLanguage, t } from "./texts.js";

const KEY = "hashlight-admin-key";
const ID = /([{,]"id":)(\d+)/g; // ids have 63 bits, JavaScript numbers 53; this cannot match inside a string
const TAKEN_UP_MS = 3000; // for servers to take a version up
const LOCKED = { 401: "wrong", 403: "forbidden" };
const BUSY = [429, 502, 503, 504];

const byId = (id) => document.getElementById(id);
const when = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "medium" });
const seconds = new Intl.NumberFormat(language, { maximumSignificantDigits: 3 });

let readAt = null;
let overview = null;
let seen = null; // shows pictures as they are scrolled to

class Problem extends Error {
  constructor(status, { type = null, request_id: request = null } = {}) {
    super(`status ${status}`);
    Object.assign(this, { status, type, request });
  }
}

// Asks the server; status 0 if it cannot be reached.
async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Problem(0);
  }
  if (answer.ok) return answer;
  let told = {};
  try {
    told = JSON.parse(await answer.text()).error;
  } catch {
    // for example a proxy's page
  }
  throw new Problem(answer.status, told);
}

async function read(path) {
  return JSON.parse((await (await ask(`v1/admin/${path}`)).text()).replace(ID, '$1"$2"'));
}

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// `columns` are [title, class]; each row has a cell, text or an element, for each column.
function table(caption, columns, rows) {
  const head = columns.map(([title, kind]) => element("th", { scope: "col", class: kind ?? "" }, title));
  const body = rows.map((cells) =>
    element("tr", {}, ...cells.map((cell, place) => {
      const kind = columns[place][1] ?? "";
      return place ? element("td", { class: kind }, cell) : element("th", { scope: "row", class: kind }, cell);
    })),
  );
  return element("div", { class: "frame", tabindex: 0, role: "region", "aria-label": caption }, element("table", {},
    element("caption", { class: "hidden" }, caption),
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...body),
  ));
}

function nothing(text) {
  return element("p", { class: "empty" }, text);
}

function sized(bytes) {
  const step = bytes < 1e6 ? ["kilobyte", 1e3] : bytes < 1e9 ? ["megabyte", 1e6] : ["gigabyte", 1e9];
  const style = { style: "unit", unit: step[0], maximumSignificantDigits: 3 };
  return new Intl.NumberFormat(language, style).format(bytes / step[1]);
}

function shownDate(text) {
  return text ? when.format(new Date(text)) : "";
}

function showOverview(told) {
  const { coverage, pending, write_log: log } = told;
  const facts = [
    [t("admin.version"), number.format(told.version)],
    [t("admin.items"), number.format(told.items)],
    [t("admin.shards"), number.format(told.shards)],
    [t("admin.bits"), number.format(told.bits)],
    [t("admin.coverage"), ...coverageText(coverage)],
    [t("admin.log"), log ? number.format(log.writes) : t("admin.log.readOnly")],
    [t("admin.encoder"), told.encoder ? told.encoder.slice(0, 12) : t("admin.unknown")],
    [t("admin.location"), told.location ?? t("admin.unknown")],
  ];
  if (pending) {
    const { attempts: count, error } = pending;
    facts.push([t("admin.pending"), pending.version ?? "?", "fault", t("admin.pending.text", { count, error })]);
  }
  byId("overview").replaceChildren(...facts.map(([name, value, kind, more]) =>
    element("div", {}, element("dt", {}, name), element("dd", { class: kind ?? "" }, String(value),
      ...(more ? [element("small", {}, more)] : []))),
  ));
}

function coverageText(coverage) {
  if (!coverage) return [t("admin.coverage.nothing"), "fault"];
  if (coverage.complete) return [t("admin.complete"), "good"];
  const reasons = [...new Set(Object.values(coverage.degraded))].join("; ");
  return [t("admin.coverage.part", { some: coverage.answered, all: coverage.shards }), "warn", reasons];
}

function showVersions({ versions }) {
  const writable = overview?.write_log !== null;
  const rows = versions.map((one) => [
    number.format(one.version),
    shownDate(one.written),
    t(`admin.operation.${one.operation}`),
    changeText(one),
    number.format(one.deleted_rows),
    number.format(one.shards),
    sized(one.bytes),
    element("span", {}, ...[...(one.live ? [t("admin.live")] : []), ...one.tags].flatMap((tag) => [
      element("span", { class: "tag" }, tag), " ",
    ])),
    one.live || !writable ? "" : rollBackButton(one),
  ]);
  const columns = [
    [t("admin.version")], [t("admin.written")], [t("admin.operation")], [t("admin.items"), "number"],
    [t("admin.deletedRows"), "number"], [t("admin.shards"), "number"], [t("admin.size"), "number"], [t("admin.tags")],
    [element("span", { class: "hidden" }, t("admin.rollBack"))],
  ];
  const made = [table(t("admin.versions.caption"), columns, rows)];
  if (!writable) made.push(element("p", { class: "more" }, t("admin.rollBack.readOnly")));
  byId("versions").replaceChildren(...made);
}

function changeText({ items, items_before: before }) {
  const change = before === null ? 0 : items - before;
  const sign = new Intl.NumberFormat(language, { signDisplay: "always" });
  return change ? `${number.format(items)} (${sign.format(change)})` : number.format(items);
}

function rollBackButton(one) {
  const label = t("admin.rollBackTo", { version: one.version });
  const button = element("button", { type: "button", "aria-label": label }, t("admin.rollBack"));
  button.addEventListener("click", () => confirmRollBack(one));
  return button;
}

function confirmRollBack({ version, items }) {
  byId("confirm-title").textContent = t("admin.confirm", { version });
  byId("confirm-text").textContent = t("admin.confirm.text", { version, items });
  byId("confirm-problem").hidden = true;
  byId("confirm-go").disabled = false;
  byId("confirm-go").onclick = () => rollBack(version);
  byId("confirm").showModal();
}

async function rollBack(version) {
  const button = byId("confirm-go");
  button.disabled = true;
  try {
    const headers = { "Content-Type": "application/json" };
    const answer = await ask("v1/admin/rollback", { method: "POST", headers, body: JSON.stringify({ version }) });
    const made = await answer.json();
    byId("confirm").close();
    await load();
    byId("state").textContent = t("admin.rolledBack", { version: made.version });
    setTimeout(load, TAKEN_UP_MS);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    const why = { read_only: "readOnly", conflict: "pending", not_found: "gone" }[problem.type] ?? "failed";
    byId("confirm-problem").textContent = t(`admin.rollBack.${why}`);
    byId("confirm-problem").hidden = false;
    button.disabled = false;
  }
}

function showServers({ servers }) {
  if (!servers.length) {
    byId("servers").replaceChildren(nothing(t("admin.servers.none")));
    return;
  }
  const rows = servers.map((one) => [
    one.address,
    number.format(one.group),
    one.versions.map((version) => number.format(version)).join(", "),
    stateOf(one),
    one.last_answer_s === null ? t("admin.never") : t("admin.ago", { seconds: seconds.format(one.last_answer_s) }),
    number.format(one.under_way),
    breakerText(one),
  ]);
  const columns = [
    [t("admin.address")], [t("admin.group"), "number"], [t("admin.has")], [t("admin.state"), "wide"],
    [t("admin.lastAnswer"), "number"], [t("admin.underWay"), "number"], [t("admin.breaker")],
  ];
  byId("servers").replaceChildren(table(t("admin.servers.caption"), columns, rows));
}

function stateOf({ state, fault }) {
  const kind = state === "connected" && !fault ? "good" : state === "lost" ? "fault" : "warn";
  return element("span", {}, element("span", { class: kind }, t(`admin.state.${state}`)), fault ? ` (${fault})` : "");
}

function breakerText({ breaker_s: left, breakers_opened: count }) {
  const times = count ? t("admin.breaker.times", { count }) : "";
  const still = left > 0 ? t("admin.breaker.open", { seconds: seconds.format(left) }) : "";
  return [times, still].filter(Boolean).join(", ");
}

function showSlow({ threshold_s: threshold, queries }) {
  if (threshold === null || !queries.length) {
    const value = { seconds: seconds.format(threshold ?? 0) };
    byId("slow").replaceChildren(nothing(threshold === null ? t("admin.slow.off") : t("admin.slow.none", value)));
    return;
  }
  const rows = queries.map((one) => {
    const asked = ["queries", "k", "radius", "limit", "filter"].filter((name) => one[name] !== undefined);
    const how = element("details", {}, element("summary", {}, one.plan ?? String(one.status)));
    how.append(element("pre", {}, JSON.stringify(detailsOf(one), null, 1)));
    return [
      shownDate(one.ended), `${seconds.format(one.ms)} ms`, one.path,
      asked.map((name) => `${name} ${one[name]}`).join(", "), how,
    ];
  });
  const columns = [
    [t("admin.ended")], [t("admin.took"), "number"], [t("admin.path")], [t("admin.asked"), "wide"], [t("admin.how")],
  ];
  byId("slow").replaceChildren(table(t("admin.slow.caption"), columns, rows));
}

function detailsOf({ request_id, status, version, coverage, timing_ms, explain }) {
  return { request_id, status, version, coverage, timing_ms, explain };
}

function showRejects(told) {
  seen?.disconnect();
  seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) showPicture(target);
  });
  if (!told.rejects.length) {
    byId("rejects").replaceChildren(nothing(t("admin.rejects.none")));
    return;
  }
  const kinds = Object.entries(told.kinds).map(([kind, count]) => t("admin.rejects.kinds", { kind, count }));
  const columns = [
    [t("admin.id")], [t("admin.picture")], [t("admin.kind")], [t("admin.reason"), "wide"], [t("admin.uri"), "wide"],
  ];
  const made = table(t("admin.rejects.caption"), columns, told.rejects.map(rejectRow));
  byId("rejects").replaceChildren(element("p", {}, kinds.join(", ")), made);
  offerMore(told.next, made.querySelector("tbody"));
  watchPictures(made);
}

function rejectRow({ number: place, id, uri, kind, reason }) {
  return [id ?? "", element("span", { "data-picture": place, "data-id": id ?? "" }), kind, reason, uri ?? ""];
}

function offerMore(next, body) {
  if (next === null) return;
  const button = element("button", { type: "button", class: "more" }, t("admin.more"));
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const told = await read(`rejects?after=${next}`);
      const more = told.rejects.map((row) => {
        const [id, ...cells] = rejectRow(row);
        return element("tr", {}, element("th", { scope: "row" }, id), ...cells.map((cell) => element("td", {}, cell)));
      });
      body.append(...more);
      more.forEach(watchPictures);
      button.remove();
      offerMore(told.next, body);
    } catch (problem) {
      button.disabled = false;
      complain(problem);
    }
  });
  byId("rejects").append(button);
}

function watchPictures(root) {
  for (const place of root.querySelectorAll("[data-picture]")) seen.observe(place);
}

// Not by the address of an image element, which would send no key.
async function showPicture(place) {
  seen.unobserve(place);
  try {
    const data = await (await ask(`v1/admin/rejects/${place.dataset.picture}/picture`)).blob();
    const picture = element("img", { alt: t("admin.picture.of", { id: place.dataset.id }) });
    picture.addEventListener("error", () => (place.textContent = t("admin.picture.none")));
    picture.src = URL.createObjectURL(data);
    place.replaceChildren(picture);
  } catch {
    place.textContent = t("admin.picture.none");
  }
}

function lock(why) {
  sessionStorage.removeItem(KEY);
  byId("locked-title").textContent = t(`admin.${why}`);
  byId("locked-text").textContent = t(`admin.${why}.text`);
  byId("locked").hidden = false;
  byId("tables").hidden = true;
  byId("forget").hidden = true;
  byId("state").textContent = "";
  document.body.dataset.view = "locked";
  byId("key").value = "";
  byId("key").focus();
}

// Says what went wrong; what was read before stays.
function complain(problem) {
  if (!(problem instanceof Problem)) throw problem;
  if (LOCKED[problem.status]) {
    lock(problem.status === 401 && !sessionStorage.getItem(KEY) ? "locked" : LOCKED[problem.status]);
    return;
  }
  const time = readAt ? when.format(readAt) : "–";
  const name = problem.status === 0 ? "offline" : BUSY.includes(problem.status) ? "busy" : "fault";
  byId("banner").textContent = t(`admin.${name}`, { time, status: problem.status, request: problem.request ?? "–" });
  byId("banner").hidden = false;
}

// Shows one table, or what there is to say in its place: {status: text}.
async function fill(id, path, show, instead = {}) {
  try {
    show(await read(path));
  } catch (problem) {
    if (!(problem instanceof Problem) || !(problem.status in instead)) throw problem;
    byId(id).replaceChildren(nothing(t(instead[problem.status])));
  }
}

async function load() {
  byId("banner").hidden = true;
  byId("state").textContent = t("admin.reading");
  byId("refresh").disabled = true;
  try {
    overview = await read("collection");
    showOverview(overview);
    await Promise.all([
      fill("versions", "versions", showVersions, { 404: "admin.versions.nowhere" }),
      fill("servers", "servers", showServers),
      fill("slow", "slow_queries", showSlow),
      fill("rejects", "rejects", showRejects, { 404: "admin.rejects.unknown", 503: "admin.rejects.notYet" }),
    ]);
    readAt = new Date();
    byId("state").textContent = t("admin.read", { time: when.format(readAt) });
    byId("locked").hidden = true;
    byId("tables").hidden = false;
    byId("forget").hidden = sessionStorage.getItem(KEY) === null;
    document.body.dataset.view = "tables";
  } catch (problem) {
    byId("state").textContent = "";
    complain(problem);
  } finally {
    byId("refresh").disabled = false;
  }
  await offerCollections();
}

// Of several collections, each has its page: /collections/NAME/admin.
async function offerCollections() {
  const found = /^(.*\/)collections\/([^/]+)\/admin$/.exec(location.pathname);
  if (!found || !byId("choice").hidden || document.body.dataset.view !== "tables") return;
  const [, root, here] = found;
  const told = JSON.parse(await (await ask(`${root}v1/admin/collections`)).text());
  byId("collections").replaceChildren(...told.collections.map(({ name }) => new Option(name, name)));
  byId("collections").value = decodeURIComponent(here);
  byId("collections").addEventListener("change", (event) => {
    location.pathname = `${root}collections/${encodeURIComponent(event.target.value)}/admin`;
  });
  byId("choice").hidden = told.collections.length < 2;
}

localize();
document.title = `Hashlight: ${t("admin.title")}`;
byId("language").lang = language === "en" ? "de" : "en";
byId("language").addEventListener("click", switchLanguage);
byId("refresh").addEventListener("click", load);
byId("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  lock("locked");
});
byId("locked").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  load();
});
window.addEventListener("online", load);
await load();
