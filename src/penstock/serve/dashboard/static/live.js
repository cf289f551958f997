// Once a second: the server's counts, their differences over the last seconds, and what is drawn of them.

import { call } from "/dashboard/api.js";
import { Chart } from "/dashboard/chart.js";
import { count, percent, seconds, short } from "/dashboard/format.js";

const EVERY_MS = 1000;
const WINDOWS_S = [60, 120, 300]; // what is drawn: the shortest that holds all samples, else the longest
const RATE_S = 5; // rates are over the last 5 s
const QUANTILE_S = 30; // quantiles over the answers of the last 30 s

const byId = (id) => document.getElementById(id);
let history = []; // what the server said, oldest first
let samples = []; // what is drawn

/** The newest entry at least `age` seconds older than the last, or the oldest there is. */
function before(age) {
  const last = history.at(-1);
  return history.findLast((one) => last.time - one.time >= age) ?? history[0];
}

function rate(now, then, read) {
  return now.time > then.time ? (read(now) - read(then)) / (now.time - then.time) : null;
}

/** Quantile of the values counted between two histograms; linear inside a bucket. null without any. */
export function quantile(now, then, share) {
  const counts = now.counts.map((count, index) => count - then.counts[index]);
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0) return null;
  let left = share * total;
  for (let index = 0; index < counts.length; index++) {
    if (left <= counts[index] && counts[index] > 0) {
      const low = index ? now.bounds[index - 1] : 0;
      const high = now.bounds[index] ?? low;
      return low + (high - low) * (left / counts[index]);
    }
    left -= counts[index];
  }
  return now.bounds.at(-1);
}

function sample() {
  const now = history.at(-1);
  const [recent, longer] = [before(RATE_S), before(QUANTILE_S)];
  const steps = now.totals.steps - recent.totals.steps;
  return {
    time: now.time,
    output: rate(now, recent, (one) => one.totals.output_tokens),
    prompt: rate(now, recent, (one) => one.totals.prompt_tokens),
    ttft: [0.5, 0.95].map((share) => quantile(now.ttft, longer.ttft, share)),
    gap: [0.5, 0.95].map((share) => quantile(now.gap, longer.gap, share)),
    running: now.running,
    waiting: now.waiting,
    held: now.kv.total ? now.kv.held / now.kv.total : 0,
    cached: now.kv.total ? now.kv.cached / now.kv.total : 0,
    step: steps > 0 ? (now.totals.step_seconds - recent.totals.step_seconds) / steps : null,
  };
}

function makeCharts(parent) {
  const common = { windows: WINDOWS_S, format: short };
  return [
    new Chart(parent, { ...common, title: "Throughput", unit: "tokens/s", floor: 10, series: [
      { name: "output", value: (one) => one.output }, { name: "prompt", value: (one) => one.prompt }] }),
    new Chart(parent, { ...common, title: "Time to first token", unit: "last 30 s", floor: 0.05, format: seconds, series: [
      { name: "median", value: (one) => one.ttft[0] }, { name: "p95", value: (one) => one.ttft[1] }] }),
    new Chart(parent, { ...common, title: "Gap between tokens", unit: "last 30 s", floor: 0.02, format: seconds, series: [
      { name: "median", value: (one) => one.gap[0] }, { name: "p95", value: (one) => one.gap[1] }] }),
    new Chart(parent, { ...common, title: "Batch", unit: "sequences", floor: 4, series: [
      { name: "running", value: (one) => one.running }, { name: "waiting", value: (one) => one.waiting }] }),
    new Chart(parent, { ...common, title: "KV cache", unit: "share of the blocks", floor: 1, top: 1, format: percent, series: [
      { name: "in use", value: (one) => one.held }, { name: "cached prefixes", value: (one) => one.cached }] }),
    new Chart(parent, { ...common, title: "Step of the engine", unit: "mean of 5 s", floor: 0.005, format: seconds, series: [
      { name: "step", value: (one) => one.step }], empty: "Waiting for the first step" }),
  ];
}

