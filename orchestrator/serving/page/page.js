"use strict";
// What the page shows: the model, the selected photograph, and the list of all.

const samples = [/*samples*/];
const queue = new PhotoQueue(changed, needToken);

let model = null;             // response of /model
let selected = null;          // the photograph in the viewer
let displayed = {};           // what the viewer holds: {photo, before, ready}
let urls = [];                // blob URLs in the viewer
let others = 0;               // requests of other clients in the service
const rows = new Map();       // photograph -> its row in the list

// ------------------------------------------------------------------ the model

async function loadModel() {
  try {
    const reply = await fetch("model");
    if (!reply.ok) throw new Error(`The service answered with status ${reply.status}.`);
    model = queue.limits = await reply.json();
  } catch (error) {
    $("model-name").textContent = error.message.startsWith("The service") ? error.message : "The service does not answer.";
    return;
  }
  $("description").textContent = model.description;
  const facts = [["Model", model.name], ["Version", model.version]];
  if (model.recipe) facts.push(["Recipe", model.recipe]);
  facts.push(["Parameters", model.parameters.toLocaleString("en")]);
  if (model.protocol) facts.push(["Protocol", model.protocol]);
  $("facts").replaceChildren(...facts.flatMap(([name, value]) => {
    const dt = element("dt", name), dd = element("dd", value);
    if (name === "Model") dd.id = "model-name";
    return [dt, dd];
  }));
  $("figures").hidden = model.figures.length === 0;
  $("figures-body").replaceChildren(...model.figures.map((figure) => {
    const row = element("tr"), head = element("th", model.titles[figure.degradation]);
    head.scope = "row";
    const cells = [figure.degraded_psnr.toFixed(1), figure.restored_psnr.toFixed(1), signed(figure.gain)].map((text) => element("td", text));
    cells[2].className = figure.gain < 0 ? "loss" : "gain";
    row.append(head, ...cells);
    return row;
  }));
  $("limits").textContent = `Up to ${number(model.max_pixels / 1e6)} megapixels and ${number(model.max_bytes / 1e6)}\u00a0MB each.`;
  // Where it is not accepted, an iPhone sends a JPEG instead.
  if (model.formats.includes("HEIC") && !$("file").accept.includes("heic")) $("file").accept += ",image/heic,.heic,.heif";
  // Only samples of what this model was trained on.
  const known = new Set(model.degradations.map((name) => name.replace(/^noise\d+$/, "noise")));
  const offered = samples.filter((sample) => known.has(sample.degradation));
  $("samples-section").hidden = offered.length === 0;
  $("samples").replaceChildren(...offered.map(sampleItem));
  if (model.token && !sessionStorage.getItem("token")) $("token-form").hidden = false;
}

function sampleItem(sample) {
  const item = element("li"), button = element("button"), image = new Image(), text = element("span", sample.title);
  image.src = `samples/${sample.file}`; image.alt = sample.description; image.loading = "lazy";
  text.append(element("small", sample.source));
  button.type = "button";
  button.dataset.sample = sample.file;
  button.append(image, text);
  button.onclick = async () => {
    try {
      const reply = await fetch(image.src);
      if (!reply.ok) return showError(`The service answered with status ${reply.status}.`);
      const blob = await reply.blob();
      choose([new File([blob], sample.file, { type: blob.type })]);
    } catch {
      showError("The service does not answer. Is it still running?");
    }
  };
  item.append(button);
  return item;
}

const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

// ------------------------------------------------------------------ the photographs

function choose(files, { more = false, others = [], unreadable = [] } = {}) {
  const added = queue.add(files), count = `${more ? "more than " : ""}${files.length}`;
  const errors = [];
  if (more || added.length < files.length) {
    errors.push(`Added ${added.length} of ${count} photographs: this page takes ${MAX_PHOTOGRAPHS} at a time. Remove some to add more.`);
  }
  if (unreadable.length) errors.push(`The browser cannot read ${listed(unreadable)}.`);
  if (others.length) errors.push(`Left out what is no photograph: ${listed(others)}.`);
  if (files.length || errors.length) showError(errors.join(" "));
  if (!added.length) return;
  const alone = queue.photos.length === 1;
  if (alone && added[0].state === "failed") return dropAlone(added[0]);
  select(added[0]);
  $("viewer").scrollIntoView({ block: "nearest", behavior: reducedMotion.matches ? "auto" : "smooth" });
  queue.work();
}

async function chooseFrom(transfer) {
  const { photographs, ...rest } = await filesOf(transfer);
  choose(photographs, rest);
}

