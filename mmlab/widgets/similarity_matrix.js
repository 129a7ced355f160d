// Similarity matrix: every picture against every caption. Cosines, probabilities, the loss and its
// gradients are computed here, from the features.

const LEFT = 50; // pixels for the pictures beside the matrix
const TOP = 104; // and for the captions above it
const TICK = 0.01; // of the temperature's slider, in powers of ten

// ---- The mathematics

function unitRows(values, dim) {
  return Array.from({ length: values.length / dim }, (_, i) => {
    const row = Float64Array.from(values.subarray(i * dim, (i + 1) * dim));
    const length = Math.hypot(...row);
    return row.map((v) => v / length);
  });
}

const dot = (a, b) => a.reduce((sum, v, d) => sum + v * b[d], 0);

const transpose = (matrix) => matrix[0].map((_, j) => matrix.map((row) => row[j]));

// ln softmax, the largest logit taken out first.
function logSoftmax(logits) {
  const top = Math.max(...logits);
  const rest = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0));
  return logits.map((logit) => logit - top - rest);
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

// Symmetric InfoNCE of B pictures and at least as many captions; order[i] is picture i's caption.
function study(cosines, scale, order) {
  const B = cosines.length;
  const logits = cosines.map((row) => row.map((c) => scale * c));
  const toText = logits.map(logSoftmax);
  const toImage = transpose(transpose(logits).map(logSoftmax));
  const rowLoss = -mean(order.map((j, i) => toText[i][j]));
  const columnLoss = -mean(order.map((j, i) => toImage[i][j]));
  const asked = new Set(order); // a caption without a picture has no column to be found in
  const gradient = logits.map((row, i) => row.map((_, j) => {
    const y = Number(order[i] === j);
    const column = asked.has(j) ? Math.exp(toImage[i][j]) - y : 0;
    return (Math.exp(toText[i][j]) - y + column) / (2 * B);
  }));
  return { cosines, logits, toText, toImage, rowLoss, columnLoss, loss: (rowLoss + columnLoss) / 2, gradient };
}

// Caption j goes to picture i; whose it was takes picture i's in exchange.
function exchanged(order, i, j) {
  const next = [...order];
  const former = order.indexOf(j);
  if (former >= 0) next[former] = order[i];
  next[i] = j;
  return next;
}

// ---- Drawing

const letter = (j) => String.fromCharCode(65 + j);

function matrixLayout(width, rows, columns) {
  const cell = Math.min(92, (width - LEFT) / columns);
  const line = Math.min(cell, 58);
  const clamp = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value)));
  const at = ({ x, y }) => ({ i: clamp((y - TOP) / line, rows), j: clamp((x - LEFT) / cell, columns) });
  return { cell, line, height: TOP + rows * line + 3, at };
}

// As much of a text as fits, with an ellipsis in place of the rest.
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const letters = [...text];
  while (letters.length && context.measureText(letters.join("") + "\u2026").width > width) letters.pop();
  return letters.join("") + "\u2026";
}

function drawCaption(context, text, j, { cell }, chosen, colour) {
  const middle = LEFT + (j + 0.5) * cell;
  const style = { colour: chosen ? colour.accent : colour.ink, font: colour.font, weight: chosen ? 650 : 400 };
  write(context, letter(j), middle, TOP - 12, { ...style, align: "center", weight: 650 });
  if (cell < 16) return;
  context.save();
  context.translate(middle, TOP - 24);
  context.rotate(-Math.PI / 2);
  context.font = `${style.weight} 12px ${colour.font}`;
  write(context, fitted(context, text, TOP - 28), 0, 0, style);
  context.restore();
}

// Up where gradient descent raises the logit; the area follows the gradient's size.
function drawPush(context, x, y, gradient, largest, reach, colour) {
  const size = reach * Math.sqrt(Math.abs(gradient) / largest);
  const tip = gradient < 0 ? -1 : 1;
  context.fillStyle = colour.ink;
  context.beginPath();
  context.moveTo(x - size, y - (tip * size) / 2);
  context.lineTo(x + size, y - (tip * size) / 2);
  context.lineTo(x, y + (tip * size) / 2);
  context.fill();
}

