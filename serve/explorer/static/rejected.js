import { failure, get, page, shown } from "./common.js";
import { choices, fromAddress, toAddress } from "./filters.js";

const DEFAULTS = { action: "", dataset: "", labeler: "", run: "", reason: "", where: "" };
const PAGE = 50;

page("rejected", () => ({
  filters: fromAddress(DEFAULTS),
  datasets: [],
  labelers: [],
  verifiers: [],
  pairs: [],
  next: null,
  failures: [],
  nextFailure: null,
  async load() {
    await this.fetchPage(null);
    this.ready = "rejected";
    await Promise.all([this.fetchFailures(null), choices().then((made) => Object.assign(this, made))]);
    this.$nextTick(() => location.hash === "#failed" && document.getElementById("failed").scrollIntoView());
  },
  search() {
    toAddress(this.filters, DEFAULTS);
    return this.attempt(() => this.fetchPage(null));
  },
  more() {
    return this.attempt(() => this.fetchPage(this.next));
  },
  moreFailures() {
    return this.attempt(() => this.fetchFailures(this.nextFailure));
  },
  async fetchPage(after) {
    if (this.asked) this.asked.abort();
    const asked = (this.asked = new AbortController());
    const found = await get("/v1/rejections", { ...this.filters, after, limit: PAGE }, { signal: asked.signal });
    const fresh = found.rejections.map(shown);
    this.pairs = after ? this.pairs.concat(fresh) : fresh;
    this.next = found.next;
  },
  async fetchFailures(after) {
    const found = await get("/v1/failures", { after, limit: PAGE });
    const from = after ? this.failures.length : 0;
    const fresh = found.failures.map((row, place) => failure(row, from + place));
    this.failures = after ? this.failures.concat(fresh) : fresh;
    this.nextFailure = found.next;
  },
}));