// A photograph that is alone leaves when it fails or is cancelled, and the page asks for another one.
function dropAlone(photo) {
  queue.remove([photo]);
  $("file").focus();
  if (photo.state === "failed") showError(`${photo.file.name}: ${photo.message}`);
}

function select(photo) {
  selected = photo;
  render();
  display();
}

function changed(photo) {
  if (photo && photo.controller === null && queue.photos.length === 1 && ["failed", "cancelled"].includes(photo.state)) {
    return dropAlone(photo);
  }
  if (photo) announce(photo);
  if (!queue.photos.includes(selected)) return select(queue.photos[0] || null);
  render();
  display();
  if (photo && photo.state === "done" && model && photo.by !== `${model.name}/${model.version}`) loadModel();
}

// Show the selected photograph, and its restoration when there is one.
async function display() {
  const photo = selected;
  if (!photo) {
    displayed = {};
    for (const url of urls.splice(0)) URL.revokeObjectURL(url);
    return;
  }
  const urlOf = (blob) => { urls.push(URL.createObjectURL(blob)); return urls.at(-1); };
  if (displayed.photo !== photo) {
    for (const url of urls.splice(0)) URL.revokeObjectURL(url);
    displayed = { photo, before: showBefore(urlOf(photo.file)), asked: false, ready: false };
  }
  const mine = displayed;
  let visible = await mine.before;
  if (displayed !== mine || mine.asked || (photo.state !== "done" && mine.seen)) return;
  mine.seen = true;
  if (visible) photo.pixels = view.width * view.height;
  if (photo.state === "done") {
    mine.asked = true;
    mine.url = urlOf(photo.result);
    if (visible) visible = await showAfter(mine.url, !photo.viewed);
    if (displayed !== mine) return;
    Object.assign(mine, { ready: true, visible });
    if (visible) photo.size = `${view.width} × ${view.height}`;
  }
  render();
  if (mine.ready && visible && !photo.viewed && mayTakeFocus()) $("handle").focus({ preventScroll: true, focusVisible: false });
  if (mine.ready) photo.viewed = true;
}

// The divider takes the focus from what led to the photograph, not from work elsewhere on the page.
function mayTakeFocus() {
  const at = document.activeElement;
  return queue.photos.length === 1 && (!at || at === document.body || at.closest("#drop, #samples, .work") !== null);
}

// Return the state of a photograph in words, and a detail that changes with time.
function stateText(photo) {
  switch (photo.state) {
    case "waiting": {
      const before = queue.photos.slice(0, queue.photos.indexOf(photo)).filter((each) => OPEN.includes(each.state)).length;
      return ["Waiting", before ? `${before} before it` : ""];
    }
    case "sending": return ["Sending", photo.sent ? `${Math.floor(100 * photo.sent)} %` : ""];
    case "restoring": {
      const { left } = queue.progress(photo), seconds = (performance.now() - photo.began) / 1000;
      const time = left > 1 ? `about ${duration(left)} left` : seconds < 2 ? "" : duration(seconds);
      return ["Restoring", others > 0 ? `${time} · ${others} more in the service` : time];
    }
    case "delayed": return [photo.message, `next try in ${Math.max(Math.ceil((photo.until - performance.now()) / 1000), 0)} s`];
    case "done": return [`Restored in ${duration(photo.seconds)}`, ""];
    case "cancelled": return ["Cancelled", ""];
    default: return [`Failed: ${photo.message}`, ""];
  }
}

const inWords = (photo) => stateText(photo).filter(Boolean).join(", ");

function announce(photo) {
  if (announce.last === `${photo.id} ${photo.state}`) return;
  announce.last = `${photo.id} ${photo.state}`;
  const text = `${photo.file.name}: ${inWords(photo).replace(/\.$/, "")}.`;
  if (queue.photos.length === 1) {
    $("status").textContent = photo.state === "done" ? "Restored. Move the divider with the arrow keys." : text;
  } else if (["done", "failed"].includes(photo.state)) {
    $("status").textContent = queue.open.length ? text : `${text} ${summary()}.`;
  }
}

function summary() {
  const failed = queue.inState("failed").length, cancelled = queue.inState("cancelled").length;
  return [
    `${queue.inState("done").length} of ${queue.photos.length} restored`,
    ...(failed ? [`${failed} failed`] : []), ...(cancelled ? [`${cancelled} cancelled`] : []),
  ].join(", ");
}

// ------------------------------------------------------------------ what is on the page

