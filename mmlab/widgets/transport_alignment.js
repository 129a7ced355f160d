// Transport alignment: words carried to the places of a picture. The plan is computed here, one
// iteration at a time, from the cost that Python gave.

const LABEL = 92; // pixels for the words beside a matrix
const ROW = 17; // height of a matrix row
const CHART_HEIGHT = 170;
const TICK = 0.01; // of the logarithmic slider, in powers of ten
const METHODS = ["ipot", "sinkhorn"];

// ---- The mathematics. Matrices are flat, a row a word; double precision throughout.

const sum = (values) => values.reduce((a, b) => a + b, 0);

// Scales columns, then rows, to their weights: 1 / places and 1 / words.
function balance(kernel, m, n, rows, columns) {
  columns.fill(0);
  for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) columns[j] += rows[i] * kernel[i * n + j];
  for (let j = 0; j < n; j++) columns[j] = 1 / n / columns[j];
  for (let i = 0; i < m; i++) {
    let total = 0;
    for (let j = 0; j < n; j++) total += kernel[i * n + j] * columns[j];
    rows[i] = 1 / m / total;
  }
}

// The plan after `count` iterations; `each` is shown the plan after every one of them.
function solve(cost, m, n, method, regularization, count, each) {
  const kernel = cost.map((c) => Math.exp(-c / regularization));
  const [rows, columns] = [new Float64Array(m).fill(1 / m), new Float64Array(n)];
  const plan = kernel.slice();
  const proximal = method === "ipot"; // starts from the last plan, Sinkhorn always from the kernel
  const from = proximal ? plan : kernel;
  for (let t = 1; t <= count; t++) {
    if (t > 1 && proximal) for (let k = 0; k < plan.length; k++) plan[k] *= kernel[k];
    balance(from, m, n, rows, columns);
    if (!proximal && !each && t < count) continue;
    for (let i = 0, k = 0; i < m; i++) for (let j = 0; j < n; j++, k++) plan[k] = from[k] * rows[i] * columns[j];
    each?.(plan);
  }
  return plan;
}

function priceOf(plan, cost) {
  let price = 0;
  for (let k = 0; k < plan.length; k++) price += plan[k] * cost[k];
  return price;
}

function columnSums(plan, m, n) {
  const sums = new Float64Array(n);
  for (let k = 0; k < plan.length; k++) sums[k % n] += plan[k];
  return sums;
}

// The share of the mass that arrives where it should not.
function columnError(plan, m, n) {
  return columnSums(plan, m, n).reduce((total, s) => total + Math.abs(s - 1 / n) / 2, 0);
}

const rowOf = (matrix, i, n) => Array.from(matrix.subarray(i * n, (i + 1) * n));

function argmax(values) {
  return values.indexOf(Math.max(...values));
}

// FILIP: each word keeps its best place only; so does each place with words.
function bestOnly(similarity, m, n) {
  const best = new Float64Array(m * n);
  for (let i = 0; i < m; i++) best[i * n + argmax(rowOf(similarity, i, n))] = 1;
  return best;
}

function tokenWise(similarity, m, n) {
  const columns = Array.from({ length: n }, (_, j) => Array.from({ length: m }, (_, i) => similarity[i * n + j]));
  const toPlaces = sum(Array.from({ length: m }, (_, i) => Math.max(...rowOf(similarity, i, n)))) / m;
  return { toPlaces, toWords: sum(columns.map((column) => Math.max(...column))) / n };
}

// Over the words that speak of some place: the mean share on true places, and how often the best is.
function score(weights, truth, m, n) {
  let [share, hits, count, chance] = [0, 0, 0, 0];
  for (let i = 0; i < m; i++) {
    const [row, right] = [rowOf(weights, i, n), rowOf(truth, i, n)];
    if (!right.some(Boolean)) continue;
    count += 1;
    chance += sum(right) / n;
    share += sum(row.map((w, j) => w * right[j])) / (sum(row) || 1);
    hits += right[argmax(row)];
  }
  return { share: share / (count || 1), hits, count, chance: chance / (count || 1) };
}

// ---- Drawing

function boxIn([x0, y0, x1, y1], left, top, side) {
  return [left + x0 * side, top + y0 * side, (x1 - x0) * side, (y1 - y0) * side];
}

