// Masking: what BERT, MAE and FLIP hide on the same picture and caption, who encodes what is left,
// and what that costs. Masks and costs are computed here.

const WAYS = ["bert", "mae", "flip"];
const PARTS = ["image", "text", "decoder"];
const STAGES = ["input", "encoder", "decoder", "output"];
const CHART_HEIGHT = 190;

// ---- The mathematics

// Which tokens are hidden: the kept ones have the least noise. Patches draw first, then the words.
function drawMask(numPatches, numWords, percent, seed) {
  const next = randomIntegers(seed);
  const hide = (count) => {
    const noise = Array.from({ length: count }, next);
    const kept = Math.floor(count * (1 - percent / 100));
    const order = noise.map((_, i) => i).sort((a, b) => noise[a] - noise[b] || a - b);
    const hidden = new Array(count).fill(true);
    for (const i of order.slice(0, kept)) hidden[i] = false;
    return hidden;
  };
  return { patches: hide(numPatches), words: hide(numWords) };
}

// Multiply-adds of a stack of blocks; the attention's own products grow with the square.
function stackMacs([D, depth, , M], T) {
  return depth * (4 * T * D * D + 2 * T * T * D + 2 * T * D * M);
}

// Bytes that a stack of blocks keeps for its backward pass.
function stackBytes([D, depth, heads, M], T, each) {
  return each * depth * T * (8 * D + 2 * M + heads + 4);
}

// Multiply-adds of image encoder, text encoder and decoder for a picture with its caption.
function macsOf(sizes, kept) {
  const { patches: N, image, text, decoder, context, embed, patch_values: values } = sizes;
  const encoder = (tokens) => N * values * image[0] + stackMacs(image, tokens + 1);
  const words = stackMacs(text, context) + text[0] * embed;
  const decoding = (kept + 1) * image[0] * decoder[0] + stackMacs(decoder, N + 1) + N * decoder[0] * values;
  return { bert: [encoder(N), words, 0], mae: [encoder(kept), 0, decoding], flip: [encoder(kept) + image[0] * embed, words, 0] };
}

function bytesOf(sizes, kept) {
  const { patches: N, image, text, decoder, context, bytes } = sizes;
  const encoder = (tokens) => stackBytes(image, tokens + 1, bytes);
  const words = stackBytes(text, context, bytes);
  return { bert: [encoder(N), words, 0], mae: [encoder(kept), 0, stackBytes(decoder, N + 1, bytes)], flip: [encoder(kept), words, 0] };
}

const total = (parts) => parts.reduce((a, b) => a + b, 0);

// ---- Drawing. Each board is a grid of places, and every place that is filled holds one token.

function boardGrid(side, grid) {
  const step = side / grid;
  const box = (place) => [(place % grid) * step, Math.floor(place / grid) * step, step, step];
  const placeAt = ({ x, y }) => {
    const clip = (v) => Math.max(0, Math.min(grid - 1, Math.floor(v / step)));
    return clip(y) * grid + clip(x);
  };
  return { step, box, placeAt };
}

function drawPatch(context, { picture, grid }, [x, y, w, h], patch) {
  const s = picture.width / grid;
  const gap = Math.min(1, w * 0.06);
  context.drawImage(picture, (patch % grid) * s, Math.floor(patch / grid) * s, s, s, x, y, w - gap, h - gap);
}

// All cells of one kind in one stroke or fill.
function drawCells(context, boxes, kind, colour) {
  const gap = Math.min(1, boxes[0][2] * 0.06);
  context.beginPath();
  for (const [x, y, w, h] of boxes) {
    if (kind === "empty") context.rect(x + 1, y + 1, w - 2.5, h - 2.5);
    else context.rect(x, y, w - gap, h - gap);
  }
  if (kind === "empty") {
    Object.assign(context, { strokeStyle: colour.line, lineWidth: 1 });
    return context.stroke();
  }
  context.fillStyle = kind === "mask" ? colour.warm : colour.accent;
  context.globalAlpha = kind === "mask" ? 1 : 0.55;
  context.fill();
  context.globalAlpha = 1;
}

