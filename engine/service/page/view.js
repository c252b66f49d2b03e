// Turns answers into elements. Text is inserted as text, never as HTML.

import { hasKey, thumbnailFromMemory, thumbnailPath } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";
const count = new Intl.NumberFormat("en");
const time = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Shows the bits of a code as a pattern of squares if there is no picture.
export function codePattern(code) {
  const bits = Array.from(code, (digit) => parseInt(digit, 16).toString(2).padStart(4, "0")).join("");
  const side = Math.ceil(Math.sqrt(bits.length));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${side} ${side}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  const squares = Array.from(bits, (bit, place) =>
    bit === "1" ? `M${place % side} ${Math.floor(place / side)}h1v1h-1z` : "",
  );
  path.setAttribute("d", squares.join(""));
  path.setAttribute("fill", "currentColor");
  svg.append(path);
  return svg;
}

export function thumbnail(id, code, alt) {
  const image = element("img", { alt, loading: "lazy", decoding: "async" });
  const frame = element("div", { className: "picture" }, image);
  const giveUp = () => frame.replaceChildren(codePattern(code));
  image.addEventListener("error", giveUp, { once: true });
  if (hasKey()) {
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    thumbnailFromMemory(id).then((source) => (image.src = source), giveUp);
  } else {
    image.src = thumbnailPath(id);
  }
  return frame;
}

export function card(hit, onMore) {
  const distance = Number.isInteger(hit.distance) ? count.format(hit.distance) : time.format(hit.distance);
  const picture = element(
    "button",
    { type: "button", title: "More like this" },
    thumbnail(hit.id, hit.code, ""),
    element("span", { className: "distance", ariaHidden: "true" }, distance),
  );
  picture.setAttribute("aria-label", `More like item ${hit.id}, at distance ${distance}`);
  picture.addEventListener("click", () => onMore(hit));
  const facts = Object.entries({ id: hit.id, ...hit.attributes }).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, shown(value))),
  );
  return element("li", {}, picture, element("dl", {}, ...facts));
}

function shown(value) {
  if (value === null) return "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export function collectionLine({ rows, bits, shards, version }) {
  return `${count.format(rows)} images, ${bits} bits, ${shards} ${shards === 1 ? "shard" : "shards"}, version ${version}`;
}

// How much was found, how long it took (round trip, and in the server), and which part of the collection answered.
export function statusLine(answer, elapsedMs) {
  const [result] = answer.results;
  const { coverage } = answer;
  const found = result.hits.length;
  const inServer = Object.values(answer.timing_ms).reduce((sum, stage) => sum + stage, 0);
  const line = document.createDocumentFragment();
  line.append(
    `${count.format(found)} ${found === 1 ? "answer" : "answers"}${result.truncated ? ", and more" : ""} in `,
    `${time.format(elapsedMs)} ms (${time.format(inServer)} ms in the server), from ${coverage.answered} of `,
    `${coverage.shards} shards, ${count.format(coverage.searched)} codes`,
  );
  if (!coverage.complete) line.append(" ", element("strong", {}, "Not all shards answered."));
  return line;
}
