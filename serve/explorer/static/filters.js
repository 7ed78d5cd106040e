// Filters of a page that stand in its address, so that what is seen can be sent to somebody.
import { get } from "./common.js";

export function fromAddress(defaults) {
  const given = new URLSearchParams(location.search);
  return Object.fromEntries(Object.entries(defaults).map(([name, value]) => [name, given.get(name) ?? value]));
}

export function toAddress(filters, defaults) {
  const given = Object.entries(filters).filter(([name, value]) => value !== defaults[name]);
  const query = new URLSearchParams(given).toString();
  history.replaceState(null, "", query ? `?${query}` : location.pathname);
}

// What there is to choose from.
export async function choices() {
  const found = await get("/v1/overview");
  return {
    datasets: found.datasets.map((row) => row.dataset).filter(Boolean),
    labelers: found.labelers.map((row) => row.labeler_id),
    verifiers: found.verifiers.map((row) => row.verifier),
  };
}
