// Five families: who sees whom in each, layer by layer, and what it costs. The attention was recorded
// by Python; who can have influenced whom, and every cost, is computed here.

const GAP = 6; // pixels between the blocks of the matrix
const EDGE = 22; // for the names beside the matrix

// ---- The mathematics

// The attention of one family on one pair, layer by layer, and who has reached whom.
class Trace {
  constructor(codes, levels, numWords, numPatches, numLayers) {
    this.S = numWords;
    this.T = numWords + numPatches;
    const size = this.T * this.T;
    this.layers = Array.from({ length: numLayers }, (_, k) =>
      Float32Array.from(codes.subarray(k * size, (k + 1) * size), (code) => code / levels));
    this.reached = this.follow();
  }

  // After each layer a token knows itself, and whatever those knew that it has looked at.
  follow() {
    const { T } = this;
    let known = Uint8Array.from({ length: T * T }, (_, at) => Number(at % (T + 1) === 0));
    return this.layers.map((attention) => {
      const next = known.slice();
      for (let i = 0; i < T; i++) {
        for (let m = 0; m < T; m++) {
          if (attention[i * T + m] > 0) for (let j = 0; j < T; j++) next[i * T + j] |= known[m * T + j];
        }
      }
      return (known = next);
    });
  }

  row(layer, i, view) {
    const matrix = (view === "reach" ? this.reached : this.layers)[layer];
    return matrix.subarray(i * this.T, (i + 1) * this.T);
  }

  column(layer, j) {
    return Uint8Array.from({ length: this.T }, (_, i) => this.reached[layer][i * this.T + j]);
  }

  // Mean share that the words (or patches) that look give to words and to patches; null if none looks.
  mass(layer, ofWords) {
    const [start, end] = ofWords ? [0, this.S] : [this.S, this.T];
    let [words, patches] = [0, 0];
    for (let i = start; i < end; i++) {
      const [w, p] = this.split(this.row(layer, i, "looks"));
      words += w / (end - start);
      patches += p / (end - start);
    }
    return words + patches > 0 ? [words, patches] : null;
  }

  // A row's sum over words and over patches.
  split(row) {
    const sum = (part) => part.reduce((a, b) => a + b, 0);
    return [sum(row.subarray(0, this.S)), sum(row.subarray(this.S))];
  }
}

// Multiply-adds of a layer for one pair: linear maps by token, 2 q k D for each attention, booked to
// whoever looks.
function layerCost({ looks, per_word, per_patch }, words, patches, D) {
  const size = { words, patches, both: words + patches };
  const attention = { words: 0, patches: 0 };
  for (const [queries, keys] of looks) {
    for (const kind of queries === "both" ? ["words", "patches"] : [queries]) {
      attention[kind] += 2 * size[kind] * size[keys] * D;
    }
  }
  return {
    attention: attention.words + attention.patches,
    words: words * per_word + attention.words,
    patches: patches * per_patch + attention.patches,
  };
}

// One pair, and the part of it that each side computes before it knows of the other.
function pairCost(family, words, patches, D) {
  const cost = { attention: 0, total: 0, aloneWords: 0, alonePatches: 0, together: 0 };
  family.layers.forEach((layer, k) => {
    const now = layerCost(layer, words, patches, D);
    cost.attention += now.attention;
    cost.total += now.words + now.patches;
    cost[k < family.meets[0] ? "aloneWords" : "together"] += now.words;
    cost[k < family.meets[1] ? "alonePatches" : "together"] += now.patches;
  });
  return cost;
}

// Every caption with every picture, nothing computed twice.
function searchCost(family, cost, images, captions, pairs) {
  return {
    alone: (cost.aloneWords ? captions : 0) + (cost.alonePatches ? images : 0),
    pairs: cost.together ? pairs : 0,
    total: cost.aloneWords * captions + cost.alonePatches * images + cost.together * pairs,
  };
}

// The best k captions of each picture, and the best k pictures of each caption.
function rerankedPairs(images, captions, k) {
  return images * Math.min(k, captions) + captions * Math.min(k, images);
}

// ---- What a layer is, from who looks at whom

function kindOf({ looks }) {
  const name = looks.map(([queries, keys]) => `${queries} ${keys}`).sort().join(", ");
  return {
    "both both": "kind_together",
    "patches patches, words words": "kind_apart",
    "patches words, words patches": "kind_swap",
    "words words": "kind_words",
    "words patches": "kind_read",
  }[name];
}

