// Patch splitter: cut a picture into patches, read them in some order, and see what is left of
// that order with and without position vectors. All numbers are computed here, from the pixels.

const OWN = -1; // the reader's own picture: it never leaves the page, so it is no trait
const LEADING = 1.28; // line height of the sequence, in tiles
const FLIGHT_MS = 650;

// ---- The mathematics

// Uint8 RGBA pixels -> one flattened vector per patch: raster order of patches, and inside a
// patch channels first, then rows, then columns, as a convolution kernel is stored.
function cut({ data, width }, P) {
  const grid = width / P;
  const patches = [];
  for (let row = 0; row < grid; row++) {
    for (let column = 0; column < grid; column++) {
      const flat = new Uint8Array(3 * P * P);
      let k = 0;
      for (let channel = 0; channel < 3; channel++) {
        for (let y = row * P; y < (row + 1) * P; y++) {
          let at = 4 * (y * width + column * P) + channel;
          for (let x = 0; x < P; x++, at += 4) flat[k++] = data[at];
        }
      }
      patches.push(flat);
    }
  }
  return patches;
}

// (value/255 - mean) / std for every byte, channel by channel.
function normalisation(mean, std) {
  return mean.map((m, c) => Float64Array.from({ length: 256 }, (_, byte) => (byte / 255 - m) / std[c]));
}

// One linear layer on the normalised pixels: bias_d + sum_k weight[d, k] x_k.
function embed(flat, { weight, bias }, tables) {
  const size = flat.length;
  const x = new Float64Array(size);
  tables.forEach((table, channel) => {
    for (let k = (channel * size) / 3; k < ((channel + 1) * size) / 3; k++) x[k] = table[flat[k]];
  });
  const embedding = new Float64Array(bias.length);
  for (let d = 0, at = 0; d < bias.length; d++) {
    let sum = bias[d];
    for (let k = 0; k < size; k++) sum += weight[at++] * x[k];
    embedding[d] = sum;
  }
  return embedding;
}