function outline(context, [x, y, width, height], tones) {
  for (const [line, stroke] of tones) {
    Object.assign(context, { lineWidth: line, strokeStyle: stroke });
    context.strokeRect(x, y, width, height);
  }
}

// The cells' strength stops at a half, so that the numbers can be read on all of them.
function drawCells(context, { values, strengths, gradient, cell, line }, colour) {
  const largest = Math.max(...gradient?.flat().map(Math.abs) ?? [0]) || 1;
  values.forEach((row, i) => row.forEach((value, j) => {
    const [x, y] = [LEFT + j * cell, TOP + i * line];
    context.fillStyle = colour.accent;
    context.globalAlpha = 0.04 + 0.46 * strengths[i][j];
    context.fillRect(x + 1, y + 1, cell - 2, line - 2);
    context.globalAlpha = 1;
    const marked = gradient && line >= 30;
    const size = Math.min(13, cell / 3);
    if (cell >= 26) write(context, fixed(value, 2), x + cell / 2, y + line * (marked ? 0.36 : 0.52), { colour: colour.ink, font: colour.font, align: "center", size });
    if (gradient) drawPush(context, x + cell / 2, y + line * (marked ? 0.74 : 0.85), gradient[i][j], largest, Math.min(8, line / 5), colour);
  }));
}

function drawMatrix(canvas, width, view, colour) {
  const { values, order, chosen, pictures, captions } = view;
  const layout = matrixLayout(width, values.length, captions.length);
  const context = fitCanvas(canvas, width, layout.height);
  const { cell, line } = layout;
  captions.forEach((text, j) => drawCaption(context, text, j, layout, j === chosen.j, colour));
  const side = Math.min(line - 6, LEFT - 12);
  pictures.forEach((picture, i) => {
    const y = TOP + i * line + (line - side) / 2;
    context.drawImage(picture, 2, y, side, side);
    if (i === chosen.i) outline(context, [2, y, side, side], [[3, colour.accent]]);
  });
  drawCells(context, { ...view, cell, line }, colour);
  const box = (i, j, inset) => [LEFT + j * cell + inset, TOP + i * line + inset, cell - 2 * inset, line - 2 * inset];
  order.forEach((j, i) => outline(context, box(i, j, 2.5), [[2.5, colour.warm]]));
  outline(context, box(chosen.i, chosen.j, 0.5), [[4, colour.surface], [2, colour.ink]]);
}

// ---- The figure

const READINGS = ["cosine", "logit", "to_text", "to_image", "term", "gradient"];

function createControls(figure) {
  const { t, set } = figure;
  const [low, high] = figure.get("scale_range").map(Math.log10);
  const within = (scale) => Math.min(10 ** high, Math.max(10 ** low, scale));
  const views = ["image_to_text", "text_to_image", "cosine"].map((value) => ({ value, text: t("view_" + value) }));
  const learned = figure.get("learned_scale");
  const temperature = sliderField(t("temperature"), { min: -high, max: -low, step: TICK }, (power) => set("scale", within(10 ** -power)));
  // A mark on the track: the thumb's middle runs from half its width to half its width before the end.
  const share = (high - Math.log10(learned)) / (high - low);
  temperature.node.append(h("i", { class: "mark", style: `--share: ${share}`, "aria-hidden": "true" }));
  return {
    temperature,
    learned: button(t("learned", { temperature: significant(1 / learned) }), () => set("scale", learned)),
    view: segmentField(t("view"), views, (view) => set("view", view)),
    gradients: switchField(t("gradients"), (on) => set("gradients", on)),
  };
}

const significant = (value) => String(Number(value.toPrecision(3)));

function createReadings(t) {
  const names = {};
  const values = {};
  const row = (key) => [(names[key] = h("dt", {}, t(key))), (values[key] = h("dd", { "data-name": key }))];
  const node = h("dl", {}, READINGS.map(row));
  const show = (key, text, value) => {
    setText(values[key], text);
    values[key].dataset.value = value;
  };
  return { node, names, show };
}

