"use strict";
// Everything that comes from the network, and may have been chosen by an attacker, is only ever put in as text.

const EVERY = 2000;
const HISTORY_EVERY = 10000;
const REPORT_EVERY = 30000;
const SHOWN = 15;
const SVG = "http://www.w3.org/2000/svg";
const VERDICTS = ["pass", "drop", "would_drop"];

let before = null;
// Of the last step of the history, until there are rates of our own.
let lastStep = null;
let hasRates = false;

const byId = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// What would turn a line around or hide in it.
const clean = (text) => String(text ?? "").replace(/[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, "\ufffd");

function short(number) {
  if (number < 1e5) return String(Math.round(number));
  if (number < 1e7) return (number / 1e3).toFixed(1) + "k";
  if (number < 1e10) return (number / 1e6).toFixed(1) + "M";
  return (number / 1e9).toFixed(1) + "G";
}

function span(seconds) {
  if (seconds < 120) return Math.max(0, Math.round(seconds)) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  if (seconds < 172800) return Math.round(seconds / 3600) + " h";
  return Math.round(seconds / 86400) + " days";
}

const clock = (time) => (time ? new Date(time).toLocaleTimeString([], { hour12: false }) : "");

function fill(id, rows, empty) {
  const body = byId(id).tBodies[0];
  const made = rows.map(({ cells, className }) => {
    const row = element("tr", undefined, className);
    for (const { text, kind, name } of cells) {
      const cell = element("td", undefined, kind);
      if (name) cell.dataset.name = name;
      cell.append(kind === "why" ? element("div", clean(text), "long") : clean(text));
      row.append(cell);
    }
    return row;
  });
  if (made.length === 0) {
    const row = element("tr");
    const cell = element("td", empty, "empty");
    cell.colSpan = 6;
    row.append(cell);
    made.push(row);
  }
  body.replaceChildren(...made);
}

function totals(stats) {
  const sums = {};
  for (const one of stats ? stats.interfaces : []) {
    for (const verdict of VERDICTS) {
      for (const [reason, count] of Object.entries(one.packets[verdict])) {
        const key = verdict + " " + reason;
        sums[key] = (sums[key] ?? 0) + count;
      }
    }
  }
  return sums;
}

const place = (one) => one.network + (one.port ? " port " + one.port : "");

function seconds(now) {
  return before ? (Date.parse(now.time) - Date.parse(before.time)) / 1000 : 0;
}

function tiles(now, rates) {
  const sum = (verdict) => (rates ? Object.entries(rates).filter(([key]) => key.startsWith(verdict + " ")).reduce((all, [, rate]) => all + rate, 0) : lastStep ? lastStep[verdict] : null);
  const rate = (value) => (value === null ? "–" : short(value));
  const stats = now.stats;
  const passed = sum("pass");
  const dropped = sum("drop");
  const would = sum("would_drop");
  const list = [
    ["packets passed a second", rate(passed), passed > 0 ? "good" : ""],
    ["packets dropped a second", rate(dropped), dropped > 0 ? "bad" : ""],
    ["bans in force", short(now.bans.proven + now.bans.unproven), ""],
    ["networks blocked", stats ? short(stats.blocklist.ipv4 + stats.blocklist.ipv6) : "0", ""],
    ["known good, and peers", stats ? stats.sources.good + " + " + stats.sources.peers : "0", ""],
    ["sources metered", stats ? short(stats.sources.tracked) : "0", ""],
    ["storm", now.storm.is_storm ? "yes" : "no", now.storm.is_storm ? "warn" : ""],
  ];
  if (would > 0 || now.interfaces.some((one) => one.dry_run)) list.splice(2, 0, ["would be dropped a second", rate(would), "warn"]);
  byId("tiles").replaceChildren(...list.map(([name, value, kind]) => {
    const tile = element("div", undefined, "tile " + kind);
    tile.append(element("b", value), element("span", name));
    return tile;
  }));
}

function show(now) {
  // The server reads its tables at most once a second: nothing new says nothing of rates.
  if (before && before.time === now.time) return;
  const passed = seconds(now);
  const sums = totals(now.stats);
  const earlier = before ? totals(before.stats) : {};
  const rates = passed > 0 ? Object.fromEntries(Object.entries(sums).map(([key, count]) => [key, Math.max(0, count - (earlier[key] ?? 0)) / passed])) : null;

  const state = byId("state");
  state.textContent = now.enforcing ? "enforcing" : now.loaded ? "not enforcing" : "not loaded";
  state.className = "pill " + (now.enforcing ? "good" : "bad");
  byId("where").textContent = now.interfaces.map((one) => one.interface + (one.mode ? " (" + one.mode + ")" : "") + (one.dry_run ? ", dry run" : "")).join(", ");
  byId("time").textContent = now.time.slice(0, 19).replace("T", " ") + " UTC";
  const warnings = byId("warnings");
  warnings.hidden = now.warnings.length === 0;
  warnings.replaceChildren(...now.warnings.map((text) => element("p", clean(text))));
  hasRates = rates !== null;
  tiles(now, rates);

  const known = new Map(before ? before.worst.map((one) => [place(one) + one.state, one.packets]) : []);
  const rateOf = (one) => {
    const old = known.get(place(one) + one.state);
    return passed > 0 ? Math.max(0, one.packets - (old ?? one.packets)) / passed : null;
  };
  const worst = now.worst.map((one) => ({ ...one, rate: rateOf(one) }));
  worst.sort((one, other) => other.rate - one.rate || other.packets - one.packets);
  fill("worst", worst.slice(0, SHOWN).map((one) => ({
    className: one.state + (one.dry_run ? " dry" : ""),
    cells: [
      { text: place(one), kind: "source" },
      { text: one.rate === null ? "–" : short(one.rate), kind: "number", name: "per second" },
      { text: short(one.packets), kind: "number", name: "packets" },
      { text: one.state === "limited" ? "limit" : one.owner + (one.tier ? ", " + one.tier : ""), kind: "word", name: "by" },
      { text: one.state === "limited" ? "–" : one.expires ? "in " + span((Date.parse(one.expires) - Date.parse(now.time)) / 1000) : "never", kind: "when", name: "ends" },
      { text: one.reason + (one.dry_run ? " (dry run)" : ""), kind: "why" },
    ],
  })), "Nobody is kept out.");

  const latest = now.latest;
  fill("bans", latest.bans.slice(0, SHOWN).map((one) => ({
    className: one.dry_run ? "dry" : "",
    cells: [
      { text: clock(one.time), kind: "when" },
      { text: one.address + (one.port ? " port " + one.port : ""), kind: "source" },
      { text: one.kind + (one.dry_run ? " (dry run)" : ""), kind: "word" },
      { text: one.reason, kind: "why" },
    ],
  })), "None since the daemon started.");
  fill("others", latest.others.slice(0, SHOWN).map((one) => ({
    cells: [
      { text: clock(one.time), kind: "when" },
      { text: one.event.replaceAll("_", " "), kind: "word" },
      { text: (one.address ?? one.feed ?? one.interface ?? "") + (one.port ? " port " + one.port : ""), kind: "source" },
      { text: one.reason ?? one.kind ?? "", kind: "why" },
    ],
  })), "Nothing since the daemon started.");
  const feeds = now.daemon ? now.daemon.feeds : [];
  fill("feeds", feeds.map((one) => ({
    className: one.error ? "bad" : "",
    cells: [
      { text: one.name, kind: "source" },
      { text: short(one.ipv4 + one.ipv6), kind: "number" },
      { text: one.age === null ? "never" : span(one.age) + " ago", kind: "when" },
      { text: one.error ?? (one.guards.length ? "guards: " + one.guards.join(", ") : "fine") },
    ],
  })), "No feeds are configured.");
  const reasons = Object.entries(sums).filter(([, count]) => count > 0).sort(([, one], [, other]) => other - one);
  fill("reasons", reasons.map(([key, count]) => ({
    cells: [
      { text: key.split(" ")[0].replace("_", " "), kind: "word" },
      { text: key.split(" ")[1], kind: "word" },
      { text: rates ? short(rates[key]) : "–", kind: "number" },
      { text: short(count), kind: "number" },
    ],
  })), "No packets yet.");
  before = now;
}

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A round number that is at least as large.
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value) ?? 10 * power;
}

