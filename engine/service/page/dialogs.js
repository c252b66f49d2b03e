// What opens over the page: how an answer came about, the keys, and two pictures compared.

import { titleOf } from "./chips.js";
import { load } from "./pictures.js";
import { number, t, time } from "./texts.js";
import { button, byId, element, factsOf, icon, pictureOf } from "./view.js";

const KEYS = [
  ["/", "keySearch"],
  ["← → ↑ ↓", "keyMove"],
  ["Enter", "keyOpen"],
  ["m", "more"],
  ["n", "less"],
  ["c", "compare"],
  ["x", "select"],
  ["+ −", "keyRadius"],
  ["Esc", "keyEscape"],
  ["?", "keyHelp"],
];

export function open(name, title, ...content) {
  const dialog = byId("dialog");
  const close = button([icon("close")], () => dialog.close(), { className: "quiet close", ariaLabel: t("close") });
  const top = element("div", { className: "top" }, element("h2", { id: "dialog-title" }, title), close);
  dialog.className = name;
  dialog.replaceChildren(top, ...content);
  if (!dialog.open) dialog.showModal();
  return dialog;
}

byId("dialog").addEventListener("click", ({ target, currentTarget }) => target === currentTarget && currentTarget.close());

export function showKeys() {
  const rows = KEYS.map(([keys, name]) => {
    const shown = keys.split(" ").map((key) => element("kbd", {}, key));
    return element("div", {}, element("dt", {}, ...shown), element("dd", {}, t(name)));
  });
  open("keys", t("keys"), element("dl", {}, ...rows));
}

// How one answer came about. `elapsedMs` is the whole way there and back.
export function showExplain(answer, elapsedMs) {
  const { coverage, timing_ms: timing, version } = answer;
  const { explain } = answer.results[0];
  const stages = Object.entries(timing).map(([stage, ms]) => `${t(`stage.${stage}`)} ${time.format(ms)}`).join(" · ");
  const share = (some, all) => (some === all ? t("ofAll", { all }) : t("ofSome", { some, all }));
  const pairs = [
    [t("how"), explain.plan.split(", then ").map((plan) => t(`plan.${plan}`)).join(t("then"))],
    [t("codesSearched"), share(coverage.searched, coverage.codes)],
    [t("lookedAt"), number.format(explain.candidates)],
    [t("lookups"), number.format(explain.probes)],
    [t("inTheIndex"), `${time.format(1000 * explain.seconds)} ms`],
    [t("inTheServer"), `${stages} ms`],
    [t("roundTrip"), `${time.format(elapsedMs)} ms`],
    [t("shards"), share(coverage.answered, coverage.shards)],
    [t("version"), String(version)],
  ];
  const proof = coverage.complete ? t("proof") : t("proofPartial");
  const missing = Object.keys(coverage.degraded).map((shard) => element("li", {}, shard));
  const parts = [element("p", {}, proof), factsOf(pairs)];
  if (missing.length) parts.push(element("h3", {}, t("missingShards")), element("ul", {}, ...missing));
  open("explain", coverage.complete ? t("exact") : t("partial"), ...parts);
}

// Two pictures over each other: one wiped over the other, both in turn, or what differs.
export async function showCompare(query, hit, bits, ...more) {
  const picture = await load(hit);
  const below = query.picture ?? null;
  const wipe = element("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: t("wipe") });
  const stage = element(
    "div",
    { className: "stage slide" },
    pictureOf(below, query.code, bits, query.name ?? t("query")),
    element("div", { className: "upper" }, pictureOf(picture, hit.code, bits, titleOf(hit))),
    wipe,
  );
  const move = () => stage.style.setProperty("--wipe", `${wipe.value}%`);
  wipe.addEventListener("input", move);
  move();
  const shape = below ?? picture ?? { width: 1, height: 1 };
  stage.style.setProperty("--shape", `${shape.width} / ${shape.height}`);
  const ways = ["slide", "blink", "difference"].map((way) =>
    button(t(way), ({ currentTarget }) => {
      for (const one of ways) one.ariaPressed = String(one === currentTarget);
      stage.className = `stage ${way}`;
      wipe.hidden = way !== "slide";
    }, { ariaPressed: String(way === "slide") }),
  );
  const chosen = element("div", { className: "segments", role: "group", ariaLabel: t("compare") }, ...ways);
  const told = element("p", { className: "hint" }, t("comparedAt", { query: query.name ?? t("query"), name: titleOf(hit), count: hit.distance }));
  open("compare", t("compare"), chosen, stage, told, ...more).style.setProperty("--ratio", shape.width / shape.height);
}
