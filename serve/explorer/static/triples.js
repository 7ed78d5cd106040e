import { SCORES, count, get, number, page, share, shown } from "./common.js";
import { histogram } from "./charts.js";
import { choices, fromAddress, toAddress } from "./filters.js";

const DEFAULTS = { action: "", dataset: "", labeler: "", run: "", video: "", where: "", order: "newest" };
const VIEWS = { s: "side", f: "flicker", d: "difference" };
const PAGE = 24;
const STEPS = 500;

page("triples", () => ({
  filters: fromAddress(DEFAULTS),
  view: "side",
  datasets: [],
  labelers: [],
  bounds: [],
  kept: null,
  pairs: [],
  next: null,
  chosen: null,
  async load() {
    // First what a person came for; the rest would only make it slower.
    await this.fetchPage(null);
    this.ready = "triples";
    await Promise.all([choices().then((found) => Object.assign(this, found)), this.spread()]);
  },
  search() {
    toAddress(this.filters, DEFAULTS);
    return this.attempt(async () => {
      await this.fetchPage(null);
      await this.spread();
    });
  },
  more() {
    return this.attempt(() => this.fetchPage(this.next));
  },
  async fetchPage(after) {
    const where = [this.filters.where.trim() && `(${this.filters.where}\n)`, this.keep].filter(Boolean).join(" AND ");
    // Of several searches the last one counts, in whatever order they are answered.
    if (this.asked) this.asked.abort();
    const asked = (this.asked = new AbortController());
    const parameters = { ...this.filters, where, after, limit: PAGE, images: true };
    const found = await get("/v1/triples", parameters, { signal: asked.signal });
    const fresh = found.triples.map(shown);
    this.pairs = after ? this.pairs.concat(fresh) : fresh;
    this.next = found.next;
  },

  // Thresholds.
  async spread() {
    const { order, ...filters } = this.filters;
    const asked = JSON.stringify(filters);
    if (asked !== this.spreadOf) {
      this.spreadOf = asked;
      const found = (await get("/v1/scores", filters)).filter((one) => one.high > one.low);
      const before = Object.fromEntries(this.bounds.filter((bound) => bound.on).map((bound) => [bound.score, bound.value]));
      this.bounds = found.map((one) => bounded(one, before[one.score]));
      await this.$nextTick();
      this.draw(found);
    }
    await this.count();
  },
  draw(found) {
    (this.charts || []).forEach((chart) => chart.remove());
    this.charts = found.map((scores) => {
      const element = this.$root.querySelector(`[data-score=${scores.score}]`);
      const bound = this.bounds.find((one) => one.score === scores.score);
      return histogram(element, scores, (value) => !bound.on || (bound.sign === ">=" ? value >= bound.value : value <= bound.value));
    });
  },
  moved(bound) {
    // The ends of a slider are on its steps but for rounding.
    bound.on = Math.abs(bound.value - (bound.sign === ">=" ? bound.low : bound.high)) > bound.step / 2;
    bound.text = bound.on ? `${bound.sign === ">=" ? "≥" : "≤"} ${number(bound.value)}` : "any";
    const chart = this.charts && this.charts[this.bounds.indexOf(bound)];
    if (chart) chart.redraw();
    return this.count();
  },
  reset() {
    this.bounds.forEach((bound) => {
      bound.value = bound.sign === ">=" ? bound.low : bound.high;
      this.moved(bound);
    });
    return this.search();
  },
  // One question at a time: while a slider moves, the newest place is asked about when the answer to an older one is there.
  async count() {
    if (this.counting) {
      this.countAgain = true;
      return;
    }
    this.counting = true;
    try {
      do {
        this.countAgain = false;
        const { order, ...filters } = this.filters;
        this.kept = await get("/v1/kept", { ...filters, keep: this.keep || "true" });
      } while (this.countAgain);
    } catch (error) {
      this.problem = error.message;
    } finally {
      this.counting = false;
    }
  },
  get keep() {
    return this.bounds.filter((bound) => bound.on).map((bound) => `${bound.score} ${bound.sign} ${Number(bound.value.toPrecision(4))}`).join(" AND ");
  },
  get anyBound() {
    return this.keep !== "";
  },
  get keptText() {
    if (!this.kept) return "";
    const { of, kept } = this.kept.accepted;
    return `Keeps ${count(kept)} of ${count(of)} triples (${share(kept, of) || "none"})`;
  },
  get keptRejected() {
    if (!this.kept || !this.anyBound) return "";
    const { of, kept } = this.kept.rejected;
    return `and is met by ${count(kept)} of ${count(of)} rejected pairs.`;
  },
  get keptSql() {
    return this.anyBound ? `WHERE ${this.keep}` : "Move a slider to try a threshold.";
  },
  get countText() {
    if (!this.ready) return "";
    const of = this.kept ? ` of ${count(this.kept.accepted.kept)}` : "";
    return `${count(this.pairs.length)}${of} shown`;
  },

  // One triple, large.
  open(pair) {
    this.chosen = pair;
    this.$refs.dialog.showModal();
  },
  closed() {
    const place = this.pairs.indexOf(this.chosen);
    this.chosen = null;
    const card = this.$root.querySelectorAll(".grid .card")[place];
    if (card) card.focus();
  },
  keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (VIEWS[event.key]) this.view = VIEWS[event.key];
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const other = step && this.pairs[this.pairs.indexOf(this.chosen) + step];
    if (other) this.chosen = other;
  },
  // Arrow keys go through the grid, as Tab does.
  walk(event) {
    const cards = [...this.$root.querySelectorAll(".grid .card")];
    const place = cards.indexOf(document.activeElement);
    const columns = cards.filter((card) => card.offsetTop === cards[0].offsetTop).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    if (place < 0 || !step || !cards[place + step]) return;
    event.preventDefault();
    cards[place + step].focus();
  },
}));

function bounded(scores, value) {
  const { keep: sign, label } = SCORES.find((score) => score.name === scores.score);
  const end = sign === ">=" ? scores.low : scores.high;
  const on = value !== undefined;
  return {
    score: scores.score,
    title: label,
    id: `bound-${scores.score}`,
    sign,
    low: scores.low,
    high: scores.high,
    step: (scores.high - scores.low) / STEPS,
    value: on ? value : end,
    on,
    text: on ? `${sign === ">=" ? "≥" : "≤"} ${number(value)}` : "any",
  };
}