function createParts(figure) {
  const { t } = figure;
  return {
    lead: h("p", { class: "headline", "aria-live": "polite" }),
    swapped: h("p", { class: "quiet" }),
    note: h("p", { class: "quiet" }),
    matrix: h("canvas", { role: "application", tabindex: 0 }),
    picture: h("canvas", { role: "img" }),
    chosen: h("p", { class: "readout", "aria-live": "polite" }),
    readings: createReadings(t),
    pairs: h("ul", { class: "pairs" }),
    status: h("p", { class: "quiet", role: "status" }),
    bar: h("progress", { max: 1, class: "hidden", "aria-label": t("own_progress") }),
    table: h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("table_caption") }),
    details: h("details", {}, h("summary", {}, t("table"))),
  };
}

function createKey(t) {
  const item = (name) => h("li", {}, h("i", { class: name }), t("key_" + name));
  return h("ul", { class: "key" }, ["pair", "chosen", "up", "down"].map(item));
}

// A text field where a kernel or the page itself can answer, else a sentence that says why not.
function createOwn(figure, onCaption) {
  const { t } = figure;
  const own = figure.get("own");
  if (own !== "live" && own !== "page") return h("p", { class: "quiet own" }, t("own_" + own));
  const input = h("input", { type: "text", maxlength: 200 });
  const send = (event) => {
    event.preventDefault();
    const caption = input.value.trim();
    const known = figure.get("captions").indexOf(caption);
    if (known >= 0) figure.set("caption", known);
    else if (caption) onCaption(caption);
  };
  return h("form", { class: "own", onsubmit: send },
    h("div", { class: "together" }, labelled(t("own"), input), h("button", { type: "submit" }, t("add"))));
}

function assemble(figure, controls, parts, own) {
  const { t } = figure;
  parts.details.append(parts.table);
  const heading = (key) => h("p", { class: "heading" }, t(key));
  figure.root.append(
    h("div", { class: "controls" },
      h("div", { class: "together warmth" }, controls.temperature.node, controls.learned),
      controls.view.node, controls.gradients.node),
    parts.lead, parts.swapped,
    h("div", { class: "board" },
      h("div", {}, parts.note, parts.matrix, createKey(t)),
      h("div", {}, h("div", { class: "cell" }, parts.picture, parts.chosen), parts.readings.node)),
    h("hr"),
    h("div", { class: "split" }, heading("pairs"), parts.restore),
    h("p", { class: "quiet" }, t("pairs_hint")),
    parts.pairs, own, parts.status, parts.bar,
    parts.details,
    h("details", {}, h("summary", {}, t("about")), h("p", { class: "quiet" }, t("about_text"))),
  );
}

class SimilarityMatrix {
  constructor(figure) {
    this.figure = figure;
    this.images = unitRows(floats(figure.get("image_features")), figure.get("dim"));
    this.tower = null;
    this.controls = createControls(figure);
    this.parts = createParts(figure);
    this.parts.restore = button(figure.t("restore"), () => this.restore());
    const encode = figure.get("own") === "page" ? (caption) => this.encodeHere(caption) : (caption) => this.askKernel(caption);
    assemble(figure, this.controls, this.parts, createOwn(figure, encode));
    if (figure.get("own") === "page") this.tell(figure.t("own_before", { size: this.megabytes() }));
    this.redraw = scheduler(() => this.update());
    this.connectTraits();
    this.connectMatrix();
    this.load();
  }

  async load() {
    const { figure } = this;
    const size = figure.get("image_size");
    this.pictures = await Promise.all(figure.get("pictures").map(({ bytes }) => decodePicture(bytes, size)));
    this.readCaptions();
  }

  connectTraits() {
    const { figure, parts, redraw } = this;
    figure.on(["scale", "view", "gradients", "order", "image", "caption"], redraw.schedule);
    figure.on(["captions", "text_features"], () => this.readCaptions());
    const answered = () => this.tell(figure.get("problem") && figure.t("own_problem", { problem: figure.get("problem") }));
    if (figure.get("own") === "live") figure.on(["problem", "captions", "caption"], answered);
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(redraw.cancel);
    onResize(figure, figure.root, redraw.schedule);
    parts.details.addEventListener("toggle", redraw.schedule);
  }