function render() {
  const { photos, active } = queue, photo = selected;
  $("drop").hidden = photos.length > 0;
  $("viewer").hidden = photos.length === 0;
  if (photo) renderSelected(photo);
  renderList();
  const done = queue.inState("done").length;
  document.title = active && photos.length > 1 ? `${done}/${photos.length} · MIRAGE` : "MIRAGE · restore photographs";
  if (active && !render.clock) render.clock = setInterval(tick, 250);
  if (!active && render.clock) render.clock = clearInterval(render.clock);
}

function renderSelected(photo) {
  const busy = OPEN.includes(photo.state);
  const ready = displayed.photo === photo && displayed.ready;
  $("viewer").classList.toggle("busy", busy);
  $("veil").hidden = !busy || !$("handle").hidden;
  $("work").hidden = !busy;
  $("tools").hidden = busy || (photo.state === "done" && !ready);
  document.querySelector(".zoom").hidden = !(ready && displayed.visible);
  $("download").hidden = !ready;
  $("result").hidden = $("tools").hidden;
  if (busy) {
    const [text, detail] = stateText(photo);
    $("work-text").textContent = photo.state === "sending" ? `${text} ${photo.file.name}` : text;
    $("work-time").textContent = detail;
    showProgress($("progress"), photo);
  } else if (ready) {
    $("download").href = displayed.url;
    $("download").download = restoredName(photo.file.name);
    const size = displayed.visible ? `${photo.size}, ` : "This browser cannot show the restored file; download it. ";
    $("result").textContent = `${photo.file.name}: ${size}restored by ${photo.by} in ${duration(photo.seconds)}.`;
  } else {
    $("result").textContent = `${photo.file.name}: ${inWords(photo)}`;
  }
}

function showProgress(bar, photo) {
  const { value } = queue.progress(photo);
  if (value === null && photo.state !== "waiting") bar.removeAttribute("value"); else bar.value = value || 0;
}

function renderList() {
  const { photos } = queue, open = queue.open.length;
  $("photos").hidden = photos.length === 0 || (photos.length === 1 && !["failed", "cancelled"].includes(photos[0].state));
  for (const [photo, row] of rows) if (!photos.includes(photo)) { row.item.remove(); rows.delete(photo); }
  if ($("photos").hidden) return;
  for (const photo of photos) renderRow(photo);
  $("photos-summary").textContent = summary() + timeLeft();
  $("photos-progress").value = photos.reduce((sum, photo) => sum + (["failed", "cancelled"].includes(photo.state) ? 1 : queue.progress(photo).value || 0), 0) / photos.length;
  $("photos-progress").hidden = open === 0;
  $("stop").hidden = open === 0;
  $("retry").hidden = !photos.some((photo) => photo.state === "cancelled" || (photo.state === "failed" && !photo.final));
  $("clear").textContent = open ? "Remove restored" : "Remove all";
  $("clear").disabled = open > 0 && queue.inState("done").length === 0;
  $("download-all").disabled = queue.inState("done").length === 0 || zipping;
  $("notice").hidden = !queue.notice;
  $("notice").textContent = queue.notice;
}

function timeLeft() {
  const { open } = queue;
  if (!open.length || !queue.rate || open.some((photo) => !photo.pixels)) return "";
  const seconds = queue.rate * open.reduce((sum, photo) => sum + photo.pixels, 0) / 1e6;
  return seconds > 1 ? `, about ${duration(seconds)} left` : "";
}

function renderRow(photo) {
  let row = rows.get(photo);
  if (!row) {
    row = { item: element("li"), open: element("button"), picture: element("canvas"), state: element("small"), bar: element("progress"), remove: element("button", "×") };
    const text = element("span", photo.file.name);
    text.append(row.state, row.bar);
    row.picture.width = row.picture.height = 0;
    row.open.type = row.remove.type = "button";
    row.open.className = "open";
    row.remove.className = "round";
    row.bar.max = 1;
    row.bar.setAttribute("aria-hidden", "true");
    row.open.append(row.picture, text);
    row.open.onclick = () => select(photo);
    row.open.onkeydown = (event) => moveInList(event, photo);
    row.remove.onclick = () => leave(photo);
    row.item.append(row.open, row.remove);
    $("photo-list").append(row.item);
    rows.set(photo, row);
  }
  const busy = photo.controller !== null;
  row.item.dataset.state = photo.state;
  row.state.textContent = inWords(photo);
  row.bar.hidden = !busy;
  if (busy) showProgress(row.bar, photo);
  row.open.setAttribute("aria-current", photo === selected);
  // One stop of the Tab key for the list; arrow keys move in it.
  row.open.tabIndex = row.remove.tabIndex = photo === selected ? 0 : -1;
  const verb = OPEN.includes(photo.state) ? "Cancel" : "Remove";
  row.remove.title = verb;
  row.remove.setAttribute("aria-label", `${verb} ${photo.file.name}`);
  const stage = photo.result ? 2 : 1;
  if ((photo.drawn || 0) < stage) { photo.drawn = stage; drawThumbnail(photo, row.picture); }
}

