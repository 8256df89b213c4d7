"use strict";
// The page of saol_jax/gallery.py. Text from files reaches the page through textContent alone.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const PAGE = 60; // cards made at once; more are made when the end of the list comes near
const BARS = 3; // classes on a card; all are in the detail
const HEAT_SIDE = 96; // pixels of a map's longest side; the browser smooths it further

const items = data.items;
items.forEach((item, index) => Object.assign(item, {
  index,
  known: item.truth !== null,
  right: item.truth === item.labels[0],
  confidence: item.probabilities[0],
  rank: 0, // whose map and box are shown
  seen: false, // its card is in sight, or nearly
  view: null, // of this card alone, after a click on a class; null: as chosen for all
  lower: item.file.toLowerCase(),
}));
const labelled = items.filter((item) => item.known);
const spatial = data.views.length > 0;
const views = [["image", "Image", ""], ...data.views];
const perClass = data.views.map(([id]) => id).find((id) => id !== "attention"); // "class"
const state = { view: "image", shown: items, made: 0, open: -1 };

// ---- small helpers -----------------------------------------------------------------------------

/** An element with properties, and children that are elements or text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function percent(share) {
  const value = 100 * share;
  return value > 0 && value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}

function className(label) {
  return data.classNames[label];
}

function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** Makes one of a group of buttons the pressed one. */
function press(group, chosen) {
  for (const button of group.children) button.setAttribute("aria-pressed", button === chosen);
}

// ---- maps and boxes ----------------------------------------------------------------------------

/** Colour of a value in [0, 1]: [red, green, blue]. */
function heatColour(value) {
  const place = value * (data.colours.length - 1);
  const index = Math.min(Math.floor(place), data.colours.length - 2);
  const [below, above] = [data.colours[index], data.colours[index + 1]];
  return below.map((colour, channel) => colour + (place - index) * (above[channel] - colour));
}

const palette = Array.from({ length: 256 }, (_, value) => heatColour(value / 255));

/** A map of an item as numbers 0 to 255, row by row, and its size. */
function grid(item, view, rank) {
  const map = item.maps[view];
  const text = atob(map.data[Math.min(rank, map.data.length - 1)]);
  const [height, width] = map.size;
  return { height, width, values: Uint8Array.from(text, (c) => c.charCodeAt(0)) };
}

/** How pixels read a row of cells, centres at half-integers: [one cell, the next, its weight]. */
function readings(count, scale) {
  return Array.from({ length: count * scale }, (_, pixel) => {
    const place = Math.min(Math.max((pixel + 0.5) / scale - 0.5, 0), count - 1);
    const cell = Math.min(Math.floor(place), Math.max(count - 2, 0));
    return [cell, Math.min(cell + 1, count - 1), place - cell];
  });
}

/** Draws a map, bilinearly enlarged, as a translucent layer. */
function drawHeat(canvas, item, view, rank) {
  const { height, width, values } = grid(item, view, rank);
  const scale = Math.max(1, Math.floor(HEAT_SIDE / Math.max(height, width)));
  const [rows, columns] = [readings(height, scale), readings(width, scale)];
  Object.assign(canvas, { height: rows.length, width: columns.length });
  const context = canvas.getContext("2d");
  const picture = context.createImageData(columns.length, rows.length);
  let byte = 0;
  for (const [top, bottom, down] of rows) {
    for (const [left, right, across] of columns) {
      const above = values[top * width + left] * (1 - across) + values[top * width + right] * across;
      const below = values[bottom * width + left] * (1 - across) + values[bottom * width + right] * across;
      const value = Math.round(above * (1 - down) + below * down);
      const [red, green, blue] = palette[value];
      picture.data[byte++] = red;
      picture.data[byte++] = green;
      picture.data[byte++] = blue;
      picture.data[byte++] = 64 + 0.55 * value;
    }
  }
  context.putImageData(picture, 0, 0);
}

/** The picture of an item with room for a map and a box. */
function makeFrame(item) {
  const image = make("img", { src: item.picture, alt: "", decoding: "async", draggable: false });
  const canvas = make("canvas");
  if (item.window) {
    // Maps cover the part of the picture that the model saw.
    const [top, left, bottom, right] = item.window;
    const share = (pixels, all) => `${(100 * pixels) / all}%`;
    Object.assign(canvas.style, {
      top: share(top, item.height), height: share(bottom - top, item.height),
      left: share(left, item.width), width: share(right - left, item.width),
    });
  }
  const box = make("span", { className: "box", hidden: true });
  const frame = make("span", { className: "frame" }, image, canvas, box);
  frame.style.aspectRatio = `${item.width} / ${item.height}`;
  frame.style[item.width >= item.height ? "width" : "height"] = "100%";
  // Small images show their pixels.
  frame.classList.toggle("sharp", Math.max(item.width, item.height) <= 128);
  return Object.assign(frame, { canvas, box });
}

