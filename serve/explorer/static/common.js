// What every page shares: asking the API, and words and numbers for what it answers.
import Alpine from "./vendor/alpine-csp.esm.min.js";

// Shows a page: `parts` is its state; `load` fetches what it is for.
export function page(name, parts) {
  const shared = {
    problem: "",
    busy: false,
    ready: false,
    async init() {
      await this.attempt(() => this.load());
    },
    // Show every error as text, so that no page stays half empty without a reason.
    async attempt(work) {
      this.busy = true;
      this.problem = "";
      try {
        await work();
        this.ready = name;
      } catch (error) {
        if (error.name !== "AbortError") this.problem = error.message;
      } finally {
        this.busy = false;
      }
    },
  };
  // With their getters, which a spread would call.
  Alpine.data(name, () => Object.defineProperties({ ...shared }, Object.getOwnPropertyDescriptors(parts())));
  Alpine.start();
}

export class ServiceError extends Error {}

export async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("The service does not answer: is it still running?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  if (answer.status === 401) {
    location.assign("/login?next=" + encodeURIComponent(location.pathname + location.search));
  }
  throw new ServiceError(said.detail || `The service answers ${answer.status} ${answer.statusText}`);
}

export async function get(path, parameters = {}, options = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(given).toString();
  return (await ask(query ? `${path}?${query}` : path, options)).json();
}

export function post(path, body, options = {}) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), ...options });
}

// The last part of this page's address: what it is about.
export function subject() {
  return decodeURIComponent(location.pathname.split("/").pop());
}

export const link = (path, parameters) => `${path}?${new URLSearchParams(parameters)}`;

const whole = new Intl.NumberFormat("en");
export const count = (value) => (value === null || value === undefined ? "" : whole.format(value));
export const share = (part, all) => (all ? `${((100 * part) / all).toFixed(1)} %` : "");

// Three significant digits: enough to compare scores by.
export function number(value) {
  if (value === null || value === undefined) return "";
  return Math.abs(value) >= 10000 ? whole.format(Math.round(value)) : `${Number(value.toPrecision(3))}`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 60) return `${value.toFixed(1)} s`;
  const minutes = Math.floor(value / 60);
  return minutes < 60
    ? `${minutes}:${String(Math.floor(value % 60)).padStart(2, "0")} min`
    : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")} h`;
}

// A place in a video, as players show it.
export function clock(value) {
  if (value === null || value === undefined) return "";
  return `${Math.floor(value / 60)}:${(value % 60).toFixed(2).padStart(5, "0")}`;
}

export function when(text) {
  return text ? new Date(text).toISOString().slice(0, 16).replace("T", " ") : "";
}

export const name = (uri) => (uri ? uri.split("/").pop() : "");

// `lake.scores`: name, label, and which side of a threshold to keep.
export const SCORES = JSON.parse(document.getElementById("scores").textContent);

const jpeg = (content) => (content ? `data:image/jpeg;base64,${content}` : "");

// A pair of the API, with what a page shows of it.
export function shown(pair) {
  const scores = pair.scores || pair;
  const numbers = Object.fromEntries(SCORES.map((score) => [score.name, number(scores[score.name])]));
  const time = [clock(pair.obs_time_s), clock(pair.next_time_s)].filter(Boolean).join(" to ");
  return {
    ...pair,
    action: pair.action || "no action was named",
    obsUrl: jpeg(pair.obs),
    nextUrl: jpeg(pair.next_obs),
    obsAlt: `obs at ${clock(pair.obs_time_s)}`,
    nextAlt: `next_obs at ${clock(pair.next_time_s)}`,
    time,
    name: name(pair.uri),
    place: [name(pair.uri), time].filter(Boolean).join(", "),
    label: [pair.action, name(pair.uri), time].filter(Boolean).join(", "),
    why: pair.reasons && pair.reasons.length ? `by ${pair.reasons.join(", ")}` : "",
    datasetText: [pair.dataset, pair.split].filter(Boolean).join(", "),
    confidenceText: numbers.confidence ? `confidence ${numbers.confidence}` : "labeled by people",
    scores: SCORES.filter((score) => numbers[score.name] !== "").map((score) => ({ name: score.label, text: numbers[score.name] })),
    numbers,
    videoHref: `/videos/${encodeURIComponent(pair.video_id)}`,
    runHref: `/runs/${encodeURIComponent(pair.run_id)}`,
  };
}

export function failure(row, key) {
  return {
    ...row,
    key,
    name: name(row.uri),
    videoHref: row.video_id ? `/videos/${encodeURIComponent(row.video_id)}` : "/videos",
    attemptText: `${row.attempt ?? ""}${row.transient ? ", transient" : ""}`,
    when: when(row.failed_at),
  };
}

export function run(row) {
  return {
    ...row,
    href: `/runs/${encodeURIComponent(row.run_id)}`,
    when: when(row.started_at),
    took: seconds(row.seconds),
    rate: number(row.pairs_per_s),
    pairs: count(row.pairs || null),
  };
}