function chart(history) {
  const box = byId("chart");
  const [width, height, left, bottom, top] = [Math.max(280, box.clientWidth), 208, 44, 22, 10];
  const rates = history.points.slice(1).map(([at, counts], n) => {
    const [earlier, old] = history.points[n];
    const passed = Math.max(0.001, (at - earlier) / 1000);
    const sums = { pass: 0, drop: 0, would_drop: 0 };
    history.columns.forEach(({ verdict }, column) => { sums[verdict] += Math.max(0, counts[column] - old[column]) / passed; });
    return { at, ...sums };
  });
  const most = ceiling(Math.max(1, ...rates.flatMap((one) => VERDICTS.map((verdict) => one[verdict]))));
  const [first, last] = [rates[0]?.at ?? 0, rates.at(-1)?.at ?? 1];
  const x = (at) => left + (width - left - 8) * (last > first ? (at - first) / (last - first) : 1);
  const y = (rate) => top + (height - top - bottom) * (1 - rate / most);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}` });
  for (const part of [0, 0.5, 1]) {
    svg.append(shape("line", { x1: left, x2: width - 8, y1: y(most * part), y2: y(most * part), class: "grid" }));
    svg.append(shape("text", { x: left - 6, y: y(most * part) + 4, "text-anchor": "end" }, most * part < 10 ? String(most * part) : short(most * part)));
  }
  if (rates.length < 2) {
    svg.append(shape("text", { x: (left + width) / 2, y: height / 2 - 16, "text-anchor": "middle" }, "The first half minute is being counted."));
  } else {
    for (const verdict of VERDICTS) {
      if (verdict === "would_drop" && rates.every((one) => one[verdict] === 0)) continue;
      svg.append(shape("polyline", { points: rates.map((one) => `${x(one.at).toFixed(1)},${y(one[verdict]).toFixed(1)}`).join(" "), class: verdict }));
    }
    svg.append(shape("text", { x: left, y: height - 5 }, clock(first)));
    svg.append(shape("text", { x: width - 8, y: height - 5, "text-anchor": "end" }, clock(last)));
  }
  lastStep = rates.at(-1) ?? null;
  if (before && !hasRates) tiles(before, null);
  box.replaceChildren(svg);
  byId("range").textContent = rates.length < 2 ? "" : "packets a second, the last " + span((last - first) / 1000);
  const would = rates.some((one) => one.would_drop > 0);
  byId("legend").replaceChildren(...[["p", "passed"], ["d", "dropped"], ["w", "would be dropped"]].filter(([kind]) => kind !== "w" || would).map(([kind, name]) => {
    const item = element("span");
    item.append(element("i", undefined, kind), name);
    return item;
  }));
}

const day = (time) => time.slice(0, 16).replace("T", " ");

const plural = (count, one, many) => short(count) + " " + (count === 1 ? one : many);

function why(one) {
  const reasons = one.lifted ? ["lifted by an operator"] : [];
  if (one.users.length) reasons.push(one.users.join(", ") + " accepted later" + (one.known_before ? ", as before" : " for the first time"));
  return reasons.join("; ");
}

function report(of) {
  const { bans, good } = of;
  byId("span").textContent = day(of.from) + " to " + day(of.to) + " UTC";
  const doubts = of.doubtful.length;
  const verdict = byId("verdict");
  verdict.textContent = (bans.bans === 0 ? "Nobody was banned. " : doubts === 0 ? "No ban looks wrong. " : plural(doubts, "ban may", "bans may") + " have been wrong. ")
    + "Known good: " + plural(good.users, "user", "users") + " at " + plural(good.addresses, "address", "addresses")
    + (good.served.length ? ", " + plural(good.served.length, "partner", "partners") + " served without credentials" : "") + ".";
  byId("report").replaceChildren(...[
    ["bans of " + plural(bans.addresses, "address", "addresses"), bans.bans, ""],
    ["lifted by an operator", bans.lifted, bans.lifted ? "warn" : ""],
    ["where somebody was accepted later", bans.good_later, doubts > bans.lifted ? "warn" : ""],
    ["never hit again", bans.quiet, ""],
    ["in force", bans.in_force, ""],
    ["packets dropped for them", bans.hits, ""],
  ].map(([name, value, kind]) => {
    const tile = element("div", undefined, "tile " + kind);
    tile.append(element("b", short(value)), element("span", name));
    return tile;
  }));
  const address = (one) => one.address + (one.port ? " port " + one.port : "");
  fill("suggestions", of.suggestions.slice(0, SHOWN).map((one) => ({ cells: [
    { text: one.change, kind: "word" },
    { text: one.about, kind: "source" },
    { text: one.reason, kind: "why" },
    { text: one.command ?? "", kind: "how" },
  ] })), "None.");
  fill("doubtful", of.doubtful.slice(0, SHOWN).map((one) => ({ cells: [
    { text: day(one.from), kind: "when" },
    { text: address(one), kind: "source" },
    { text: one.kind, kind: "word" },
    { text: why(one), kind: "why" },
    { text: one.reason, kind: "why" },
  ] })), "None.");
  fill("sprayed", of.sprayed.slice(0, SHOWN).map((one) => ({ cells: [
    { text: one.user, kind: "source" },
    { text: short(one.tries), kind: "number", name: "tries" },
    { text: short(one.addresses), kind: "number", name: "addresses" },
    { text: day(one.first), kind: "when", name: "first" },
    { text: day(one.last), kind: "when", name: "last" },
    { text: one.new_places.length ? one.new_places.join(", ") : "none", name: "new places" },
  ] })), "None.");
  const offender = (one) => [
    { text: address(one), kind: "source" },
    { text: short(one.bans), kind: "number", name: "bans" },
  ];
  fill("phones", of.phones.slice(0, SHOWN).map((one) => ({ cells: [
    ...offender(one),
    { text: day(one.last), kind: "when", name: "last" },
    { text: one.reason, kind: "why" },
  ] })), "None.");
  fill("kinds", of.kinds.map((one) => ({ cells: [
    { text: one.kind, kind: "source" },
    { text: one.tier ?? "", kind: "word" },
    ...[["bans", "bans"], ["addresses", "addresses"], ["hits", "dropped"], ["lifted", "lifted"], ["good_later", "good later"], ["quiet", "never hit"], ["in_force", "in force"]]
      .map(([field, name]) => ({ text: short(one[field]), kind: "number", name })),
  ] })), "None.");
  const silent = of.rules.filter((rule) => rule.enabled && rule.bans === 0).map((rule) => rule.rule);
  const off = of.rules.filter((rule) => !rule.enabled).map((rule) => rule.rule);
  byId("silent").textContent = (silent.length ? "Rules that never fired: " + silent.join(", ") + ". " : "") + (off.length ? "Switched off: " + off.join(", ") + "." : "");
  fill("repeaters", of.repeaters.map((one) => ({ cells: [
    ...offender(one),
    { text: short(one.hits), kind: "number", name: "dropped" },
    { text: day(one.last), kind: "when", name: "last" },
    { text: one.kinds.join(", "), kind: "word" },
    { text: one.reason, kind: "why" },
  ] })), "None.");
}

async function get(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

function lost(error) {
  const state = byId("state");
  state.textContent = "no answer from the daemon";
  state.className = "pill bad";
  byId("where").textContent = "what is shown is from before";
  console.error(error);
}

// One after the other, however slow the answers are.
async function every(pause, path, use) {
  for (;;) {
    try {
      if (!document.hidden) use(await get(typeof path === "function" ? path() : path));
    } catch (error) {
      lost(error);
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

every(EVERY, "api/overview", show);
every(HISTORY_EVERY, "api/history", chart);
const reportPath = () => "api/report?since=" + byId("since").value;
every(REPORT_EVERY, reportPath, report);
byId("since").addEventListener("change", () => get(reportPath()).then(report).catch(lost));
