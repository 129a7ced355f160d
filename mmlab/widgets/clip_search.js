// CLIP in the browser: a caption goes through the text encoder here, in the page, and ranks the
// pictures; a picture goes through the image encoder and ranks the captions.

const SHOWN = 12; // pictures in the ranking
const NAMED = 6; // captions in the ranking
const TILE = 30; // least width of a picture in the gallery, in CSS pixels
const PATIENCE = 30000; // milliseconds until a kernel that says nothing counts as gone
const LARGEST = 384; // the browser itself shrinks the shorter side of larger pictures to this

// ---- Features

// Rows of length 1 that came as 16-bit whole numbers.
function unitRows(view, dim) {
  const codes = new Int16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
  return Array.from({ length: codes.length / dim }, (_, i) => normalised(Float32Array.from(codes.subarray(i * dim, (i + 1) * dim))));
}

const dot = (a, b) => a.reduce((sum, v, d) => sum + v * b[d], 0);

// Everything about one row of cosines: best first, with softmax over all of them.
function ranked(query, rows, scale) {
  const cosines = rows.map((row) => dot(query, row));
  const probabilities = softmax(cosines.map((cosine) => scale * cosine));
  const order = cosines.map((_, i) => i).sort((a, b) => cosines[b] - cosines[a]);
  return { cosines, probabilities, order };
}

// ---- Pictures

// Keys' cubic with a = -1/2, Pillow's bicubic filter.
function cubic(x) {
  const far = Math.abs(x);
  if (far >= 2) return 0;
  return far < 1 ? (1.5 * far - 2.5) * far * far + 1 : ((-0.5 * far + 2.5) * far - 4) * far + 2;
}

// Which pixels of a line make each new one, and how much of each, as Pillow has it.
function filterTaps(from, to) {
  const step = from / to;
  const stretch = Math.max(1, step);
  const reach = 2 * stretch;
  return Array.from({ length: to }, (_, k) => {
    const middle = (k + 0.5) * step;
    const first = Math.max(0, Math.round(middle - reach));
    const last = Math.min(from, Math.round(middle + reach));
    const taps = Array.from({ length: last - first }, (_, j) => cubic((first + j + 0.5 - middle) / stretch));
    const sum = taps.reduce((a, b) => a + b, 0);
    return { first, taps: taps.map((tap) => tap / sum) };
  });
}

// One channel of a picture, resized: across, then down, with whole numbers after each.
function resizedChannel(values, [width, height], [newWidth, newHeight]) {
  // The cubic overshoots at edges.
  const whole = (value) => Math.min(255, Math.max(0, Math.round(value)));
  const along = (read, taps) => whole(taps.taps.reduce((sum, tap, j) => sum + tap * read(taps.first + j), 0));
  const across = filterTaps(width, newWidth);
  const narrow = Float32Array.from({ length: newWidth * height }, (_, k) =>
    along((x) => values[Math.floor(k / newWidth) * width + x], across[k % newWidth]));
  const down = filterTaps(height, newHeight);
  return Float32Array.from({ length: newWidth * newHeight }, (_, k) =>
    along((y) => narrow[y * newWidth + (k % newWidth)], down[Math.floor(k / newWidth)]));
}

const roundHalfToEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// A canvas as the image encoder takes it: the shorter side resized, the middle square, normalised.
function prepared(canvas, size, mean, std) {
  const { width, height } = canvas;
  const pixels = canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, width, height).data;
  const short = Math.min(width, height);
  const sides = [width, height].map((side) => Math.floor((side * size) / short));
  const [left, top] = sides.map((side) => roundHalfToEven((side - size) / 2));
  const data = new Float32Array(3 * size * size);
  for (let c = 0; c < 3; c++) {
    const channel = Float32Array.from({ length: width * height }, (_, i) => pixels[4 * i + c]);
    const small = resizedChannel(channel, [width, height], sides);
    for (let i = 0; i < size * size; i++) {
      const value = small[(top + Math.floor(i / size)) * sides[0] + left + (i % size)];
      data[c * size * size + i] = (value / 255 - mean[c]) / std[c];
    }
  }
  return { data, channels: 3, size };
}

