// Attention-distance map: how far each head of a ViT looks, and where. The attention was recorded
// by Python; distances and rollouts are computed here, from the recorded weights.

const FLIGHT_MS = 450;
const NEAR = 26; // pixels from a dot at which a mouse means that dot

// ---- The mathematics

// Pixels between the centres of any two patches, raster order.
function patchDistances(grid, P) {
  const N = grid * grid;
  const apart = new Float64Array(N * N);
  for (let i = 0; i < N; i++) {
    for (let j = 0; j < N; j++) {
      const rows = Math.floor(i / grid) - Math.floor(j / grid);
      apart[i * N + j] = Math.hypot(rows, (i % grid) - (j % grid)) * P;
    }
  }
  return apart;
}

// In place: each run of `length` codes made to sum to 1.
function normaliseRows(rows, length) {
  for (let start = 0; start < rows.length; start += length) {
    let sum = 0;
    for (let j = start; j < start + length; j++) sum += rows[j];
    for (let j = start; j < start + length; j++) rows[j] /= sum || 1;
  }
  return rows;
}

// sum_j a_j |i - j| P for one query patch i.
function queryDistance(row, i, apart) {
  const N = row.length;
  let sum = 0;
  for (let j = 0; j < N; j++) sum += row[j] * apart[i * N + j];
  return sum;
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// The attention of one model on one picture: rows over the patches and, apart, the shares of the
// learned tokens; both indexed by map (layer · heads + head), then by query token.
class Attention {
  constructor(codes, shares, sizes) {
    Object.assign(this, sizes);
    this.rows = normaliseRows(Float64Array.from(codes), this.N);
    this.shares = shares;
    this.distances = Array.from({ length: this.layers * this.heads }, (_, map) => this.meanDistance(map));
    this.mixed = new Map(); // by layer: the mean over heads of the full rows
  }

  row(map, token) {
    const start = (map * this.T + token) * this.N;
    return this.rows.subarray(start, start + this.N);
  }

  share(map, token) {
    const start = (map * this.T + token) * this.learned;
    return this.shares.subarray(start, start + this.learned);
  }

  // Over the query patches; one that looks at no patch at all is left out.
  meanDistance(map) {
    let [sum, count] = [0, 0];
    for (let i = 0; i < this.N; i++) {
      const row = this.row(map, this.learned + i);
      if (!row.some(Boolean)) continue;
      sum += queryDistance(row, i, this.apart);
      count += 1;
    }
    return sum / (count || 1);
  }

  // Attention over all tokens, learned ones first.
  full(map, token) {
    const shares = this.share(map, token);
    const rest = 1 - shares.reduce((a, b) => a + b, 0);
    const full = new Float64Array(this.T);
    full.set(shares);
    this.row(map, token).forEach((a, j) => (full[this.learned + j] = rest * a));
    return full;
  }

  layerMean(layer) {
    if (!this.mixed.has(layer)) {
      const { heads, T } = this;
      const matrix = new Float64Array(T * T);
      for (let map = layer * heads; map < (layer + 1) * heads; map++) {
        for (let i = 0; i < T; i++) this.full(map, i).forEach((a, j) => (matrix[i * T + j] += a / heads));
      }
      this.mixed.set(layer, matrix);
    }
    return this.mixed.get(layer);
  }

  // One row of the product of ½ A + ½ I from `layer` down to the first: a row times matrices is
  // cheaper than the product of the matrices.
  rollout(layer) {
    const { T, N, learned } = this;
    let reach = Float64Array.from({ length: T }, (_, j) => (learned ? Number(j === 0) : 1 / N));
    for (let l = layer; l >= 0; l--) {
      const A = this.layerMean(l);
      const next = reach.map((a) => a / 2);
      for (let i = 0; i < T; i++) for (let j = 0; j < T; j++) next[j] += (reach[i] * A[i * T + j]) / 2;
      reach = next;
    }
    return reach;
  }
}

function readSizes(figure) {
  const [layers, heads, learned] = ["layers", "heads", "learned"].map(figure.get);
  const [size, P] = ["image_size", "patch_size"].map(figure.get);
  const grid = size / P;
  const N = grid * grid;
  return { layers, heads, learned, size, P, grid, N, T: N + learned, apart: patchDistances(grid, P) };
}

// Cuts one model and picture out of the traits' bytes.
function createReader(figure, sizes) {
  const view = figure.get("maps");
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const codes = figure.get("levels") > 255 ? new Uint16Array(bytes) : new Uint8Array(bytes);
  const shares = floats(figure.get("learned_shares"));
  const rows = sizes.layers * sizes.heads * sizes.T;
  return (place) => {
    const part = (array, length) => array.subarray(place * rows * length, (place + 1) * rows * length);
    return new Attention(part(codes, sizes.N), part(shares, sizes.learned), sizes);
  };
}

// ---- The picture

// Drawn grey, so that the heat is the only colour on it.
async function decodeGrey(bytes, size) {
  const blob = new Blob([bytes], { type: "image/webp" });
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = h("canvas", { width: size, height: size });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, size, size);
  const pixels = context.getImageData(0, 0, size, size);
  for (let k = 0; k < pixels.data.length; k += 4) {
    const [r, g, b] = pixels.data.subarray(k, k + 3);
    pixels.data.fill(0.299 * r + 0.587 * g + 0.114 * b, k, k + 3);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// ---- Drawing

// Only what is new: both lines are live regions, which speak when their nodes change.
function setEmphasised(node, text) {
  if (node.textContent !== text.replaceAll("*", "")) node.replaceChildren(...emphasise(text));
}

function chartScales(width, height, { layers, heads }, [low, high]) {
  const [left, right, top, bottom] = [38, 6, 22, 40];
  const column = (width - left - right) / layers;
  const spread = Math.min(14, (0.62 * column) / Math.max(1, heads - 1));
  return {
    left, column, width, height,
    right: width - right,
    zero: height - bottom,
    top,
    radius: Math.max(2.5, Math.min(5.5, column / 7)),
    x: (layer, head) => left + (layer + 0.5) * column + (head - (heads - 1) / 2) * spread,
    y: (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom),
  };
}

function drawAxes(context, scales, { layers, range: [low, high], uniform, names, chosenLayers }, colour) {
  const { left, right, zero, column, y, height } = scales;
  const text = (string, x, at, align, weight = 400) =>
    write(context, string, x, at, { colour: colour.muted, font: colour.font, align, weight });
  context.fillStyle = colour.accent;
  context.globalAlpha = 0.09;
  context.fillRect(left + chosenLayers[0] * column, scales.top, (chosenLayers[1] - chosenLayers[0] + 1) * column, zero - scales.top);
  context.globalAlpha = 1;
  const step = tickStep(high - low, 5);
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) {
    context.fillStyle = colour.line;
    context.fillRect(left, y(value), right - left, 1);
    text(names.plain(value), left - 7, y(value), "right");
  }
  const every = Math.ceil(20 / column);
  for (let layer = 0; layer < layers; layer += every) text(names.plain(layer + 1), left + (layer + 0.5) * column, zero + 14, "center");
  text(names.y, 0, 8, "left");
  text(names.x, (left + right) / 2, height - 7, "center");
  drawReference(context, scales, uniform, colour);
}

function drawReference(context, { left, right, y }, value, colour) {
  context.strokeStyle = colour.muted;
  context.lineWidth = 1.5;
  context.setLineDash([6, 5]);
  context.beginPath();
  context.moveTo(left, y(value));
  context.lineTo(right, y(value));
  context.stroke();
  context.setLineDash([]);
}

function drawDot(context, x, y, radius, { fill, edge, line = 1.5 }) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  Object.assign(context, { fillStyle: fill, strokeStyle: edge, lineWidth: line });
  context.fill();
  context.stroke();
}

