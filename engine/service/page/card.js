// A picture of a query and its nearest answers, to be shared.

import { load } from "./pictures.js";
import { t, time } from "./texts.js";
import { save } from "./view.js";

const [WIDTH, HEIGHT, EDGE, GAP] = [1200, 630, 48, 14];
const [COLUMNS, ROWS] = [3, 2];
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

// `query`: {code, picture, name}; `answer`: {seen, coverage, results}.
export async function saveCard(query, answer) {
  const hits = answer.seen.filter((hit) => hit.code !== query.code || hit.distance > 0).slice(0, COLUMNS * ROWS);
  const canvas = Object.assign(document.createElement("canvas"), { width: WIDTH, height: HEIGHT });
  const at = canvas.getContext("2d");
  const colours = getComputedStyle(document.documentElement);
  const colour = (name) => colours.getPropertyValue(`--${name}`).trim();
  at.fillStyle = colour("ground");
  at.fillRect(0, 0, WIDTH, HEIGHT);
  const top = EDGE + 54;
  const side = (HEIGHT - top - EDGE - 46 - GAP) / ROWS;
  const first = WIDTH - EDGE - COLUMNS * side - (COLUMNS - 1) * GAP;
  const asked = { x: EDGE, y: top, width: first - 2 * GAP - EDGE, height: ROWS * side + GAP };
  await place(at, query.picture, asked, colour("accent"));
  for (const [i, hit] of hits.entries()) {
    const x = first + (i % COLUMNS) * (side + GAP);
    const y = top + Math.floor(i / COLUMNS) * (side + GAP);
    await place(at, await load(hit), { x, y, width: side, height: side }, colour("line"));
    pill(at, x + 8, y + side - 32, String(hit.distance));
  }
  write(at, "Hashlight", EDGE, EDGE + 24, `650 28px ${FONT}`, colour("ink"));
  const { explain } = answer.results[0];
  const codes = t("badgeCodes", { some: answer.coverage.searched, all: answer.coverage.codes });
  const proof = answer.coverage.complete ? t("exact") : t("partial");
  const took = explain ? ` · ${time.format(1000 * explain.seconds)} ms` : "";
  write(at, `${proof}: ${codes}${took}`, EDGE, HEIGHT - EDGE, `20px ${FONT}`, colour("soft"));
  at.textAlign = "right";
  write(at, t("nearestOf", { count: hits.length }), WIDTH - EDGE, EDGE + 24, `20px ${FONT}`, colour("soft"));
  save("hashlight.png", "image/png", await new Promise((resolve) => canvas.toBlob(resolve, "image/png")));
}

// A picture in the middle of its frame, whole.
async function place(at, picture, { x, y, width, height }, edge) {
  const frame = new Path2D();
  frame.roundRect(x, y, width, height, 16);
  at.fillStyle = "#fff";
  at.fill(frame);
  if (picture) {
    const image = new Image();
    image.src = picture.url;
    await image.decode();
    const scale = Math.min(width / picture.width, height / picture.height);
    const [wide, high] = [picture.width * scale, picture.height * scale];
    at.save();
    at.clip(frame);
    at.imageSmoothingQuality = "high";
    at.drawImage(image, x + (width - wide) / 2, y + (height - high) / 2, wide, high);
    at.restore();
  }
  at.lineWidth = 3;
  at.strokeStyle = edge;
  at.stroke(frame);
}

function pill(at, x, y, text) {
  at.font = `650 15px ${FONT}`;
  at.fillStyle = "rgb(20 21 26 / 80%)";
  at.beginPath();
  at.roundRect(x, y, at.measureText(text).width + 20, 24, 12);
  at.fill();
  at.fillStyle = "#fff";
  at.fillText(text, x + 10, y + 17);
}

function write(at, text, x, y, font, colour) {
  at.font = font;
  at.fillStyle = colour;
  at.fillText(text, x, y);
}
