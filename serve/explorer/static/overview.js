import { count, get, link, page, run, share } from "./common.js";
import { throughput } from "./charts.js";

const bar = (part, all) => ({ "--share": all ? part / all : 0 });

page("overview", () => ({
  lake: "",
  labeler: "",
  labelers: [],
  tiles: [],
  datasets: [],
  verifiers: [],
  actions: [],
  actionsNote: "",
  runs: [],
  async load() {
    const found = await get("/v1/overview", { labeler: this.labeler });
    const chosen = this.labeler ? { labeler: this.labeler } : {};
    const decided = found.triples + found.rejections;
    this.lake = found.lake;
    this.labelers = found.labelers;
    this.tiles = [
      { name: "videos", value: count(found.videos), href: "/videos" },
      { name: "triples", value: count(found.triples), href: link("/triples", chosen) },
      { name: "rejected pairs", value: count(found.rejections), href: link("/rejected", chosen) },
      { name: "accepted", value: share(found.triples, decided) || "–", href: link("/triples", chosen) },
      { name: "failures", value: count(found.failures), href: "/rejected#failed" },
    ];
    this.datasets = found.datasets.map((row) => ({
      name: row.dataset || "none",
      href: link("/triples", { ...chosen, dataset: row.dataset || "" }),
      videos: count(row.videos),
      accepted: count(row.accepted),
      rejected: count(row.rejected),
      share: share(row.accepted, row.accepted + row.rejected),
      bar: bar(row.accepted, row.accepted + row.rejected),
    }));
    this.verifiers = found.verifiers.map((row) => ({
      name: row.verifier,
      href: link("/rejected", { ...chosen, reason: row.verifier }),
      rejected: count(row.rejected),
      alone: count(row.alone),
      share: share(row.rejected, decided),
      bar: bar(row.rejected, decided),
    }));
    this.actions = found.actions.map((row) => ({
      name: row.action || "(empty)",
      href: link("/triples", { ...chosen, action: row.action }),
      triples: count(row.triples),
      bar: bar(row.triples, found.actions[0].triples),
    }));
    const others = found.distinct_actions - found.actions.length;
    this.actionsNote = others > 0 ? `and ${count(others)} other actions` : "";
    this.runs = found.runs.slice().reverse().slice(0, 8).map(run);
    await this.draw(found.runs);
  },
  async draw(runs) {
    if (this.chart) this.chart.remove();
    this.chart = null;
    if (!runs.length) return;
    this.ready = "overview";
    // The chart has no width before its section is shown.
    await this.$nextTick();
    this.chart = throughput(this.$refs.throughput, runs);
  },
}));