function thinkingOf({ thinks }) {
  return { both: "think_both", "words,patches": "think_apart", words: "think_words", "": "think_none" }[thinks.join(",")];
}

// Which of the four blocks a layer's attention fills: words→words, words→patches, and so on.
function blocksOf({ looks }) {
  const holds = (kind, one) => kind === "both" || kind === one;
  const kinds = ["words", "patches"];
  return kinds.flatMap((q) => kinds.map((k) => looks.some(([queries, keys]) => holds(queries, q) && holds(keys, k))));
}

// ---- Drawing

// How strongly a weight shows: in proportion to the largest, and never quite nothing.
const strength = (weight, largest) => (weight > 0 ? 0.14 + 0.76 * (weight / largest) : 0);

function drawPicture(canvas, side, { picture, grid, lights, largest, chosen }, colour) {
  const context = fitCanvas(canvas, side, side);
  const step = side / grid;
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, side, side);
  lights.forEach((light, j) => {
    const [x, y] = [(j % grid) * step, Math.floor(j / grid) * step];
    context.fillStyle = colour.surface;
    context.globalAlpha = light > 0 ? 0 : 0.78; // what is not seen is veiled
    context.fillRect(x, y, step, step);
    context.globalAlpha = 1;
    if (light <= 0) return;
    const width = 2 + 5 * (light / largest);
    context.strokeStyle = colour.warm;
    context.globalAlpha = 0.25 + 0.75 * (light / largest);
    context.lineWidth = width;
    context.strokeRect(x + width / 2 + 1, y + width / 2 + 1, step - width - 2, step - width - 2);
    context.globalAlpha = 1;
  });
  context.strokeStyle = colour.line;
  context.lineWidth = 1;
  for (let i = 1; i < grid; i++) {
    context.strokeRect(i * step, -1, 0, side + 2);
    context.strokeRect(-1, i * step, side + 2, 0);
  }
  if (chosen < 0) return;
  const corner = [(chosen % grid) * step, Math.floor(chosen / grid) * step];
  outlined(context, [corner[0] + 1.5, corner[1] + 1.5, step - 3, step - 3], colour, "accent");
}

function matrixScale(side, { S, T }) {
  const cell = (side - EDGE - GAP) / T;
  const at = (i) => EDGE + i * cell + (i >= S ? GAP : 0);
  const tokenAt = (position) => {
    const i = Math.floor((position - EDGE - (position > at(S) - GAP / 2 ? GAP : 0)) / cell);
    return Math.max(0, Math.min(T - 1, i));
  };
  return { cell, at, tokenAt };
}

function drawMatrix(canvas, side, { trace, layer, view, token, names }, colour) {
  const context = fitCanvas(canvas, side, side);
  const { S, T } = trace;
  const { cell, at } = matrixScale(side, trace);
  const matrix = (view === "reach" ? trace.reached : trace.layers)[layer];
  const largest = Math.max(...matrix) || 1;
  context.fillStyle = colour.line;
  context.globalAlpha = 0.35;
  for (const [i, n] of [[0, S], [S, T - S]]) {
    for (const [j, m] of [[0, S], [S, T - S]]) context.fillRect(at(j), at(i), m * cell, n * cell);
  }
  context.fillStyle = colour.accent;
  const gap = Math.min(1, cell * 0.12);
  matrix.forEach((weight, k) => {
    if (!weight) return;
    context.globalAlpha = strength(weight, largest);
    context.fillRect(at(k % T), at(Math.floor(k / T)), cell - gap, cell - gap);
  });
  context.globalAlpha = 1;
  outlined(context, [at(0) - 1.5, at(token) - 1.5, side - EDGE, cell + 2], colour, "warm");
  const middles = [[names.words, at(0) + (S * cell) / 2], [names.patches, at(S) + ((T - S) * cell) / 2]];
  const style = { colour: colour.muted, font: colour.font, align: "center" };
  for (const [name, middle] of middles) {
    write(context, name, middle, EDGE / 2 - 2, style);
    context.save();
    context.translate(EDGE / 2 - 2, middle);
    context.rotate(-Math.PI / 2);
    write(context, name, 0, 0, style);
    context.restore();
  }
}

// ---- The figure

