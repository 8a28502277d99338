"use strict";

const find = (id) => document.getElementById(id);
const SIDE = 64, PEN = 22, MARGIN = 0.1, MOST_LEANED = 6;
const SHAPES = ["circle", "square", "diamond", "triangle"];
const state = { federation: null, images: [], label: null, made: null, busy: false, drawn: false };

async function ask(path, body) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
  const reply = await fetch(path, options).catch(() => { throw new Error("the server does not answer: is `hyperlora demo` still running?"); });
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error);
  return value;
}

function say(error) {
  find("error").hidden = !error;
  find("error").textContent = error ? error.message : "";
  if (error) find("error").scrollIntoView({ block: "nearest" });
}

async function guarded(work) {
  say(null);
  try { await work(); } catch (error) { say(error); }
}

function element(name, attributes, ...children) {
  const made = name === "svg" || name.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", name.replace("svg:", "")) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

// ---- images

function add(label, data) {
  if (state.images.length >= state.federation.most_images) throw new Error(`at most ${state.federation.most_images} images`);
  state.images.push({ label, data });
}

function showImages() {
  find("gallery").replaceChildren(...state.images.map((image, index) => {
    const picture = element("img", { src: `data:image/png;base64,${image.data}`, alt: "" });
    const button = element("button", { type: "button", title: `Remove this ${image.label}`, "aria-label": `Remove image ${index + 1} of class ${image.label}` }, picture, image.label);
    button.onclick = () => { state.images.splice(index, 1); showImages(); };
    return button;
  }));
  const count = state.images.length;
  find("count").textContent = state.busy ? "making it ..." : count ? `${count} images; a quarter is held out to score by` : "no images yet";
  find("go").disabled = state.busy || count < 3;
}

function chooseClass(label) {
  state.label = label;
  for (const button of find("classes").children) button.setAttribute("aria-pressed", button.textContent === label);
}

function shrunk(source, width, height) {
  const side = Math.max(SIDE, state.federation.side);
  const canvas = element("canvas", { width: side, height: side });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height, 0, 0, side, side);
  return canvas.toDataURL("image/png").split(",")[1];
}

async function addFile(file, folder) {
  const bitmap = await createImageBitmap(file).catch(() => { throw new Error(`${file.name} is no image that this browser can read`); });
  add(state.federation.classes.includes(folder) ? folder : state.label, shrunk(bitmap, bitmap.width, bitmap.height));
}

async function addEntry(entry, folder) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    if (file.type.startsWith("image/")) await addFile(file, folder);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return;
    for (const one of some) await addEntry(one, entry.name);
  }
}

async function dropped(event) {
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry()).filter(Boolean);
  try { for (const entry of entries) await addEntry(entry, ""); } finally { showImages(); }
}

// ---- drawing

function makeDrawing() {
  const canvas = find("canvas"), pen = canvas.getContext("2d", { willReadFrequently: true });
  const wipe = () => { pen.fillStyle = "#000"; pen.fillRect(0, 0, canvas.width, canvas.height); state.drawn = false; };
  const place = (event) => {
    const frame = canvas.getBoundingClientRect();
    return [(event.clientX - frame.left) / frame.width * canvas.width, (event.clientY - frame.top) / frame.height * canvas.height];
  };
  Object.assign(pen, { lineWidth: PEN, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    pen.beginPath(); pen.moveTo(...place(event)); pen.lineTo(...place(event)); pen.stroke();
    state.drawn = true;
  };
  canvas.onpointermove = (event) => { if (event.buttons) { pen.lineTo(...place(event)); pen.stroke(); } };
  find("wipe").onclick = wipe;
  find("add").onclick = () => guarded(() => {
    if (!state.drawn) throw new Error("draw something first");
    add(state.label, cropped(canvas, pen)); wipe(); showImages();
  });
  wipe();
}

function cropped(canvas, pen) { // the drawing fills the image, as scanned digits do
  const { data, width, height } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (let i = 0; i < width * height; i++) {
    if (data[4 * i] > 40) {
      left = Math.min(left, i % width); right = Math.max(right, i % width);
      top = Math.min(top, Math.floor(i / width)); bottom = Math.max(bottom, Math.floor(i / width));
    }
  }
  const side = Math.max(right - left, bottom - top, PEN) * (1 + 2 * MARGIN);
  const whole = element("canvas", { width: side, height: side }), inner = whole.getContext("2d");
  inner.fillRect(0, 0, side, side);
  inner.drawImage(canvas, (side - left - right) / 2, (side - top - bottom) / 2);
  return shrunk(whole, whole.width, whole.height);
}

// ---- the map

function mark(shape, x, y, size, color, filled) {
  const style = { fill: filled ? color : "none", stroke: color, "stroke-width": 2 };
  if (shape === "circle") return element("svg:circle", { cx: x, cy: y, r: size, ...style });
  const corners = {
    square: [[-1, -1], [1, -1], [1, 1], [-1, 1]], diamond: [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]], triangle: [[0, -1.2], [1.2, 1], [-1.2, 1]],
    star: [...Array(10).keys()].map((i) => { const r = i % 2 ? 0.6 : 1.5, a = Math.PI * i / 5; return [r * Math.sin(a), -r * Math.cos(a)]; }),
  }[shape];
  return element("svg:polygon", { points: corners.map(([dx, dy]) => `${x + size * dx},${y + size * dy}`).join(" "), ...style });
}