function drawBoard(canvas, side, stage, chosen, colour) {
  const context = fitCanvas(canvas, side, side);
  context.imageSmoothingEnabled = stage.picture.width >= 128;
  const { box } = boardGrid(side, stage.grid);
  if (stage.whole) context.drawImage(stage.whole, 0, 0, side, side);
  else {
    const boxes = {};
    stage.tokens.forEach(({ kind, patch }, place) => {
      if (kind === "patch") drawPatch(context, stage, box(place), patch);
      else (boxes[kind] ??= []).push(box(place));
    });
    for (const [kind, cells] of Object.entries(boxes)) drawCells(context, cells, kind, colour);
  }
  if (chosen < 0) return;
  const [x, y, w, h] = box(chosen);
  outlined(context, [x + 1, y + 1, w - 2, h - 2], colour, "ink");
}

// One vector for the picture, one for the caption, and the question how well they agree.
function drawVectors(canvas, side, { grid }, colour) {
  const context = fitCanvas(canvas, side, side);
  const cell = side / 9;
  for (const [y, tone] of [[0.3, "accent"], [0.58, "muted"]]) {
    for (let k = 0; k < 7; k++) {
      context.fillStyle = colour[tone];
      context.globalAlpha = 0.35 + 0.55 * ((k * 5 + (tone === "accent" ? 3 : 1)) % 7) / 6;
      context.fillRect(cell * (k + 1), y * side, cell - 1.5, cell - 1.5);
    }
  }
  context.globalAlpha = 1;
}

function drawChart(canvas, width, { shares, percent, range, names, texts }, colour) {
  const context = fitCanvas(canvas, width, CHART_HEIGHT);
  const [left, right, top, bottom] = [40, 92, 12, 30];
  const x = (p) => left + ((p - range[0]) / (range[1] - range[0])) * (width - left - right);
  const y = (share) => CHART_HEIGHT - bottom - share * (CHART_HEIGHT - bottom - top);
  const style = { colour: colour.muted, font: colour.font, size: 11 };
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    context.fillStyle = colour.line;
    context.fillRect(left, y(share), width - left - right, 1);
    write(context, texts.percent(100 * share), left - 6, y(share), { ...style, align: "right" });
  }
  for (let p = range[0]; p <= range[1]; p += 30) write(context, texts.percent(p), x(p), CHART_HEIGHT - bottom + 14, { ...style, align: "center" });
  context.fillStyle = colour.muted;
  context.fillRect(x(percent) - 0.5, top, 1, CHART_HEIGHT - top - bottom);
  const lines = { bert: [[2, 3], "ink"], mae: [[7, 4], "warm"], flip: [[], "accent"] };
  const ends = spread(WAYS.map((way) => y(shares[way].at(-1))), 15);
  WAYS.forEach((way, i) => {
    const [dash, tone] = lines[way];
    Object.assign(context, { strokeStyle: colour[tone], fillStyle: colour[tone], lineWidth: 2.5 });
    context.setLineDash(dash);
    context.beginPath();
    shares[way].forEach((share, k) => context.lineTo(x(range[0] + k), y(share)));
    context.stroke();
    context.setLineDash([]);
    context.beginPath();
    context.arc(x(percent), y(shares[way][percent - range[0]]), 4.5, 0, 7);
    context.fill();
    write(context, names[way], width - right + 8, ends[i], { ...style, colour: colour[tone], weight: 600, size: 12 });
  });
}

// Heights moved apart until each has room for its name.
function spread(heights, room) {
  const order = heights.map((_, i) => i).sort((a, b) => heights[a] - heights[b]);
  const out = [...heights];
  order.forEach((i, k) => k && (out[i] = Math.max(out[i], out[order[k - 1]] + room)));
  return out;
}

