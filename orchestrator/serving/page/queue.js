"use strict";
// The photographs of this page, which are sent to the service one after the other.

const MAX_PHOTOGRAPHS = 100;
const PATIENCE_SECONDS = 900;       // how long a photograph waits for a service that is busy
const MAX_UNAVAILABLE = 3;          // tries of a photograph that the service cannot restore now
const OPEN = ["waiting", "sending", "restoring", "delayed"];   // then done, failed or cancelled
const REFUSED = [400, 413, 415, 422];   // the photograph is at fault: another try gives the same answer

class PhotoQueue {
  photos = [];
  rate = null;                      // seconds per megapixel, from the last response
  maxBytesHeld = 1e9;               // of results, which the browser keeps until they are removed
  notice = "";                      // why nothing more is sent

  // changed(photo) is called after every change, needToken(message) when the service wants a token.
  constructor(changed, needToken) {
    this.changed = changed;
    this.needToken = needToken;
    this.limits = null;             // response of /model
    this.working = false;
    this.added = 0;
  }

  get active() { return this.photos.find((photo) => photo.controller) || null; }
  get open() { return this.inState(...OPEN); }
  inState(...states) { return this.photos.filter((photo) => states.includes(photo.state)); }

  // Return the photographs added, fewer than `files` where there are too many.
  add(files) {
    const room = Math.max(MAX_PHOTOGRAPHS - this.photos.length, 0);
    const photos = files.slice(0, room).map((file) => ({
      id: ++this.added, file, state: "waiting", message: "", result: null, sent: 0, controller: null, pixels: 0,
    }));
    for (const photo of photos) {
      if (this.limits && photo.file.size > this.limits.max_bytes) {
        const size = number(photo.file.size / 1e6), limit = number(this.limits.max_bytes / 1e6);
        Object.assign(photo, { state: "failed", message: `It has ${size} MB; the limit is ${limit} MB.`, final: true });
      }
    }
    this.photos.push(...photos);
    return photos;
  }

  async work() {
    if (this.working) return;
    this.working = true;
    for (let photo; ([photo] = this.inState("waiting")) && photo && !this.#blocked(); ) await this.#restore(photo);
    this.working = false;
    this.changed(null);
  }

  cancel(photo) {
    if (photo.controller) photo.controller.abort();
    if (OPEN.includes(photo.state)) photo.state = "cancelled";
    this.changed(photo);
  }

  remove(photos) {
    for (const photo of photos) if (photo.controller) photo.controller.abort();
    this.photos = this.photos.filter((photo) => !photos.includes(photo));
    this.work();
    this.changed(null);
  }

  retry() {
    for (const photo of this.photos) {
      if (photo.state === "cancelled" || (photo.state === "failed" && !photo.final)) photo.state = "waiting";
    }
    this.work();
    this.changed(null);
  }

  #blocked() {
    const held = this.photos.reduce((sum, photo) => sum + (photo.result ? photo.result.size : 0), 0);
    this.notice = held < this.maxBytesHeld ? "" : `Paused: this page holds ${number(held / 1e9)} GB of results, its limit. `
      + "Download the restored photographs, then remove them here to go on.";
    if (this.limits && this.limits.token && !sessionStorage.getItem("token")) this.needToken("");
    else return this.notice !== "";
    return true;
  }

  #fail(photo, message, final) { Object.assign(photo, { state: "failed", message, final }); this.changed(photo); }

  #set(photo, values) { Object.assign(photo, values); this.changed(photo); }

  async #restore(photo) {
    const controller = photo.controller = new AbortController(), { signal } = controller;
    const began = performance.now();
    try {
      for (let tries = 1; ; ) {
        this.#set(photo, { state: "sending", sent: 0, began });
        const reply = await this.#send(photo, signal);
        if (reply.status === 200) { this.#done(photo, reply, (performance.now() - began) / 1000); break; }
        let message;
        try { message = JSON.parse(await reply.response.text()).error; } catch { /* of a proxy */ }
        message ||= `The service answered with status ${reply.status}.`;
        if (signal.aborted) break;
        const patient = performance.now() - began < 1000 * PATIENCE_SECONDS;
        if ((reply.status === 429 && patient) || (reply.status === 503 && tries++ < MAX_UNAVAILABLE)) {
          const seconds = Number(reply.getResponseHeader("Retry-After")) || 5;
          const why = reply.status === 429 ? "The service is busy" : message;
          this.#set(photo, { state: "delayed", message: why, until: performance.now() + 1000 * seconds });
          await pause(seconds, signal);
        } else if (reply.status === 401) {
          sessionStorage.removeItem("token");
          this.limits = { ...this.limits, token: true };
          this.#set(photo, { state: "waiting" });
          this.needToken(message);
          break;
        } else {
          this.#fail(photo, message, REFUSED.includes(reply.status));
          break;
        }
      }
    } catch (error) {
      if (!signal.aborted) await this.#unreachable(photo);
    } finally {
      photo.controller = null;
      this.changed(photo);
    }
  }