function showMap() {
  const { clients } = state.federation, you = state.made ? [{ name: "you", place: state.made.place }] : [];
  const domains = [...new Set(clients.map((client) => client.domain))].sort();
  const look = (domain) => [SHAPES[domains.indexOf(domain) % 4], `var(--series-${domains.indexOf(domain) % 6 + 1})`];
  const scale = (axis, low, high) => {
    const all = [...clients, ...you].map((one) => one.place[axis]), least = Math.min(...all), most = Math.max(...all);
    return (value) => low + (high - low) * (most > least ? (value - least) / (most - least) : 0.5);
  };
  const [x, y] = [scale(0, 24, 436), scale(1, 356, 24)], at = ({ place }) => [x(place[0]), y(place[1])];
  const map = find("map");
  map.replaceChildren(element("svg:rect", { x: 1, y: 1, width: 458, height: 378, rx: 6, fill: "none", stroke: "var(--rule)" }));
  const nearest = clients.find((client) => state.made && client.name === state.made.nearest);
  if (nearest) {
    const [[x1, y1], [x2, y2]] = [at(nearest), at(you[0])];
    map.append(element("svg:line", { x1, y1, x2, y2, stroke: "var(--ink)", "stroke-dasharray": "4 4" }));
  }
  for (const { name, weight } of leanedOn().filter((one) => one.weight > 0)) {
    const [[x1, y1], [x2, y2]] = [at(clients.find((client) => client.name === name)), at(you[0])];
    map.append(element("svg:line", { x1, y1, x2, y2, class: "lean", stroke: "var(--series-1)", "stroke-opacity": 0.4, "stroke-width": Math.max(0.5, 40 * weight) }));
  }
  for (const client of clients) {
    const [shape, color] = look(client.domain), group = element("svg:g", {}, mark(shape, ...at(client), 6, color, client.trains));
    group.append(element("svg:title", {}, `${client.name}${client.trains ? "" : ", never trained"}`));
    map.append(group);
  }
  for (const one of you) {
    const [left, top] = at(one);
    map.append(mark("star", left, top, 9, "var(--ink)", true));
    const before = left > 60 && (left > 400 || (nearest && at(nearest)[0] > left));
    const place = { x: left + (before ? -16 : 16), y: top + 5, "text-anchor": before ? "end" : "start" };
    map.append(element("svg:text", { ...place, "font-weight": 700 }, "you"));
  }
  find("legend").replaceChildren(...domains.map((domain) => {
    const [shape, color] = look(domain);
    return element("span", {}, element("svg", { viewBox: "0 0 14 14" }, mark(shape, 7, 7, 4.5, color, true)), domain);
  }));
}

// ---- what was made

function words(score, steps) {
  if (score.name === "majority") return "always the class that you have most of";
  const start = score.start === "anchor" ? "the anchor, which all clients share" : "generated for you";
  return score.steps ? `${start}, after ${score.steps} local steps` : start;
}

function leanedOn() { // clients by their weight in the head, heaviest first
  const others = state.made && state.made.leaning ? state.made.leaning.others : {};
  return Object.entries(others).map(([name, weight]) => ({ name, weight })).sort((one, other) => Math.abs(other.weight) - Math.abs(one.weight));
}