// ---- The figure

function createControls(figure) {
  const { t, set } = figure;
  const [min, max] = figure.get("percent_range");
  const measures = ["compute", "memory"].map((value) => ({ value, text: t("measure_" + value) }));
  const usual = figure.get("usual").map(([way, percent]) => ({
    percent,
    node: button(t("usual", { way: t("way_short_" + way), percent }), () => set("percent", percent)),
  }));
  const learned = figure.get("reconstructions").map(({ percent, seed }) => ({
    percent,
    seed,
    node: button(t("percent", { value: percent }), () => (set("seed", seed), set("percent", percent))),
  }));
  return {
    percent: sliderField(t("ratio"), { min, max, step: 1 }, (percent) => set("percent", percent)),
    redraw: button(t("redraw"), () => set("seed", (figure.get("seed") + 1) % 2 ** 32)),
    measure: segmentField(t("measure"), measures, (measure) => set("measure", measure)),
    word: radioBar(t("word"), "words", (token) => set("token", token)),
    usual,
    learned,
  };
}

function createWay(figure, way) {
  const { t } = figure;
  const stages = STAGES.map((stage) => {
    const board = stage === "input" ? { role: "application", tabindex: 0 } : { role: "img" };
    const canvas = h("canvas", { ...board, "data-board": `${way} ${stage}` });
    const caption = h("p", { class: "quiet" });
    const none = h("p", { class: "none quiet" });
    const node = h("div", { class: "stage" }, h("p", { class: "label" }, t("stage_" + stage)), canvas, none, caption);
    return { stage, canvas, caption, none, node };
  });
  const caption = h("p", { class: "caption" });
  const path = h("p", { class: "readout", "aria-live": "polite" });
  const node = h("section", { class: "way", "aria-label": t("way_" + way) },
    h("p", { class: "heading" }, t("way_" + way)), h("p", { class: "quiet idea" }, t("idea_" + way)),
    caption, path, h("div", { class: "stages" }, stages.map(({ node: stage }) => stage)));
  return { way, stages, caption, path, node };
}

function createTable(t) {
  const columns = ["encoded", ...PARTS, "total", "share"];
  const cells = {};
  const cell = (way, key) => (cells[`${way} ${key}`] = h("td", { "data-name": `${way} ${key}` }));
  const row = (way) => h("tr", {}, h("th", { scope: "row" }, t("way_short_" + way)), columns.map((key) => cell(way, key)));
  const caption = h("caption");
  const table = h("table", {}, caption,
    h("thead", {}, h("tr", {}, ["way", ...columns].map((key) => h("th", { scope: "col" }, t("column_" + key))))),
    h("tbody", {}, WAYS.map(row)));
  const node = h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("table") }, table);
  const show = (key, text, value) => {
    setText(cells[key], text);
    cells[key].dataset.value = value;
  };
  return { node, caption, show };
}

function learnedRow(learned, t) {
  if (!learned.length) return [];
  const chips = h("div", { class: "chips" }, learned.map(({ node }) => node));
  return [h("div", { class: "learned" }, h("p", { class: "quiet" }, t("learned")), chips)];
}

function assemble(figure, controls, parts) {
  const { t } = figure;
  const heading = (key) => h("p", { class: "heading" }, t(key));
  figure.root.append(
    h("div", { class: "controls" }, controls.percent.node, h("div", { class: "together" }, controls.redraw, parts.seed)),
    h("div", { class: "chips" }, controls.usual.map(({ node }) => node)),
    parts.lead,
    controls.word.node,
    h("div", { class: "ways" }, parts.ways.map(({ node }) => node)),
    h("ul", { class: "key" }, ["mask", "encoded", "hole", "chosen"].map((name) => h("li", {}, h("i", { class: name }), t("key_" + name)))),
    ...learnedRow(controls.learned, t),
    h("hr"),
    heading("cost"),
    h("div", { class: "controls" }, controls.measure.node),
    parts.chart, parts.table.node, parts.note,
    h("details", {}, h("summary", {}, t("about")), h("p", { class: "quiet" }, t("about_text"))),
  );
}