// A picture file on a white ground.
async function readPicture(file) {
  const bitmap = await createImageBitmap(file);
  const shrink = Math.min(1, LARGEST / Math.min(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * shrink)));
  const canvas = h("canvas", { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  Object.assign(context, { fillStyle: "#fff", imageSmoothingQuality: "high" });
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}

function drawSquare(canvas, picture, side) {
  const context = fitCanvas(canvas, side, side);
  const short = Math.min(picture.width, picture.height);
  context.drawImage(picture, (picture.width - short) / 2, (picture.height - short) / 2, short, short, 0, 0, side, side);
}

// ---- The gallery: all pictures, the better they fit the stronger

function galleryLayout(width, count) {
  const columns = Math.max(1, Math.floor(width / TILE));
  const tile = width / columns;
  const at = ({ x, y }) => Math.floor(y / tile) * columns + Math.min(columns - 1, Math.floor(x / tile));
  return { columns, tile, height: Math.ceil(count / columns) * tile, at };
}

function drawGallery(canvas, pictures, ranking, chosen, colour) {
  const width = canvas.clientWidth;
  const { columns, tile, height } = galleryLayout(width, pictures.length);
  const context = fitCanvas(canvas, width, height);
  const box = (i) => [(i % columns) * tile + 2, Math.floor(i / columns) * tile + 2, tile - 4, tile - 4];
  const [high, low] = [ranking.order[0], ranking.order.at(-1)].map((i) => ranking.cosines[i]);
  pictures.forEach((picture, i) => {
    context.globalAlpha = 0.15 + 0.85 * ((ranking.cosines[i] - low) / (high - low || 1)) ** 2;
    context.drawImage(picture, ...box(i));
  });
  context.globalAlpha = 1;
  for (const i of ranking.order.slice(0, SHOWN)) outlined(context, box(i), colour, "accent");
  if (chosen >= 0 && chosen < pictures.length) outlined(context, box(chosen), colour, "ink");
}

// ---- The figure

function createParts(figure) {
  const { t } = figure;
  return {
    input: h("input", { type: "text", maxlength: 1000, autocomplete: "off", spellcheck: "false" }),
    examples: h("div", { class: "chips" }),
    status: h("p", { class: "quiet", role: "status" }),
    bar: h("progress", { max: 1, class: "hidden", "aria-label": t("progress") }),
    tokens: h("p", { class: "tokens" }),
    reading: h("p", { class: "quiet" }),
    lead: h("p", { class: "headline", "aria-live": "polite" }),
    results: h("ol", { class: "results" }),
    gallery: h("canvas", { role: "application", tabindex: 0 }),
    picture: h("canvas", { role: "img" }),
    chosen: h("p", { class: "readout", "aria-live": "polite" }),
    captions: h("ol", { class: "captions" }),
    check: h("p", { class: "quiet" }),
  };
}

function assemble(figure, controls, parts) {
  const { t } = figure;
  const label = labelled(t("caption"), parts.input);
  const { text, image } = figure.get("towers");
  const scale = figure.number(figure.get("scale"), 1);
  const computed = image ? t("about_image", { text: text.bits, image: image.bits }) : t("about_text_only", { text: text.bits });
  const form = h("form", {}, h("div", { class: "together" }, label, h("button", { type: "submit", class: "primary" }, t("search"))));
  const heading = (key) => h("p", { class: "heading" }, t(key));
  figure.root.append(
    form,
    h("p", { class: "quiet label" }, t("examples")), parts.examples,
    parts.status, parts.bar,
    h("p", { class: "quiet label" }, t("tokens")), parts.tokens, parts.reading,
    parts.lead,
    h("div", { class: "controls" }, controls.view.node),
    parts.results,
    h("div", { class: "split" }, heading("gallery"), h("span", { class: "quiet" }, t("gallery_key"))),
    parts.gallery,
    h("hr"),
    heading("reverse"),
    h("p", { class: "quiet" }, image ? t("reverse_text") : t("reverse_text_only")),
    h("div", { class: "controls" }, controls.picture.node, image && controls.file),
    h("div", { class: "board" }, parts.picture, h("div", {}, parts.chosen, parts.captions)),
    h("details", {}, h("summary", {}, t("about")),
      h("p", { class: "quiet" }, t("about_text", { scale }), " ", computed), parts.check),
  );
  return form;
}

// A tower that is fetched once, when it is first needed.
function createTower(figure, name, onProgress) {
  let asked = null;
  let tower = null;
  const trait = name + "_weights";
  const inTrait = () => figure.get(trait).byteLength > 0;
  const fromKernel = () => new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(figure.t("kernel"))), PATIENCE);
    const arrived = () => {
      if (!inTrait()) return;
      clearTimeout(timer);
      resolve(new Blob([figure.get(trait)]));
    };
    figure.on([trait], arrived);
    figure.cleanup(() => clearTimeout(timer));
    if (!figure.get("asked").includes(name)) figure.set("asked", [...figure.get("asked"), name]);
    arrived();
  });
  const fetched = async () => {
    const contents = figure.get("towers")[name];
    if (figure.get("source") !== "live") return sharedTower(figure.get("folder"), contents, onProgress);
    return unpackTower((await fromKernel()).slice(0, contents.num_bytes));
  };
  return {
    now: () => tower,
    get: () => (asked ??= fetched().then((found) => (tower = found), (problem) => {
      asked = null; // so that the reader can try again
      throw problem;
    })),
  };
}