/** Shows a view of an item in its frame; the map itself may wait until somebody can see it. */
function updateFrame(frame, item, view, rank, seen = true) {
  frame.classList.toggle("heated", view !== "image");
  const map = `${view} ${rank}`;
  if (view !== "image" && seen && frame.map !== map) {
    drawHeat(frame.canvas, item, view, rank);
    frame.map = map;
  }
  if (!item.boxes) return;
  const [top, left, bottom, right] = item.boxes[rank];
  frame.box.hidden = !(bottom > top && right > left);
  Object.assign(frame.box.style, {
    top: `${(100 * top) / item.height}%`,
    left: `${(100 * left) / item.width}%`,
    height: `${(100 * (bottom - top)) / item.height}%`,
    width: `${(100 * (right - left)) / item.width}%`,
  });
}

// ---- probabilities -----------------------------------------------------------------------------

/** Buttons, one for each of the first classes of an item. */
function makeBars(item, count, choose) {
  return item.labels.slice(0, count).map((label, rank) => {
    const share = item.probabilities[rank];
    const button = make(
      "button",
      { type: "button", disabled: !spatial, title: className(label) },
      make("span", { className: "what", textContent: className(label) }),
      make("span", { className: "share", textContent: percent(share) }),
    );
    button.style.setProperty("--share", `${100 * share}%`);
    button.classList.toggle("true", label === item.truth);
    button.tabIndex = choose.inList ? -1 : 0;
    button.addEventListener("click", () => choose(rank));
    return button;
  });
}

// ---- cards -------------------------------------------------------------------------------------

function cardView(item) {
  return item.view ?? state.view;
}

function makeCard(item) {
  const frame = makeFrame(item);
  const stage = make("button", { type: "button", className: "stage", tabIndex: -1 }, frame);
  stage.addEventListener("click", () => open(state.shown.indexOf(item)));
  const bars = make("div", { className: "bars" });
  const choose = Object.assign((rank) => chooseClass(item, rank), { inList: true });
  bars.append(...makeBars(item, BARS, choose));
  const name = make(
    "div",
    { className: "name" },
    make("span", { className: "what", textContent: className(item.labels[0]) }),
    make("span", { className: "share", textContent: percent(item.confidence) }),
  );
  const file = make("div", { className: "sub", textContent: item.file, title: item.file });
  const card = make("li", { className: "card" }, stage, make("div", { className: "text" }, name, bars));
  let outcome = "";
  if (item.known) {
    card.classList.add(item.right ? "right" : "wrong");
    name.prepend(make("span", { className: "mark", textContent: item.right ? "✓" : "✗" }));
    outcome = item.right ? ", right" : `, wrong: truly ${className(item.truth)}`;
    if (!item.right) {
      const truth = make("div", { className: "sub" }, "truly ", make("b", { textContent: className(item.truth) }));
      bars.before(truth);
    }
  }
  card.lastChild.append(file);
  stage.setAttribute("aria-label", `${className(item.labels[0])}, ${percent(item.confidence)}${outcome}. ${item.file}`);
  Object.assign(item, { card, stage, frame, bars });
  card.item = item;
  sight.observe(card);
  updateCard(item);
  return card;
}

/** Draws the maps of cards that come near. */
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.item.seen = isIntersecting;
    if (isIntersecting) updateCard(target.item);
  }
}, { rootMargin: "500px" });

function updateCard(item) {
  if (!item.card) return;
  const view = cardView(item);
  updateFrame(item.frame, item, view, item.rank, item.seen);
  [...item.bars.children].forEach((bar, rank) => {
    if (spatial) bar.setAttribute("aria-pressed", rank === item.rank && view === perClass);
  });
}

/** A click on a class of a card: its map, or back to what all cards show. */
function chooseClass(item, rank) {
  if (!spatial || rank >= item.labels.length) return;
  const again = item.view === perClass && item.rank === rank;
  item.view = again ? null : perClass;
  item.rank = again ? 0 : rank;
  updateCard(item);
}

function makeMore() {
  const next = state.shown.slice(state.made, state.made + PAGE);
  $("grid").append(...next.map((item) => item.card ?? makeCard(item)));
  state.made += next.length;
  // An observer reports changes only: begin anew, so that an end still in sight is seen again.
  end.unobserve($("more"));
  if (state.made < state.shown.length) end.observe($("more"));
}