class Masking {
  constructor(figure) {
    this.figure = figure;
    this.grid = figure.get("grid");
    this.sizes = figure.get("sizes");
    this.words = figure.get("words");
    this.controls = createControls(figure);
    const { t } = figure;
    this.parts = {
      lead: h("p", { class: "headline", "aria-live": "polite" }),
      seed: h("span", { class: "quiet" }),
      chart: h("canvas", { role: "img" }),
      note: h("p", { class: "quiet" }),
      ways: WAYS.map((way) => createWay(figure, way)),
      table: createTable(t),
    };
    this.controls.word.fill(this.words.map((word, i) => ({ label: this.nameOf(i), body: word })));
    assemble(figure, this.controls, this.parts);
    this.redraw = scheduler(() => this.update());
    this.connect();
    this.load();
  }

  async load() {
    const size = this.figure.get("image_size");
    const decode = ({ bytes }) => decodePicture(bytes, size);
    this.picture = await decodePicture(this.figure.get("picture"), size);
    this.learned = await Promise.all(this.figure.get("reconstructions").map(decode));
    this.redraw.schedule();
  }

  connect() {
    const { figure, redraw } = this;
    figure.on(["percent", "seed", "token", "measure"], redraw.schedule);
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(redraw.cancel);
    onResize(figure, figure.root, redraw.schedule);
    const move = (rows, columns) => () => this.stepPatch(rows, columns);
    for (const { stages } of this.parts.ways) {
      for (const { canvas, stage } of stages) {
        onPoint(canvas, (point) => {
          if (!this.picture) return;
          this.pick(this.tokenAt(canvas, boardGrid(canvas.clientWidth, this.grid).placeAt(point)));
        });
        if (stage !== "input") continue;
        onArrows(canvas, { ArrowLeft: move(0, -1), ArrowRight: move(0, 1), ArrowUp: move(-1, 0), ArrowDown: move(1, 0) });
      }
    }
  }

  // ---- What the reader does

  pick(token) {
    if (token != null && token >= 0 && token !== this.figure.get("token")) this.figure.set("token", token);
  }

  stepPatch(rows, columns) {
    const patch = this.figure.get("token") - this.words.length;
    if (patch < 0) return this.pick(this.words.length);
    const [row, column] = [Math.floor(patch / this.grid) + rows, (patch % this.grid) + columns];
    if (Math.min(row, column) >= 0 && Math.max(row, column) < this.grid) this.pick(this.words.length + row * this.grid + column);
  }

  tokenAt(canvas, place) {
    const patch = this.boards?.get(canvas)?.tokens?.[place]?.patch;
    return patch == null ? null : this.words.length + patch;
  }

  // ---- What is shown

  nameOf(token) {
    const { t } = this.figure;
    const patch = token - this.words.length;
    if (patch < 0) return t("token_word", { number: token + 1, word: this.words[token] });
    return t("token_patch", { row: Math.floor(patch / this.grid) + 1, column: (patch % this.grid) + 1 });
  }

  now() {
    const { figure, sizes } = this;
    const [percent, seed, token] = ["percent", "seed", "token"].map(figure.get);
    const mask = drawMask(sizes.patches, this.words.length, percent, seed);
    const kept = mask.patches.filter((hidden) => !hidden).length;
    return { percent, seed, mask, kept, patch: token - this.words.length, word: token };
  }

