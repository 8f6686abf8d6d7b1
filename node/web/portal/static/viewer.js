// The canvas viewer. Pictures come ready from the node: windowed, with the watermark burned in. The script
// chooses which to ask for, keeps a bounded number of them, and removes everything when access ends.

const data = JSON.parse(document.getElementById("viewer-data").textContent);
const words = data.words;
const $ = (id) => document.getElementById(id);
const canvas = $("canvas"), context = canvas.getContext("2d"), slider = $("slider");

const MAX_PICTURES = 400;
const PREFETCH = 12;
const AT_ONCE = 4;
const RETRY_MS = 2000;
const PRESETS = {
  CT: [["Brain", 40, 80], ["Soft tissue", 40, 400], ["Lung", -600, 1500], ["Bone", 480, 2500], ["Liver", 60, 160]],
};

const state = { series: 0, index: 0, window: null, zoom: 1, x: 0, y: 0, tool: "window", shown: null, ended: false, playing: 0 };
const pictures = new Map(); // key -> {promise, bitmap}
let asking = 0, queue = [], turn = 0, slow = 0;

const series = () => data.series[state.series];
const frames = () => series().frames;
const key = (s, i, w) => `${s}|${i}|${w ? w.map(Math.round).join(",") : ""}`;

function address(s, i, w, size) {
  const frame = data.series[s].frames[i];
  const query = new URLSearchParams();
  if (w) { query.set("wc", Math.round(w[0])); query.set("ww", Math.max(1, Math.round(w[1]))); }
  if (size) query.set("size", size);
  const text = query.toString();
  return `${data.frames}/${frame.sop}/${frame.frame}${text ? `?${text}` : ""}`;
}

class Refused extends Error {
  constructor(status, problem) { super(problem?.detail ?? String(status)); this.status = status; this.problem = problem; }
}

async function ask(url) {
  const answer = await fetch(url, { headers: { Accept: "image/webp,application/problem+json" } });
  if (!answer.ok) {
    let problem = null;
    try { problem = await answer.json(); } catch { /* the status says enough */ }
    throw new Refused(answer.status, problem);
  }
  return createImageBitmap(await answer.blob());
}

// One picture: from memory, or asked for. `urgent` ones go before what is only prefetched.
function picture(s, i, w, urgent) {
  const name = key(s, i, w);
  let entry = pictures.get(name);
  if (entry) {
    pictures.delete(name);
    pictures.set(name, entry); // the newest use is last
    if (urgent && entry.start) { queue = queue.filter((other) => other !== entry); queue.unshift(entry); pump(); }
    return entry.promise;
  }
  entry = { bitmap: null, series: s };
  entry.promise = new Promise((resolve, reject) => {
    entry.start = async () => {
      entry.start = null;
      asking += 1;
      try { entry.bitmap = await ask(address(s, i, w)); resolve(entry.bitmap); progress(); }
      catch (error) { pictures.delete(name); reject(error); }
      finally { asking -= 1; pump(); }
    };
    entry.drop = () => reject(new Error("dropped"));
  });
  entry.promise.catch((error) => { if (error instanceof Refused && [401, 403, 404, 410].includes(error.status)) end(error); });
  pictures.set(name, entry);
  if (urgent) queue.unshift(entry); else queue.push(entry);
  trim();
  pump();
  return entry.promise;
}

function pump() {
  while (asking < AT_ONCE && queue.length && !state.ended) {
    const entry = queue.shift();
    entry.start?.();
  }
}

function trim() {
  for (const [name, entry] of pictures) {
    if (pictures.size <= MAX_PICTURES) break;
    if (entry.bitmap && entry.bitmap !== state.shown) { pictures.delete(name); entry.bitmap.close(); }
    else break;
  }
}

// What waits for a window that nobody looks at any more is not asked for.
function forget() {
  for (const [name, entry] of pictures) if (entry.start) { pictures.delete(name); entry.drop(); }
  queue = [];
}

async function show() {
  if (state.ended || !frames().length) return;
  const mine = ++turn;
  place();
  clearTimeout(slow);
  slow = setTimeout(() => { if (mine === turn) $("loading").hidden = false; }, 180);
  try {
    const bitmap = await picture(state.series, state.index, state.window, true);
    if (mine !== turn) return;
    clearTimeout(slow);
    state.shown = bitmap;
    $("loading").hidden = true;
    $("message").hidden = true;
    paint();
    document.body.dataset.shown = key(state.series, state.index, state.window);
    prefetch();
  } catch (error) {
    if (mine !== turn || state.ended || error.message === "dropped") return;
    clearTimeout(slow);
    $("loading").hidden = true;
    if (error instanceof Refused) return message(words.failed, error.problem?.detail ?? "", error.problem?.reasons);
    $("loading").hidden = false;
    $("loading").lastElementChild.textContent = words.unreachable;
    setTimeout(() => { $("loading").lastElementChild.textContent = words.loading; show(); }, RETRY_MS);
  }
}