// The picture veiled, and clear where the weight lies. True places have a dashed outline.
function drawHeat(context, { picture, boxes, weights, truth }, [left, top, side], colour) {
  context.imageSmoothingEnabled = picture.width >= 128;
  context.fillStyle = colour.surface;
  context.fillRect(left, top, side, side);
  context.globalAlpha = 0.22;
  context.drawImage(picture, left, top, side, side);
  const largest = Math.max(...weights) || 1;
  const order = weights.map((_, j) => j).sort((a, b) => weights[a] - weights[b]);
  for (const j of order) {
    const share = weights[j] / largest;
    if (share < 0.02) continue;
    const [x0, y0, x1, y1] = boxes[j];
    const s = picture.width;
    context.globalAlpha = share;
    context.drawImage(picture, x0 * s, y0 * s, (x1 - x0) * s, (y1 - y0) * s, ...boxIn(boxes[j], left, top, side));
  }
  context.globalAlpha = 1;
  Object.assign(context, { strokeStyle: colour.line, lineWidth: 1 });
  for (const box of boxes) context.strokeRect(...boxIn(box, left, top, side));
  context.strokeStyle = colour.accent;
  for (const j of order) {
    const share = weights[j] / largest;
    if (share < 0.05) continue;
    const [x, y, w, h] = boxIn(boxes[j], left, top, side);
    const edge = 1 + 3 * share;
    Object.assign(context, { lineWidth: edge, globalAlpha: share });
    context.strokeRect(x + edge / 2, y + edge / 2, w - edge, h - edge);
  }
  context.globalAlpha = 1;
  truth?.forEach((right, j) => right && drawTrue(context, boxIn(boxes[j], left, top, side), colour));
  if (!weights[order.at(-1)]) return;
  const [x, y, w, h] = boxIn(boxes[order.at(-1)], left, top, side);
  outlined(context, [x + 1.5, y + 1.5, w - 3, h - 3], colour, "accent");
}

function drawTrue(context, [x, y, w, h], colour) {
  for (const [dash, tone, width] of [[[], colour.surface, 4], [[4, 3], colour.warm, 2]]) {
    context.setLineDash(dash);
    Object.assign(context, { strokeStyle: tone, lineWidth: width });
    context.strokeRect(x + 4, y + 4, Math.max(1, w - 8), Math.max(1, h - 8));
  }
  context.setLineDash([]);
}

function flowLayout(width, m) {
  const label = Math.min(170, Math.max(80, width * 0.24));
  const side = Math.min(430, width - label - Math.max(46, width * 0.14));
  const slot = Math.min(38, Math.max(side, m * 15) / m);
  const height = Math.max(side, slot * m) + 4;
  const top = (height - slot * m) / 2;
  return { label, side, slot, height, left: width - side - 2, pictureTop: (height - side) / 2, yOf: (i) => top + i * slot, wordAt: (y) => Math.floor((y - top) / slot) };
}

// Cuts a word so that it fits.
function clipped(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let low = 1;
  while (low < text.length && context.measureText(text.slice(0, low + 1) + "…").width <= room) low++;
  return text.slice(0, low) + "…";
}

function drawFlow(canvas, width, { plan, m, n, words, word, boxes, picture, truth }, colour) {
  const layout = flowLayout(width, m);
  const { label, side, slot, height, left, pictureTop, yOf } = layout;
  const context = fitCanvas(canvas, width, height);
  drawHeat(context, { picture, boxes, weights: rowOf(plan, word, n), truth: truth && rowOf(truth, word, n) }, [left, pictureTop, side], colour);
  const font = { font: colour.font, size: Math.min(13, slot * 0.75), align: "right" };
  for (let i = 0; i < m; i++) {
    const chosen = i === word;
    const total = sum(rowOf(plan, i, n)) * m;
    context.fillStyle = chosen ? colour.accent : colour.muted;
    context.globalAlpha = chosen ? 1 : 0.55;
    context.fillRect(label, yOf(i) + slot * 0.1, 8, slot * 0.8 * total); // its mass, at one scale with the bands
    context.globalAlpha = 1;
    context.font = `${chosen ? 700 : 400} ${font.size}px ${font.font}`;
    write(context, clipped(context, words[i], label - 8), label - 6, yOf(i) + slot / 2, { ...font, colour: chosen ? colour.accent : colour.ink, weight: chosen ? 700 : 400 });
  }
  for (let i = 0; i < m; i++) if (i !== word) drawBands(context, layout, { plan, m, n, i, boxes, least: 2 / n, tone: colour.muted, alpha: 0.16 });
  drawBands(context, layout, { plan, m, n, i: word, boxes, least: 0.25 / n, tone: colour.accent, alpha: 0.6, into: true });
}