  update() {
    if (!this.learned) return;
    const colour = colours(this.figure.root);
    const now = this.now();
    // Read before anything is written, or every board would lay out the page anew.
    const boards = this.parts.ways.flatMap(({ stages }) => stages.map(({ canvas }) => canvas));
    const widths = new Map([...boards, this.parts.chart].map((canvas) => [canvas, canvas.clientWidth]));
    // A canvas that is given a font settles the style of the page: best before that is changed.
    this.drawShares(now, colour, widths.get(this.parts.chart));
    this.showControls(now);
    this.boards = new Map();
    for (const way of this.parts.ways) this.showWay(way, now, colour, widths);
    this.showCost(now);
  }

  showControls(now) {
    const { figure, controls, parts, sizes } = this;
    const { percent, seed, kept } = now;
    controls.percent.show(percent, figure.t("percent", { value: percent }));
    setText(parts.seed, figure.t("seed", { seed }));
    controls.measure.show(figure.get("measure"));
    controls.word.show(figure.get("token"));
    for (const chip of controls.usual) chip.node.setAttribute("aria-pressed", String(chip.percent === percent));
    for (const chip of controls.learned) chip.node.setAttribute("aria-pressed", String(chip.percent === percent && chip.seed === seed));
    say(parts.lead, figure.get("strings")["lead"], { percent, patches: sizes.patches, kept });
    Object.assign(parts.lead.dataset, { kept, hidden: now.mask.patches.flatMap((hidden, i) => (hidden ? [i] : [])), words: now.mask.words.flatMap((hidden, i) => (hidden ? [i] : [])) });
  }

  // The tokens on each place of each board of a way.
  tokens(way, stage, { mask }) {
    const all = mask.patches.map((hidden, patch) => ({ hidden, patch }));
    const kept = all.filter(({ hidden }) => !hidden).map(({ patch }) => ({ kind: "patch", patch }));
    if (way === "bert") {
      const kinds = stage === "output" ? ["encoded", "empty"] : ["mask", "patch"];
      return all.map(({ hidden, patch }) => ({ kind: kinds[hidden ? 0 : 1], patch }));
    }
    if (stage === "input") return all.map(({ hidden, patch }) => ({ kind: hidden ? "empty" : "patch", patch }));
    if (stage === "encoder") return [...kept, ...all.slice(kept.length).map(() => ({ kind: "empty" }))];
    if (way === "flip") return null;
    const kinds = stage === "decoder" ? ["mask", "encoded"] : ["encoded", "empty"];
    return all.map(({ hidden, patch }) => ({ kind: kinds[hidden ? 0 : 1], patch }));
  }

  showWay({ way, stages, caption, path }, now, colour, widths) {
    const { figure, grid, picture } = this;
    for (const { stage, canvas, caption: words, none, node } of stages) {
      const absent = stage === "decoder" && way !== "mae";
      canvas.classList.toggle("hidden", absent);
      none.classList.toggle("hidden", !absent);
      setText(none, absent ? figure.t("no_decoder") : "");
      const whole = way === "mae" && stage === "output" ? this.learnedPicture(now) : null;
      const text = this.stageText(way, stage, now, whole);
      setText(words, absent ? "" : text);
      if (absent) continue;
      canvas.setAttribute("aria-label", stage === "input" ? figure.t("board", { text, token: this.nameOf(now.word) }) : text);
      const side = widths.get(canvas);
      const tokens = this.tokens(way, stage, now);
      if (!tokens) {
        drawVectors(canvas, side, { grid }, colour);
        continue;
      }
      this.boards.set(canvas, { tokens });
      const chosen = now.patch < 0 ? -1 : tokens.findIndex(({ patch }) => patch === now.patch);
      drawBoard(canvas, side, { picture, grid, tokens, whole }, chosen, colour);
    }
    this.showCaption(way, caption, now);
    const kind = now.patch < 0 ? "word" : "patch";
    const hidden = now.patch < 0 ? now.mask.words[now.word] : now.mask.patches[now.patch];
    const state = way === "mae" && kind === "word" ? "none" : way === "flip" && kind === "word" ? "all" : hidden ? "hidden" : "seen";
    say(path, figure.get("strings")[`path_${way}_${kind}_${state}`], { token: this.nameOf(now.word) });
    path.dataset.state = state;
  }

