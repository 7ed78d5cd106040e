import { clock, count, failure, get, name, number, page, seconds, shown, subject, when } from "./common.js";

const MOST_PAGES = 5;
const TICKS = 4;

page("video", () => ({
  video: { uri: "" },
  name: "",
  facts: [],
  lanes: [],
  ticks: [],
  failures: [],
  truncated: false,
  view: "side",
  chosen: null,
  async load() {
    const path = `/v1/videos/${encodeURIComponent(subject())}`;
    const [video, pairs] = await Promise.all([get(path), this.everyPair(`${path}/pairs`)]);
    this.video = video;
    this.name = name(video.uri) || video.video_id;
    document.title = `${this.name} · worldlake`;
    this.facts = [
      ["data set", [video.dataset, video.split].filter(Boolean).join(", ")],
      ["class", video.class_label],
      ["picture", video.width && `${video.width} × ${video.height}, ${number(video.fps)} fps, ${video.codec || ""}`],
      ["length", seconds(video.duration_s)],
      ["accepted", count(video.accepted)],
      ["rejected", count(video.rejected)],
      ["finished under", video.finished_under.join(", ") || "no labeler"],
      ["added", when(video.added_at)],
      ["id", video.video_id],
    ]
      .filter(([, value]) => value)
      .map(([title, value]) => ({ name: title, value }));
    this.arrange(pairs);
  },
  async everyPair(path) {
    const pairs = [];
    let after = null;
    for (let turn = 0; turn < MOST_PAGES; turn += 1) {
      const found = await get(path, { after });
      pairs.push(...found.pairs);
      after = found.next;
      if (!after) break;
    }
    this.truncated = after !== null;
    return pairs;
  },
  arrange(pairs) {
    const end = Math.max(this.video.duration_s || 0, ...pairs.map((pair) => pair.next_time_s || 0)) || 1;
    const percent = (value) => `${(100 * value) / end}%`;
    const span = (from, to) => ({ left: percent(from), width: percent(Math.max(to - from, 0)) });
    const failed = this.video.failures.map((row, key) => ({
      ...failure(row, key),
      from: clock(row.start_s),
      to: clock(row.end_s),
      style: row.start_s === null ? null : span(row.start_s, row.end_s ?? row.start_s),
    }));
    this.failures = failed;
    this.lanes = [...new Set(pairs.map((pair) => pair.labeler_id))].map((labeler) => {
      const own = pairs
        .filter((pair) => pair.labeler_id === labeler)
        .map((pair) => ({ ...shown(pair), classes: `pair ${pair.verdict}`, style: span(pair.obs_time_s || 0, pair.next_time_s || 0) }))
        .map((pair) => ({ ...pair, label: `${pair.verdict}: ${pair.action}, ${pair.time}` }));
      const failures = failed.filter((row) => row.labeler_id === labeler && row.style);
      return { labeler, title: `labeler ${labeler}`, pairs: own, failures, current: own[0] };
    });
    this.ticks = Array.from({ length: TICKS + 1 }, (_, tick) => ({
      text: clock((end * tick) / TICKS),
      style: { left: percent((end * tick) / TICKS) },
    }));
    if (this.lanes.length) this.choose(this.lanes[0].current, this.lanes[0]);
  },
  choose(pair, lane) {
    if (pair.verdict === "accepted") {
      const path = `/v1/triples/${encodeURIComponent(pair.triple_id)}`;
      pair.obsUrl = `${path}/obs.jpg`;
      pair.nextUrl = `${path}/next_obs.jpg`;
    }
    lane.current = pair;
    this.chosen = pair;
  },
  async walk(event, lane) {
    const places = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    const step = places[event.key];
    if (!step) return;
    event.preventDefault();
    const last = lane.pairs.length - 1;
    const place = lane.pairs.findIndex((pair) => pair.triple_id === lane.current.triple_id);
    this.choose(lane.pairs[Math.min(last, Math.max(0, place + step))], lane);
    await this.$nextTick();
    this.$root.querySelector(`[data-id="${CSS.escape(lane.current.triple_id)}"]`).focus();
  },
}));