// order[place] = raster index of the patch that is read at that place.
function readingOrder(name, grid, seed) {
  const order = Array.from({ length: grid * grid }, (_, i) => i);
  if (name === "column") return order.map((i) => (i % grid) * grid + Math.floor(i / grid));
  if (name === "snake") return order.map((i) => (Math.floor(i / grid) % 2 ? i - 2 * (i % grid) + grid - 1 : i));
  if (name !== "shuffled") return order;
  const next = randomIntegers(seed);
  for (let i = order.length - 1; i > 0; i--) {
    const j = next() % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

// In place.
function layerNorm(x) {
  const D = x.length;
  let mean = 0;
  let variance = 0;
  for (let d = 0; d < D; d++) mean += x[d] / D;
  for (let d = 0; d < D; d++) variance += (x[d] - mean) ** 2 / D;
  const scale = 1 / Math.sqrt(variance + 1e-6);
  for (let d = 0; d < D; d++) x[d] = (x[d] - mean) * scale;
  return x;
}

// matrix (rows × columns) times x, and x times matrix.
function times(matrix, rows, x) {
  return Float64Array.from({ length: rows }, (_, i) => dot(matrix.subarray(i * x.length, (i + 1) * x.length), x));
}

function timesTransposed(matrix, columns, x) {
  const y = new Float64Array(columns);
  for (let i = 0, at = 0; i < x.length; i++) {
    for (let j = 0; j < columns; j++) y[j] += matrix[at++] * x[i];
  }
  return y;
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

// Layer norm, then one head of self-attention; the class token's output, the only query it needs.
// `positions` is the flat table (row 0 for the class token), or null for a model without.
// q·(K z) is computed as (Kᵀq)·z, and the value map is applied after the mixing: both are linear.
function classOutput(embeddings, order, head, positions) {
  const { classToken, query, key, value, width } = head;
  const D = classToken.length;
  const place = (token, row) => {
    const z = new Float64Array(token);
    if (positions) for (let d = 0; d < D; d++) z[d] += positions[row * D + d];
    return layerNorm(z);
  };
  const tokens = [place(classToken, 0), ...order.map((i, k) => place(embeddings[i], k + 1))];
  const probe = timesTransposed(key, D, times(query, width, tokens[0]));
  const logits = tokens.map((z) => dot(probe, z) / Math.sqrt(width));
  const top = Math.max(...logits);
  const weights = logits.map((logit) => Math.exp(logit - top));
  const total = weights.reduce((a, b) => a + b, 0);
  const mixed = new Float64Array(D);
  tokens.forEach((z, k) => {
    for (let d = 0; d < D; d++) mixed[d] += (weights[k] / total) * z[d];
  });
  return times(value, width, mixed);
}

function relativeChange(a, b) {
  const difference = Math.hypot(...a.map((v, i) => v - b[i]));
  return difference / Math.hypot(...b);
}

// ---- The picture

async function decode(source, size) {
  const bitmap = await createImageBitmap(source, { colorSpaceConversion: "none" });
  const side = Math.min(bitmap.width, bitmap.height);
  const canvas = h("canvas", { width: size, height: size });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // under transparent pixels
  context.fillRect(0, 0, size, size);
  const [x, y] = [(bitmap.width - side) / 2, (bitmap.height - side) / 2];
  context.drawImage(bitmap, x, y, side, side, 0, 0, size, size);
  return { canvas, pixels: context.getImageData(0, 0, size, size) };
}

function readTraits(figure) {
  const [D, width] = [figure.get("dim"), figure.get("head_dim")];
  const packed = floats(figure.get("head"));
  const part = (start, length) => packed.subarray(start, start + length);
  const [query, key, value] = [0, 1, 2].map((i) => part(D + i * width * D, width * D));
  const kernels = {};
  for (const [P, { weight, bias }] of Object.entries(figure.get("kernels"))) {
    kernels[P] = { weight: floats(weight), bias: floats(bias) };
  }
  return {
    kernels,
    head: { classToken: part(0, D), query, key, value, width },
    positions: floats(figure.get("position_table")),
  };
}

// Everything that follows from one picture cut at one patch size.
function study(picture, P, traits, mean, std) {
  const patches = cut(picture.pixels, P);
  const tables = normalisation(mean, std);
  const embeddings = patches.map((flat) => embed(flat, traits.kernels[P], tables));
  const brightness = patches.map((flat) => {
    let sum = 0;
    for (const value of flat) sum += value;
    return sum;
  });
  const bag = patches.map((_, i) => i).sort((a, b) => brightness[a] - brightness[b] || a - b);
  const raster = readingOrder("raster", picture.pixels.width / P);
  const reference = [null, traits.positions].map((table) => classOutput(embeddings, raster, traits.head, table));
  return { name: uid(), picture, P, grid: picture.pixels.width / P, patches, embeddings, bag, reference };
}

// ---- Layout and drawing

function sequenceLayout(count, width, height, grid) {
  const gutter = 30;
  for (let cell = 52; cell > 4; cell -= 0.25) {
    let columns = Math.floor((width - gutter) / cell);
    if (columns % grid === 0) columns -= 1; // else the picture would reappear in the lines
    if (columns > 0 && Math.ceil(count / columns) * cell * LEADING <= height) {
      return { columns, cell, gutter, tile: cell * 0.9, rows: Math.ceil(count / columns) };
    }
  }
  return { columns: 1, cell: 4, gutter, tile: 4, rows: count };
}

const tileAt = ({ columns, cell, gutter }, token) => ({
  x: gutter + (token % columns) * cell,
  y: Math.floor(token / columns) * cell * LEADING,
});

function drawPatch(context, { picture, P, grid }, index, x, y, side) {
  const [sx, sy] = [(index % grid) * P, Math.floor(index / grid) * P];
  context.drawImage(picture.canvas, sx, sy, P, P, x, y, side, side);
}

function outline(context, colour, x, y, side) {
  context.lineWidth = 5;
  context.strokeStyle = colour.surface;
  context.strokeRect(x - 1, y - 1, side + 2, side + 2);
  context.lineWidth = 2.5;
  context.strokeStyle = colour.accent;
  context.strokeRect(x - 1, y - 1, side + 2, side + 2);
}

function drawPicture(canvas, side, now, selected, colour, keep) {
  const context = fitCanvas(canvas, side, side);
  const step = (side - 4) / now.grid;
  const gap = Math.min(2, step * 0.12);
  const corner = (i) => [2 + (i % now.grid) * step, 2 + Math.floor(i / now.grid) * step];
  keep(context, side, side, now.name, (layer) => {
    layer.imageSmoothingEnabled = step * devicePixelRatio < now.P;
    now.patches.forEach((_, i) => drawPatch(layer, now, i, ...corner(i), step - gap));
  });
  outline(context, colour, ...corner(selected), step - gap);
}

// Ruled like a page: a line under each row of tiles, and the number of its first token before it.
function drawLines(context, now, { tile, cell, columns, gutter, rows }, colour) {
  const numberStyle = { font: colour.font, size: 11 };
  for (let row = 0; row < rows; row++) {
    const y = row * cell * LEADING;
    const inRow = Math.min(columns, now.patches.length + 1 - row * columns);
    context.fillStyle = colour.line;
    context.fillRect(gutter, y + tile + 1.5, inRow * cell - (cell - tile), 1);
    const every = cell * LEADING < 12 ? 2 : 1;
    if (row % every === 0) {
      write(context, row * columns, gutter - 6, y + tile / 2, { ...numberStyle, colour: colour.muted, align: "right" });
    }
  }
  context.fillStyle = colour.warm;
  context.beginPath();
  context.arc(gutter + tile / 2, tile / 2, tile / 2, 0, 2 * Math.PI);
  context.fill();
}

function drawSequence(canvas, width, height, { now, layout, whereIs, selected, resting }, colour, keep) {
  const context = fitCanvas(canvas, width, height);
  const { tile } = layout;
  const draw = (layer) => {
    layer.imageSmoothingEnabled = tile * devicePixelRatio < now.P;
    drawLines(layer, now, layout, colour);
    now.patches.forEach((_, i) => {
      const { x, y } = whereIs(i);
      drawPatch(layer, now, i, x, y, tile);
    });
  };
  if (resting) keep(context, width, height, [now.name, resting, colour], draw);
  else draw(context);
  const { x, y } = whereIs(selected);
  drawPatch(context, now, selected, x, y, tile);
  outline(context, colour, x, y, tile);
}

function bagLayout(count, width) {
  const columns = Math.max(1, Math.floor((width + 6) / 42));
  const rows = width < 520 || count <= 3 * columns ? 3 : 2;
  const shown = Math.min(count, columns * rows);
  const cell = (width + 6) / columns;
  const index = (k) => Math.round((k * (count - 1)) / Math.max(1, shown - 1));
  return { columns, shown, cell, tile: cell - 6, height: Math.ceil(shown / columns) * (cell + 16), index };
}

function drawBag(canvas, width, now, places, withPositions, selected, colour) {
  const layout = bagLayout(now.bag.length, width);
  const context = fitCanvas(canvas, width, layout.height);
  context.imageSmoothingEnabled = layout.tile * devicePixelRatio < now.P;
  for (let k = 0; k < layout.shown; k++) {
    const i = now.bag[layout.index(k)];
    const [x, y] = [(k % layout.columns) * layout.cell, Math.floor(k / layout.columns) * (layout.cell + 16) + 3];
    drawPatch(context, now, i, x, y, layout.tile);
    if (i === selected) outline(context, colour, x + 1, y, layout.tile - 2);
    const middle = [x + layout.tile / 2, y + layout.tile + 9];
    const style = { font: colour.font, align: "center" };
    if (withPositions) write(context, places[i] + 1, ...middle, { ...style, colour: colour.accent, weight: 600 });
    else write(context, "\u00b7", ...middle, { ...style, colour: colour.muted });
  }
  return layout;
}

const TINTS = [[255, 104, 92], [92, 205, 120], [104, 160, 255]];

function drawBarcodes(canvases, flat, width) {
  const size = flat.length / 3;
  canvases.forEach((canvas, channel) => {
    const strip = new ImageData(size, 1);
    for (let k = 0; k < size; k++) {
      const level = flat[channel * size + k] / 255;
      strip.data.set([...TINTS[channel].map((tint) => tint * level), 255], 4 * k);
    }
    const line = h("canvas", { width: size, height: 1 });
    line.getContext("2d").putImageData(strip, 0, 0);
    const context = fitCanvas(canvas, width, 20);
    context.imageSmoothingEnabled = size > width * devicePixelRatio;
    context.drawImage(line, 0, 0, width, 20);
  });
}

function drawBars(canvas, values, largest, width, colour) {
  const height = 66;
  const context = fitCanvas(canvas, width, height);
  const step = width / values.length;
  const zero = height / 2;
  values.forEach((value, d) => {
    const length = (value / largest) * (zero - 2);
    context.fillStyle = value < 0 ? colour.warm : colour.accent;
    context.fillRect(d * step + step * 0.12, zero - Math.max(length, 0), step * 0.76, Math.abs(length));
  });
  context.fillStyle = colour.muted;
  context.fillRect(0, zero - 0.5, width, 1);
}

// ---- The figure

function createParts(figure, splitter) {
  const { t } = figure;
  const image = (key) => h("canvas", { role: "img", "aria-label": t(key) });
  const board = (key) => h("canvas", { role: "application", tabindex: 0, "aria-label": t(key) });
  const parts = { picture: board("picture_label"), sequence: board("sequence_label"), bag: image("bag_label") };
  parts.barcodes = ["R", "G", "B"].map(() => h("canvas", { "aria-hidden": "true" }));
  parts.bars = image("bars_label");
  const names = () => [...figure.get("images").map(({ name }, i) => ({ value: i, text: name }))];
  parts.images = selectField(t("image"), names(), (value) => splitter.choosePicture(Number(value)));
  parts.file = fileField(t("private"), t("own_picture"), (file) => splitter.chooseFile(file));
  parts.addOwn = (name) => parts.images.fill([...names(), { value: OWN, text: t("own_named", { name }) }]);
  const sizes = figure.get("patch_sizes").map((P) => ({ value: P, text: String(P) }));
  parts.sizes = segmentField(t("patch_size"), sizes, (P) => splitter.choosePatchSize(P));
  const orders = ["raster", "column", "snake", "shuffled"].map((o) => ({ value: o, text: t("order_" + o) }));
  parts.orders = segmentField(t("order"), orders, (order) => figure.set("order", order));
  parts.shuffle = button(t("shuffle"), () => splitter.shuffle());
  parts.shuffle.classList.add("primary");
  parts.positions = switchField(t("positions"), (on) => figure.set("positions", on));
  for (const key of ["lead", "status", "where", "sizesLine", "bagLine", "bagSample", "verdict", "scale"]) parts[key] = h("p");
  return parts;
}

function svgPath(className) {
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("class", className);
  return path;
}

function createLink() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const paths = [svgPath("halo"), svgPath("line")];
  svg.append(...paths);
  svg.setAttribute("aria-hidden", "true");
  return { svg, draw: (d) => paths.forEach((path) => path.setAttribute("d", d)) };
}

function createMeter(t) {
  const rows = ["meter_without", "meter_with"].map((key) => {
    const fill = h("i");
    const figure = h("span", { class: "reading" });
    const cells = [h("span", { class: "name" }, t(key)), h("span", { class: "bar" }, fill), figure];
    return { fill, figure, cells };
  });
  const show = (changes, active) =>
    rows.forEach(({ fill, figure, cells }, i) => {
      fill.style.width = `${Math.min(100, 100 * changes[i])}%`;
      setText(figure, fixed(changes[i], 3));
      cells.forEach((cell) => cell.classList.toggle("on", i === active));
    });
  return { node: h("div", { class: "meter" }, rows.map((row) => row.cells)), show };
}

function createNumbers(t) {
  const values = {};
  const row = (key) => [h("dt", {}, t("numbers_" + key)), (values[key] = h("dd", { "data-name": key }))];
  const keys = ["box", "flattened", "embedding", "order", "change"];
  return { node: h("details", {}, h("summary", {}, t("numbers")), h("dl", {}, keys.map(row))), values };
}

function assemble(figure, parts, link, meter, numbers) {
  const { t } = figure;
  const heading = (key) => h("p", { class: "heading" }, t(key));
  const quiet = (node) => (node.classList.add("quiet"), node);
  parts.lead.classList.add("headline");
  parts.status.setAttribute("role", "status");
  const classToken = h("span", { class: "quiet class-token" }, h("i"), t("class_token"));
  const readout = h("div", { class: "readout", "aria-live": "polite" }, parts.where, quiet(parts.sizesLine));
  const vector = parts.barcodes.map((canvas, i) => [h("span", { class: "quiet", "aria-hidden": "true" }, "RGB"[i]), canvas]);
  figure.root.append(
    h("div", { class: "controls" },
      parts.images.node, parts.file, parts.sizes.node,
      h("div", { class: "together" }, parts.orders.node, parts.shuffle)),
    quiet(parts.status),
    parts.lead,
    h("div", { class: "stage columns" },
      h("div", {}, h("div", { class: "split" }, heading("picture")), parts.picture), h("div", {}, h("div", { class: "split" }, heading("sequence"), classToken), parts.sequence), link.svg),
    readout,
    h("div", { class: "columns" },
      h("div", {}, heading("flattened"), h("div", { class: "vector" }, vector)),
      h("div", {}, heading("embedding"), parts.bars, quiet(parts.scale))),
    h("hr"),
    h("div", { class: "split" }, heading("sees"), parts.positions.node),
    parts.bagLine, h("div", { class: "bag" }, parts.bag, quiet(parts.bagSample)),
    heading("meter"), meter.node, quiet(parts.verdict),
    numbers.node,
    h("details", {}, h("summary", {}, t("about")), h("p", { class: "quiet" }, t("about_text"))),
  );
}

// Where on the picture a point falls: the patch's raster index, or -1.
function patchAt({ x, y }, side, grid) {
  const step = (side - 4) / grid;
  const [column, row] = [Math.floor((x - 2) / step), Math.floor((y - 2) / step)];
  return Math.min(row, column) < 0 || Math.max(row, column) >= grid ? -1 : row * grid + column;
}

// The same for the sequence: the token, or 0 (the class token, which no patch has).
function tokenAt({ x, y }, { gutter, cell, columns }) {
  const column = Math.floor((x - gutter) / cell);
  if (column < 0 || column >= columns) return 0;
  return Math.floor(y / (cell * LEADING)) * columns + column;
}

// The patch of the new grid that holds the centre of the old patch.
function samePlace(i, size, oldP, P) {
  const [old, grid] = [size / oldP, size / P];
  const along = (k) => Math.floor(((k + 0.5) * oldP) / P);
  return along(Math.floor(Math.min(i, old * old - 1) / old)) * grid + along(i % old);
}

class PatchSplitter {
  constructor(figure) {
    this.figure = figure;
    this.traits = readTraits(figure);
    this.size = figure.get("image_size");
    this.studies = new Map(); // by patch size, for the present picture
    this.picture = null;
    this.showing = null; // which picture is on the board: an index, or OWN
    this.own = null;
    this.state = null; // what is drawn now
    this.flight = null; // the tiles on their way from the last order to this one
    this.keep = { picture: keepDrawing(), sequence: keepDrawing() };
    this.redraw = scheduler(() => this.update());
    this.fly = scheduler(() => this.flyOn());
    this.parts = createParts(figure, this);
    this.link = createLink();
    this.meter = createMeter(figure.t);
    this.numbers = createNumbers(figure.t);
    assemble(figure, this.parts, this.link, this.meter, this.numbers);
    this.connectTraits();
    this.connectPointer();
    this.connectKeyboard();
    this.show(figure.get("image"));
  }

  connectTraits() {
    const { figure, redraw } = this;
    figure.on(["patch_size", "order", "shuffle_seed", "positions", "selected"], redraw.schedule);
    figure.on(["image"], () => this.show(figure.get("image")));
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(() => [redraw, this.fly].forEach(({ cancel }) => cancel()));
    onResize(figure, figure.root, redraw.schedule);
  }

  connectPointer() {
    const on = (canvas, patch) => onPoint(canvas, (point) => this.state && this.pick(patch(point, this.state)));
    on(this.parts.picture, (point, { now }) => patchAt(point, this.parts.picture.clientWidth, now.grid));
    on(this.parts.sequence, (point, { order }) => order[tokenAt(point, this.layout) - 1]);
    on(this.parts.bag, ({ x, y }, { now }) => {
      const k = Math.floor(y / (this.bag.cell + 16)) * this.bag.columns + Math.floor(x / this.bag.cell);
      return k < this.bag.shown ? now.bag[this.bag.index(k)] : -1;
    });
  }

  connectKeyboard() {
    const step = (rows, columns) => () => this.step(rows, columns);
    onArrows(this.parts.picture, {
      ArrowLeft: step(0, -1),
      ArrowRight: step(0, 1),
      ArrowUp: step(-1, 0),
      ArrowDown: step(1, 0),
      Home: () => this.pick(0),
      End: () => this.pick(this.state.order.length - 1),
    });
    const by = (places) => () => this.pickPlace(this.state.places[this.selected()] + places());
    onArrows(this.parts.sequence, {
      ArrowLeft: by(() => -1),
      ArrowRight: by(() => 1),
      ArrowUp: by(() => -this.layout.columns),
      ArrowDown: by(() => this.layout.columns),
      Home: () => this.pickPlace(0),
      End: () => this.pickPlace(Infinity),
    });
  }

  // ---- What the reader does

  pick(i) {
    const known = this.state && i >= 0 && i < this.state.order.length;
    if (known && i !== this.figure.get("selected")) this.figure.set("selected", i);
  }

  pickPlace(place) {
    const { order } = this.state;
    this.pick(order[Math.max(0, Math.min(order.length - 1, place))]);
  }

  step(rows, columns) {
    const { grid } = this.state.now;
    const [row, column] = [Math.floor(this.selected() / grid) + rows, (this.selected() % grid) + columns];
    if (Math.min(row, column) >= 0 && Math.max(row, column) < grid) this.pick(row * grid + column);
  }

  choosePicture(index) {
    if (index === OWN || index === this.figure.get("image")) this.show(index);
    else this.figure.set("image", index);
  }

  choosePatchSize(P) {
    const { figure, size } = this;
    figure.set("selected", samePlace(figure.get("selected"), size, figure.get("patch_size"), P));
    figure.set("patch_size", P);
  }

  shuffle() {
    this.figure.set("shuffle_seed", this.figure.get("shuffle_seed") + 1);
    this.figure.set("order", "shuffled");
  }

  async chooseFile(file) {
    try {
      this.own = await decode(file, this.size);
    } catch {
      setText(this.parts.status, this.figure.t("unreadable", { name: file.name }));
      return;
    }
    setText(this.parts.status, "");
    this.parts.addOwn(file.name);
    this.show(OWN);
  }

  // ---- The picture and what follows from it

  async show(index) {
    this.showing = index;
    const decoded = index === OWN ? this.own : await this.decodeTrait(index);
    if (this.showing !== index) return; // a later choice overtook this one
    this.picture = decoded;
    this.studies.clear();
    this.update();
    whenIdle(() => this.warm(decoded));
  }

  decodeTrait(index) {
    const { bytes } = this.figure.get("images")[index];
    return decode(new Blob([bytes], { type: "image/webp" }), this.size);
  }

  // The other patch sizes, studied one by one while the page rests: their buttons answer at once.
  warm(picture) {
    const P = this.figure.get("patch_sizes").find((size) => !this.studies.has(size));
    if (P === undefined || picture !== this.picture) return;
    this.studyAt(P);
    whenIdle(() => this.warm(picture));
  }

  studyAt(P) {
    const { figure, studies } = this;
    if (!studies.has(P)) studies.set(P, study(this.picture, P, this.traits, figure.get("mean"), figure.get("std")));
    return studies.get(P);
  }

  selected() {
    return Math.min(this.figure.get("selected"), this.state.order.length - 1);
  }

  // The state that the traits ask for; what is costly is taken over from the last one.
  present(before) {
    const { figure, traits } = this;
    const now = this.studyAt(figure.get("patch_size"));
    const [name, seed] = [figure.get("order"), figure.get("shuffle_seed")];
    const reading = `${name} ${seed}`;
    if (before?.now === now && before.reading === reading) return before;
    const order = readingOrder(name, now.grid, seed);
    const places = [];
    order.forEach((patch, place) => (places[patch] = place));
    const changes = [null, traits.positions].map((table, i) =>
      relativeChange(classOutput(now.embeddings, order, traits.head, table), now.reference[i]),
    );
    return { now, order, places, reading, changes };
  }

  // ---- Drawing

  update() {
    if (!this.picture) return;
    const before = this.state;
    this.state = this.present(before);
    if (before !== this.state) this.startFlight(before);
    const colour = colours(this.figure.root);
    this.showControls();
    this.drawStage(colour);
    this.drawSelection(colour);
    this.drawModelView(colour);
    this.showChange();
    if (this.flight) this.fly.schedule();
  }

  startFlight(before) {
    const sameCut = before?.now === this.state.now;
    if (!sameCut || stillnessWanted()) this.flight = null;
    else this.flight = { from: before.places.map((place) => tileAt(this.layout, place + 1)), start: performance.now() };
  }

  flyOn() {
    if (performance.now() - this.flight?.start > FLIGHT_MS) this.flight = null;
    this.drawStage(colours(this.figure.root));
    if (this.flight) this.fly.schedule();
  }

  whereIs(i) {
    const to = tileAt(this.layout, this.state.places[i] + 1);
    if (!this.flight) return to;
    const from = this.flight.from[i];
    const part = Math.min(1, (performance.now() - this.flight.start) / FLIGHT_MS);
    const eased = part < 0.5 ? 4 * part ** 3 : 1 - (2 - 2 * part) ** 3 / 2;
    return { x: from.x + (to.x - from.x) * eased, y: from.y + (to.y - from.y) * eased };
  }

  showControls() {
    const { figure, parts, size } = this;
    parts.images.show(this.showing);
    parts.sizes.show(figure.get("patch_size"));
    parts.orders.show(figure.get("order"));
    parts.positions.show(figure.get("positions"));
    const { P, grid, patches } = this.state.now;
    const counts = { size, P, grid, patches: patches.length, tokens: patches.length + 1 };
    parts.lead.replaceChildren(...emphasise(figure.t("lead", counts)));
  }

  drawStage(colour) {
    const { parts, keep, flight } = this;
    const { now, order, reading } = this.state;
    const side = parts.picture.clientWidth;
    const width = parts.sequence.clientWidth;
    this.layout = sequenceLayout(order.length + 1, width, side, now.grid);
    const height = Math.min(side, this.layout.rows * this.layout.cell * LEADING);
    drawPicture(parts.picture, side, now, this.selected(), colour, keep.picture);
    const view = { now, layout: this.layout, whereIs: (i) => this.whereIs(i), selected: this.selected() };
    drawSequence(parts.sequence, width, height, { ...view, resting: flight ? null : reading }, colour, keep.sequence);
    this.drawLink();
  }

  // From the chosen patch to its tile: sideways where the two views stand side by side, else down.
  drawLink() {
    const frame = this.link.svg.getBoundingClientRect();
    const [picture, sequence] = [this.parts.picture, this.parts.sequence].map((node) => node.getBoundingClientRect());
    const { grid } = this.state.now;
    const [column, row] = [this.selected() % grid, Math.floor(this.selected() / grid)];
    const [step, half] = [(picture.width - 4) / grid, this.layout.tile / 2];
    const { x, y } = this.whereIs(this.selected());
    const down = sequence.top > picture.bottom;
    const x0 = picture.left - frame.left + 2 + (column + (down ? 0.5 : 1)) * step;
    const y0 = picture.top - frame.top + 2 + (row + (down ? 1 : 0.5)) * step;
    const x1 = sequence.left - frame.left + x + (down ? half : -2);
    const y1 = sequence.top - frame.top + y + (down ? -2 : half);
    const [bendX, bendY] = down ? [0, (y1 - y0) / 2] : [(x1 - x0) / 2, 0];
    this.link.draw(`M${x0} ${y0}C${x0 + bendX} ${y0 + bendY} ${x1 - bendX} ${y1 - bendY} ${x1} ${y1}`);
  }

  drawSelection(colour) {
    const { parts, figure } = this;
    const { now, places } = this.state;
    const i = this.selected();
    const [row, column] = [Math.floor(i / now.grid), i % now.grid];
    const { P } = now;
    const box = { x0: column * P, x1: column * P + P - 1, y0: row * P, y1: row * P + P - 1 };
    const place = { token: places[i] + 1, patches: places.length, row: row + 1, column: column + 1 };
    parts.where.replaceChildren(...emphasise(figure.t("where", { ...place, ...box })));
    setText(parts.sizesLine, figure.t("sizes", { P, values: figure.integer(3 * P * P), dim: figure.get("dim") }));
    setText(this.numbers.values.box, figure.t("box", box));
    this.drawVectors(now.patches[i], now.embeddings[i], colour);
  }

  drawVectors(flat, embedding, colour) {
    const { parts, figure, numbers } = this;
    drawBarcodes(parts.barcodes, flat, parts.barcodes[0].clientWidth);
    const largest = Math.max(...embedding.map(Math.abs));
    drawBars(parts.bars, embedding, largest, parts.bars.clientWidth, colour);
    const weights = figure.t(figure.get("trained") ? "trained" : "untrained");
    setText(parts.scale, figure.t("scale", { largest: fixed(largest, 2), weights }));
    setText(numbers.values.flattened, flat.slice(0, 12).join(", ") + " \u2026");
    setText(numbers.values.embedding, Array.from(embedding, (v) => fixed(v, 4)).join(", "));
  }

  drawModelView(colour) {
    const { parts, figure } = this;
    const { now, order, places } = this.state;
    const on = figure.get("positions");
    this.bag = drawBag(parts.bag, parts.bag.clientWidth, now, places, on, this.selected(), colour);
    setText(parts.bagLine, figure.t(on ? "bag_with" : "bag_without"));
    const { shown } = this.bag;
    setText(parts.bagSample, figure.t(shown === order.length ? "bag_all" : "bag_some", { shown, patches: order.length }));
  }

  showChange() {
    const { figure, parts, numbers } = this;
    const { order, changes } = this.state;
    const on = figure.get("positions");
    this.meter.show(changes, on ? 1 : 0);
    const raster = order.every((patch, place) => patch === place);
    setText(parts.verdict, figure.t(raster ? "verdict_raster" : on ? "verdict_with" : "verdict_without"));
    setText(numbers.values.order, order.slice(0, 12).join(", ") + " \u2026");
    const [without, withPositions] = changes.map((change) => change.toExponential(2));
    setText(numbers.values.change, figure.t("change", { without, with: withPositions }));
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "patch-splitter");
  new PatchSplitter(figure);
  return figure.destroy;
}

export default { render };