function showTiles(now, last) {
  const cachedShare = now.totals.prompt_tokens ? now.totals.cached_tokens / now.totals.prompt_tokens : 0;
  const tiles = [
    ["Output", last.output === null ? "–" : short(last.output), "tokens/s"],
    ["Running", count(now.running), `of ${count(now.model.max_seqs)}`],
    ["Waiting", count(now.queue.requests), `of ${count(now.queue.max_requests)}`],
    ["KV in use", percent(last.held), `of ${count(now.kv.total * now.kv.block_tokens)} tokens`],
    ["First token", last.ttft[0] === null ? "–" : seconds(last.ttft[0]), "median of 30 s"],
    ["From cache", percent(cachedShare), "of prompt tokens"],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value, unit]) => {
      const tile = document.createElement("div");
      tile.className = "tile";
      const [term, figure, small] = ["dt", "dd", "small"].map((tag) => document.createElement(tag));
      term.textContent = name;
      small.textContent = unit;
      figure.append(value, small);
      tile.append(term, figure);
      return tile;
    }),
  );
}

function showTenants(now) {
  const then = before(QUANTILE_S);
  const work = (one) => one.prompt_tokens + one.output_tokens;
  const old = new Map(then.tenants.map((one) => [one.name, one]));
  const recent = now.tenants.map((one) => work(one) - (old.has(one.name) ? work(old.get(one.name)) : 0));
  const total = recent.reduce((sum, tokens) => sum + tokens, 0);
  const span = now.time - then.time;
  byId("tenants-empty").hidden = now.tenants.length > 0;
  byId("tenants").hidden = now.tenants.length === 0;
  byId("queue-bound").textContent =
    `${count(now.queue.requests)} of ${count(now.queue.max_requests)} requests, ` +
    `${count(now.queue.prompt_tokens)} of ${short(now.queue.max_prompt_tokens)} prompt tokens wait`;
  byId("tenants").tBodies[0].replaceChildren(
    ...now.tenants.map((one, index) => {
      const row = document.createElement("tr");
      const share = total ? recent[index] / total : 0;
      const cells = [one.name, one.waiting, one.running, span ? short(recent[index] / span) : "–"];
      for (const text of cells) row.insertCell().textContent = text;
      const last = row.insertCell();
      last.className = "wide";
      const meter = document.createElement("meter");
      meter.value = share;
      last.append(meter, ` ${percent(share)}`);
      return row;
    }),
  );
}

function showState(state, model) {
  const pill = byId("state");
  pill.dataset.state = state;
  pill.textContent = state;
  if (model) {
    byId("model").textContent =
      `${model.name} · ${short(model.parameters)} parameters · ${model.dtype} · ${count(model.context)} tokens of context`;
    document.title = `${model.name} · Penstock`;
  }
}

function notice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text;
}

export async function watch() {
  const charts = makeCharts(byId("charts"));
  for (const chart of charts) chart.show([]);
  for (;;) {
    const began = performance.now();
    try {
      const now = await (await call("/dashboard/live")).json();
      if (history.length && now.totals.steps < history.at(-1).totals.steps) history = []; // the server was started anew
      history.push(now);
      history = history.filter((one) => now.time - one.time <= QUANTILE_S + 5);
      samples.push(sample());
      samples = samples.filter((one) => now.time - one.time <= WINDOWS_S.at(-1) && one.time <= now.time);
      showState(now.state, now.model);
      showTiles(now, samples.at(-1));
      showTenants(now);
      for (const chart of charts) chart.show(samples);
      notice("");
    } catch (error) {
      if (error.status === 403) {
        notice(`No live figures: ${error.message}`);
        showState("ready", null);
        return;
      }
      showState("unreachable", null);
      notice(error.status ? error.message : "The server does not answer. Trying again.");
    }
    const pause = document.hidden ? 5 * EVERY_MS : EVERY_MS;
    await new Promise((resolve) => setTimeout(resolve, Math.max(200, pause - (performance.now() - began))));
  }
}