// Draw small pictures one at a time: a photograph of 24 megapixels takes 100 MB while it is decoded.
let drawing = Promise.resolve();
function drawThumbnail(photo, canvas) {
  drawing = drawing.then(async () => {
    if (!queue.photos.includes(photo)) return;
    let bitmap;
    try { bitmap = await createImageBitmap(photo.result || photo.file); } catch { return; }
    photo.pixels = bitmap.width * bitmap.height;
    canvas.width = canvas.height = 112;
    const side = Math.min(bitmap.width, bitmap.height), left = (bitmap.width - side) / 2, top = (bitmap.height - side) / 2;
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, left, top, side, side, 0, 0, 112, 112);
    bitmap.close();
  });
}

function leave(photo) {
  const index = queue.photos.indexOf(photo);
  if (OPEN.includes(photo.state)) return queue.cancel(photo);
  queue.remove([photo]);
  const next = queue.photos[Math.min(index, queue.photos.length - 1)];
  if (next && rows.has(next)) { select(next); rows.get(next).open.focus(); }
}

function moveInList(event, photo) {
  const index = queue.photos.indexOf(photo), last = queue.photos.length - 1;
  if (event.key === "Delete") { event.preventDefault(); return leave(photo); }
  const to = { ArrowUp: index - 1, ArrowLeft: index - 1, ArrowDown: index + 1, ArrowRight: index + 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  const next = queue.photos[Math.min(Math.max(to, 0), last)];
  select(next);
  rows.get(next).open.focus();
}

function tick() {
  render();
  const photo = queue.active, now = performance.now();
  if (!photo || photo.state !== "restoring") { others = 0; return; }
  if (now - photo.since < 3000 || now - (tick.asked || 0) < 3000) return;
  tick.asked = now;
  fetch("health").then((reply) => reply.json()).then((health) => { others = Math.max(health.in_flight - 1, 0); }).catch(() => {});
}

function showError(text) {
  $("error").hidden = !text;
  $("error-text").textContent = text;
  if (text) $("error").scrollIntoView({ block: "nearest" });
}

function needToken(message) {
  $("token-form").hidden = false;
  $("token").focus();
  if (message) showError(message);
}

// ------------------------------------------------------------------ input

$("file").onchange = (event) => {
  choose([...event.target.files]);
  event.target.value = "";   // the same file can be chosen again
};
$("again").onclick = () => $("file").click();
$("cancel").onclick = () => queue.cancel(selected);
$("stop").onclick = () => { for (const photo of queue.open.reverse()) queue.cancel(photo); };
$("retry").onclick = () => { showError(""); queue.retry(); };
$("clear").onclick = () => queue.remove($("stop").hidden ? queue.photos : queue.inState("done"));
$("error-close").onclick = () => showError("");
$("token-form").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  $("token-form").hidden = true;
  showError("");
  queue.work();
};

let zipping = false;
$("download-all").onclick = async () => {
  const button = $("download-all"), done = queue.inState("done"), names = distinctNames(done.map((photo) => photo.file.name));
  zipping = button.disabled = true;
  button.textContent = "Preparing …";
  try {
    const link = element("a");
    link.href = URL.createObjectURL(await zip(done.map((photo, index) => ({ name: names[index], blob: photo.result }))));
    link.download = "restored.zip";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  } catch {
    showError("The browser could not make the ZIP file. Download the photographs one by one.");
  }
  zipping = button.disabled = false;
  button.textContent = "Download all";
};

let depth = 0;
const carriesFile = (event) => [...event.dataTransfer.types].includes("Files");
addEventListener("dragenter", (event) => { if (carriesFile(event)) { depth++; document.body.classList.add("over"); } });
addEventListener("dragleave", () => { depth = Math.max(depth - 1, 0); if (!depth) document.body.classList.remove("over"); });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("over");
  chooseFrom(event.dataTransfer);
});
addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  chooseFrom(event.clipboardData);
});
addEventListener("beforeunload", (event) => { if (queue.photos.length > 1 && queue.active) event.preventDefault(); });

loadModel();