  // The request got no answer: the file is gone, or the service is.
  async #unreachable(photo) {
    try {
      await photo.file.slice(0, 1).arrayBuffer();
    } catch {
      return this.#fail(photo, "The browser cannot read the file. Was it moved or changed?", true);
    }
    for (const each of [photo, ...this.inState("waiting")]) this.#fail(each, "The service does not answer. Is it still running?", false);
  }

  #done(photo, reply, seconds) {
    const timing = /restore;dur=([\d.]+)/.exec(reply.getResponseHeader("Server-Timing") || "");
    if (timing && photo.pixels) this.rate = timing[1] / 1000 / (photo.pixels / 1e6);
    const by = decodeURIComponent(reply.getResponseHeader("X-Mirage-Model"));
    this.#set(photo, { state: "done", result: reply.response, seconds, by });
  }

  #send(photo, signal) {
    return new Promise((resolve, reject) => {
      const xhr = new XMLHttpRequest();
      xhr.upload.onprogress = (event) => {
        if (event.lengthComputable && photo.state === "sending") this.#set(photo, { sent: event.loaded / event.total });
      };
      xhr.upload.onload = () => { if (!signal.aborted) this.#set(photo, { state: "restoring", since: performance.now() }); };
      xhr.onload = () => resolve(xhr);
      xhr.onerror = xhr.onabort = () => reject(new Error("no answer"));
      signal.addEventListener("abort", () => xhr.abort());
      xhr.open("POST", "restore");
      xhr.responseType = "blob";
      xhr.setRequestHeader("Content-Type", photo.file.type || "application/octet-stream");
      const token = sessionStorage.getItem("token");
      if (token) xhr.setRequestHeader("Authorization", `Bearer ${token}`);
      xhr.send(photo.file);
    });
  }

  // Return {value, left}: the progress from 0 to 1, null where unknown, and the estimated seconds left.
  progress(photo) {
    if (photo.state === "done") return { value: 1, left: 0 };
    if (photo.state === "sending") return { value: photo.sent, left: null };
    const expected = this.rate && photo.pixels ? Math.max(this.rate * photo.pixels / 1e6, 0.5) : 0;
    if (photo.state !== "restoring" || !expected) return { value: null, left: null };
    const worked = (performance.now() - photo.since) / 1000, left = expected - worked;
    // Beyond the expected time it approaches the end without reaching it.
    return { value: left > 0 ? 0.9 * worked / expected : 1 - 0.1 * Math.exp(-(worked - expected) / expected), left };
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); });
  });
}

const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 });

function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

// Return the name of a restored file, which keeps the format of the original.
function restoredName(name) {
  const dot = name.lastIndexOf(".");
  const stem = (dot > 0 ? name.slice(0, dot) : name).replace(/[/\\:*?"<>|\u0000-\u001f]/g, "_");
  return `${stem}-restored${dot > 0 ? name.slice(dot) : ".png"}`;
}

// Return the names of restored files, each once: a second photo-restored.png is photo-restored-2.png.
function distinctNames(names) {
  const taken = new Set();
  return names.map((name) => {
    const restored = restoredName(name), dot = restored.lastIndexOf(".");
    let free = restored;
    for (let count = 2; taken.has(free.toLowerCase()); count++) free = `${restored.slice(0, dot)}-${count}${restored.slice(dot)}`;
    taken.add(free.toLowerCase());
    return free;
  });
}

// What a browser may know no type of.
const PHOTOGRAPH = /\.(avif|bmp|gif|hei[cf]|jpe?g|png|tiff?|webp)$/i;

// Return what is in a drop or a paste: photographs, whether there are more of them than this page takes, and the names of
// files in folders that are left out: others (no photographs) and unreadable.
async function filesOf(transfer) {
  const found = { photographs: [...transfer.files], more: false, others: [], unreadable: [] };
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return found;
  found.photographs = [];
  const visit = async (entry) => {
    if (found.more) return;
    try {
      if (!entry.isFile) return await visitFolder(entry);
      const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
      if (!file.type.startsWith("image/") && !PHOTOGRAPH.test(file.name)) {
        if (!file.name.startsWith(".")) found.others.push(file.name);
      } else if (found.photographs.length < MAX_PHOTOGRAPHS) found.photographs.push(file);
      else found.more = true;
    } catch {
      found.unreadable.push(entry.name);
    }
  };
  const visitFolder = async (entry) => {
    const reader = entry.createReader();
    for (let batch; (batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length; ) {
      for (const each of batch) await visit(each);
    }
  };
  for (const entry of entries) await visit(entry);
  return found;
}

// Return the first names, and how many more there are.
const listed = (names) => names.slice(0, 3).join(", ") + (names.length > 3 ? ` and ${names.length - 3} more` : "");