class CLIPSearch {
  constructor(figure) {
    this.figure = figure;
    const dim = figure.get("dim");
    const rows = (trait) => unitRows(figure.get(trait), dim);
    this.images = rows("image_features");
    this.captions = rows("caption_features");
    this.examples = rows("example_features");
    this.own = null;
    this.parts = createParts(figure);
    this.towers = Object.fromEntries(Object.keys(figure.get("towers")).map((name) => [name, createTower(figure, name, (share) => this.showProgress(share))]));
    this.controls = this.createControls();
    this.form = assemble(figure, this.controls, this.parts);
    this.redraw = scheduler(() => this.update());
    this.connect();
    this.load();
  }

  createControls() {
    const { t, set } = this.figure;
    const views = ["probability", "cosine"].map((value) => ({ value, text: t("view_" + value) }));
    return {
      view: segmentField(t("view"), views, (view) => set("view", view)),
      picture: selectField(t("picture"), this.pictureOptions(), (value) => set("chosen", Number(value))),
      file: fileField(t("own"), t("own_button"), (file) => this.readOwn(file)),
    };
  }

  pictureOptions() {
    const names = this.figure.get("names").map((text, value) => ({ value, text }));
    return this.own ? [...names, { value: names.length, text: this.own.name }] : names;
  }