  connectMatrix() {
    const { matrix } = this.parts;
    const step = (rows, columns) => () => this.pick(this.figure.get("image") + rows, this.figure.get("caption") + columns);
    onArrows(matrix, {
      ArrowLeft: step(0, -1),
      ArrowRight: step(0, 1),
      ArrowUp: step(-1, 0),
      ArrowDown: step(1, 0),
      Enter: () => this.assign(this.figure.get("image"), this.figure.get("caption")),
    });
    matrix.addEventListener("click", (event) => {
      if (!this.texts) return;
      const { i, j } = this.layout().at(pointIn(matrix, event));
      this.pick(i, j);
    });
  }

  layout() {
    return matrixLayout(this.parts.matrix.clientWidth, this.images.length, this.texts.length);
  }

  // The two traits of a new caption arrive one after the other: wait for both.
  readCaptions() {
    const texts = unitRows(floats(this.figure.get("text_features")), this.figure.get("dim"));
    if (!this.pictures || texts.length !== this.figure.get("captions").length) return;
    this.texts = texts;
    this.cosines = this.images.map((image) => texts.map((text) => dot(image, text)));
    this.fillPairs();
    this.redraw.schedule();
  }

  // ---- What the reader does

  pick(i, j) {
    if (!this.texts || i < 0 || j < 0 || i >= this.images.length || j >= this.texts.length) return;
    this.figure.set("image", i);
    this.figure.set("caption", j);
  }

  assign(i, j) {
    const order = this.figure.get("order");
    if (order[i] !== j) this.figure.set("order", exchanged(order, i, j));
    this.pick(i, j);
  }

  restore() {
    this.figure.set("order", this.images.map((_, i) => i));
  }

  // ---- A caption of the reader's own

  askKernel(caption) {
    const { figure } = this;
    this.tell(figure.t("own_wait", { caption }));
    if (figure.get("typed") === caption) figure.set("typed", ""); // asked for again: a trait tells changes only
    figure.set("typed", caption);
  }

  // The text encoder runs in the page.
  async encodeHere(caption) {
    const { figure } = this;
    const full = () => figure.get("captions").length >= figure.get("most_captions");
    const refuse = () => this.tell(figure.t("own_full", { count: figure.get("captions").length }));
    if (full()) return refuse();
    const tower = await this.fetchTower();
    if (!tower) return;
    const { tokens, ids } = createTokenizer(tower.tokenizer)(caption);
    const known = figure.get("captions").indexOf(caption); // added while the weights were loading
    if (known < 0 && full()) return refuse();
    if (known < 0) this.addColumn(caption, encodeText(tower, ids));
    figure.set("caption", figure.get("captions").indexOf(caption));
    this.tell(figure.t("own_read", { caption, tokens: tokens.join(" ") }));
  }

  addColumn(caption, features) {
    const { figure } = this;
    const all = Float32Array.from([...floats(figure.get("text_features")), ...features]);
    figure.set("text_features", new DataView(all.buffer));
    figure.set("captions", [...figure.get("captions"), caption]);
  }

  // The text tower, or null when it cannot be had, which the reader is told.
  async fetchTower() {
    const { figure, parts } = this;
    if (this.tower) return this.tower;
    this.tell(figure.t("own_loading", { size: this.megabytes() }));
    parts.bar.classList.remove("hidden");
    parts.bar.removeAttribute("value");
    try {
      this.tower = await sharedTower(figure.get("folder"), figure.get("tower"), (share) => (parts.bar.value = share));
    } catch (problem) {
      this.tell(figure.t("own_failed", { problem: problem.message }));
    } finally {
      parts.bar.classList.add("hidden");
    }
    return this.tower;
  }

  megabytes() {
    return this.figure.number(this.figure.get("tower").num_bytes / 1e6, 1);
  }

  tell(text) {
    setText(this.parts.status, text);
  }

  // ---- The pairs

