// The gateway's HTTP API. Ids are strings here, because JavaScript numbers hold 53 bits and ids have 63.

const KEY = "hashlight-key";
// Neither can match inside a string, where quotes are escaped.
const ID = /([{,]"id":)(\d+)/g;
const LONG = /(?<!\\)(":)(-?\d{16,})(?=[,}])/g;

export class ApiError extends Error {
  constructor(status, { type, message, field, request_id: request } = {}) {
    super(message ?? `status ${status}`);
    Object.assign(this, { status, type: type ?? null, field: field ?? null, request: request ?? null });
  }
}

export class OfflineError extends Error {}

export function setKey(secret) {
  sessionStorage.setItem(KEY, secret);
}

export function forgetKey() {
  sessionStorage.removeItem(KEY);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

function authorization() {
  return hasKey() ? { Authorization: `Bearer ${sessionStorage.getItem(KEY)}` } : {};
}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...options.headers, ...authorization() } });
  } catch (problem) {
    throw problem.name === "AbortError" ? problem : new OfflineError(problem.message);
  }
  if (!response.ok) throw errorOf(response.status, await response.text());
  return response;
}

function errorOf(status, text) {
  try {
    return new ApiError(status, JSON.parse(text).error);
  } catch {
    return new ApiError(status); // for example a proxy's error page
  }
}

function parse(text) {
  return JSON.parse(text.replace(ID, '$1"$2"').replace(LONG, '$1"$2"'));
}

async function json(path, options) {
  return parse(await (await request(path, options)).text());
}

function post(path, body, signal) {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  return json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: text, signal });
}

// Null if this server does not have the path, or nothing to say there.
async function optional(answer) {
  try {
    return await answer;
  } catch (problem) {
    if ([404, 405, 501].includes(problem.status)) return null;
    throw problem;
  }
}

export function describeCollection() {
  return json("v1/collection");
}

// The code of an image. Not by `fetch`, which does not tell how much has been sent.
export function encodeImage(image, { onProgress, signal } = {}) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("image", image);
    const sending = new XMLHttpRequest();
    sending.open("POST", "v1/encode");
    for (const [name, value] of Object.entries(authorization())) sending.setRequestHeader(name, value);
    sending.upload.addEventListener("progress", (event) => onProgress?.(event.loaded / event.total));
    sending.addEventListener("load", () => {
      if (sending.status === 200) resolve(parse(sending.responseText).codes[0]);
      else reject(errorOf(sending.status, sending.responseText));
    });
    sending.addEventListener("error", () => reject(new OfflineError("no connection")));
    sending.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal?.addEventListener("abort", () => sending.abort());
    sending.send(form);
  });
}

// The code of a query: {id}, {text}, {url} or {vector}.
export async function encodeQuery(query, signal) {
  const asked = query.id === undefined ? JSON.stringify(query) : `{"id":${query.id}}`;
  return (await post("v1/encode", `{"queries":[${asked}]}`, signal)).codes[0];
}

// `kind` is "search" or "range_search".
export function find(kind, code, options, signal) {
  const { after, ...rest } = options;
  const body = { queries: [{ code }], ...rest, include: ["attributes", "code", "explain"] };
  const text = JSON.stringify(body);
  const next = after && `,"after":{"version":${after.version},"distance":${after.distance},"id":${after.id}}}`;
  return post(`v1/${kind}`, next ? text.slice(0, -1) + next : text, signal);
}

// How many items lie at each distance from a code: a number for each of 0 to `bits`.
export async function histogram(code, filter, signal) {
  const asked = { queries: [{ code }], allow_partial: true, ...(filter && { filter }) };
  return (await optional(post("v1/histogram", asked, signal)))?.results[0].counts ?? null;
}

export async function facets(column, filter, limit, signal) {
  return (await post("v1/facets", { column, limit, ...(filter && { filter }) }, signal)).values;
}

// Items that stand for the collection; those with the lowest ids if the server does not choose any.
export async function representatives(count, filter, signal) {
  const chosen = filter ? null : await optional(json(`v1/representatives?count=${count}`, { signal }));
  return (chosen ?? (await post("v1/scroll", { limit: count, ...(filter && { filter }) }, signal))).items;
}

export async function items(ids, signal) {
  return (await json(`v1/items?ids=${ids.join(",")}`, { signal })).items;
}

export function duplicates(after, limit, signal) {
  const page = new URLSearchParams({ limit, ...(after !== null && { after }) });
  return optional(json(`v1/duplicates?${page}`, { signal }));
}

// The file of an item's picture; null if it has none. An image element would send no key. The code names the picture
// for caches, so that one that replaces it is fetched.
export async function thumbnail(id, code, signal) {
  const answer = await optional(request(`v1/items/${id}/thumbnail?code=${code}`, { signal }));
  return answer && answer.blob();
}