// One band a place, as wide as the mass it carries; those that carry little are left out.
function drawBands(context, { label, slot, left, pictureTop, side, yOf }, { plan, m, n, i, boxes, least, tone, alpha, into }) {
  const share = rowOf(plan, i, n).map((mass) => mass * m);
  const middle = ([x0, y0, x1, y1]) => [left + ((x0 + x1) / 2) * side, pictureTop + ((y0 + y1) / 2) * side];
  const order = share.map((_, j) => j).sort((a, b) => middle(boxes[a])[1] - middle(boxes[b])[1]);
  let y = yOf(i) + slot * 0.1;
  Object.assign(context, { strokeStyle: tone, lineCap: "butt" });
  context.globalAlpha = alpha;
  for (const j of order) {
    const thick = share[j] * slot * 0.8;
    if (share[j] >= least) {
      const [x1, y1] = middle(boxes[j]);
      const [x0, y0] = [label + 8, y + thick / 2];
      context.lineWidth = Math.max(0.6, thick);
      context.beginPath();
      context.moveTo(x0, y0);
      context.bezierCurveTo((x0 + left) / 2, y0, (x0 + left) / 2, y1, left, y1);
      context.stroke();
      if (into) drawPointer(context, [left, y1], [x1, y1], Math.min(3, thick));
    }
    y += thick;
  }
  context.globalAlpha = 1;
}

// The way on to a place, thin, so that the picture stays visible.
function drawPointer(context, start, end, width) {
  context.lineWidth = Math.max(0.6, width);
  context.beginPath();
  context.moveTo(...start);
  context.lineTo(...end);
  context.stroke();
}

// Rows are words, columns places; a plan brings its sums, with a line where they should be.
function matrixHeight(m, sums) {
  return m * ROW + (sums ? 46 : 4);
}

function drawMatrix(canvas, width, { values, m, n, words, word, sums, low, high }, colour) {
  const context = fitCanvas(canvas, width, matrixHeight(m, sums));
  const right = sums ? 44 : 0;
  const cell = (width - LABEL - right) / n;
  for (let i = 0; i < m; i++) {
    const style = { font: colour.font, size: 11, align: "right", weight: i === word ? 700 : 400, colour: i === word ? colour.accent : colour.muted };
    context.font = `${style.weight} 11px ${colour.font}`;
    write(context, clipped(context, words[i], LABEL - 10), LABEL - 6, (i + 0.5) * ROW, style);
    context.fillStyle = colour.accent;
    for (let j = 0; j < n; j++) {
      context.globalAlpha = Math.max(0, (values[i * n + j] - low) / (high - low || 1));
      context.fillRect(LABEL + j * cell, i * ROW, cell - Math.min(1, cell * 0.1), ROW - 1);
    }
    context.globalAlpha = 1;
  }
  Object.assign(context, { strokeStyle: colour.ink, lineWidth: 1.5 });
  context.strokeRect(LABEL - 1, word * ROW - 0.5, width - LABEL - right + 1, ROW);
  if (sums) drawSums(context, { m, n, cell, plan: values, width, right }, colour);
}

function drawSums(context, { m, n, cell, plan, width, right }, colour) {
  const top = m * ROW + 4;
  const columns = columnSums(plan, m, n);
  const scale = 34 / Math.max(2 / n, ...columns);
  context.fillStyle = colour.warm;
  columns.forEach((s, j) => context.fillRect(LABEL + j * cell, top, Math.max(1, cell - Math.min(1, cell * 0.1)), s * scale));
  for (let i = 0; i < m; i++) context.fillRect(width - right + 6, i * ROW + 2, (sum(rowOf(plan, i, n)) * m * (right - 10)) / 1.4, ROW - 5);
  context.fillStyle = colour.ink;
  context.fillRect(LABEL, top + scale / n, width - LABEL - right, 1);
  context.fillRect(width - right + 6 + (right - 10) / 1.4, 0, 1, m * ROW);
}