function drawDots(context, scales, { heads, distances, others, chosen }, colour) {
  const { x, y, radius } = scales;
  const at = (map) => [Math.floor(map / heads), map % heads];
  for (const other of others) {
    other.forEach((value, map) => drawDot(context, x(...at(map)), y(value), radius * 0.8, { fill: "transparent", edge: colour.muted, line: 1.2 }));
  }
  distances.forEach((value, map) => drawDot(context, x(...at(map)), y(value), radius, { fill: colour.accent, edge: colour.surface, line: 1 }));
  chosen.forEach((map) => {
    const [cx, cy] = [x(...at(map)), y(distances[map])];
    drawDot(context, cx, cy, radius + 4.5, { fill: colour.surface, edge: colour.warm, line: 2.5 });
    drawDot(context, cx, cy, radius + 0.5, { fill: colour.warm, edge: colour.warm });
  });
}

function drawBoard(canvas, side, { picture, key, row, grid, query, rings }, colour, keep) {
  const context = fitCanvas(canvas, side, side);
  const step = side / grid;
  keep(context, side, side, [key, colour], (layer) => {
    layer.fillStyle = colour.surface;
    layer.fillRect(0, 0, side, side);
    layer.globalAlpha = 0.7;
    layer.imageSmoothingEnabled = side * devicePixelRatio < picture.width;
    layer.drawImage(picture, 0, 0, side, side);
    layer.globalAlpha = 1;
  });
  drawHeat(context, row, grid, step, colour);
  if (query < 0) return;
  const centre = [((query % grid) + 0.5) * step, (Math.floor(query / grid) + 0.5) * step];
  outlinePatch(context, centre, step, colour);
  drawRing(context, centre, rings.uniform * (side / rings.size), { colour: colour.ink, dash: [6, 5], surface: colour.surface });
  drawRing(context, centre, rings.query * (side / rings.size), { colour: colour.accent, dash: [], surface: colour.surface });
}

