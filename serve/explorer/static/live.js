import { ask, count, number, page, post, shown } from "./common.js";

page("live", () => ({
  view: "side",
  overVideo: false,
  uri: "",
  labeling: false,
  videoState: "",
  videoProblem: "",
  found: [],
  overImage: false,
  image: "",
  action: "",
  n: 4,
  predicting: false,
  predictState: "",
  predictProblem: "",
  candidates: [],
  async load() {},

  pickVideo(event) {
    this.startFile(event.target.files[0]);
    // So that the same file can be chosen again.
    event.target.value = "";
  },
  dropVideo(event) {
    this.overVideo = false;
    this.startFile(event.dataTransfer.files[0]);
  },
  startFile(file) {
    if (!file) return;
    const body = new FormData();
    body.append("video", file);
    this.label(file.name, { body });
  },
  startUri() {
    const headers = { "Content-Type": "application/json" };
    if (this.uri.trim()) this.label(this.uri.trim(), { headers, body: JSON.stringify({ uri: this.uri.trim() }) });
  },
  stop() {
    this.stopped.abort();
  },
  async label(name, request) {
    if (this.labeling) this.stopped.abort();
    const stopped = (this.stopped = new AbortController());
    Object.assign(this, { found: [], labeling: true, videoProblem: "", videoState: `${name}: sent` });
    try {
      const answer = await ask("/v1/label/video?write=no", { method: "POST", signal: stopped.signal, ...request });
      let sums = null;
      for await (const { event, data } of events(answer.body)) {
        if (event === "triple") this.found.push(shown(data));
        if (event === "problem") this.videoProblem = data.detail;
        if (event === "done") sums = data;
        this.videoState = `${name}: ${count(this.found.length)} pairs so far`;
      }
      this.videoState = sums
        ? `${name}: ${count(sums.sampled)} sampled = ${count(sums.accepted)} accepted + ${count(sums.rejected)} rejected + ${count(sums.failed)} failed`
        : `${name}: the answer broke off after ${count(this.found.length)} pairs`;
    } catch (error) {
      if (error.name === "AbortError") this.videoState = `${name}: stopped after ${count(this.found.length)} pairs`;
      else Object.assign(this, { videoProblem: error.message, videoState: "" });
    } finally {
      if (this.stopped === stopped) this.labeling = false;
    }
  },

  pickImage(event) {
    this.showImage(event.target.files[0]);
    event.target.value = "";
  },
  dropImage(event) {
    this.overImage = false;
    this.showImage(event.dataTransfer.files[0]);
  },
  async showImage(file) {
    if (!file) return;
    Object.assign(this, { image: await dataUrl(file), candidates: [], predictState: "", predictProblem: "" });
  },
  async predict() {
    Object.assign(this, { predicting: true, predictState: "drawing …", predictProblem: "", candidates: [] });
    try {
      const asked = { image: this.image.split(",")[1], action: this.action, n: this.n, all_candidates: true };
      const found = await (await post("/v1/predict", asked)).json();
      const best = found.candidates.findIndex((one) => one.image === found.best.image);
      this.candidates = found.candidates
        .map((one, place) => this.candidate(one, place, place === best))
        .sort((one, other) => (other.score ?? -Infinity) - (one.score ?? -Infinity));
      this.predictState = `the best of ${found.candidates.length} by the dynamics model`;
    } catch (error) {
      Object.assign(this, { predictProblem: error.message, predictState: "" });
    } finally {
      this.predicting = false;
    }
  },
  candidate(one, key, best) {
    return {
      key,
      best,
      score: one.score,
      title: best ? "best" : `candidate ${key + 1}`,
      scoreText: one.score === null ? "no score" : `verification: log p(action) ${number(one.score)}`,
      obsUrl: this.image,
      obsAlt: "the image",
      nextUrl: `data:image/png;base64,${one.image}`,
      nextAlt: `predicted: ${this.action}`,
    };
  },
}));

// Server-sent events of an answer to a POST, which EventSource cannot ask for.
async function* events(body) {
  let text = "";
  for await (const part of read(body.pipeThrough(new TextDecoderStream()))) {
    text = (text + part).replaceAll("\r\n", "\n");
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const block of whole) {
      const fields = block.split("\n").map((line) => /^(event|data): ?(.*)$/.exec(line)).filter(Boolean);
      const of = (kind) => fields.filter((field) => field[1] === kind).map((field) => field[2]);
      if (of("data").length) yield { event: of("event")[0] || "message", data: JSON.parse(of("data").join("\n")) };
    }
  }
}

// Not every browser can go through a stream by itself.
async function* read(stream) {
  const reader = stream.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