  learnedPicture({ percent, seed }) {
    const made = this.figure.get("reconstructions");
    const index = made.findIndex((one) => one.percent === percent && one.seed === seed);
    return index < 0 ? null : this.learned[index];
  }

  stageText(way, stage, { mask, kept }, whole) {
    const { t, integer } = this.figure;
    const N = this.sizes.patches;
    const words = mask.words.filter(Boolean).length;
    const values = { patches: integer(N), kept: integer(kept), hidden: integer(N - kept), words, all_words: mask.words.length, context: this.sizes.context };
    return t(`text_${way}_${stage}${whole ? "_learned" : ""}`, values);
  }

  // The caption as this way reads it.
  showCaption(way, node, { mask, word }) {
    const { t } = this.figure;
    const stamp = `${way} ${mask.words} ${word}`;
    if (node.dataset.stamp === stamp) return;
    node.dataset.stamp = stamp;
    if (way === "mae") return setText(node, t("no_caption"));
    const hides = (i) => way === "bert" && mask.words[i];
    const chip = (text, i) => h("span", { class: `${hides(i) ? "masked" : ""} ${i === word ? "on" : ""}` }, hides(i) ? t("mask") : text);
    node.replaceChildren(...this.words.flatMap((text, i) => [chip(text, i), " "]));
  }

  // Total cost of each way at every percentage, as a share of its own at 0; computed once a measure.
  shares(measure) {
    this.known ??= {};
    return (this.known[measure] ??= this.computeShares(measure === "memory" ? bytesOf : macsOf));
  }

  computeShares(cost) {
    const [low, high] = this.figure.get("percent_range");
    const N = this.sizes.patches;
    const at = Array.from({ length: high - low + 1 }, (_, k) => cost(this.sizes, Math.floor(N * (1 - (low + k) / 100))));
    return Object.fromEntries(WAYS.map((way) => [way, at.map((costs) => total(costs[way]) / total(cost(this.sizes, N)[way]))]));
  }

  drawShares(now, colour, width) {
    const { figure } = this;
    const shares = this.shares(figure.get("measure"));
    const names = Object.fromEntries(WAYS.map((way) => [way, figure.t("way_short_" + way)]));
    const percent = (value) => figure.t("percent", { value: figure.plain(value) });
    const range = figure.get("percent_range");
    drawChart(this.parts.chart, width, { shares, percent: now.percent, range, names, texts: { percent } }, colour);
  }

  showCost(now) {
    const { figure, parts, sizes } = this;
    const measure = figure.get("measure");
    const memory = measure === "memory";
    const costs = (memory ? bytesOf : macsOf)(sizes, now.kept);
    const shares = this.shares(measure);
    const range = figure.get("percent_range");
    setText(parts.table.caption, figure.t("caption_" + measure));
    setText(parts.note, figure.t("note_" + measure));
    const unit = (value) => (value ? figure.t("unit_" + measure, { value: figure.number(value / (memory ? 1e6 : 1e9), 2) }) : figure.t("nothing"));
    const words = {};
    for (const way of WAYS) {
      const encoded = way === "bert" ? sizes.patches : now.kept;
      const share = shares[way][now.percent - range[0]];
      parts.table.show(`${way} encoded`, figure.integer(encoded), encoded);
      PARTS.forEach((part, i) => parts.table.show(`${way} ${part}`, unit(costs[way][i]), costs[way][i]));
      parts.table.show(`${way} total`, unit(total(costs[way])), total(costs[way]));
      words[way] = figure.t("percent", { value: figure.number(100 * share, 1) });
      parts.table.show(`${way} share`, words[way], share);
    }
    parts.chart.setAttribute("aria-label", figure.t("chart_" + measure, { percent: now.percent, ...words }));
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "masking");
  new Masking(figure);
  return figure.destroy;
}

export default { render };
