import { count, get, number, page, run, subject } from "./common.js";

const DECIDED = ["triples", "rejections", "failures"];

page("run", () => ({
  title: "Run",
  facts: [],
  tables: [],
  counts: [],
  sources: [],
  readers: [],
  config: "",
  async load() {
    const found = await get(`/v1/runs/${encodeURIComponent(subject())}`);
    const seen = run(found);
    this.title = `Run ${found.run_id}`;
    document.title = `${this.title} · worldlake`;
    this.facts = named({
      kind: found.kind,
      status: found.status,
      started: seen.when,
      took: seen.took,
      pairs: seen.pairs,
      "pairs/s": seen.rate,
      labeler: found.labeler_id,
      policy: found.policy_id,
      code: found.code_version,
      host: found.host,
      ...found.model_hashes,
    });
    const names = [...new Set([...Object.keys(found.tables_read), ...Object.keys(found.tables_written)])];
    this.tables = names.map((name) => ({
      name,
      read: found.tables_read[name] ?? "",
      written: found.tables_written[name] ?? "",
      rows: DECIDED.includes(name) ? count(found[name]) : "",
    }));
    this.counts = named({ ...found.counts, ...found.timings });
    this.sources = found.sources.map(end);
    this.readers = found.readers.map(end);
    this.config = JSON.stringify(found.config, null, 2);
  },
}));

function named(values) {
  return Object.entries(values)
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => ({ name: name.replaceAll("_", " "), value: text(value) }));
}

function text(value) {
  if (typeof value === "number") return number(value);
  return typeof value === "string" ? value : JSON.stringify(value);
}

function end(lineage) {
  const href = `/runs/${encodeURIComponent(lineage.run_id)}`;
  return { ...lineage, href, text: `${count(lineage.triples)} triples, version ${lineage.version}` };
}