const end = new IntersectionObserver(
  (entries) => entries.some((entry) => entry.isIntersecting) && makeMore(),
  { rootMargin: "1200px" },
);

function setView(view) {
  state.view = view;
  press($("views"), $("views").children[views.findIndex(([id]) => id === view)]);
  for (const item of items) {
    if (item.view !== null || item.rank) Object.assign(item, { view: null, rank: 0 });
    updateCard(item);
  }
}

// ---- filters and order -------------------------------------------------------------------------

const ORDERS = [
  ["file", "File name", null],
  ["low", "Least confident first", (a, b) => a.confidence - b.confidence],
  ["high", "Most confident first", (a, b) => b.confidence - a.confidence],
  ["class", "Class", (a, b) => className(a.labels[0]).localeCompare(className(b.labels[0]), "en", { numeric: true }) || b.confidence - a.confidence],
];
if (labelled.length) {
  ORDERS.push(["worst", "Worst errors first", (a, b) => badness(b) - badness(a)]);
}

/** Confident errors on top, then hesitant ones, then what is right, then what is not known. */
function badness(item) {
  if (!item.known) return -1;
  return item.right ? 1 - item.confidence : 1 + item.confidence;
}

const filters = { outcome: "all", low: 0, high: 100, label: "", query: "" };

function matches(item) {
  const value = 100 * item.confidence;
  if (value < filters.low || value > filters.high) return false;
  if (filters.outcome !== "all" && !(item.known && item.right === (filters.outcome === "right"))) return false;
  if (filters.label) {
    const [kind, label] = filters.label.split(":");
    if (String(kind === "true" ? item.truth : item.labels[0]) !== label) return false;
  }
  return item.lower.includes(filters.query);
}

function refresh() {
  state.shown = items.filter(matches);
  const order = ORDERS.find(([id]) => id === $("sort").value)[2];
  if (order) state.shown.sort(order); // stable: equal ones stay in the order of their files
  state.made = 0;
  $("grid").replaceChildren();
  makeMore();
  $("empty").hidden = state.shown.length > 0;
  let text = state.shown.length === items.length
    ? `All ${plural(items.length, "image")}`
    : `${state.shown.length.toLocaleString("en")} of ${plural(items.length, "image")}`;
  const known = state.shown.filter((item) => item.known);
  if (known.length && filters.outcome === "all") {
    text += ` · ${percent(known.filter((item) => item.right).length / known.length)} right`;
  }
  $("count").textContent = text;
  $("range-text").textContent = `${filters.low} – ${filters.high} %`;
  [...$("bins").children].forEach((bin, index, all) => {
    const middle = (100 * (index + 0.5)) / all.length;
    bin.classList.toggle("in", middle >= filters.low && middle <= filters.high);
  });
  current = 0;
  markCurrent(false);
}

function clearFilters() {
  Object.assign(filters, { outcome: "all", low: 0, high: 100, label: "", query: "" });
  $("class").value = "";
  $("query").value = "";
  $("low").value = 0;
  $("high").value = 100;
  press($("outcomes"), $("outcomes").firstChild);
  refresh();
}