function drawChart(canvas, width, { prices, iterations, names, digits, method }, colour) {
  const context = fitCanvas(canvas, width, CHART_HEIGHT);
  const [left, right, top, bottom] = [52, 76, 12, 26];
  const all = METHODS.flatMap((name) => prices[name]);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const room = Math.max((high - low) * 0.08, 1e-6);
  const count = prices.ipot.length;
  const x = (t) => left + ((t - 1) / (count - 1)) * (width - left - right);
  const y = (price) => CHART_HEIGHT - bottom - ((price - low + room) / (high - low + 2 * room)) * (CHART_HEIGHT - bottom - top);
  const style = { colour: colour.muted, font: colour.font, size: 11 };
  for (const price of [low, (low + high) / 2, high]) {
    context.fillStyle = colour.line;
    context.fillRect(left, y(price), width - left - right, 1);
    write(context, digits(price), left - 6, y(price), { ...style, align: "right" });
  }
  for (const t of [1, 50, 100, 150, 200]) write(context, String(t), x(t), CHART_HEIGHT - bottom + 13, { ...style, align: "center" });
  context.fillStyle = colour.muted;
  context.fillRect(x(iterations) - 0.5, top, 1, CHART_HEIGHT - top - bottom);
  const lines = { ipot: [[], "accent"], sinkhorn: [[6, 4], "warm"] };
  const ends = METHODS.map((name) => y(prices[name].at(-1)));
  if (Math.abs(ends[0] - ends[1]) < 15) ends[ends[0] > ends[1] ? 0 : 1] = Math.min(...ends) + 15;
  METHODS.forEach((name, k) => {
    const [dash, tone] = lines[name];
    Object.assign(context, { strokeStyle: colour[tone], fillStyle: colour[tone], lineWidth: name === method ? 2.5 : 1.5 });
    context.setLineDash(dash);
    context.beginPath();
    prices[name].forEach((price, t) => context.lineTo(x(t + 1), y(price)));
    context.stroke();
    context.setLineDash([]);
    if (name === method) {
      context.beginPath();
      context.arc(x(iterations), y(prices[name][iterations - 1]), 4.5, 0, 7);
      context.fill();
    }
    write(context, names[name], width - right + 8, ends[k], { ...style, colour: colour[tone], weight: 600 });
  });
}

// ---- The figure

function createControls(figure) {
  const { t, set } = figure;
  const [low, high] = figure.get("regularization_range");
  const [min, max] = figure.get("iteration_range");
  const options = (names, prefix) => names.map((value) => ({ value, text: t(prefix + value) }));
  const kinds = figure.get("captions").map(({ matched }, value) => ({ value, text: t(matched ? "matched" : "other") }));
  const limits = { min: Math.log10(low), max: Math.log10(high), step: TICK };
  return {
    caption: segmentField(t("caption"), kinds, (caption) => set("caption", caption)),
    method: segmentField(t("method"), options(METHODS, "method_"), (method) => set("method", method)),
    view: segmentField(t("view"), options(["plan", "compare"], "view_"), (view) => set("view", view)),
    regularization: sliderField(t("regularization"), limits, (power) => set("regularization", Math.min(high, Math.max(low, 10 ** power)))),
    iterations: sliderField(t("iterations"), { min, max, step: 1 }, (count) => set("iterations", count)),
    word: radioBar(t("word"), "words", (word) => set("word", word)),
  };
}

function createParts(figure) {
  const { t } = figure;
  const board = () => h("canvas", { role: "application", tabindex: 0 });
  const rows = ["distance_matched", "distance_other", "loss", "error"];
  const values = Object.fromEntries(rows.map((key) => [key, h("dd", { "data-name": key })]));
  return {
    lead: h("p", { class: "headline", "aria-live": "polite" }),
    sign: h("p"),
    flow: board(),
    readout: h("p", { class: "readout", "aria-live": "polite" }),
    cost: h("canvas", { role: "img" }),
    plan: h("canvas", { role: "img" }),
    chart: h("canvas", { role: "img", "aria-label": t("converges") }), // figures come with the drawing
    values,
    facts: h("dl", {}, rows.map((key) => [h("dt", {}, t(key)), values[key]])),
    cards: h("div", { class: "cards" }),
    scores: h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("scores") }),
    similarity: h("p", { class: "quiet" }),
    table: h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("table") }),
    details: h("details", {}, h("summary", {}, t("table"))),
  };
}