function prefetch() {
  const last = frames().length - 1;
  for (let step = 1; step <= PREFETCH; step += 1) {
    for (const i of [state.index + step, state.index - Math.ceil(step / 3)]) {
      if (i >= 0 && i <= last && i !== state.index) picture(state.series, i, state.window, false).catch(() => {});
    }
  }
}

function paint() {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  const bitmap = state.shown;
  if (!bitmap) return;
  const scale = Math.min(width / bitmap.width, height / bitmap.height) * state.zoom;
  const w = bitmap.width * scale, h = bitmap.height * scale;
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - w) / 2 + state.x * ratio, (height - h) / 2 + state.y * ratio, w, h);
  const level = state.window ? `WL ${Math.round(state.window[0])}  WW ${Math.round(state.window[1])}` : words.default;
  $("corner").textContent = `${level}\n× ${state.zoom.toFixed(2)}`;
}

function place() {
  slider.value = state.index;
  slider.setAttribute("aria-valuetext", `${words.image} ${state.index + 1} / ${frames().length}`);
  $("position").textContent = `${state.index + 1} / ${frames().length}`;
}

function progress() {
  let have = 0;
  for (let i = 0; i < frames().length; i += 1) if (pictures.get(key(state.series, i, state.window))?.bitmap) have += 1;
  $("progress").max = frames().length;
  $("progress").value = have;
  $("loaded").textContent = `${have} ${words.loaded}`;
}

function message(title, text, reasons) {
  $("message-title").textContent = title;
  $("message-text").textContent = text;
  $("message-reasons").replaceChildren(...(reasons ?? []).map((reason) => Object.assign(document.createElement("li"), { textContent: reason })));
  $("message").hidden = false;
}

// Access has ended: nothing stays on the screen or in memory.
function end(error) {
  if (state.ended) return;
  state.ended = true;
  play(false);
  for (const entry of pictures.values()) entry.bitmap?.close();
  pictures.clear();
  queue = [];
  state.shown = null;
  paint();
  document.querySelectorAll("#series-list canvas").forEach((small) => { small.width = small.width; });
  $("corner").textContent = "";
  $("loading").hidden = true;
  document.body.dataset.ended = String(error.status);
  message(words.ended, words.ended_text, error.problem?.reasons ?? (error.problem ? [error.problem.detail] : []));
}

function go(index) {
  const next = Math.max(0, Math.min(frames().length - 1, index));
  if (next !== state.index) { state.index = next; show(); }
}

function choose(s, index = 0) {
  if (s < 0 || s >= data.series.length) return;
  forget();
  Object.assign(state, { series: s, index, window: null, zoom: 1, x: 0, y: 0 });
  slider.max = Math.max(0, frames().length - 1);
  $("series-title").textContent = [series().modality, series().number, series().description].filter((part) => part !== null && part !== "").join(" · ");
  for (const [i, button] of [...$("series-list").children].entries()) button.setAttribute("aria-current", String(i === s));
  presets();
  progress();
  if (frames().length) show(); else message(words.none, "", []);
}

function presets() {
  const select = $("preset");
  const offered = PRESETS[series().modality] ?? [];
  select.replaceChildren(new Option(words.default, ""), ...offered.map(([name, wc, ww]) => new Option(`${words[name] ?? name}`, `${wc},${ww}`)));
  select.disabled = !offered.length;
}

function setWindow(w) {
  state.window = w;
  forget();
  show();
}

// Without a window of its own the picture was stretched as stored: dragging starts from the series' own one.
const startWindow = () => state.window ?? series().window ?? (series().modality === "CT" ? [40, 400] : [512, 1024]);

function reset() {
  Object.assign(state, { zoom: 1, x: 0, y: 0 });
  $("preset").value = "";
  setWindow(null);
}

function zoomTo(factor) {
  state.zoom = Math.max(0.2, Math.min(16, factor));
  paint();
}

function play(on) {
  clearInterval(state.playing);
  state.playing = on ? setInterval(() => { if (state.shown && $("loading").hidden) go((state.index + 1) % frames().length); }, 1000 / 12) : 0;
  $("play").setAttribute("aria-pressed", String(on));
}

function takeTool(name) {
  state.tool = name;
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-checked", String(button.dataset.tool === name));
}