function setUpTools() {
  for (const [id, name] of views) {
    const button = make("button", { type: "button", textContent: name });
    button.addEventListener("click", () => setView(id));
    $("views").append(button);
  }
  $("views").hidden = $("boxes-label").hidden = !spatial;
  $("boxes").addEventListener("change", () => document.body.classList.toggle("no-boxes", !$("boxes").checked));

  const wrong = labelled.filter((item) => !item.right).length;
  const outcomes = [["all", "All"], ["right", `Right ${labelled.length - wrong}`], ["wrong", `Wrong ${wrong}`]];
  for (const [id, name] of outcomes) {
    const button = make("button", { type: "button", textContent: name });
    button.addEventListener("click", () => {
      filters.outcome = id;
      press($("outcomes"), button);
      refresh();
    });
    $("outcomes").append(button);
  }
  press($("outcomes"), $("outcomes").firstChild);
  $("outcomes").hidden = !labelled.length;

  $("class").append(make("option", { value: "", textContent: "any" }));
  const kinds = [["predicted", "Predicted", items, (item) => item.labels[0]]];
  if (labelled.length) kinds.push(["true", "True", labelled, (item) => item.truth]);
  for (const [kind, title, all, labelOf] of kinds) {
    const counts = new Map();
    for (const item of all) counts.set(labelOf(item), (counts.get(labelOf(item)) ?? 0) + 1);
    const group = make("optgroup", { label: title });
    const found = [...counts].sort(([a], [b]) => className(a).localeCompare(className(b), "en", { numeric: true }));
    for (const [label, count] of found) {
      group.append(make("option", { value: `${kind}:${label}`, textContent: `${className(label)} (${count})` }));
    }
    $("class").append(group);
  }
  $("class").addEventListener("change", () => { filters.label = $("class").value; refresh(); });

  for (const [id, name] of ORDERS) $("sort").append(make("option", { value: id, textContent: name }));
  $("sort").addEventListener("change", refresh);
  $("query").addEventListener("input", () => { filters.query = $("query").value.toLowerCase(); refresh(); });

  const bins = new Array(20).fill(0);
  for (const item of items) bins[Math.min(bins.length - 1, Math.floor(item.confidence * bins.length))]++;
  for (const count of bins) {
    const bin = make("i");
    bin.style.height = `${100 * Math.sqrt(count / Math.max(...bins, 1))}%`; // a root: few stay visible
    $("bins").append(bin);
  }
  for (const end of ["low", "high"]) {
    $(end).addEventListener("input", () => {
      const [low, high] = [Number($("low").value), Number($("high").value)];
      if (end === "low") filters.low = $("low").value = Math.min(low, high);
      else filters.high = $("high").value = Math.max(low, high);
      filters[end] = Number(filters[end]);
      // At the right end both handles lie on each other: the one that can move is on top.
      $("low").style.zIndex = low > 50 ? 1 : 0;
      refresh();
    });
  }
  $("clear").addEventListener("click", clearFilters);
  $("filters-button").addEventListener("click", () => {
    const isOpen = $("filters").classList.toggle("open");
    $("filters-button").setAttribute("aria-expanded", isOpen);
  });
}

// ---- one image, large --------------------------------------------------------------------------

function open(place) {
  if (place < 0 || place >= state.shown.length) return;
  state.open = place;
  while (state.made <= place) makeMore();
  showDetail();
  if (!$("detail").open) $("detail").showModal();
}

function showDetail() {
  const item = state.shown[state.open];
  const panels = views.map(([id, name, unit]) => {
    const frame = makeFrame(item);
    const caption = make("figcaption", {}, id === perClass ? `${name}: ` : name);
    if (id === perClass) caption.append(make("b", { textContent: className(item.labels[item.rank]) }));
    updateFrame(frame, item, id, item.rank);
    const stage = make("div", { className: "stage" }, frame);
    stage.style.aspectRatio = `${item.width} / ${item.height}`;
    const figure = make("figure", {}, stage, caption);
    if (id !== "image") caption.append(makeScale(item.maps[id].high, unit));
    return figure;
  });
  $("panels").replaceChildren(...panels);
  $("panels").className = `panels ${["", "one", "", "three", "four"][panels.length] ?? ""}`;

  const mark = item.known ? make("span", { className: `mark ${item.right ? "right" : "wrong"}`, textContent: item.right ? "✓ " : "✗ " }) : "";
  $("detail-name").replaceChildren(mark, className(item.labels[0]));
  $("detail-truth").textContent = item.known ? (item.right ? "as labelled" : `truly ${className(item.truth)}`) : "";
  const bars = makeBars(item, item.labels.length, (rank) => chooseInDetail(rank));
  bars.forEach((bar, rank) => spatial && bar.setAttribute("aria-pressed", rank === item.rank));
  $("detail-bars").replaceChildren(...bars);

  const facts = [["File", item.file], ["Size", `${item.width} × ${item.height} pixels (width × height)`]];
  if (item.boxes) {
    const [top, left, bottom, right] = item.boxes[item.rank];
    const filled = bottom > top && right > left;
    facts.push(["Box", filled ? `y ${top} to ${bottom}, x ${left} to ${right}` : "none: nothing stands out"]);
    facts.push(["Box from", `map “${data.boxMap}”`]);
  }
  $("detail-facts").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]));
  $("place").textContent = `${state.open + 1} of ${state.shown.length}`;
  $("previous").disabled = state.open === 0;
  $("next").disabled = state.open === state.shown.length - 1;
}

/** What the colours of a map mean. */
function makeScale(high, unit) {
  const canvas = make("canvas", { width: 64, height: 1 });
  const context = canvas.getContext("2d");
  for (let x = 0; x < 64; x++) {
    context.fillStyle = `rgb(${heatColour(x / 63).join(" ")})`;
    context.fillRect(x, 0, 1, 1);
  }
  const text = make("span", {}, unit ? percent(high) : "high");
  if (unit) text.append(make("span", { className: "unit", textContent: ` ${unit}` }));
  return make("div", { className: "scale" }, unit ? "0" : "low", canvas, text);
}