  // One line for each picture, then the captions without one; made anew for other captions only.
  fillPairs() {
    const { figure, parts } = this;
    const captions = figure.get("captions");
    const size = figure.get("image_size");
    const lines = this.pictures.map((picture, i) => {
      const thumbnail = h("canvas", { width: size, height: size, "aria-hidden": "true" });
      thumbnail.getContext("2d").drawImage(picture, 0, 0);
      const choose = h("select", { "aria-label": figure.t("assign", { number: i + 1 }), oninput: () => this.assign(i, Number(choose.value)) },
        captions.map((text, value) => h("option", { value }, text)));
      const chip = this.createChip(() => figure.get("order")[i]);
      return { i, choose, chip, node: h("li", {}, thumbnail, chip.node, choose) };
    });
    const loose = captions.slice(lines.length).map((_, k) => {
      const chip = this.createChip(() => this.unpaired()[k]);
      return { i: -1, chip, node: h("li", {}, chip.node, h("span", { class: "quiet" }, figure.t("unpaired"))) };
    });
    this.lines = [...lines, ...loose];
    parts.pairs.replaceChildren(...this.lines.map(({ node }) => node));
  }

  unpaired() {
    const order = new Set(this.figure.get("order"));
    return this.texts.map((_, j) => j).filter((j) => !order.has(j));
  }

  // A mouse drags the chip from anywhere, a finger by its handle: elsewhere a finger scrolls.
  createChip(caption) {
    const { figure } = this;
    const handle = h("span", { class: "handle", "aria-hidden": "true" }, "\u2807");
    const words = h("span", { class: "text" });
    const node = h("span", { class: "chip" }, handle, words);
    node.addEventListener("pointerdown", (event) => {
      if (event.button || (event.pointerType !== "mouse" && event.target !== handle)) return;
      event.preventDefault();
      this.drag(node, event, caption());
    });
    const show = () => setText(words, `${letter(caption())}  ${figure.get("captions")[caption()]}`);
    return { node, show };
  }

  drag(chip, start, caption) {
    const handlers = new AbortController();
    const options = { signal: handlers.signal };
    chip.setPointerCapture(start.pointerId);
    chip.classList.add("dragged");
    const move = (event) => {
      chip.style.transform = `translate(${event.clientX - start.clientX}px, ${event.clientY - start.clientY}px)`;
      const under = this.imageUnder(event);
      this.lines.forEach(({ i, node }) => node.classList.toggle("target", i >= 0 && i === under));
    };
    const end = (event) => {
      handlers.abort();
      chip.classList.remove("dragged");
      chip.style.transform = "";
      this.lines.forEach(({ node }) => node.classList.remove("target"));
      const under = event.type === "pointerup" ? this.imageUnder(event) : -1;
      if (under >= 0) this.assign(under, caption);
    };
    chip.addEventListener("pointermove", move, options);
    for (const type of ["pointerup", "pointercancel"]) chip.addEventListener(type, end, options);
  }

  // The picture whose line, or whose row of the matrix, is under the pointer; else -1.
  imageUnder({ clientX, clientY }) {
    const inside = (node) => {
      const box = node.getBoundingClientRect();
      return clientX >= box.left && clientX <= box.right && clientY >= box.top && clientY <= box.bottom;
    };
    const { matrix } = this.parts;
    if (inside(matrix)) {
      const y = clientY - matrix.getBoundingClientRect().top;
      return y < TOP ? -1 : this.layout().at({ x: 0, y }).i;
    }
    return this.lines.find(({ node }) => inside(node))?.i ?? -1;
  }

  // ---- What is shown

  update() {
    if (!this.texts) return;
    const { figure } = this;
    const order = figure.get("order");
    const scale = figure.get("scale");
    this.now = study(this.cosines, scale, order);
    this.showControls(scale);
    this.showLoss(order, scale);
    this.showMatrix(order);
    this.showCell(order, scale);
    this.lines.forEach(({ chip, choose, i }) => {
      chip.show();
      if (choose) choose.value = String(order[i]);
    });
    if (this.parts.details.open) this.showTable();
  }

  showControls(scale) {
    const { figure, controls, parts } = this;
    const words = { temperature: significant(1 / scale), scale: significant(scale) };
    controls.temperature.show(-Math.log10(scale), figure.t("temperature_value", words));
    controls.learned.setAttribute("aria-pressed", String(scale === figure.get("learned_scale")));
    controls.view.show(figure.get("view"));
    controls.gradients.show(figure.get("gradients"));
    setText(parts.note, figure.t("note_" + figure.get("view")));
  }