function assemble(figure, controls, parts) {
  const { t } = figure;
  const heading = (key) => h("p", { class: "heading" }, t(key));
  const quiet = (key) => h("p", { class: "quiet" }, t(key));
  parts.details.append(parts.table);
  const key = h("ul", { class: "key" }, ["chosen", "true", "target"].map((name) => h("li", {}, h("i", { class: name }), t("key_" + name))));
  parts.plainView = h("div", {},
    parts.flow, key,
    h("hr"), heading("matrix_cost"), quiet("note_cost"), parts.cost,
    h("p", { class: "heading" }, t("matrix_plan")), quiet("note_plan"), parts.plan,
    h("hr"), heading("converges"), parts.chart, parts.facts);
  parts.compareView = h("div", {}, quiet("note_compare"), parts.cards, parts.scores, parts.similarity);
  figure.root.append(
    h("div", { class: "controls" }, figure.get("captions").length > 1 ? controls.caption.node : null, controls.method.node, controls.view.node),
    h("div", { class: "controls" }, controls.regularization.node, controls.iterations.node,
      h("div", { class: "together" }, parts.step, parts.play)),
    parts.lead, parts.sign, controls.word.node, parts.readout,
    parts.plainView, parts.compareView, parts.details,
    h("details", {}, h("summary", {}, t("about")), quiet("about_text")),
  );
}