function chooseInDetail(rank) {
  const item = state.shown[state.open];
  if (!spatial || rank >= item.labels.length) return;
  item.rank = rank;
  item.view = rank ? perClass : null;
  updateCard(item);
  const focused = [...$("detail-bars").children].indexOf(document.activeElement);
  showDetail();
  if (focused >= 0) $("detail-bars").children[focused].focus();
}

function step(by) {
  const place = state.open + by;
  if (place < 0 || place >= state.shown.length) return;
  open(place);
  $("detail").scrollTop = 0;
}

function setUpDetail() {
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("detail").close());
  $("detail").addEventListener("close", () => {
    current = state.open;
    markCurrent(true);
  });
  for (const dialog of [$("detail"), $("help")]) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // outside
  }
  let start = null;
  $("detail").addEventListener("touchstart", (event) => { start = event.touches[0]; }, { passive: true });
  $("detail").addEventListener("touchend", (event) => {
    const end = event.changedTouches[0];
    const [across, down] = [end.clientX - start.clientX, end.clientY - start.clientY];
    if (Math.abs(across) > 60 && Math.abs(across) > 2 * Math.abs(down)) step(across < 0 ? 1 : -1);
  }, { passive: true });
}

// ---- keyboard ----------------------------------------------------------------------------------

let current = 0; // the card that Tab reaches and the arrows move from

function markCurrent(focus) {
  for (const stage of document.querySelectorAll('.stage[tabindex="0"]')) stage.tabIndex = -1;
  const item = state.shown[current];
  if (!item?.stage) return;
  item.stage.tabIndex = 0;
  if (focus) item.stage.focus();
}

function move(by) {
  const focused = state.shown.findIndex((item) => item.stage === document.activeElement);
  const place = focused < 0 ? current : focused + by; // the first press enters the grid
  if (place < 0 || place >= state.shown.length) return;
  while (state.made <= place) makeMore();
  current = place;
  markCurrent(true);
}

function columns() {
  return getComputedStyle($("grid")).gridTemplateColumns.split(" ").length;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.target.matches("input:not([type=checkbox]), select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const inDetail = $("detail").open;
  const item = inDetail ? state.shown[state.open] : state.shown[current];
  const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : -1;
  const actions = {
    ArrowLeft: () => (inDetail ? step(-1) : move(-1)),
    ArrowRight: () => (inDetail ? step(1) : move(1)),
    ArrowUp: inDetail ? null : () => move(-columns()),
    ArrowDown: inDetail ? null : () => move(columns()),
    "/": inDetail ? null : () => openSearch(),
    "?": () => $("help").showModal(),
    b: () => spatial && $("boxes").click(),
    v: inDetail || !spatial ? null : () => {
      setView(views[(views.findIndex(([id]) => id === state.view) + 1) % views.length][0]);
    },
  };
  const action = digit >= 0
    ? () => (inDetail ? chooseInDetail(digit) : item && chooseClass(item, digit))
    : actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function openSearch() {
  $("filters").classList.add("open");
  $("filters-button").setAttribute("aria-expanded", true);
  $("query").focus();
}

// ---- start -------------------------------------------------------------------------------------

function introduce() {
  $("title").textContent = data.title;
  const facts = [plural(items.length, "image"), plural(data.classNames.length, "class", "classes"), data.model];
  $("facts").append(facts.join(" · "));
  if (labelled.length) {
    const share = labelled.filter((item) => item.right).length / labelled.length;
    const of = labelled.length < items.length ? ` of ${labelled.length} labelled` : "";
    $("facts").append(" · ", make("b", { textContent: `${percent(share)} right` }), of);
  }
  if (!spatial) $("facts").append(" · labels only, this model has no maps");
  if (data.leftOut) $("facts").append(` · ${plural(data.leftOut, "more image")} only in predictions.csv`);
  $("help-maps").hidden = !spatial;
  for (const row of document.querySelectorAll(".spatial")) row.hidden = !spatial;
  if (data.skipped.length) {
    $("skipped").hidden = false;
    $("skipped").firstChild.textContent = `${plural(data.skipped.length, "file")} could not be read`;
    const lines = data.skipped.map(([file, reason]) => make("li", {}, make("b", { textContent: file }), `: ${reason}`));
    $("skipped").lastChild.append(...lines);
  }
}

introduce();
setUpTools();
setUpDetail();
press($("views"), $("views").firstChild);
refresh();
document.addEventListener("keydown", onKey);
$("help-button").addEventListener("click", () => $("help").showModal());