// The largest share is drawn almost opaque, and the others in proportion.
function drawHeat(context, row, grid, step, colour) {
  const largest = Math.max(...row) || 1;
  context.fillStyle = colour.warm;
  row.forEach((share, j) => {
    context.globalAlpha = 0.85 * (share / largest);
    const [x, y] = [(j % grid) * step, Math.floor(j / grid) * step];
    context.fillRect(x + 0.5, y + 0.5, step - 1, step - 1);
  });
  context.globalAlpha = 1;
}

function outlinePatch(context, [x, y], step, colour) {
  for (const [width, tone] of [[5, colour.surface], [2.5, colour.accent]]) {
    Object.assign(context, { lineWidth: width, strokeStyle: tone });
    context.strokeRect(x - step / 2 + 1.5, y - step / 2 + 1.5, step - 3, step - 3);
  }
}

function drawRing(context, [x, y], radius, { colour, surface, dash }) {
  for (const [width, tone, pattern] of [[5, surface, []], [2.25, colour, dash]]) {
    Object.assign(context, { lineWidth: width, strokeStyle: tone });
    context.globalAlpha = tone === surface ? 0.7 : 1;
    context.setLineDash(pattern);
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }
  context.setLineDash([]);
}

// ---- The figure

function createParts(figure, sizes) {
  const { t } = figure;
  const board = (label) => h("canvas", { role: "application", tabindex: 0, "aria-label": label });
  const options = (names) => names.map((text, value) => ({ value, text }));
  const views = ["patch", "class", "rollout"].filter((view) => sizes.learned || view !== "class");
  const parts = {
    chart: board(t("chart")),
    picture: board(t("picture_label")),
    images: selectField(t("image"), options(figure.get("images").map(({ name }) => name)), (i) => figure.set("image", Number(i))),
    models: segmentField(t("model"), options(figure.get("models")), (i) => figure.set("model", i)),
    views: segmentField(t("view"), views.map((value) => ({ value, text: t("view_" + value) })), (view) => figure.set("view", view)),
    legend: figure.get("models").map(() => h("span")),
    marks: figure.get("models").map(() => h("i")),
  };
  for (const key of ["lead", "where", "readout", "most", "leftOut"]) parts[key] = h("p");
  for (const key of ["low", "high", "uniform"]) parts[key] = h("span");
  parts.rings = h("ul", { class: "key" },
    h("li", {}, h("i", { class: "ring" }), t("ring_query")),
    h("li", {}, h("i", { class: "ring dashed" }), t("ring_uniform")));
  return parts;
}

