// Token calculator: image size and patch size in, tokens and cost out.

// Multiply-adds of one encoder pass: N 3P²D + L (12 T D² + 2 T² D), the classifier left out.
function tokenCost(size, P, D, L) {
  const patches = Math.floor(size / P) ** 2;
  const T = patches + 1;
  const cost = { patches, tokens: T, projection: patches * 3 * P * P * D, linear: L * 12 * T * D * D };
  cost.attention = L * 2 * T * T * D;
  cost.total = cost.projection + cost.linear + cost.attention;
  return cost;
}

function drawGrid(canvas, side, size, P, colour) {
  const context = fitCanvas(canvas, side, side);
  const grid = Math.floor(size / P);
  const step = (P / size) * side;
  const filled = grid * step;
  context.fillStyle = colour.accent;
  const gap = Math.min(2, step * 0.2);
  for (let row = 0; row < grid; row++) {
    for (let column = 0; column < grid; column++) {
      context.globalAlpha = (row + column) % 2 ? 0.78 : 1;
      context.fillRect(column * step, row * step, step - gap, step - gap);
    }
  }
  context.globalAlpha = 1;
  if (filled < side - 0.01) hatchRest(context, side, filled, colour.warm);
}

// What the patches leave over, at the right and below.
function hatchRest(context, side, filled, colour) {
  context.save();
  context.beginPath();
  context.rect(filled, 0, side - filled, side);
  context.rect(0, filled, filled, side - filled);
  context.clip();
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  for (let at = 0; at < 2 * side; at += 6) {
    context.beginPath();
    context.moveTo(at, 0);
    context.lineTo(at - side, side);
    context.stroke();
  }
  context.restore();
}

function drawChart(canvas, width, { curves, xRange, present, names }, colour) {
  const [height, left, right, top, bottom] = [230, 46, 12, 22, 40];
  const context = fitCanvas(canvas, width, height);
  const yMax = Math.max(...curves.flatMap(({ values }) => values.map(([, y]) => y))) * 1.05;
  const x = (size) => left + ((size - xRange[0]) / (xRange[1] - xRange[0])) * (width - left - right);
  const y = (value) => height - bottom - (value / yMax) * (height - top - bottom);
  const text = (string, at, align, tone = colour.muted, weight = 400) =>
    write(context, string, ...at, { colour: tone, font: colour.font, align, weight });
  const step = tickStep(yMax, 4);
  for (let value = 0; value <= yMax; value += step) {
    context.fillStyle = colour.line;
    context.fillRect(left, y(value), width - left - right, 1);
    text(names.number(value), [left - 8, y(value)], "right");
  }
  for (const size of [256, 512, 768, 1024]) text(String(size), [x(size), height - bottom + 14], size === 1024 ? "right" : "center");
  text(names.y, [left - 8, 8], "right");
  text(names.x, [(left + width - right) / 2, height - 7], "center");
  context.fillStyle = colour.muted;
  context.fillRect(x(present) - 0.5, top, 1, height - top - bottom);
  curves.forEach((curve) => drawCurve(context, curve, x, y, present, colour));
  // Each name stands beside its curve: the upper one's to the left, the lower one's to the right.
  const heightAt = ({ values }) => values[Math.round(values.length * 0.78)];
  const [upper, lower] = [...curves].sort((a, b) => heightAt(b)[1] - heightAt(a)[1]);
  const beside = (curve, dx, dy) => [x(heightAt(curve)[0]) + dx, y(heightAt(curve)[1]) + dy];
  text(upper.name, beside(upper, -10, -8), "right", colour[upper.tone], 600);
  const [lowerX, lowerY] = beside(lower, 10, 8);
  text(lower.name, [Math.min(lowerX, width - context.measureText(lower.name).width), lowerY], "left", colour[lower.tone], 600);
}

function drawCurve(context, { values, at, tone }, x, y, present, colour) {
  context.strokeStyle = context.fillStyle = colour[tone];
  context.lineWidth = 2.25;
  context.beginPath();
  values.forEach(([size, value]) => context.lineTo(x(size), y(value)));
  context.stroke();
  context.beginPath();
  context.arc(x(present), y(at), 5, 0, 2 * Math.PI);
  context.fill();
  context.lineWidth = 2;
  context.strokeStyle = colour.surface;
  context.stroke();
}

