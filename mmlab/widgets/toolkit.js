// The figure toolkit: what every figure of the book shares. It is placed in front of each
// figure's own module, so that one file with no imports reaches the page.

// ---- DOM. Strings become text nodes, so a caption can never turn into HTML.

function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null));
  return node;
}

function uid() {
  return "mmlab-" + Math.random().toString(36).slice(2);
}

// Writes only what is new: a live region speaks, and a page lays out, on true changes only.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// ---- Numbers

function floats(view) {
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

// Text in which *stars* mark emphasis, as nodes.
function emphasise(text) {
  return text.split("*").map((piece, i) => (i % 2 ? h("strong", {}, piece) : piece));
}

// Fills a template whose *stars* mark emphasis; the stars of a value are its own.
function say(node, template, values) {
  const fill = (piece) => piece.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
  const pieces = template.split("*").map(fill);
  if (node.textContent === pieces.join("")) return; // a live region speaks on true changes only
  node.replaceChildren(...pieces.map((piece, i) => (i % 2 ? h("strong", {}, piece) : piece)));
}

// A real minus sign, and never "-0.000".
function fixed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? "\u2212" + text : text;
}

// A round number of about value / count: 1, 2 or 5 times a power of ten.
function tickStep(value, count) {
  const power = 10 ** Math.floor(Math.log10(value / count));
  return [1, 2, 5, 10].map((m) => m * power).find((step) => value / step <= count);
}

// mulberry32: 32-bit integers only, so that Python and every browser shuffle alike.
function randomIntegers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return (x ^ (x >>> 14)) >>> 0;
  };
}

// ---- Colours. CSS decides them; a canvas has to ask again when the page's theme changes.

function colours(root) {
  const style = getComputedStyle(root);
  const read = (name) => style.getPropertyValue("--" + name).trim();
  const names = ["accent", "ink", "muted", "surface", "line", "warm"];
  return { ...Object.fromEntries(names.map((name) => [name, read(name)])), font: style.fontFamily };
}

function onThemeChange(callback) {
  const observer = new MutationObserver(callback);
  const attributeFilter = ["data-theme", "data-mode", "data-jp-theme-light", "data-jp-theme-name", "class"];
  for (const node of [document.documentElement, document.body]) {
    observer.observe(node, { attributes: true, attributeFilter });
  }
  return () => observer.disconnect();
}

const stillnessWanted = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---- Canvas: sizes in CSS pixels, sharp on every screen.

function fitCanvas(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 3);
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// A picture of the page state, as a canvas.
async function decodePicture(bytes, size) {
  const blob = new Blob([bytes], { type: "image/webp" });
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const canvas = h("canvas", { width: size, height: size });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, size, size);
  return canvas;
}

// A drawing kept between frames, and made anew only when its key or its size changes.
function keepDrawing() {
  const canvas = h("canvas");
  let known = "";
  return (target, width, height, key, draw) => {
    const stamp = JSON.stringify([key, width, height, window.devicePixelRatio]);
    if (stamp !== known) draw(fitCanvas(canvas, width, height));
    known = stamp;
    target.drawImage(canvas, 0, 0, width, height);
  };
}

function write(context, text, x, y, { colour, font, size = 12, align = "left", weight = 400 }) {
  context.font = `${weight} ${size}px ${font}`;
  Object.assign(context, { fillStyle: colour, textAlign: align, textBaseline: "middle" });
  context.fillText(text, x, y);
}

// A rectangle's outline that stands out on any picture.
function outlined(context, [x, y, width, height], colour, tone) {
  for (const [line, stroke] of [[5, colour.surface], [2.5, colour[tone]]]) {
    Object.assign(context, { lineWidth: line, strokeStyle: stroke });
    context.strokeRect(x, y, width, height);
  }
}

function pointIn(canvas, event) {
  const box = canvas.getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
}

// A mouse selects by hovering, a finger by tapping; a finger that scrolls the page selects nothing.
function onPoint(canvas, callback) {
  const select = (event) => callback(pointIn(canvas, event));
  canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && select(event));
  canvas.addEventListener("click", select);
}

function onArrows(node, moves) {
  node.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move();
  });
}

// ---- A figure: the frame, its controls, and their link to the model's traits.