function createNumbers(t, { layers, heads }) {
  const values = {};
  const row = (key) => [h("dt", {}, t("numbers_" + key)), (values[key] = h("dd", { "data-name": key }))];
  const cells = Array.from({ length: layers * heads }, () => h("td"));
  const head = (number) => h("th", { scope: "col" }, t("table_head", { head: number + 1 }));
  const line = (layer) =>
    h("tr", {}, h("th", { scope: "row" }, String(layer + 1)), cells.slice(layer * heads, (layer + 1) * heads));
  const count = (length) => Array.from({ length }, (_, i) => i);
  const table = h("table", {},
    h("caption", {}, t("table")),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("table_layer")), count(heads).map(head))),
    h("tbody", {}, count(layers).map(line)));
  const scroll = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("table") }, table);
  const list = h("dl", {}, ["head", "query", "weights", "sum"].map(row));
  return { node: h("details", {}, h("summary", {}, t("numbers")), list, scroll), values, cells };
}

function assemble(figure, parts, numbers) {
  const { t } = figure;
  const several = figure.get("models").length > 1;
  parts.lead.classList.add("headline");
  parts.lead.setAttribute("aria-live", "polite");
  parts.where.classList.add("heading");
  for (const key of ["most", "leftOut"]) parts[key].classList.add("quiet");
  const legend = parts.legend.map((text, i) => h("li", {}, parts.marks[i], text));
  legend.push(h("li", {}, h("i", { class: "dash" }), parts.uniform));
  const scale = h("span", { class: "scale" }, t("scale"), parts.low, h("i", { class: "ramp" }), parts.high);
  figure.root.append(
    h("div", { class: "controls" }, parts.images.node, several ? parts.models.node : null, parts.views.node),
    parts.lead,
    h("div", { class: "columns" },
      h("div", {}, h("p", { class: "heading" }, t("chart")), parts.chart, h("ul", { class: "key" }, legend)),
      h("div", {}, parts.where, parts.picture, h("div", { class: "key" }, scale), parts.rings)),
    h("div", { class: "readout", "aria-live": "polite" }, parts.readout, parts.most, parts.leftOut),
    numbers.node,
    h("details", {}, h("summary", {}, t("about")), h("p", { class: "quiet" }, t("about_text"))),
  );
}

class AttentionDistance {
  constructor(figure) {
    this.figure = figure;
    this.sizes = readSizes(figure);
    this.read = createReader(figure, this.sizes);
    this.known = new Map(); // Attention by place: model · images + picture
    this.uniform = mean(this.sizes.apart);
    this.hovered = {}; // what the mouse rests on: a head (map) or a query; a click keeps it
    this.flight = null; // the dots on their way from one set of weights to the other
    this.keep = keepDrawing();
    this.redraw = scheduler(() => this.update());
    this.fly = scheduler(() => this.drawChart(this.present(), colours(figure.root)));
    this.parts = createParts(figure, this.sizes);
    this.numbers = createNumbers(figure.t, this.sizes);
    assemble(figure, this.parts, this.numbers);
    this.connectTraits();
    this.connectChart();
    this.connectPicture();
    this.load();
  }

  async load() {
    const { figure, sizes, redraw } = this;
    this.pictures = await Promise.all(figure.get("images").map(({ bytes }) => decodeGrey(bytes, sizes.size)));
    redraw.schedule();
    whenIdle(() => this.warm(0));
  }

  // The other models and pictures, read while the page rests: their buttons answer at once.
  warm(place) {
    if (place >= this.figure.get("models").length * this.pictures.length) return;
    this.attentionAt(place).rollout(this.sizes.layers - 1);
    whenIdle(() => this.warm(place + 1));
  }