const KINDS = ["projection", "linear", "attention"];
const FACTS = ["tokens", "values", "pairs", "macs"];
const UNKNOWN = "\u2013";

function modelOptions(figure) {
  const { t } = figure;
  const options = figure.get("presets").map(([name, dim, depth]) => ({
    value: `${dim},${depth}`,
    text: t("preset", { name, dim, depth }),
  }));
  const [dim, depth] = [figure.get("dim"), figure.get("depth")];
  const known = options.some(({ value }) => value === `${dim},${depth}`);
  return known ? options : [...options, { value: `${dim},${depth}`, text: t("custom", { dim, depth }) }];
}

function createControls(figure) {
  const { t, set } = figure;
  const [min, max] = figure.get("image_sizes");
  const patchSizes = figure.get("patch_sizes").map((P) => ({ value: P, text: String(P) }));
  const examples = figure.get("examples").map(([size, P]) => {
    const choose = () => (set("image_size", size), set("patch_size", P));
    return { size, P, node: button(t("example", { size, P }), choose) };
  });
  const chooseModel = (value) => {
    const [dim, depth] = value.split(",").map(Number);
    set("dim", dim);
    set("depth", depth);
  };
  return {
    size: sliderField(t("image_size"), { min, max, step: 2 }, (size) => set("image_size", size)),
    patch: segmentField(t("patch_size"), patchSizes, (P) => set("patch_size", P)),
    model: selectField(t("model"), modelOptions(figure), chooseModel),
    examples,
  };
}

function createParts() {
  const fact = () => ({ value: h("b"), caption: h("span", { class: "quiet" }) });
  return {
    lead: h("p", { class: "headline", "aria-live": "polite" }),
    problem: h("p", { class: "note warning", role: "status" }),
    grid: h("canvas", { role: "img" }),
    chart: h("canvas", { role: "img" }),
    crossing: h("p", { class: "quiet" }),
    facts: FACTS.map(fact),
    bars: KINDS.map((kind) => h("i", { class: kind })),
    legend: KINDS.map(() => h("span")),
    answers: h("div"),
  };
}

function assemble({ root, t }, controls, parts) {
  const { lead, problem, grid, chart, crossing, facts, bars, legend, answers } = parts;
  const heading = (key) => h("p", { class: "heading" }, t(key));
  answers.append(
    h("div", { class: "facts" }, facts.map(({ value, caption }) => h("div", { class: "fact" }, value, caption))),
    heading("cost"),
    h("div", { class: "stack", "aria-hidden": "true" }, bars),
    h("ul", { class: "legend" }, legend.map((text, i) => h("li", {}, h("i", { class: KINDS[i] }), text))),
  );
  root.append(
    h("div", { class: "controls" }, controls.size.node, controls.patch.node, controls.model.node),
    h("div", { class: "chips", role: "group", "aria-label": t("examples") }, controls.examples.map(({ node }) => node)),
    h("div", { class: "board" }, h("div", { class: "drawing" }, grid), h("div", {}, lead, problem, answers)),
    h("hr"),
    heading("chart"), chart, crossing,
    h("p", { class: "note" }, t("words")),
    h("details", {}, h("summary", {}, t("about")), h("p", { class: "quiet" }, t("about_text"))),
  );
}

// Between the sizes that patches fill, the curves take (R / P)² as it stands.
function smoothCost(size, P, D, L) {
  const patches = (size / P) ** 2;
  const T = patches + 1;
  return { linear: L * 12 * T * D * D + patches * 3 * P * P * D, attention: L * 2 * T * T * D };
}

class TokenCalculator {
  constructor(figure) {
    this.figure = figure;
    this.controls = createControls(figure);
    this.parts = createParts();
    assemble(figure, this.controls, this.parts);
    const redraw = scheduler(() => this.update());
    figure.on(["image_size", "patch_size", "dim", "depth"], redraw.schedule);
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(redraw.cancel);
    onResize(figure, figure.root, redraw.schedule);
  }