// What Python gave of one caption, as numbers.
function readCaption({ words, matched, cost, truth, attention }) {
  const m = words.length;
  const numbers = (view) => (view.byteLength ? Float64Array.from(floats(view)) : null);
  const bytes = (view) => Float64Array.from(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
  const prices = numbers(cost);
  return { words, matched, m, n: prices.length / m, cost: prices, truth: truth.byteLength ? bytes(truth) : null, attention: numbers(attention), similarity: prices.map((c) => 1 - c) };
}

class TransportAlignment {
  constructor(figure) {
    this.figure = figure;
    const { t, set } = figure;
    this.boxes = figure.get("boxes");
    this.captions = figure.get("captions").map(readCaption);
    this.controls = createControls(figure);
    this.parts = createParts(figure);
    const last = figure.get("iteration_range")[1];
    this.parts.step = button(t("step"), () => set("iterations", Math.min(last, figure.get("iterations") + 1)));
    this.parts.play = button(t("play"), () => this.play());
    this.parts.play.classList.add("primary");
    assemble(figure, this.controls, this.parts);
    this.known = new Map();
    this.redraw = scheduler(() => this.update());
    this.connect();
    this.load();
  }

  async load() {
    this.picture = await decodePicture(this.figure.get("picture"), this.figure.get("image_size"));
    this.redraw.schedule();
  }

  connect() {
    const { figure, parts, redraw } = this;
    figure.on(["caption", "method", "regularization", "iterations", "word", "view"], redraw.schedule);
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(redraw.cancel);
    figure.cleanup(() => cancelAnimationFrame(this.playing));
    onResize(figure, figure.root, redraw.schedule);
    parts.details.addEventListener("toggle", redraw.schedule);
    const step = (by) => () => this.pick(this.now().word + by);
    onArrows(parts.flow, { ArrowUp: step(-1), ArrowDown: step(1) });
    onPoint(parts.flow, (point) => this.pick(this.wordAt(point)));
    onPoint(parts.cost, ({ y }) => this.pick(Math.floor(y / ROW)));
    onPoint(parts.plan, ({ y }) => this.pick(Math.floor(y / ROW)));
  }

  // ---- What the reader does

  pick(word) {
    if (word >= 0 && word < this.now().m && word !== this.now().word) this.figure.set("word", word);
  }

  // A word by its line; a place of the picture chooses the word that sends it most.
  wordAt({ x, y }) {
    const { m, n } = this.now();
    const { left, side, pictureTop, wordAt } = flowLayout(this.parts.flow.clientWidth, m);
    if (x < left) return wordAt(y);
    const [u, v] = [(x - left) / side, (y - pictureTop) / side];
    const inside = ([x0, y0, x1, y1]) => u >= x0 && u < x1 && v >= y0 && v < y1;
    const place = this.boxes.findIndex(inside);
    if (place < 0 || !this.picture) return -1;
    const { plan } = this.solved();
    return argmax(Array.from({ length: m }, (_, i) => plan[i * n + place]));
  }

  // From the first iteration on; where motion is not wanted, the last one at once.
  play() {
    const { figure } = this;
    const [first, last] = figure.get("iteration_range");
    cancelAnimationFrame(this.playing);
    if (stillnessWanted()) return figure.set("iterations", last);
    let count = first;
    const next = () => {
      figure.set("iterations", count);
      count += count < 20 ? 1 : 2;
      this.playing = count <= last ? requestAnimationFrame(next) : 0;
    };
    this.playing = requestAnimationFrame(next);
  }

  // ---- What is shown

  now() {
    const { figure } = this;
    const caption = this.captions[figure.get("caption")];
    const [method, regularization, iterations, view] = ["method", "regularization", "iterations", "view"].map(figure.get);
    return { ...caption, index: figure.get("caption"), method, regularization, iterations, view, word: Math.min(figure.get("word"), caption.m - 1) };
  }

  // A caption's plan by the present method and what it costs, kept until something moves.
  solved(index = this.figure.get("caption")) {
    const [method, regularization, iterations] = ["method", "regularization", "iterations"].map(this.figure.get);
    const key = `${method} ${regularization} ${iterations}`;
    if (this.known.get(index)?.key === key) return this.known.get(index);
    const { cost, m, n } = this.captions[index];
    const plan = solve(cost, m, n, method, regularization, iterations);
    const fresh = { key, plan, price: priceOf(plan, cost), error: columnError(plan, m, n) };
    this.known.set(index, fresh);
    return fresh;
  }

  // The prices after every iteration, by both methods: computed when the page has time for it.
  curves(then) {
    const { figure } = this;
    const [index, regularization] = [figure.get("caption"), figure.get("regularization")];
    const key = `${index} ${regularization}`;
    if (this.drawn?.key === key) return this.drawn.prices;
    if (this.awaited === key) return null;
    this.awaited = key;
    const prices = {};
    const next = (method, ...rest) => {
      if (this.awaited !== key) return;
      prices[method] = this.trace(index, method, regularization);
      if (rest.length) return whenIdle(() => next(...rest));
      this.drawn = { key, prices };
      this.awaited = "";
      then();
    };
    whenIdle(() => next(...METHODS));
    return null;
  }

  trace(index, method, regularization) {
    const { cost, m, n } = this.captions[index];
    const prices = [];
    solve(cost, m, n, method, regularization, this.figure.get("iteration_range")[1], (plan) => prices.push(priceOf(plan, cost)));
    return prices;
  }

  nameOf(place) {
    const { t } = this.figure;
    const grid = this.figure.get("grid");
    if (!grid) return t("place_region", { number: place + 1 });
    return t("place_patch", { row: Math.floor(place / grid) + 1, column: (place % grid) + 1 });
  }

  update() {
    if (!this.picture) return;
    const now = this.now();
    const colour = colours(this.figure.root);
    this.showControls(now);
    this.showLead(now);
    const { plan } = this.solved();
    this.showReadout(now, plan);
    this.parts.plainView.classList.toggle("hidden", now.view !== "plan");
    this.parts.compareView.classList.toggle("hidden", now.view !== "compare");
    if (now.view === "plan") this.showPlan(now, plan, colour);
    else this.showComparison(now, plan, colour);
    if (this.parts.details.open) this.showTable(now, plan);
  }

  showControls(now) {
    const { figure, controls } = this;
    controls.caption.show(now.index);
    controls.method.show(now.method);
    controls.view.show(now.view);
    controls.regularization.show(Math.log10(now.regularization), Number(now.regularization.toPrecision(3)).toLocaleString(figure.get("strings").locale));
    controls.iterations.show(now.iterations, figure.integer(now.iterations));
    if (this.wordsOf !== now.words) controls.word.fill(now.words.map((word) => ({ label: word, body: word })));
    this.wordsOf = now.words;
    controls.word.show(now.word);
  }

  showLead(now) {
    const { figure, parts } = this;
    const strings = figure.get("strings");
    const prices = this.captions.map((_, index) => this.solved(index).price);
    const distance = figure.number(prices[now.index], 4);
    say(parts.lead, strings["lead"], { distance, iterations: figure.integer(now.iterations), method: figure.t("method_" + now.method) });
    const signed = this.captions.map(({ matched }, i) => (matched ? 1 : -1) * prices[i]);
    const loss = sum(signed) / signed.length;
    say(parts.sign, strings[now.matched ? "sign_matched" : "sign_other"], { distance });
    const show = (key, value, digits) => {
      setText(parts.values[key], value == null ? figure.t("nothing") : fixed(value, digits));
      parts.values[key].dataset.value = value ?? "";
    };
    show("distance_matched", prices[0], 4);
    show("distance_other", prices[1], 4);
    show("loss", loss, 4);
    show("error", this.solved().error, 5);
  }

  showReadout(now, plan) {
    const { figure, parts } = this;
    const row = rowOf(plan, now.word, now.n);
    const best = argmax(row);
    const percent = (share) => figure.number(100 * share, 1);
    const values = { word: now.words[now.word], place: this.nameOf(best), share: percent(row[best] * now.m), even: percent(1 / now.n) };
    const right = now.truth && rowOf(now.truth, now.word, now.n);
    let key = "readout";
    if (right?.some(Boolean)) {
      key = "readout_true";
      values.right = percent(sum(row.map((mass, j) => mass * right[j])) * now.m);
      values.places = sum(right);
      values.chance = percent(sum(right) / now.n);
    } else if (right) key = "readout_nothing_true";
    say(parts.readout, figure.get("strings")[key], values);
  }

  showPlan(now, plan, colour) {
    const { figure, parts, boxes, picture } = this;
    const { m, n, words, word, truth, cost } = now;
    drawFlow(parts.flow, parts.flow.clientWidth, { plan, m, n, words, word, boxes, picture, truth }, colour);
    parts.flow.setAttribute("aria-label", figure.t("flow_label", { word: words[word], place: this.nameOf(argmax(rowOf(plan, word, n))) }));
    const shared = { m, n, words, word };
    this.showCost(now, shared, colour);
    drawMatrix(parts.plan, parts.plan.clientWidth, { ...shared, values: plan, low: 0, high: plan.reduce((a, b) => Math.max(a, b)), sums: true }, colour);
    parts.plan.setAttribute("aria-label", figure.t("plan_label", { error: fixed(this.solved().error, 5) }));
    this.showChart(colour);
  }

  // The cost moves with the caption, the word and the page only.
  showCost({ index, cost }, shared, colour) {
    const canvas = this.parts.cost;
    const stamp = JSON.stringify([index, shared.word, canvas.clientWidth, window.devicePixelRatio, colour]);
    if (this.costStamp === stamp) return;
    this.costStamp = stamp;
    const [low, high] = [Math.min(...cost), Math.max(...cost)];
    drawMatrix(canvas, canvas.clientWidth, { ...shared, values: cost, low, high }, colour);
    canvas.setAttribute("aria-label", this.figure.t("cost_label", { low: fixed(low, 3), high: fixed(high, 3) }));
  }

  showChart(colour) {
    const { figure, parts } = this;
    const { iterations, method } = this.now();
    const prices = this.curves(() => this.showChart(colours(figure.root))); // no frame of its own
    if (!prices) return;
    const names = Object.fromEntries(METHODS.map((name) => [name, figure.t("method_" + name)]));
    drawChart(parts.chart, parts.chart.clientWidth, { prices, names, iterations, method, digits: (v) => figure.number(v, 3) }, colour);
    const at = (name) => fixed(prices[name][iterations - 1], 4);
    parts.chart.setAttribute("aria-label", figure.t("chart_label", { iterations, ipot: at("ipot"), sinkhorn: at("sinkhorn") }));
  }

  // What can be set beside the plan, a matrix each; the truth only where it is known.
  rivals(now, plan) {
    const all = { plan, attention: now.attention, maximum: bestOnly(now.similarity, now.m, now.n), truth: now.truth };
    return Object.entries(all).filter(([, weights]) => weights);
  }

  showComparison(now, plan, colour) {
    const { figure, parts, boxes, picture } = this;
    const { m, n, word, truth } = now;
    const rivals = this.rivals(now, plan);
    this.fillCards(rivals.map(([name]) => name));
    for (const [name, weights] of rivals) {
      const { canvas, note } = this.cards[name];
      const row = rowOf(weights, word, n);
      const side = canvas.clientWidth;
      const context = fitCanvas(canvas, side, side);
      drawHeat(context, { picture, boxes, weights: row, truth: truth && rowOf(truth, word, n) }, [0, 0, side], colour);
      const best = argmax(row);
      const values = { place: this.nameOf(best), share: figure.number((100 * row[best]) / (sum(row) || 1), 1), places: sum(row), cosine: fixed(now.similarity[word * n + best], 3) };
      const text = figure.t(name === "truth" && !sum(row) ? "card_nothing" : "card_text_" + name, values);
      setText(note, text);
      canvas.setAttribute("aria-label", `${figure.t("card_" + name)}: ${text}`);
    }
    this.showScores(now, rivals);
    const { toPlaces, toWords } = tokenWise(now.similarity, m, n);
    setText(parts.similarity, figure.t("similarity", { places: fixed(toPlaces, 4), words: fixed(toWords, 4) }));
    Object.assign(parts.similarity.dataset, { places: toPlaces, words: toWords });
  }

  fillCards(names) {
    if (this.cardsOf === String(names)) return;
    this.cardsOf = String(names);
    this.cards = Object.fromEntries(names.map((name) => [name, { canvas: h("canvas", { role: "img" }), note: h("p", { class: "quiet" }) }]));
    this.parts.cards.replaceChildren(...names.map((name) =>
      h("div", { "data-card": name }, h("p", { class: "heading" }, this.figure.t("card_" + name)), this.cards[name].canvas, this.cards[name].note)));
  }

  showScores(now, rivals) {
    const { figure, parts } = this;
    parts.scores.classList.toggle("hidden", !now.truth);
    if (!now.truth) return;
    const percent = (share) => figure.t("percent", { value: figure.number(100 * share, 1) });
    const cell = (name, value, text) => h("td", { "data-name": name, "data-value": value }, text);
    const line = (name, { share, hits, count }) => h("tr", {}, h("th", { scope: "row" }, figure.t("card_" + name)),
      cell(`${name} share`, share, percent(share)), cell(`${name} hits`, hits, figure.t("hits", { hits, count })));
    const found = rivals.filter(([name]) => name !== "truth").map(([name, weights]) => [name, score(weights, now.truth, now.m, now.n)]);
    const { chance } = found[0][1];
    parts.scores.replaceChildren(h("table", {},
      h("caption", {}, figure.t("scores")),
      h("thead", {}, h("tr", {}, ["score_of", "score_share", "score_hits"].map((key) => h("th", { scope: "col" }, figure.t(key))))),
      h("tbody", {}, found.map(([name, result]) => line(name, result)),
        h("tr", {}, h("th", { scope: "row" }, figure.t("score_even")), cell("even share", chance, percent(chance)), cell("even hits", "", figure.t("nothing"))))));
  }

  showTable(now, plan) {
    const { figure, parts } = this;
    const { m, n, words } = now;
    const cell = (k) => h("td", { "data-value": plan[k] }, fixed(plan[k], 5));
    const rows = words.map((word, i) => h("tr", {}, h("th", { scope: "row" }, word), Array.from({ length: n }, (_, j) => cell(i * n + j))));
    parts.table.replaceChildren(h("table", {},
      h("caption", {}, figure.t("table")),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, figure.t("table_word")), Array.from({ length: n }, (_, j) => h("th", { scope: "col" }, this.nameOf(j))))),
      h("tbody", {}, rows)));
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "transport-alignment");
  new TransportAlignment(figure);
  return figure.destroy;
}

export default { render };