  connect() {
    const { figure, parts, redraw } = this;
    figure.on(["query", "view", "chosen"], redraw.schedule);
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(redraw.cancel);
    onResize(figure, figure.root, redraw.schedule);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.search(parts.input.value.trim());
    });
    // With the model here, every letter asks anew.
    parts.input.addEventListener("input", () => this.towers.text.now() && figure.set("query", parts.input.value.trim()));
    this.connectGallery();
    this.connectDrop();
  }

  connectGallery() {
    const { gallery } = this.parts;
    const columns = () => galleryLayout(gallery.clientWidth, this.images.length).columns;
    const step = (count) => () => this.choose(Math.max(0, this.figure.get("chosen")) + count());
    onArrows(gallery, {
      ArrowLeft: step(() => -1),
      ArrowRight: step(() => 1),
      ArrowUp: step(() => -columns()),
      ArrowDown: step(columns),
    });
    gallery.addEventListener("click", (event) =>
      this.choose(galleryLayout(gallery.clientWidth, this.images.length).at(pointIn(gallery, event))));
  }

  connectDrop() {
    const { root } = this.figure;
    const carriesFile = (event) => event.dataTransfer?.types.includes("Files");
    root.addEventListener("dragover", (event) => carriesFile(event) && event.preventDefault());
    root.addEventListener("drop", (event) => {
      if (!carriesFile(event)) return;
      event.preventDefault();
      const [file] = event.dataTransfer.files;
      if (file && this.towers.image) this.readOwn(file);
    });
  }

  async load() {
    const { figure } = this;
    const [size, columns] = [figure.get("picture_size"), figure.get("columns")];
    const blob = new Blob([figure.get("sprite")], { type: "image/webp" });
    const sheet = await createImageBitmap(blob, { colorSpaceConversion: "none" });
    this.pictures = this.images.map((_, i) => {
      const canvas = h("canvas", { width: size, height: size });
      canvas.getContext("2d").drawImage(sheet, -(i % columns) * size, -Math.floor(i / columns) * size);
      return canvas;
    });
    this.parts.examples.append(...figure.get("examples").map(({ text }) => button(text, () => {
      this.parts.input.value = text;
      figure.set("query", text);
    })));
    this.parts.input.value = figure.get("query");
    this.tell(this.waiting());
    this.redraw.schedule();
  }

  // ---- What the reader does

  choose(picture) {
    const last = this.images.length - (this.own ? 0 : 1);
    if (picture >= 0 && picture <= last) this.figure.set("chosen", picture);
  }

  async search(text) {
    if (await this.fetchTower("text")) this.figure.set("query", text);
    this.redraw.schedule();
  }

  async readOwn(file) {
    const { figure } = this;
    let picture;
    try {
      picture = await readPicture(file);
    } catch {
      this.tell(figure.t("unreadable", { name: file.name }));
      return;
    }
    const tower = await this.fetchTower("image");
    if (!tower) return;
    const size = tower.config.image_size;
    const features = encodeImage(tower, prepared(picture, size, figure.get("mean"), figure.get("std")));
    this.own = { name: figure.t("own_named", { name: file.name }), picture, features };
    this.controls.picture.fill(this.pictureOptions());
    figure.set("chosen", this.images.length);
    this.redraw.schedule(); // another file of the reader's may have been chosen before
  }

  // The tower, or null when it cannot be had, which the reader is told.
  async fetchTower(name) {
    const { figure, parts } = this;
    const known = this.towers[name].now();
    if (known) return known;
    this.tell(figure.t("loading", { size: this.megabytes(name) }));
    parts.bar.classList.remove("hidden");
    parts.bar.removeAttribute("value");
    try {
      const tower = await this.towers[name].get();
      if (name === "text") this.install(tower);
      this.tell(this.waiting());
      return tower;
    } catch (problem) {
      this.tell(figure.t("failed", { problem: problem.message }));
      return null;
    } finally {
      parts.bar.classList.add("hidden");
    }
  }

  // The examples were computed by PyTorch: how far is this page from it?
  install(tower) {
    if (this.tokenize) return;
    this.tokenize = createTokenizer(tower.tokenizer);
    const differences = this.figure.get("examples").map(({ text }, k) => {
      const here = encodeText(tower, this.tokenize(text).ids);
      return Math.max(...this.images.map((image) => Math.abs(dot(image, here) - dot(image, this.examples[k]))));
    });
    const difference = Math.max(...differences);
    const words = { count: differences.length, difference: fixed(difference, 5) };
    setText(this.parts.check, this.figure.t("check", words));
    this.parts.check.dataset.difference = difference;
  }

  megabytes(name) {
    return this.figure.number(this.figure.get("towers")[name].num_bytes / 1e6, 1);
  }

  // What stands in the status line when nothing is under way.
  waiting() {
    if (this.towers.text.now()) return this.figure.t("ready");
    return this.figure.t("before", { size: this.megabytes("text") });
  }

  tell(text) {
    setText(this.parts.status, text);
  }

  showProgress(share) {
    this.parts.bar.value = share;
  }

  // ---- What is shown

  // What the model reads and makes of the caption; null while only PyTorch's examples are known.
  read(text) {
    const tower = this.towers.text.now();
    if (tower) {
      const tokens = this.tokenize(text);
      return { ...tokens, features: encodeText(tower, tokens.ids) };
    }
    const k = this.figure.get("examples").findIndex((example) => example.text === text);
    return k < 0 ? null : { ...this.figure.get("examples")[k], features: this.examples[k] };
  }

  update() {
    if (!this.pictures) return;
    const { figure, controls, parts } = this;
    const query = figure.get("query");
    const caption = query ? this.read(query) : null;
    controls.view.show(figure.get("view"));
    for (const node of parts.examples.children) node.setAttribute("aria-pressed", String(node.textContent === query));
    if (caption) {
      this.caption = { text: query, ...caption };
      this.ranking = ranked(caption.features, this.images, figure.get("scale"));
      this.showTokens();
      this.showRanking();
    } else if (!this.ranking) {
      setText(parts.lead, figure.t("empty"));
    }
    if (this.ranking) this.showGallery();
    this.showPicture();
  }

  showTokens() {
    const { figure, parts, caption } = this;
    const frame = (text) => h("span", { class: "token frame" }, text);
    const chip = (text) => h("span", { class: text === caption.unknown ? "token unknown" : "token" }, text);
    const words = caption.words.map(({ pieces }) => h("span", { class: "word" }, pieces.map(chip)));
    parts.tokens.replaceChildren(frame(caption.tokens[0]), ...words, frame(caption.tokens.at(-1)));
    const list = (found) => found.map(({ word }) => figure.t("quoted", { word })).join(figure.t("separator"));
    const unknown = caption.words.filter(({ pieces }) => pieces.includes(caption.unknown));
    const cut = caption.words.filter(({ pieces }) => pieces.length > 1);
    const sentences = [
      unknown.length && figure.t("unknown", { words: list(unknown), token: caption.unknown }),
      cut.length && figure.t("cut", { words: list(cut) }),
      caption.dropped && figure.t("dropped", { read: caption.tokens.length, dropped: caption.dropped }),
    ];
    setText(parts.reading, sentences.filter(Boolean).join(" ") || figure.t("whole"));
  }

  showRanking() {
    const { figure, parts, ranking, caption } = this;
    const best = ranking.order[0];
    const words = {
      caption: caption.text,
      name: figure.get("names")[best],
      probability: figure.number(ranking.probabilities[best], 2),
      count: this.images.length,
    };
    say(parts.lead, figure.get("strings")["lead"], words);
    parts.results.replaceChildren(...ranking.order.slice(0, SHOWN).map((i, k) => this.createResult(i, k)));
  }

  createResult(i, k) {
    const size = this.figure.get("picture_size");
    const picture = h("canvas", { width: size, height: size, "aria-hidden": "true" });
    picture.getContext("2d").drawImage(this.pictures[i], 0, 0);
    const name = h("span", { class: "name" }, `${k + 1}. ${this.figure.get("names")[i]}`);
    const node = h("button", { type: "button", onclick: () => this.choose(i) }, picture, h("span", { class: "told" }, name, this.createBar(this.ranking, i)));
    node.dataset.picture = i;
    return h("li", {}, node);
  }

  // A bar as long as the score is, relative to the best.
  createBar(ranking, i) {
    const view = this.figure.get("view");
    const values = view === "cosine" ? ranking.cosines : ranking.probabilities;
    const share = Math.max(0, values[i] / (values[ranking.order[0]] || 1));
    const shown = h("span", { class: "score", "data-cosine": ranking.cosines[i], "data-probability": ranking.probabilities[i] },
      h("span", { class: "bar" }, h("i", { style: `width: ${(100 * share).toFixed(1)}%` })),
      h("span", { class: "value" }, fixed(values[i], 3)));
    return shown;
  }

  showGallery() {
    const { figure, parts, ranking } = this;
    const chosen = figure.get("chosen");
    drawGallery(parts.gallery, this.pictures, ranking, chosen, colours(figure.root));
    const name = chosen >= 0 ? this.nameOf(chosen) : figure.t("nothing");
    parts.gallery.setAttribute("aria-label", figure.t("gallery_label", { count: this.images.length, name }));
  }

  nameOf(picture) {
    return picture < this.images.length ? this.figure.get("names")[picture] : this.own?.name ?? "";
  }

  // The chosen picture, and the captions that fit it best: all names, and what the reader typed.
  showPicture() {
    const { figure, parts, controls } = this;
    const number = figure.get("chosen");
    const own = number >= this.images.length;
    const chosen = own ? this.own : { picture: this.pictures[number], features: this.images[number] };
    if (!chosen?.picture) {
      parts.captions.replaceChildren();
      controls.picture.select.selectedIndex = -1;
      setText(parts.chosen, figure.t("choose"));
      parts.picture.classList.add("hidden");
      return;
    }
    controls.picture.show(number);
    parts.picture.classList.remove("hidden");
    drawSquare(parts.picture, chosen.picture, parts.picture.clientWidth);
    parts.picture.setAttribute("aria-label", this.nameOf(number));
    this.showCaptions(chosen.features, number);
  }

  showCaptions(features, number) {
    const { figure, parts, caption } = this;
    const texts = figure.get("captions");
    const rows = caption ? [...this.captions, caption.features] : this.captions;
    const ranking = ranked(features, rows, figure.get("scale"));
    const typed = ranking.order.indexOf(texts.length) + 1;
    const words = { name: this.nameOf(number), caption: caption?.text ?? "", place: typed, count: rows.length };
    say(parts.chosen, figure.get("strings")[caption ? "chosen" : "chosen_only"], words);
    parts.captions.replaceChildren(...ranking.order.slice(0, NAMED).map((j) => {
      const isOwn = j < texts.length && texts[j].picture === number;
      const text = j < texts.length ? texts[j].text : caption.text;
      const mark = j === texts.length ? figure.t("typed") : isOwn ? figure.t("its_name") : "";
      return h("li", { class: isOwn ? "own" : "" }, h("span", { class: "name" }, text, " ", h("span", { class: "quiet" }, mark)), this.createBar(ranking, j));
    }));
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "clip-search");
  new CLIPSearch(figure);
  return figure.destroy;
}

export default { render };