function numberField(figure, label, [low, high], onInput) {
  const input = h("input", { type: "number", min: low, max: high, step: 1, inputmode: "numeric" });
  const problem = h("span", { class: "quiet problem", role: "status" });
  input.addEventListener("input", () => {
    const value = Number(input.value);
    const fine = input.value !== "" && Number.isInteger(value) && value >= low && value <= high;
    input.setAttribute("aria-invalid", String(!fine));
    const words = { low: figure.integer(low), high: figure.integer(high) };
    setText(problem, fine ? "" : figure.t("not_a_count", words));
    if (fine) onInput(value);
  });
  const show = (value) => {
    if (Number(input.value) === value) return;
    input.value = value;
    input.setAttribute("aria-invalid", "false");
    setText(problem, "");
  };
  return { node: labelled(label, input, problem), show };
}

function createControls(figure) {
  const { t, set } = figure;
  const ranges = figure.get("ranges");
  const families = figure.get("families").map(({ name }) => ({ value: name, text: t("family_" + name) }));
  const views = ["looks", "reach"].map((value) => ({ value, text: t("view_" + value) }));
  const names = figure.get("pairs").map(({ name }, value) => ({ value, text: name }));
  const slider = (name) => {
    const [min, max] = ranges[name];
    return sliderField(t(name), { min, max, step: 1 }, (value) => set(name, value));
  };
  const count = (name) => numberField(figure, t(name), ranges.count, (value) => set(name, value));
  return {
    pair: selectField(t("pair"), names, (value) => set("pair", Number(value))),
    family: segmentField(t("family"), families, (name) => set("family", name)),
    view: segmentField(t("view"), views, (view) => set("view", view)),
    layer: radioBar(t("layer"), "segments", (layer) => set("layer", layer)),
    word: radioBar(t("word"), "words", (token) => set("token", token)),
    words: slider("num_words"),
    patches: slider("patch_grid"),
    counts: ["num_images", "num_captions", "top_k"].map((name) => ({ name, ...count(name) })),
    examples: figure.get("searches").map((search) => createExample(figure, search)),
  };
}

function createExample({ t, set, integer }, [name, images, captions, k]) {
  const words = { name, images: integer(images), captions: integer(captions), k };
  const choose = () => (set("num_images", images), set("num_captions", captions), set("top_k", k));
  return { sizes: [images, captions, k], node: button(t("example", words), choose) };
}

// A table with one row a family; its cells are filled later.
function createTable(t, caption, columns, rows) {
  const cells = {};
  const head = (key) => h("th", { scope: "col" }, t(key));
  const cell = (row, key) => (cells[`${row} ${key}`] = h("td", { "data-name": `${row} ${key}` }));
  const lines = rows.map(([row, name]) =>
    h("tr", { "data-row": row }, h("th", { scope: "row" }, name), columns.map((key) => cell(row, key))));
  const table = h("table", {},
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, head("cost_family"), columns.map(head))),
    h("tbody", {}, lines));
  const node = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, table);
  const show = (key, text, value) => {
    setText(cells[key], text);
    cells[key].dataset.value = value;
  };
  const mark = (row) => lines.forEach((line) => line.classList.toggle("on", line.dataset.row === row));
  return { node, show, mark };
}

function createMass(t) {
  const kinds = ["words", "patches"];
  const cells = kinds.map((q) => kinds.map((k) => h("td", { "data-name": `mass ${q} ${k}` })));
  const row = (q, i) => h("tr", {}, h("th", { scope: "row" }, t(q)), cells[i]);
  const node = h("table", { class: "mass" },
    h("caption", {}, t("mass")),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("mass_from")), kinds.map((k) => h("th", { scope: "col" }, t("mass_at", { kind: t(k) }))))),
    h("tbody", {}, kinds.map(row)));
  return { node, cells };
}

function createParts(figure) {
  const { t } = figure;
  const board = () => h("canvas", { role: "application", tabindex: 0 });
  const parts = { picture: board(), matrix: board(), mass: createMass(t) };
  for (const key of ["about", "lead", "readout", "search"]) parts[key] = h("p");
  parts.matrixTitle = h("p", { class: "heading" });
  const rows = figure.get("families").map(({ name }) => [name, t("family_" + name)]);
  parts.pairTable = createTable(t, t("pair_cost"), ["cost_parameters", "cost_attention", "cost_total"], rows);
  const searched = [...rows, ["rerank", t("rerank")]];
  parts.searchTable = createTable(t, t("search_cost"), ["search_alone", "search_pairs", "search_total"], searched);
  return parts;
}

