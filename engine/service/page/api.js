// The gateway's HTTP API. Ids are strings here, because JavaScript numbers hold 53 bits and ids have 63.

const ID = /([{,]"id":)(\d+)/g; // cannot match inside a string, where quotes are escaped
const KEY = "hashlight-key";

export class ApiError extends Error {
  constructor(status, { message, field } = {}) {
    super(message ?? `the server answered with status ${status}`);
    this.status = status;
    this.field = field ?? null;
  }
}

export function setKey(secret) {
  sessionStorage.setItem(KEY, secret);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (hasKey()) headers.set("Authorization", `Bearer ${sessionStorage.getItem(KEY)}`);
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const text = await response.text();
  let problem;
  try {
    problem = JSON.parse(text).error;
  } catch {
    problem = { message: text.slice(0, 200) || undefined }; // for example a proxy's error page
  }
  throw new ApiError(response.status, problem);
}

async function json(path, options) {
  return JSON.parse((await (await request(path, options)).text()).replace(ID, '$1"$2"'));
}

export function describeCollection() {
  return json("v1/collection");
}

export async function encode(image) {
  const form = new FormData();
  form.append("image", image);
  return (await json("v1/encode", { method: "POST", body: form })).codes[0];
}

// `query` is {code}, {id} or {text}; `kind` is "search" or "range_search".
export function find(kind, query, options, signal) {
  const asked = query.id === undefined ? JSON.stringify(query) : `{"id":${query.id}}`;
  const rest = JSON.stringify({ ...options, include: ["attributes", "code"] });
  return json(`v1/${kind}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: `{"queries":[${asked}],${rest.slice(1)}`,
    signal,
  });
}

export function thumbnailPath(id) {
  return `v1/items/${id}/thumbnail`;
}

// An image element sends no key, so pictures that need one are fetched and shown from memory.
export async function thumbnailFromMemory(id) {
  return URL.createObjectURL(await (await request(thumbnailPath(id))).blob());
}