// Pointer: one finger or the left button uses the tool; right zooms; middle or shift moves; two fingers pinch.
const pointers = new Map();
let drag = null, due = 0;

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, event);
  const tool = event.button === 2 ? "zoom" : event.button === 1 || event.shiftKey ? "pan" : state.tool;
  drag = { tool, x: event.clientX, y: event.clientY, index: state.index, zoom: state.zoom, px: state.x, py: state.y, window: startWindow(), spread: spread() };
});
canvas.addEventListener("pointermove", (event) => {
  if (!drag || !pointers.has(event.pointerId)) return;
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) return zoomTo(drag.zoom * (spread() / (drag.spread || spread())));
  const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
  if (drag.tool === "pan") { state.x = drag.px + dx; state.y = drag.py + dy; paint(); }
  else if (drag.tool === "zoom") zoomTo(drag.zoom * Math.exp(-dy / 180));
  else if (drag.tool === "scroll") go(drag.index + Math.round(dy / 8));
  else if (Math.abs(dx) + Math.abs(dy) > 2) {
    const unit = Math.max(1, drag.window[1] / 300);
    state.window = [drag.window[0] + dy * unit, Math.max(1, drag.window[1] + dx * unit)];
    $("preset").value = "";
    const now = performance.now();
    if (now > due) { due = now + 70; forget(); show(); } else paint();
  }
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    if (drag?.tool === "window") show();
    if (!pointers.size) drag = null;
    else if (drag) drag.spread = 0;
  });
}
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  if (event.ctrlKey) zoomTo(state.zoom * (event.deltaY < 0 ? 1.1 : 0.9));
  else go(state.index + Math.sign(event.deltaY));
}, { passive: false });

function spread() {
  const [a, b] = [...pointers.values()];
  return a && b ? Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) : 0;
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const last = frames().length - 1;
  const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1, PageDown: 10, PageUp: -10, Home: -last, End: last };
  const actions = {
    "+": () => zoomTo(state.zoom * 1.2), "=": () => zoomTo(state.zoom * 1.2), "-": () => zoomTo(state.zoom / 1.2),
    "]": () => choose(state.series + 1), "[": () => choose(state.series - 1), r: reset,
    w: () => takeTool("window"), p: () => takeTool("pan"), z: () => takeTool("zoom"), s: () => takeTool("scroll"),
  };
  if (event.key in steps) { event.preventDefault(); go(state.index + steps[event.key]); }
  else if (event.key === " " && event.target === canvas) { event.preventDefault(); play(!state.playing); }
  else actions[event.key.toLowerCase()]?.();
});
slider.addEventListener("input", () => go(Number(slider.value)));
$("preset").addEventListener("change", (event) => setWindow(event.target.value ? event.target.value.split(",").map(Number) : null));
$("reset").addEventListener("click", reset);
$("play").addEventListener("click", () => play(!state.playing));
for (const button of document.querySelectorAll("[data-tool]")) button.addEventListener("click", () => takeTool(button.dataset.tool));
new ResizeObserver(paint).observe(canvas);

// The list of series, each with the picture from its middle.
for (const [i, one] of data.series.entries()) {
  const button = document.createElement("button");
  const small = document.createElement("canvas");
  const label = document.createElement("span");
  const count = document.createElement("small");
  small.width = small.height = 144;
  label.textContent = one.description || `${words.series} ${one.number ?? i + 1}`;
  count.textContent = `${one.modality} · ${one.frames.length} ${words.images}`;
  button.append(small, label, count);
  button.addEventListener("click", () => choose(i));
  $("series-list").append(button);
}

async function thumbnails() {
  for (const [i, one] of data.series.entries()) {
    if (!one.frames.length || state.ended) continue;
    try {
      const bitmap = await ask(address(i, Math.floor(one.frames.length / 2), null, 144));
      const small = $("series-list").children[i].querySelector("canvas");
      const scale = Math.min(144 / bitmap.width, 144 / bitmap.height);
      const w = bitmap.width * scale, h = bitmap.height * scale;
      if (!state.ended) small.getContext("2d").drawImage(bitmap, (144 - w) / 2, (144 - h) / 2, w, h);
      bitmap.close();
    } catch (error) {
      if (error instanceof Refused && [401, 403].includes(error.status)) return end(error);
    }
  }
}

const named = data.series.findIndex((one) => `#${one.uid}` === location.hash);
if (data.series.length) {
  choose(Math.max(0, named));
  canvas.focus();
  // The first picture matters most; the small ones wait for it.
  picture(state.series, state.index, null, true).catch(() => {}).finally(thumbnails);
} else {
  message(words.none, "", []);
}