function assemble(figure, controls, parts) {
  const { t } = figure;
  const quiet = (text) => h("p", { class: "quiet" }, text);
  for (const key of ["lead", "search"]) parts[key].classList.add("headline");
  for (const key of ["lead", "readout", "search"]) parts[key].setAttribute("aria-live", "polite");
  parts.readout.classList.add("readout");
  parts.about.classList.add("quiet");
  const D = figure.get("dim");
  figure.root.append(
    h("div", { class: "controls" }, controls.pair.node, controls.family.node, controls.view.node),
    parts.about,
    controls.layer.node,
    parts.lead,
    h("div", { class: "columns" },
      h("div", {}, controls.word.node, h("p", { class: "quiet label" }, t("picture")), parts.picture),
      h("div", {}, parts.matrixTitle, parts.matrix, parts.mass.node)),
    parts.readout,
    h("hr"),
    h("p", { class: "heading" }, t("pair_cost")),
    h("div", { class: "controls" }, controls.words.node, controls.patches.node),
    parts.pairTable.node, quiet(t("cost_note", { dim: D })),
    h("hr"),
    h("p", { class: "heading" }, t("search_cost")),
    h("div", { class: "controls" }, controls.counts.map(({ node }) => node)),
    h("div", { class: "chips", role: "group", "aria-label": t("examples") }, controls.examples.map(({ node }) => node)),
    parts.search, parts.searchTable.node, quiet(t("search_note")),
    h("details", {}, h("summary", {}, t("about")), h("p", { class: "quiet" }, t("about_text", { dim: D }))),
  );
}

class Families {
  constructor(figure) {
    this.figure = figure;
    this.families = figure.get("families");
    this.grid = figure.get("grid");
    this.known = new Map(); // Trace by pair and family
    this.controls = createControls(figure);
    this.parts = createParts(figure);
    assemble(figure, this.controls, this.parts);
    this.redraw = scheduler(() => this.update());
    this.connectTraits();
    this.connectBoards();
    this.load();
  }

  async load() {
    const size = this.figure.get("image_size");
    this.pictures = await Promise.all(this.figure.get("pairs").map(({ bytes }) => decodePicture(bytes, size)));
    this.redraw.schedule();
  }

  connectTraits() {
    const { figure, redraw } = this;
    const traits = ["pair", "family", "layer", "token", "view", "num_words", "patch_grid"];
    figure.on([...traits, "num_images", "num_captions", "top_k"], redraw.schedule);
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(redraw.cancel);
    onResize(figure, figure.root, redraw.schedule);
  }

  connectBoards() {
    const { picture, matrix } = this.parts;
    const step = (rows, columns) => () => this.stepPatch(rows, columns);
    onArrows(picture, { ArrowLeft: step(0, -1), ArrowRight: step(0, 1), ArrowUp: step(-1, 0), ArrowDown: step(1, 0) });
    const by = (rows) => () => this.pick(this.now().token + rows);
    onArrows(matrix, { ArrowUp: by(-1), ArrowDown: by(1), Home: () => this.pick(0), End: () => this.pick(this.trace().T - 1) });
    onPoint(picture, ({ x, y }) => {
      const cell = picture.clientWidth / this.grid;
      const [column, row] = [Math.floor(x / cell), Math.floor(y / cell)];
      if (Math.min(row, column) >= 0 && Math.max(row, column) < this.grid) this.pick(this.trace().S + row * this.grid + column);
    });
    onPoint(matrix, ({ y }) => this.pick(matrixScale(matrix.clientWidth, this.trace()).tokenAt(y)));
  }

  // ---- What the reader does

  pick(token) {
    if (token >= 0 && token < this.trace().T && token !== this.now().token) this.figure.set("token", token);
  }

  // From a word, the arrow keys on the picture begin at its first patch.
  stepPatch(rows, columns) {
    const patch = this.now().token - this.trace().S;
    if (patch < 0) return this.pick(this.trace().S);
    const [row, column] = [Math.floor(patch / this.grid) + rows, (patch % this.grid) + columns];
    if (Math.min(row, column) >= 0 && Math.max(row, column) < this.grid) this.pick(this.trace().S + row * this.grid + column);
  }

  // ---- What is shown

  family() {
    return this.families.find(({ name }) => name === this.figure.get("family"));
  }

  words() {
    return this.figure.get("pairs")[this.figure.get("pair")].words;
  }

  now() {
    const { figure } = this;
    const layer = Math.min(figure.get("layer"), this.family().layers.length - 1);
    return { layer, token: Math.min(figure.get("token"), this.trace().T - 1), view: figure.get("view") };
  }

  trace() {
    const key = `${this.figure.get("pair")} ${this.figure.get("family")}`;
    if (!this.known.has(key)) this.known.set(key, this.read());
    return this.known.get(key);
  }