  showLoss(order, scale) {
    const { figure, parts, now } = this;
    const values = { loss: now.loss, rows: now.rowLoss, columns: now.columnLoss };
    const B = order.length;
    const chance = (Math.log(this.texts.length) + Math.log(B)) / 2;
    const words = Object.entries({ ...values, chance }).map(([name, value]) => [name, figure.number(value, 4)]);
    say(parts.lead, figure.get("strings")["lead"], Object.fromEntries(words));
    Object.assign(parts.lead.dataset, values);
    const asGiven = order.every((j, i) => i === j);
    const given = asGiven ? now.loss : study(this.cosines, scale, order.map((_, i) => i)).loss;
    setText(parts.swapped, asGiven ? figure.t("unswapped") : figure.t("swapped", { given: figure.number(given, 4) }));
    parts.restore.disabled = asGiven;
  }

  // The numbers of the present view.
  values() {
    const { cosines, toText, toImage } = this.now;
    const view = this.figure.get("view");
    if (view === "cosine") return cosines;
    return (view === "image_to_text" ? toText : toImage).map((row) => row.map(Math.exp));
  }

  showMatrix(order) {
    const { figure, parts, now } = this;
    const values = this.values();
    const flat = values.flat();
    const [low, high] = figure.get("view") === "cosine" ? [Math.min(...flat), Math.max(...flat)] : [0, 1];
    const strengths = values.map((row) => row.map((v) => (v - low) / (high - low || 1)));
    const chosen = { i: figure.get("image"), j: figure.get("caption") };
    const gradient = figure.get("gradients") ? now.gradient : null;
    const captions = figure.get("captions");
    const view = { values, strengths, gradient, order, chosen, captions, pictures: this.pictures };
    drawMatrix(parts.matrix, parts.matrix.clientWidth, view, colours(figure.root));
    const words = { picture: this.nameOf(chosen.i), caption: captions[chosen.j], value: fixed(values[chosen.i][chosen.j], 4) };
    parts.matrix.setAttribute("aria-label", figure.t("matrix_label", words));
  }

  nameOf(i) {
    return this.figure.t("picture_name", { number: i + 1, name: this.figure.get("pictures")[i].name });
  }

  showCell(order, scale) {
    const { figure, parts, now } = this;
    const [i, j] = [figure.get("image"), figure.get("caption")];
    const pair = order[i] === j;
    const side = parts.picture.clientWidth;
    fitCanvas(parts.picture, side, side).drawImage(this.pictures[i], 0, 0, side, side);
    parts.picture.setAttribute("aria-label", this.nameOf(i));
    const words = { picture: this.nameOf(i), caption: figure.get("captions")[j] };
    say(parts.chosen, figure.get("strings")[pair ? "chosen_pair" : "chosen_other"], words);
    setText(parts.readings.names.logit, figure.t("logit", { scale: significant(scale) }));
    const term = -(now.toText[i][j] + now.toImage[i][j]) / (2 * order.length);
    const show = (key, value, digits) => parts.readings.show(key, fixed(value, digits), value);
    show("cosine", now.cosines[i][j], 4);
    show("logit", now.logits[i][j], 4);
    show("to_text", Math.exp(now.toText[i][j]), 4);
    show("to_image", Math.exp(now.toImage[i][j]), 4);
    if (pair) show("term", term, 4);
    else parts.readings.show("term", figure.t("no_term"), 0);
    show("gradient", now.gradient[i][j], 5);
  }

  showTable() {
    const { figure, parts, now } = this;
    const captions = figure.get("captions");
    const cell = (value, i, j) => h("td", { "data-value": value, "data-gradient": now.gradient[i][j] },
      fixed(value, 4), h("span", { class: "quiet" }, fixed(now.gradient[i][j], 5)));
    const line = (row, i) => h("tr", {}, h("th", { scope: "row" }, this.nameOf(i)), row.map((value, j) => cell(value, i, j)));
    const column = (text, j) => h("th", { scope: "col", title: text }, `${letter(j)}  ${text}`);
    parts.table.replaceChildren(h("table", {},
      h("caption", {}, figure.t("table_caption")),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, figure.t("table_picture")), captions.map(column))),
      h("tbody", {}, this.values().map(line))));
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "similarity-matrix");
  new SimilarityMatrix(figure);
  return figure.destroy;
}

export default { render };
