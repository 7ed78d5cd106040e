import { count, get, name, page, seconds } from "./common.js";

page("videos", () => ({
  filters: { uri: "" },
  videos: [],
  next: null,
  load() {
    return this.fetchPage(null);
  },
  search() {
    return this.attempt(() => this.fetchPage(null));
  },
  more() {
    return this.attempt(() => this.fetchPage(this.next));
  },
  async fetchPage(after) {
    if (this.asked) this.asked.abort();
    const asked = (this.asked = new AbortController());
    const found = await get("/v1/videos", { ...this.filters, after, limit: 50 }, { signal: asked.signal });
    const fresh = found.videos.map((video) => ({
      ...video,
      href: `/videos/${encodeURIComponent(video.video_id)}`,
      name: name(video.uri),
      size: video.width ? `${video.width} × ${video.height}` : "",
      length: seconds(video.duration_s),
      accepted: count(video.accepted),
      rejected: count(video.rejected),
    }));
    this.videos = after ? this.videos.concat(fresh) : fresh;
    this.next = found.next;
  },
}));
