import { get, page, run } from "./common.js";

page("runs", () => ({
  runs: [],
  next: null,
  load() {
    return this.fetchPage(null);
  },
  more() {
    return this.attempt(() => this.fetchPage(this.next));
  },
  async fetchPage(after) {
    const found = await get("/v1/runs", { after, limit: 50 });
    this.runs = this.runs.concat(found.runs.map(run));
    this.next = found.next;
  },
}));