function showLeaning() {
  const { leaning } = state.made, clients = leanedOn(), most = clients.slice(0, MOST_LEANED), rest = clients.slice(MOST_LEANED);
  find("leaning-part").hidden = !leaning;
  if (!leaning) return;
  const rows = [{ name: "your own images", weight: leaning.own, kind: "own" }, ...most.map((one) => ({ ...one, kind: "client" }))];
  if (rest.length) rows.push({ name: `the other ${rest.length} clients together`, weight: rest.reduce((sum, one) => sum + one.weight, 0), kind: "rest" });
  const whole = Math.max(1, ...rows.map((row) => row.weight));
  find("leaning").replaceChildren(...rows.map(({ name, weight, kind }) => {
    const fill = element("div", { class: "fill" });
    fill.style.width = `${100 * Math.max(0, weight) / whole}%`;
    return element("div", { class: `bar ${kind}` },
      element("div", { class: "words" }, element("span", {}, name), element("b", {}, `${(100 * weight).toFixed(1)} %`)),
      element("div", { class: "track" }, fill));
  }));
  find("leaning-caption").textContent = "By how much the class means that are expected of you follow those of your own images and of each client that trained, " +
    "mean over classes: the weights of the linear prediction that your head is made from. Together they are about 100 %, and one can be below 0. " +
    (leaning.share < 1 ? `The head generated from these means is ${(100 * leaning.share).toFixed(0)} % of yours, the rest is the anchor's. ` : "") +
    "Lines on the map are as wide as the weight, where it is above 0.";
}

function showMade() {
  const made = state.made, percent = (share) => `${(100 * share).toFixed(1)} %`;
  find("bars").replaceChildren(...made.scores.map((score) => {
    const used = score.name === made.use ? element("span", { class: "use" }, " (use this)") : "";
    const fill = element("div", { class: "fill" }), whisker = element("div", { class: "whisker" });
    fill.style.width = `${100 * score.accuracy}%`;
    Object.assign(whisker.style, { left: `${100 * score.low}%`, width: `${100 * (score.high - score.low)}%` });
    return element("div", { class: `bar ${score.start}` },
      element("div", { class: "words" }, element("span", {}, words(score), used), element("b", {}, percent(score.accuracy))),
      element("div", { class: "track" }, fill, whisker));
  }));
  const { train, validation, test } = made.samples, few = test < 10 ? " With so few it says little: add images." : "";
  find("scores-caption").textContent = `Accuracy on ${test} held-out images (the line is a 95 % interval); ${train} to adapt to, ${validation} to choose by.${few}`;
  const unlike = made.unlike ? " Your images are unlike those of every client: what is generated may be worth little." : "";
  find("map-caption").textContent = `Nearest client by frozen features: ${made.nearest}.${unlike}`;
  const own = made.use.startsWith("anchor") ? "generated" : made.use;
  find("answers").replaceChildren(...made.held_out.map((one) => {
    const said = (name) => element("b", { class: one.said[name] === one.label ? "hit" : "miss" }, one.said[name]);
    const shown = element("span", { title: `a ${one.label}` }, element("img", { src: `data:image/png;base64,${one.image}`, alt: `a ${one.label}` }));
    shown.append(...("anchor" in one.said ? [said("anchor"), " → "] : []), said(own));
    return shown;
  }));
  showLeaning();
  find("scores-panel").hidden = find("answers-panel").hidden = false;
  showMap();
}

async function go() {
  state.busy = true; showImages();
  try {
    state.made = await ask("/api/personalize", { images: state.images });
    showMade();
  } finally { state.busy = false; showImages(); }
}

// ---- the page

async function start() {
  const federation = state.federation = await ask("/api/federation");
  find("about").textContent = `${federation.clients.length} clients (${federation.data}) made a federation in ${federation.rounds} rounds of ${federation.method} and met none of your images. ` +
    `Draw or drop some: it answers with an adapter made for them, and ${federation.steps} local steps on them follow. Nothing leaves this machine.`;
  for (const label of federation.classes) {
    const button = element("button", { type: "button" }, label);
    button.onclick = () => chooseClass(label);
    find("classes").append(button);
  }
  for (const style of federation.styles) find("sample").append(element("option", { value: style }, style));
  find("sample-label").hidden = !federation.styles.length;
  chooseClass(federation.classes[0]);
  makeDrawing(); showImages(); showMap();
}

find("sample").onchange = (event) => guarded(async () => {
  if (!event.target.value) return;
  state.images = (await ask(`/api/sample?style=${encodeURIComponent(event.target.value)}`)).images;
  event.target.value = "";
  showImages();
});
find("files").onchange = (event) => guarded(async () => {
  try { for (const file of event.target.files) await addFile(file, ""); } finally { event.target.value = ""; showImages(); }
});
find("clear").onclick = () => { state.images = []; showImages(); };
find("go").onclick = () => guarded(go);
document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dropping"); };
document.ondragleave = () => document.body.classList.remove("dropping");
document.ondrop = (event) => { event.preventDefault(); document.body.classList.remove("dropping"); guarded(() => dropped(event)); };
document.onkeydown = (event) => {
  if (event.target.tagName !== "SELECT" && state.federation && state.federation.classes.includes(event.key)) chooseClass(event.key);
};
guarded(start);