  present() {
    const [size, P, D, L] = ["image_size", "patch_size", "dim", "depth"].map(this.figure.get);
    return { size, P, D, L, rest: size % P, grid: Math.floor(size / P), cost: tokenCost(size, P, D, L) };
  }

  update() {
    const now = this.present();
    const colour = colours(this.figure.root);
    this.showControls(now);
    this.showProblem(now);
    this.showFacts(now);
    this.showShares(now);
    this.drawImage(now, colour);
    this.drawCurves(now, colour);
  }

  showControls({ size, P, D, L }) {
    const { controls, figure } = this;
    controls.size.show(size, figure.t("pixels", { value: size }));
    controls.patch.show(P);
    controls.model.show(`${D},${L}`);
    for (const example of controls.examples) {
      example.node.setAttribute("aria-pressed", String(example.size === size && example.P === P));
    }
  }

  showProblem({ size, P, rest, grid }) {
    const { parts, figure } = this;
    const words = { size, P, rest, grid, below: size - rest, above: size - rest + P };
    setText(parts.problem, rest === 0 ? "" : figure.t(grid ? "uneven" : "too_small", words));
    parts.problem.classList.toggle("hidden", rest === 0);
    parts.lead.classList.toggle("hidden", rest !== 0);
    parts.answers.classList.toggle("unanswered", rest !== 0); // the place is kept: nothing jumps
  }

  showFacts({ size, P, grid, rest, cost }) {
    const { parts, figure } = this;
    const words = { size, P, grid, patches: figure.integer(cost.patches) };
    parts.lead.replaceChildren(...emphasise(figure.t("lead", words)));
    const known = [cost.tokens, 3 * P * P, cost.tokens ** 2].map(figure.integer);
    known.push(figure.number(cost.total / 1e9, 2));
    parts.facts.forEach(({ value, caption }, i) => {
      setText(value, rest ? UNKNOWN : known[i]);
      setText(caption, figure.t("fact_" + FACTS[i], { P }));
    });
  }

  showShares({ rest, cost }) {
    const { parts, figure } = this;
    KINDS.forEach((kind, i) => {
      const percent = rest ? 0 : (100 * cost[kind]) / cost.total;
      parts.bars[i].style.width = `${percent}%`;
      const share = rest ? UNKNOWN : figure.t("share", { value: figure.number(percent, 1) });
      setText(parts.legend[i], figure.t(kind, { share }));
    });
  }

  drawImage({ size, P, grid }, colour) {
    drawGrid(this.parts.grid, this.parts.grid.clientWidth, size, P, colour);
    this.parts.grid.setAttribute("aria-label", this.figure.t("drawing_label", { size, grid }));
  }

  drawCurves({ size, P, D, L }, colour) {
    const { parts, figure } = this;
    const [min, max] = figure.get("image_sizes");
    const sizes = Array.from({ length: 65 }, (_, i) => min + (i * (max - min)) / 64);
    const giga = (R, kind) => smoothCost(R, P, D, L)[kind] / 1e9;
    const curves = [["linear", "accent"], ["attention", "warm"]].map(([kind, tone]) => ({
      name: figure.t("chart_" + kind),
      tone,
      at: giga(size, kind),
      values: sizes.map((R) => [R, giga(R, kind)]),
    }));
    const names = { x: figure.t("chart_x"), y: figure.t("chart_y"), number: figure.plain };
    const chart = { curves, xRange: [min, max], present: size, names };
    drawChart(parts.chart, parts.chart.clientWidth, chart, colour);
    const [linear, attention] = curves.map(({ at }) => figure.number(at, 2));
    parts.chart.setAttribute("aria-label", figure.t("chart_label", { size, linear, attention }));
    const crossing = { tokens: figure.integer(6 * D), size: figure.integer(Math.sqrt(6 * D - 1) * P) };
    setText(parts.crossing, figure.t("crossing", crossing));
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "token-calculator");
  new TokenCalculator(figure);
  return figure.destroy;
}

export default { render };
