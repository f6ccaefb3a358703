"use strict";
// The photograph before and after, one above the other, with a divider between them, zoom and pan.

const $ = (id) => document.getElementById(id);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const MAX_ZOOM = 16, STEP = 1.5;

let split = 50;               // position of the divider, in percent of the stage
let view = { fit: 1, scale: 1, x: 0, y: 0, width: 1, height: 1 };

// ------------------------------------------------------------------ the divider

function setSplit(percent) {
  split = Math.min(Math.max(percent, 0), 100);
  $("before").style.clipPath = `inset(0 ${100 - split}% 0 0)`;
  $("after").style.clipPath = `inset(0 0 0 ${split}%)`;
  const handle = $("handle");
  handle.style.left = `${split}%`;
  handle.setAttribute("aria-valuenow", Math.round(split));
  handle.setAttribute("aria-valuetext", `${Math.round(split)} % before, ${Math.round(100 - split)} % restored`);
}

$("handle").addEventListener("keydown", (event) => {
  const step = event.shiftKey ? 10 : 2;
  const to = {
    ArrowLeft: split - step, ArrowDown: split - step, ArrowRight: split + step, ArrowUp: split + step,
    PageDown: split - 10, PageUp: split + 10, Home: 0, End: 100,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  reveal.run = null;
  setSplit(to);
});

// ------------------------------------------------------------------ zoom and pan

function layOut(fit) {
  const available = $("viewer").clientWidth - 2 * parseFloat(getComputedStyle($("viewer")).paddingLeft);
  const width = Math.min(available, Math.max(innerHeight * 0.72, 280) * view.width / view.height, Math.max(view.width * 3, 280));
  if (!(width > 0)) return;   // not laid out yet; a resize event follows
  const stage = $("stage"), before = view.fit;
  stage.style.width = `${width}px`;
  stage.style.height = `${width * view.height / view.width}px`;
  view.fit = width / view.width;
  if (fit) { view.scale = view.fit; view.x = view.y = 0; }
  else { const factor = view.fit / before; view.scale *= factor; view.x *= factor; view.y *= factor; }
  place();
}

function place() {
  const stage = $("stage"), width = stage.clientWidth, height = stage.clientHeight;
  view.scale = Math.min(Math.max(view.scale, view.fit), view.fit * MAX_ZOOM);
  view.x = Math.min(Math.max(view.x, width - view.width * view.scale), 0);
  view.y = Math.min(Math.max(view.y, height - view.height * view.scale), 0);
  const zoomed = view.scale > view.fit * 1.001;
  for (const image of [$("before-img"), $("after-img")]) {
    image.style.width = `${view.width}px`;
    image.style.height = `${view.height}px`;
    image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  }
  stage.classList.toggle("zoomed", zoomed);
  stage.classList.toggle("crisp", view.scale * devicePixelRatio >= 3);
  $("zoom-value").textContent = `${Math.round(100 * view.scale)} %`;
  $("zoom-out").disabled = $("zoom-fit").disabled = !zoomed;
  $("zoom-in").disabled = view.scale >= view.fit * MAX_ZOOM * 0.999;
}

function zoom(factor, x = $("stage").clientWidth / 2, y = $("stage").clientHeight / 2) {
  const before = view.scale;
  view.scale = Math.min(Math.max(before * factor, view.fit), view.fit * MAX_ZOOM);
  const real = view.scale / before;
  view.x = x - (x - view.x) * real;
  view.y = y - (y - view.y) * real;
  place();
}

$("zoom-in").onclick = () => zoom(STEP);
$("zoom-out").onclick = () => zoom(1 / STEP);
$("zoom-fit").onclick = () => { view.scale = view.fit; place(); };
addEventListener("resize", () => { if (!$("viewer").hidden && !$("stage").hidden) layOut(false); });
addEventListener("keydown", (event) => {
  if ($("handle").hidden || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  if (event.key === "+" || event.key === "=") zoom(STEP);
  else if (event.key === "-") zoom(1 / STEP);
  else if (event.key === "0") $("zoom-fit").onclick();
});

const stage = $("stage");
stage.addEventListener("wheel", (event) => {
  if ($("handle").hidden) return;
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });

const fingers = new Map();
let dragging = "";            // "split" or "pan"
stage.addEventListener("pointerdown", (event) => {
  if ($("handle").hidden || event.button > 0) return;
  reveal.run = null;
  fingers.set(event.pointerId, event);
  stage.setPointerCapture(event.pointerId);
  const onHandle = $("handle").contains(event.target);
  dragging = fingers.size > 1 ? "" : onHandle || !stage.classList.contains("zoomed") ? "split" : "pan";
  stage.classList.toggle("panning", dragging === "pan");
  if (dragging === "split") { if (!onHandle) moveSplit(event); $("handle").focus({ preventScroll: true, focusVisible: false }); }
});
stage.addEventListener("pointermove", (event) => {
  const last = fingers.get(event.pointerId);
  if (!last) return;
  if (fingers.size === 2) {
    const [other] = [...fingers.values()].filter((finger) => finger.pointerId !== event.pointerId);
    const box = stage.getBoundingClientRect(), apart = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY);
    zoom(apart(event) / Math.max(apart(last), 1), (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
  } else if (dragging === "split") {
    moveSplit(event);
  } else if (dragging === "pan") {
    view.x += event.clientX - last.clientX;
    view.y += event.clientY - last.clientY;
    place();
  }
  fingers.set(event.pointerId, event);
});
for (const kind of ["pointerup", "pointercancel"]) {
  stage.addEventListener(kind, (event) => { fingers.delete(event.pointerId); dragging = ""; stage.classList.remove("panning"); });
}
function moveSplit(event) {
  const box = stage.getBoundingClientRect();
  setSplit(100 * (event.clientX - box.left) / box.width);
}

function reveal() {
  if (reducedMotion.matches) return setSplit(50);
  const began = performance.now();
  const current = reveal.run = {};
  const frame = (now) => {
    if (reveal.run !== current) return;
    const t = Math.min((now - began) / 900, 1);
    setSplit(100 - 50 * (1 - (1 - t) ** 3));
    if (t < 1) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

// ------------------------------------------------------------------ showing photographs

// Show an image; return whether this browser can (most cannot show TIFF).
async function load(image, url) {
  image.src = url;
  try { await image.decode(); return true; } catch { return false; }
}

async function showBefore(url) {
  reveal.run = null;
  $("handle").hidden = true;
  $("after-img").removeAttribute("src");
  const shown = await load($("before-img"), url);
  $("stage").hidden = !shown;
  if (!shown) return false;
  view.width = $("before-img").naturalWidth;
  view.height = $("before-img").naturalHeight;
  setSplit(100);
  layOut(true);
  return true;
}

async function showAfter(url, animated) {
  const shown = await load($("after-img"), url);
  $("stage").hidden = $("handle").hidden = !shown;
  if (!shown) return false;
  layOut(false);
  if (animated) reveal(); else setSplit(50);
  return true;
}