function createFigure({ model, el }, name) {
  const strings = model.get("strings");
  const undo = [];
  const figure = {
    root: h("div", { class: `mmlab-widget mmlab-${name}`, role: "group", lang: strings.locale }),
    get: (trait) => model.get(trait),
    set(trait, value) {
      model.set(trait, value);
      model.save_changes();
    },
    on(traits, callback) {
      for (const trait of traits) {
        model.on("change:" + trait, callback);
        undo.push(() => model.off("change:" + trait, callback));
      }
    },
    cleanup: (step) => undo.push(step),
    destroy: () => undo.splice(0).forEach((step) => step()),
    t(key, values = {}) {
      if (!(key in strings)) throw new Error(`no string named ${key}`);
      return strings[key].replace(/\{(\w+)\}/g, (whole, word) => values[word] ?? whole);
    },
    plain: (value) => value.toLocaleString(strings.locale),
    integer: (value) => Math.round(value).toLocaleString(strings.locale),
    number: (value, digits) =>
      value.toLocaleString(strings.locale, { minimumFractionDigits: digits, maximumFractionDigits: digits }),
  };
  figure.root.setAttribute("aria-label", figure.t("title"));
  // Or JupyterLab takes the arrow keys and the letters for its own commands.
  figure.root.addEventListener("keydown", (event) => event.stopPropagation());
  el.replaceChildren(h("style", {}, TOOLKIT_CSS), figure.root);
  return figure;
}

// Redraws are gathered: however many traits change, one drawing per frame.
function scheduler(draw) {
  let frame = 0;
  const schedule = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  };
  return { schedule, cancel: () => cancelAnimationFrame(frame) };
}

const whenIdle = (task) => (window.requestIdleCallback ?? setTimeout)(task);

function onResize(figure, node, callback) {
  let width = 0;
  const observer = new ResizeObserver(([entry]) => {
    if (entry.contentRect.width === width) return;
    width = entry.contentRect.width;
    callback();
  });
  observer.observe(node);
  figure.cleanup(() => observer.disconnect());
}

function labelled(label, control, ...more) {
  control.id ||= uid();
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control, ...more);
}

function selectField(label, options, onInput) {
  const select = h("select", { oninput: () => onInput(select.value) });
  const fill = (list) => select.replaceChildren(...list.map(({ value, text }) => h("option", { value }, text)));
  fill(options);
  return { node: labelled(label, select), select, fill, show: (value) => (select.value = String(value)) };
}

// A row of radio buttons drawn as one bar.
function segmentField(label, options, onInput) {
  const name = uid();
  const inputs = options.map(({ value }) =>
    h("input", { type: "radio", name, value, oninput: () => onInput(value) }),
  );
  const bar = options.map(({ text }, i) => h("label", { class: "segment" }, inputs[i], h("span", {}, text)));
  const node = h("fieldset", { class: "field" }, h("legend", {}, label), h("div", { class: "segments" }, bar));
  const show = (value) => inputs.forEach((input, i) => (input.checked = options[i].value === value));
  return { node, show };
}

// Radio buttons drawn as one bar, whose list can change; the browser gives them arrow keys.
function radioBar(label, className, onInput) {
  const name = uid();
  const bar = h("div", { class: className });
  const node = h("fieldset", { class: "field" }, h("legend", {}, label), bar);
  let inputs = [];
  const fill = (options) => {
    inputs = options.map(({ label: text }, value) =>
      h("input", { type: "radio", name, value, "aria-label": text, oninput: () => onInput(value) }));
    bar.replaceChildren(...options.map(({ body }, i) => h("label", { class: "segment" }, inputs[i], h("span", {}, body))));
  };
  const show = (value) => inputs.forEach((input, i) => (input.checked = i === value));
  return { node, fill, show, spans: () => [...bar.querySelectorAll("span.share")] };
}

function sliderField(label, { min, max, step }, onInput) {
  const slider = h("input", { type: "range", min, max, step, oninput: () => onInput(Number(slider.value)) });
  const value = h("output", { class: "value" });
  const node = labelled(label, slider);
  node.classList.add("slider");
  node.firstChild.append(" ", value);
  const show = (number, text) => {
    slider.value = number;
    slider.setAttribute("aria-valuetext", text);
    setText(value, text);
  };
  return { node, show };
}

function switchField(label, onInput) {
  const input = h("input", { type: "checkbox", role: "switch", oninput: () => onInput(input.checked) });
  const node = h("label", { class: "switch" }, input, h("span", { class: "track" }), h("span", {}, label));
  return { node, show: (on) => (input.checked = on) };
}

function button(text, onClick) {
  return h("button", { type: "button", onclick: onClick }, text);
}

function fileField(label, text, onFile) {
  const input = h("input", {
    type: "file",
    accept: "image/*",
    oninput() {
      const [file] = input.files;
      input.value = ""; // or choosing the same file again would say nothing
      if (file) onFile(file);
    },
  });
  input.id = uid();
  const caption = h("label", { for: input.id }, label);
  return h("div", { class: "field" }, caption, h("span", { class: "button" }, input, h("span", { "aria-hidden": "true" }, text)));
}