  // Cuts one pair and family out of the bytes of all.
  read() {
    const { figure, families, grid } = this;
    const view = figure.get("maps");
    const codes = new Uint16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
    const sizes = figure.get("pairs").map(({ words }) => (words.length + grid * grid) ** 2);
    const depth = (list) => list.reduce((sum, { layers }) => sum + layers.length, 0);
    const [pair, family] = [figure.get("pair"), families.indexOf(this.family())];
    const before = sizes.slice(0, pair).reduce((a, b) => a + b, 0) * depth(families);
    const start = before + sizes[pair] * depth(families.slice(0, family));
    const layers = families[family].layers.length;
    return new Trace(codes.subarray(start, start + layers * sizes[pair]), figure.get("levels"), this.words().length, grid * grid, layers);
  }

  nameOf(token) {
    const { t } = this.figure;
    const words = this.words();
    if (token < words.length) return t("token_word", { number: token + 1, word: words[token] });
    const patch = token - words.length;
    return t("token_patch", { row: Math.floor(patch / this.grid) + 1, column: (patch % this.grid) + 1 });
  }

  percent(share) {
    return this.figure.number(100 * share, 1);
  }

  update() {
    if (!this.pictures) return;
    const colour = colours(this.figure.root);
    this.showControls();
    this.showLead();
    this.drawBoards(colour);
    this.showReadout();
    this.showMass();
    this.showPairCost();
    this.showSearchCost();
  }

  showControls() {
    const { figure, controls, parts } = this;
    const { layer, token } = this.now();
    controls.pair.show(figure.get("pair"));
    controls.family.show(figure.get("family"));
    controls.view.show(figure.get("view"));
    this.fillLayers();
    controls.layer.show(layer);
    this.fillWords();
    controls.word.show(token);
    setText(parts.about, figure.t("about_" + figure.get("family")));
  }

  // Radio buttons are made anew only for another family or pair: the focus must stay where it is.
  fillLayers() {
    if (this.layersOf === this.family()) return;
    this.layersOf = this.family();
    const { t } = this.figure;
    this.controls.layer.fill(this.layersOf.layers.map((layer, k) => ({
      label: t("layer_name", { layer: k + 1, kind: t(kindOf(layer)) }),
      body: [h("i", { class: "mini" }, blocksOf(layer).map((on) => h("b", { class: on ? "on" : "" }))), String(k + 1)],
    })));
  }

  fillWords() {
    const words = this.words();
    if (this.wordsOf !== words) {
      this.controls.word.fill(words.map((word, i) => ({ label: this.nameOf(i), body: [word, h("span", { class: "share" })] })));
    }
    this.wordsOf = words;
  }

  showLead() {
    const { figure, parts } = this;
    const { layer, view } = this.now();
    const now = this.family().layers[layer];
    const { T, reached } = this.trace();
    const known = reached[layer].reduce((a, b) => a + b, 0) / (T * T);
    const words = { layer: layer + 1, layers: this.family().layers.length, known: this.percent(known) };
    words.kind = figure.t(kindOf(now));
    words.think = figure.t(thinkingOf(now));
    this.say(parts.lead, "lead_" + view, words);
    setText(parts.matrixTitle, figure.t("matrix_" + view));
  }

  // The stars of a template mark emphasis; those of a caption are its own.
  say(node, key, values) {
    const pieces = this.figure.get("strings")[key].split("*");
    const fill = (piece) => piece.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
    const text = pieces.map(fill);
    if (node.textContent === text.join("")) return; // a live region speaks on true changes only
    node.replaceChildren(...text.map((piece, i) => (i % 2 ? h("strong", {}, piece) : piece)));
  }

  drawBoards(colour) {
    const { parts, figure, grid } = this;
    const { layer, token, view } = this.now();
    const trace = this.trace();
    const row = trace.row(layer, token, view);
    const largest = Math.max(...row) || 1;
    const [words, patches] = [row.subarray(0, trace.S), row.subarray(trace.S)];
    const picture = this.pictures[figure.get("pair")];
    const stage = { picture, grid, lights: Array.from(patches), largest, chosen: token - trace.S };
    drawPicture(parts.picture, parts.picture.clientWidth, stage, colour);
    this.controls.word.spans().forEach((span, i) => {
      span.parentNode.style.setProperty("--light", strength(words[i], largest));
      span.parentNode.classList.toggle("unseen", words[i] === 0);
      setText(span, view === "looks" && words[i] ? figure.t("percent", { value: this.percent(words[i]) }) : "\u00a0");
    });
    const names = { words: figure.t("words"), patches: figure.t("patches") };
    drawMatrix(parts.matrix, parts.matrix.clientWidth, { trace, layer, view, token, names }, colour);
    parts.picture.setAttribute("aria-label", figure.t("picture_label", { token: this.nameOf(token) }));
    parts.matrix.setAttribute("aria-label", figure.t("matrix_label", { token: this.nameOf(token) }));
  }