  connectTraits() {
    const { figure, redraw } = this;
    figure.on(["image", "view", "layer", "head", "query"], redraw.schedule);
    figure.on(["model"], () => this.startFlight());
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(() => [redraw, this.fly].forEach(({ cancel }) => cancel()));
    onResize(figure, figure.root, redraw.schedule);
  }

  connectChart() {
    const { chart } = this.parts;
    this.connectPointer(chart, "map", (point, reach) => this.headAt(point, reach));
    const layer = (steps) => () => this.moveLayer(steps);
    const rank = (steps) => () => this.moveRank(steps);
    onArrows(chart, { ArrowLeft: layer(-1), ArrowRight: layer(1), ArrowUp: rank(1), ArrowDown: rank(-1) });
  }

  connectPicture() {
    const { picture } = this.parts;
    this.connectPointer(picture, "query", (point) => this.patchAt(point));
    const step = (rows, columns) => () => this.step(rows, columns);
    onArrows(picture, {
      ArrowLeft: step(0, -1),
      ArrowRight: step(0, 1),
      ArrowUp: step(-1, 0),
      ArrowDown: step(1, 0),
      Home: () => this.choose("query", 0),
      End: () => this.choose("query", this.sizes.N - 1),
    });
  }

  // A mouse tries out by hovering and keeps by clicking; a finger keeps by tapping.
  connectPointer(canvas, kind, find) {
    const hover = (index) => {
      if (this.hovered[kind] === index) return;
      this.hovered[kind] = index;
      this.redraw.schedule();
    };
    canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hover(find(pointIn(canvas, event), NEAR)));
    canvas.addEventListener("pointerleave", () => hover(undefined));
    canvas.addEventListener("click", (event) => this.choose(kind, find(pointIn(canvas, event), Infinity)));
  }

  // ---- What the reader does

  choose(kind, index) {
    if (index === undefined) return;
    const { figure, sizes } = this;
    this.hovered = {};
    if (kind === "map") {
      figure.set("layer", Math.floor(index / sizes.heads));
      figure.set("head", index % sizes.heads);
    } else {
      figure.set("query", index);
      figure.set("view", "patch");
    }
    this.redraw.schedule();
  }

  moveLayer(steps) {
    const layer = this.figure.get("layer") + steps;
    if (layer >= 0 && layer < this.sizes.layers) this.choose("map", layer * this.sizes.heads + this.figure.get("head"));
  }

  // To the head of this layer that looks a little farther, or less far.
  moveRank(steps) {
    const { heads } = this.sizes;
    const first = this.figure.get("layer") * heads;
    const { distances } = this.attention();
    const order = Array.from({ length: heads }, (_, head) => first + head).sort((a, b) => distances[a] - distances[b]);
    this.choose("map", order[order.indexOf(first + this.figure.get("head")) + steps]);
  }

  step(rows, columns) {
    const { grid } = this.sizes;
    const query = this.figure.get("query");
    const [row, column] = [Math.floor(query / grid) + rows, (query % grid) + columns];
    if (Math.min(row, column) >= 0 && Math.max(row, column) < grid) this.choose("query", row * grid + column);
  }

  headAt({ x, y }, reach) {
    if (!this.scales) return undefined;
    const { heads } = this.sizes;
    const away = this.attention().distances.map((value, map) =>
      Math.hypot(this.scales.x(Math.floor(map / heads), map % heads) - x, this.scales.y(value) - y));
    const nearest = Math.min(...away);
    return nearest <= reach ? away.indexOf(nearest) : undefined;
  }

  patchAt({ x, y }) {
    const { grid } = this.sizes;
    const step = this.parts.picture.clientWidth / grid;
    const [column, row] = [Math.floor(x / step), Math.floor(y / step)];
    return Math.min(row, column) < 0 || Math.max(row, column) >= grid ? undefined : row * grid + column;
  }

  // ---- What is shown

  attentionAt(place) {
    if (!this.known.has(place)) this.known.set(place, this.read(place));
    return this.known.get(place);
  }

  attention(model = this.figure.get("model")) {
    return this.attentionAt(model * this.figure.get("images").length + this.figure.get("image"));
  }

  present() {
    const { figure, sizes, hovered } = this;
    const map = hovered.map ?? figure.get("layer") * sizes.heads + figure.get("head");
    const view = figure.get("view");
    const now = { view, map, attention: this.attention(), layer: Math.floor(map / sizes.heads), head: map % sizes.heads };
    now.query = view === "patch" ? hovered.query ?? figure.get("query") : -1;
    return { ...now, ...this.reading(now) };
  }

  // Shares of the patches among themselves, and over all tokens.
  reading({ view, attention, map, layer, query }) {
    const { learned } = this.sizes;
    const token = view === "patch" ? learned + query : 0;
    const full = view === "rollout" ? attention.rollout(layer) : attention.full(map, token);
    const row = view === "rollout" ? normaliseRows(full.slice(learned), this.sizes.N) : attention.row(map, token);
    return { full, row };
  }

  update() {
    if (!this.pictures) return;
    const now = this.present();
    const colour = colours(this.figure.root);
    this.showControls(now);
    this.drawPicture(now, colour);
    this.drawChart(now, colour);
    this.showLegends(now);
    this.showReadout(now);
    this.showNumbers(now);
  }

  showControls({ view, layer, head, map, attention }) {
    const { figure, parts, sizes } = this;
    parts.images.show(figure.get("image"));
    parts.models.show(figure.get("model"));
    parts.views.show(view);
    const values = { layer: layer + 1, head: head + 1, distance: figure.number(attention.distances[map], 1) };
    const words = { ...values, uniform: figure.number(this.uniform, 1) };
    words.reader = figure.t(sizes.learned ? "reader_class" : "reader_average");
    setEmphasised(parts.lead, figure.t(view === "rollout" ? "lead_rollout" : "lead", words));
    parts.chart.setAttribute("aria-label", figure.t("chart_label", values));
    setText(parts.where, figure.t(`where_${view}_title`));
  }

  drawPicture({ row, query }, colour) {
    const { parts, sizes } = this;
    const image = this.figure.get("image");
    const rings = query < 0 ? null : this.rings(row, query);
    const view = { picture: this.pictures[image], key: image, row, grid: sizes.grid, query, rings };
    drawBoard(parts.picture, parts.picture.clientWidth, view, colour, this.keep);
  }

  rings(row, query) {
    const { apart, N, size } = this.sizes;
    return { query: queryDistance(row, query, apart), uniform: mean(apart.subarray(query * N, (query + 1) * N)), size };
  }

  // One range for all models and pictures: what differs on the screen differs in the numbers. It
  // is at least a patch high, or noise would look like a finding.
  range() {
    if (this.spread) return this.spread;
    const places = this.figure.get("models").length * this.pictures.length;
    const all = Array.from({ length: places }, (_, place) => this.attentionAt(place).distances).flat();
    const [low, high] = [Math.min(this.uniform, ...all), Math.max(this.uniform, ...all)];
    const margin = Math.max((this.sizes.P - (high - low)) / 2, 0.1 * (high - low));
    return (this.spread = [Math.max(0, low - margin), high + margin]);
  }

  drawChart({ view, map, layer }, colour) {
    const { figure, parts, sizes } = this;
    const [width, range] = [parts.chart.clientWidth, this.range()];
    const stacked = width > 0.6 * figure.root.clientWidth;
    const height = stacked ? 240 : parts.picture.clientWidth;
    const context = fitCanvas(parts.chart, width, height);
    this.scales = chartScales(width, height, sizes, range);
    const names = { x: figure.t("chart_x"), y: figure.t("chart_y"), plain: figure.plain };
    const chosenLayers = view === "rollout" ? [0, layer] : [layer, layer];
    drawAxes(context, this.scales, { layers: sizes.layers, range, uniform: this.uniform, names, chosenLayers }, colour);
    const others = figure.get("models").map((_, model) => model).filter((model) => model !== figure.get("model"));
    const kept = figure.get("layer") * sizes.heads + figure.get("head");
    drawDots(context, this.scales, {
      heads: sizes.heads,
      distances: this.whereDotsAre(),
      others: others.map((model) => this.attention(model).distances),
      chosen: view === "rollout" ? [] : [...new Set([kept, map])],
    }, colour);
    if (this.flight) this.fly.schedule();
  }

  startFlight() {
    const from = this.shown;
    this.flight = from && !stillnessWanted() ? { from, start: performance.now() } : null;
    this.redraw.schedule();
  }

  whereDotsAre() {
    const to = this.attention().distances;
    const part = this.flight ? (performance.now() - this.flight.start) / FLIGHT_MS : 1;
    if (part >= 1) this.flight = null;
    const eased = 1 - (1 - part) ** 3;
    const { from } = this.flight ?? {};
    this.shown = from ? to.map((value, map) => from[map] + (value - from[map]) * eased) : to;
    return this.shown;
  }

  showLegends({ map, row, view }) {
    const { figure, parts } = this;
    figure.get("models").forEach((name, model) => {
      parts.marks[model].className = model === figure.get("model") ? "dot" : "dot other";
      const distance = figure.number(this.attention(model).distances[map], 1);
      setText(parts.legend[model], view === "rollout" ? name : figure.t("this_head", { name, distance }));
    });
    setText(parts.uniform, figure.t("uniform", { distance: figure.number(this.uniform, 1) }));
    parts.rings.classList.toggle("unseen", view !== "patch"); // the place is kept: nothing jumps
    setText(parts.low, figure.t("percent", { value: 0 }));
    setText(parts.high, this.percent(Math.max(...row)));
  }

  percent(share) {
    return this.figure.t("percent", { value: this.figure.number(100 * share, 1) });
  }

  showReadout({ view, row, full, query }) {
    const { figure, parts, sizes } = this;
    const share = (value) => figure.number(100 * value, 1);
    const place = (i) => ({ row: Math.floor(i / sizes.grid) + 1, column: (i % sizes.grid) + 1 });
    const values = query < 0 ? {} : { ...place(query), ...this.ringWords(row, query, 1) };
    setEmphasised(parts.readout, figure.t("readout_" + view, values));
    const top = row.indexOf(Math.max(...row));
    const most = { ...place(top), share: share(row[top]) };
    setText(parts.most, figure.t(view === "rollout" ? "most_rollout" : "most", most));
    const left = full.subarray(0, sizes.learned).reduce((a, b) => a + b, 0);
    const key = sizes.learned > 1 ? "left_out_two" : "left_out";
    setText(parts.leftOut, sizes.learned ? figure.t(key, { share: share(left) }) : "");
  }

  ringWords(row, query, digits) {
    const rings = this.rings(row, query);
    return { distance: this.figure.number(rings.query, digits), uniform: this.figure.number(rings.uniform, digits) };
  }

  showNumbers({ attention, map, row, full, query }) {
    const { figure, numbers } = this;
    const { values, cells } = numbers;
    const compared = ({ distance, uniform }) => figure.t("compared", { value: distance, uniform });
    const [distance, uniform] = [attention.distances[map], this.uniform].map((v) => figure.number(v, 2));
    setText(values.head, compared({ distance, uniform }));
    setText(values.query, query < 0 ? "\u2013" : compared(this.ringWords(row, query, 2)));
    setText(values.weights, Array.from(row.slice(0, 12), (a) => fixed(a, 4)).join(", "));
    setText(values.sum, fixed(full.reduce((a, b) => a + b, 0), 6));
    attention.distances.forEach((value, i) => {
      setText(cells[i], figure.number(value, 2));
      cells[i].classList.toggle("on", i === map);
    });
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "attention-distance");
  new AttentionDistance(figure);
  return figure.destroy;
}

export default { render };
