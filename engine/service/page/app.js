// The page: `state` holds the query, and every change to it starts a new search.

import { ApiError, describeCollection, encode, find, setKey } from "./api.js";
import { parseQuery, randomCode, readAddress, toAddress } from "./state.js";
import { card, codePattern, collectionLine, element, statusLine, thumbnail } from "./view.js";

const RANGE_LIMIT = 200;
const MAX_RADIUS = 32;
const TYPING_MS = 250;
// Browsers throttle pages that change their address too often, as a moving slider would.
const writeAddress = later(() => history.replaceState(null, "", toAddress(state)));

const byId = (id) => document.getElementById(id);
const [ask, drop, file, words, text] = ["ask", "drop", "file", "words", "text"].map(byId);
const [answers, error, status] = ["answers", "error", "status"].map(byId);

let collection = null;
let state = readAddress(location);
let chosen = null; // {code, url, name} of the chosen image, until the next query
let running = null;

start();

async function start() {
  try {
    collection = await describeCollection();
  } catch (problem) {
    return showError(problem);
  }
  byId("key").hidden = true;
  byId("collection").textContent = collectionLine(collection);
  byId("k").max = Math.min(200, collection.limits.k);
  byId("radius").max = Math.min(MAX_RADIUS, collection.bits);
  const kinds = Object.entries(collection.attributes).map(([name, type]) => `${name} (${type})`);
  byId("attributes").textContent = kinds.length ? `Attributes: ${kinds.join(", ")}` : "The images have no attributes.";
  byId("filter").disabled = !kinds.length;
  byId("words-label").hidden = !collection.encodes_texts;
  if (!collection.encodes_images) {
    byId("hint").textContent = "This server does not encode images: enter an id or a code, or click one of the answers.";
    file.disabled = true;
    file.parentElement.hidden = true;
  }
  showState();
  return search();
}

// Apply a change. A new query gets its own step in the history; a moved slider does not.
function change(update, { isNewQuery = false } = {}) {
  if (isNewQuery) history.replaceState(null, "", toAddress(state));
  state = { ...state, ...update };
  if (isNewQuery) history.pushState(null, "", toAddress(state));
  else writeAddress();
  showState();
  return search();
}

function showState() {
  ask.elements.mode.value = state.mode;
  for (const name of ["k", "radius"]) {
    byId(name).value = state[name];
    byId(`${name}-value`).textContent = state[name];
  }
  byId("k-label").hidden = state.mode !== "search";
  byId("radius-label").hidden = state.mode !== "range_search";
  if (document.activeElement !== byId("filter")) byId("filter").value = state.filter;
  if (document.activeElement !== words) words.value = state.query?.text ?? "";
  if (document.activeElement !== text) text.value = state.query?.id ?? state.query?.code ?? "";
  showQuery();
}

function showQuery() {
  const { query } = state;
  byId("shown").hidden = query === null;
  byId("hint").hidden = query !== null;
  if (query === null) return;
  const [picture, caption] = shownOf(query);
  byId("shown").firstElementChild.replaceWith(picture);
  byId("shown").lastElementChild.textContent = caption;
}

function shownOf(query) {
  if (query.text !== undefined) return [element("div", { className: "picture", hidden: true }), query.text];
  if (query.id !== undefined) return [thumbnail(query.id, "", `Item ${query.id}`), `Item ${query.id}`];
  const isChosen = chosen !== null && chosen.code === query.code;
  const picture = isChosen ? element("img", { src: chosen.url, alt: chosen.name }) : codePattern(query.code);
  return [element("div", { className: "picture" }, picture), isChosen ? chosen.name : `Code ${query.code}`];
}

// Only the latest search is shown; earlier ones are aborted.
async function search() {
  running?.abort();
  const mine = (running = new AbortController());
  const begin = performance.now();
  const options = state.mode === "search" ? { k: state.k } : { radius: state.radius, limit: RANGE_LIMIT };
  if (state.filter) options.filter = state.filter;
  answers.ariaBusy = "true";
  try {
    const query = state.query ?? { code: randomCode(collection.bits) };
    const answer = await find(state.mode, query, options, mine.signal);
    error.hidden = true;
    showAnswer(answer, performance.now() - begin);
  } catch (problem) {
    if (problem.name !== "AbortError") showError(problem);
  } finally {
    if (running === mine) answers.ariaBusy = "false";
  }
}

function showAnswer(answer, elapsedMs) {
  status.replaceChildren(statusLine(answer, elapsedMs));
  if (state.query === null) status.prepend("A sample of the collection: ");
  const more = (hit) => change({ query: { id: hit.id } }, { isNewQuery: true });
  answers.replaceChildren(...answer.results[0].hits.map((hit) => card(hit, more)));
}

function showError(problem) {
  if (problem instanceof ApiError && problem.status === 401) {
    byId("key").hidden = false;
    byId("secret").focus();
  }
  const field = problem.field ? `${problem.field}: ` : "";
  error.textContent = problem instanceof TypeError ? "The server cannot be reached." : `${field}${problem.message}`;
  error.hidden = false;
  status.replaceChildren();
  answers.replaceChildren();
}

async function bring(image) {
  status.textContent = "Encoding the image…";
  try {
    const code = await encode(image);
    if (chosen) URL.revokeObjectURL(chosen.url);
    chosen = { code, url: URL.createObjectURL(image), name: image.name || "Pasted image" };
    await change({ query: { code } }, { isNewQuery: true });
  } catch (problem) {
    showError(problem);
  }
}

function later(work) {
  let timer;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(work, TYPING_MS, ...values);
  };
}

ask.addEventListener("submit", (event) => event.preventDefault());
ask.elements.mode.forEach((choice) => choice.addEventListener("change", () => change({ mode: choice.value })));
for (const name of ["k", "radius"]) {
  byId(name).addEventListener("input", (event) => change({ [name]: event.target.valueAsNumber }));
}
byId("filter").addEventListener("input", later((event) => change({ filter: event.target.value.trim() })));
words.addEventListener("input", later(() => {
  const given = words.value.trim();
  change({ query: given ? { text: given } : null }, { isNewQuery: true });
}));
text.addEventListener("input", later(() => {
  try {
    const query = parseQuery(text.value, collection.bits);
    change({ query }, { isNewQuery: true });
  } catch (problem) {
    showError(problem);
  }
}));
file.addEventListener("change", () => file.files.length && bring(file.files[0]));
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("secret").value);
  start();
});

for (const [kind, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", over);
  });
}
document.addEventListener("drop", (event) => imageOf(event.dataTransfer));
document.addEventListener("paste", (event) => imageOf(event.clipboardData));

function imageOf(transfer) {
  const image = Array.from(transfer.files).find((one) => one.type.startsWith("image/"));
  if (image && collection?.encodes_images) bring(image);
}

answers.addEventListener("keydown", (event) => {
  const buttons = Array.from(answers.querySelectorAll("button"));
  const columns = getComputedStyle(answers).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  const next = buttons[buttons.indexOf(event.target) + step];
  if (next) {
    event.preventDefault();
    next.focus();
  }
});

addEventListener("popstate", () => {
  state = readAddress(location);
  showState();
  if (collection) search();
});