  showReadout() {
    const { layer, token, view } = this.now();
    const trace = this.trace();
    const row = trace.row(layer, token, view);
    const [words, patches] = trace.split(row);
    const name = { token: this.nameOf(token) };
    if (view === "reach") {
      const [heardWords, heardPatches] = trace.split(trace.column(layer, token));
      const all = { all_words: trace.S, all_patches: trace.T - trace.S };
      this.say(this.parts.readout, "readout_reach", { ...name, ...all, words, patches, heard_words: heardWords, heard_patches: heardPatches });
    } else if (words + patches === 0) {
      this.say(this.parts.readout, "readout_idle", name);
    } else {
      const most = Math.max(...row);
      const target = { most: this.percent(most), target: this.nameOf(row.indexOf(most)) };
      this.say(this.parts.readout, "readout_looks", { ...name, ...target, words: this.percent(words), patches: this.percent(patches) });
    }
  }

  showMass() {
    const { figure, parts } = this;
    const { layer } = this.now();
    parts.mass.cells.forEach((cells, i) => {
      const mass = this.trace().mass(layer, i === 0);
      cells.forEach((cell, j) => {
        setText(cell, mass ? figure.t("percent", { value: this.percent(mass[j]) }) : figure.t("nothing"));
        cell.dataset.value = mass ? mass[j] : 0;
      });
    });
  }

  costs() {
    const [words, side, D] = ["num_words", "patch_grid", "dim"].map(this.figure.get);
    return this.families.map((family) => [family, pairCost(family, words, side * side, D)]);
  }

  showPairCost() {
    const { figure, controls, parts } = this;
    const [words, grid] = [figure.get("num_words"), figure.get("patch_grid")];
    controls.words.show(words, figure.plain(words));
    controls.patches.show(grid, figure.t("grid", { grid, patches: figure.integer(grid * grid) }));
    for (const [{ name, parameters }, { attention, total }] of this.costs()) {
      parts.pairTable.show(`${name} cost_parameters`, figure.t("millions", { value: figure.number(parameters / 1e6, 1) }), parameters);
      parts.pairTable.show(`${name} cost_attention`, figure.t("giga", { value: figure.number(attention / 1e9, 3) }), attention);
      parts.pairTable.show(`${name} cost_total`, figure.t("giga", { value: figure.number(total / 1e9, 2) }), total);
    }
    parts.pairTable.mark(figure.get("family"));
  }

  showSearchCost() {
    const { figure, controls, parts } = this;
    const sizes = controls.counts.map(({ name, show }) => (show(figure.get(name)), figure.get(name)));
    const [images, captions, k] = sizes;
    for (const example of controls.examples) {
      example.node.setAttribute("aria-pressed", String(example.sizes.every((size, i) => size === sizes[i])));
    }
    const all = images * captions;
    this.say(parts.search, "search_lead", { images: figure.integer(images), captions: figure.integer(captions), pairs: figure.integer(all) });
    const show = (row, { alone, pairs, total }) => {
      parts.searchTable.show(`${row} search_alone`, figure.integer(alone), alone);
      parts.searchTable.show(`${row} search_pairs`, figure.integer(pairs), pairs);
      parts.searchTable.show(`${row} search_total`, this.withUnit(total), total);
    };
    for (const [family, cost] of this.costs()) show(family.name, searchCost(family, cost, images, captions, all));
    const [fusion, cost] = this.costs().find(([{ name }]) => name === "fusion");
    show("rerank", searchCost(fusion, cost, images, captions, rerankedPairs(images, captions, k)));
    parts.searchTable.mark(figure.get("family"));
  }

  // 30.5 P for 30.5 · 10¹⁵.
  withUnit(value) {
    const power = Math.min(21, Math.max(9, 3 * Math.floor(Math.log10(value) / 3)));
    return this.figure.t("unit_" + power, { value: Number((value / 10 ** power).toPrecision(3)).toLocaleString(this.figure.get("strings").locale) });
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "families");
  new Families(figure);
  return figure.destroy;
}

export default { render };
