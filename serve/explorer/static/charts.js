// Charts, by uPlot; in the colors of the page, and again in others when the page gets others.
const dark = matchMedia("(prefers-color-scheme: dark)");

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function redrawn(draw) {
  let chart = draw();
  const again = () => {
    chart.destroy();
    chart = draw();
  };
  dark.addEventListener("change", again);
  addEventListener("resize", again);
  return {
    redraw: () => chart.redraw(),
    remove: () => {
      dark.removeEventListener("change", again);
      removeEventListener("resize", again);
      chart.destroy();
    },
  };
}

const axis = () => ({ stroke: color("--muted"), grid: { stroke: color("--line"), width: 1 }, ticks: { show: false } });

const short = (time) => new Date(1000 * time).toISOString().slice(5, 16).replace("T", " ");

// Pairs per second of runs, at the time when they started.
export function throughput(element, runs) {
  const data = [runs.map((run) => Date.parse(run.started_at) / 1000), runs.map((run) => run.pairs_per_s)];
  // At least an hour wide: around a single run uPlot would show years.
  const [first, last] = [Math.min(...data[0]), Math.max(...data[0])];
  const margin = Math.max(1800, (last - first) / 20);
  return redrawn(
    () =>
      new uPlot(
        {
          width: element.clientWidth,
          height: 170,
          legend: { show: false },
          cursor: { show: false },
          scales: { x: { range: [first - margin, last + margin] }, y: { range: (_, low, high) => [0, high * 1.1 || 1] } },
          axes: [{ ...axis(), space: 100, values: (_, times) => times.map(short) }, axis()],
          series: [{}, { stroke: color("--accent"), width: 2, points: { show: true, size: 8, fill: color("--accent") } }],
        },
        data,
        element,
      ),
  );
}

// The distribution of scores of accepted and rejected pairs. `kept(value)` says what a threshold keeps; the rest is veiled.
export function histogram(element, scores, kept) {
  const width = (scores.high - scores.low) / scores.accepted.length;
  const middles = scores.accepted.map((_, bin) => scores.low + (bin + 0.5) * width);
  // Square roots: a tall bin must not hide the few pairs that a threshold is about.
  const data = [middles, scores.accepted.map(Math.sqrt), scores.rejected.map(Math.sqrt)];
  const bars = uPlot.paths.bars({ size: [1, Infinity], gap: 1 });
  const series = (name) => ({ fill: color(name), width: 0, paths: bars, points: { show: false } });
  const veil = (chart) => {
    const { left, top, height } = chart.bbox;
    chart.ctx.save();
    chart.ctx.globalAlpha = 0.75;
    chart.ctx.fillStyle = color("--surface");
    const wide = chart.bbox.width / middles.length;
    middles.forEach((middle, bin) => {
      const [from, to] = [Math.round(left + bin * wide), Math.round(left + (bin + 1) * wide)];
      if (!kept(middle)) chart.ctx.fillRect(from, top, to - from, height);
    });
    chart.ctx.restore();
  };
  return redrawn(
    () =>
      new uPlot(
        {
          width: element.clientWidth,
          height: 56,
          padding: [2, 0, 0, 0],
          legend: { show: false },
          cursor: { show: false },
          scales: { x: { time: false, range: [scores.low, scores.high] }, y: { range: (_, low, high) => [0, high || 1] } },
          axes: [{ show: false }, { show: false }],
          series: [{}, series("--good-bar"), series("--bad-bar")],
          hooks: { draw: [veil] },
        },
        data,
        element,
      ),
  );
}
