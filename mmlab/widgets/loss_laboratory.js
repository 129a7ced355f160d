// Loss laboratory: pictures and captions on the unit circle. The loss, its gradient and the two
// measures are computed here, in double precision.

const TURN = 2 * Math.PI;
const NUDGE = TURN / 120; // an arrow key moves a point by 3 degrees
const GRIP = 30; // pixels from a point at which a pointer takes hold of it
const STILL_STEPS = 50; // at once, where motion is not wanted
const LANE = 12; // pixels between the circle and the middle of a point
const AT_REST = 1e-5; // no force larger than this: running stops
const TICK = 0.01; // of the logarithmic sliders, in powers of ten

// ---- The mathematics. cos(a - b) is the similarity of points at angles a and b.

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

const transpose = (matrix) => matrix[0].map((_, j) => matrix.map((row) => row[j]));

function logSoftmax(logits) {
  const top = Math.max(...logits);
  const rest = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - top), 0));
  return logits.map((logit) => logit - top - rest);
}

// InfoNCE both ways: the loss, and its gradient with respect to each logit.
function softmaxLoss(logits) {
  const B = logits.length;
  const rows = logits.map(logSoftmax);
  const columns = transpose(transpose(logits).map(logSoftmax));
  const loss = -mean(logits.map((_, i) => (rows[i][i] + columns[i][i]) / 2));
  const gradient = logits.map((row, i) => row.map((_, j) => (Math.exp(rows[i][j]) + Math.exp(columns[i][j]) - 2 * Number(i === j)) / (2 * B)));
  return { loss, gradient };
}

// ln(1 + e^x), of large x too.
const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));

// SigLIP: each picture with each caption on its own, divided by the number of pairs.
function sigmoidLoss(logits) {
  const B = logits.length;
  const sign = (i, j) => (i === j ? 1 : -1);
  const loss = logits.flatMap((row, i) => row.map((logit, j) => softplus(-sign(i, j) * logit))).reduce((a, b) => a + b, 0) / B;
  const gradient = logits.map((row, i) => row.map((logit, j) => -sign(i, j) / (1 + Math.exp(sign(i, j) * logit)) / B));
  return { loss, gradient };
}

// Forces are negative derivatives with respect to the angles: of pictures, then of captions. The
// pull is what a point's own partner does, the push what all the others do.
function study(images, texts, { objective, scale, bias }) {
  const shift = objective === "sigmoid" ? bias : 0;
  const logits = images.map((a) => texts.map((b) => scale * Math.cos(a - b) + shift));
  const { loss, gradient } = (objective === "sigmoid" ? sigmoidLoss : softmaxLoss)(logits);
  const B = images.length;
  const [pull, push] = [new Array(2 * B).fill(0), new Array(2 * B).fill(0)];
  gradient.forEach((row, i) => row.forEach((g, j) => {
    const force = g * scale * Math.sin(images[i] - texts[j]); // on picture i; on caption j the opposite
    const side = i === j ? pull : push;
    side[i] += force;
    side[B + j] -= force;
  }));
  return { loss, gradient, pull, push, net: pull.map((p, k) => p + push[k]) };
}

// |u - v|² of two points of the circle.
const squared = (a, b) => 2 - 2 * Math.cos(a - b);

const alignment = (images, texts) => mean(images.map((a, i) => squared(a, texts[i])));

function uniformity(angles) {
  const pairs = angles.flatMap((a, i) => angles.slice(i + 1).map((b) => Math.exp(-2 * squared(a, b))));
  return Math.log(mean(pairs));
}

function startingAngles(count, seed) {
  const next = randomIntegers(seed);
  return Array.from({ length: count }, () => (TURN * next()) / 2 ** 32);
}

// ---- Drawing

function arrow(context, [x0, y0], [x1, y1], tone, width) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (length < 1.5) return;
  const [ux, uy] = [(x1 - x0) / length, (y1 - y0) / length];
  const head = Math.min(length, 4 + 2 * width);
  const [bx, by] = [x1 - ux * head, y1 - uy * head];
  Object.assign(context, { strokeStyle: tone, fillStyle: tone, lineWidth: width });
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(bx, by);
  context.stroke();
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(bx - (uy * head) / 2, by + (ux * head) / 2);
  context.lineTo(bx + (uy * head) / 2, by - (ux * head) / 2);
  context.fill();
}

function circleLayout(side) {
  const radius = side * 0.33;
  const place = (angle, beyond) => [side / 2 + (radius + beyond) * Math.cos(angle), side / 2 - (radius + beyond) * Math.sin(angle)];
  return { radius, place };
}

// Pictures stand just outside the circle, captions just inside: a pair that has met stays two.
const beyond = (k, B, distance = LANE) => (k < B ? distance : -distance);

// Lines from the chosen point to its partner and to those that push it, as thick as the gradient.
function drawTies(context, { angles, gradient, selected, tones }, place, colour) {
  const B = gradient.length;
  const ofPicture = selected < B;
  gradient.forEach((_, k) => {
    const g = ofPicture ? gradient[selected][k] : gradient[k][selected - B];
    const own = k === selected % B;
    context.strokeStyle = own ? tones[k] : colour.muted;
    context.setLineDash(own ? [] : [4, 5]);
    context.lineWidth = Math.min(7, 0.4 + 7 * B * Math.abs(g));
    context.globalAlpha = 0.55;
    context.beginPath();
    context.moveTo(...place(angles[selected], beyond(selected, B)));
    const other = ofPicture ? B + k : k;
    context.lineTo(...place(angles[other], beyond(other, B)));
    context.stroke();
  });
  context.setLineDash([]);
  context.globalAlpha = 1;
}

function drawPoint(context, [x, y], { number, square, chosen, tone }, colour) {
  const r = 13;
  const shape = (grow) => {
    context.beginPath();
    if (square) context.roundRect(x - r - grow + 1, y - r - grow + 1, 2 * (r + grow - 1), 2 * (r + grow - 1), 3);
    else context.arc(x, y, r + grow, 0, TURN);
    context.fill();
  };
  if (chosen) for (const [grow, fill] of [[6, colour.ink], [3.5, colour.surface]]) (context.fillStyle = fill), shape(grow);
  context.fillStyle = colour.surface;
  shape(1.5);
  context.fillStyle = tone;
  shape(0);
  write(context, String(number), x, y + 0.5, { colour: colour.surface, font: colour.font, size: 14, align: "center", weight: 700 });
}

function drawCircle(canvas, side, view, colour) {
  const { angles, net, pull, push, selected, unit, tones } = view;
  const context = fitCanvas(canvas, side, side);
  const { radius, place } = circleLayout(side);
  Object.assign(context, { strokeStyle: colour.line, lineWidth: 2 });
  context.beginPath();
  context.arc(side / 2, side / 2, radius, 0, TURN);
  context.stroke();
  drawTies(context, view, place, colour);
  const B = angles.length / 2;
  // Along the tangent: positive forces turn against the clock.
  const along = (k, force, distance) => {
    const [x, y] = place(angles[k], beyond(k, B, distance));
    const length = (force / unit) * radius;
    return [[x, y], [x - length * Math.sin(angles[k]), y - length * Math.cos(angles[k])]];
  };
  const points = angles.map((_, k) => k).filter((k) => k !== selected);
  for (const k of [...points, selected]) {
    const square = k < B;
    drawPoint(context, place(angles[k], beyond(k, B)), { number: (k % B) + 1, square, chosen: k === selected, tone: tones[k % B] }, colour);
  }
  arrow(context, ...along(selected, pull[selected], LANE + 34), colour.accent, 3);
  arrow(context, ...along(selected, push[selected], LANE + 44), colour.warm, 3);
  net.forEach((force, k) => arrow(context, ...along(k, force, LANE + 22), colour.ink, 2.2));
}

// ---- The figure

const FACTS = ["loss", "alignment", "uniformity", "steps"];
const FORCES = ["pull", "push", "net"];

const significant = (value) => String(Number(value.toPrecision(3)));

// A slider over powers of ten; sign -1 turns a factor into a temperature.
function powerSlider(label, [low, high], sign, onInput) {
  const powers = [sign * Math.log10(low), sign * Math.log10(high)].sort((a, b) => a - b);
  const within = (value) => Math.min(high, Math.max(low, value));
  const field = sliderField(label, { min: powers[0], max: powers[1], step: TICK }, (power) => onInput(within(10 ** (sign * power))));
  return { node: field.node, show: (value, text) => field.show(sign * Math.log10(value), text) };
}

function createControls(figure, actions) {
  const { t, set } = figure;
  const { scale, bias, learning_rate: rate } = figure.get("ranges");
  const objectives = ["softmax", "sigmoid"].map((value) => ({ value, text: t("objective_" + value) }));
  const names = figure.get("names");
  const named = (key, first) => names.map((name, k) => ({ value: first + k, text: t(key, { name, number: k + 1 }) }));
  const points = [...named("point_image", 0), ...named("point_text", names.length)];
  const seed = h("input", { type: "number", min: 0, step: 1, inputmode: "numeric" });
  seed.value = figure.get("seed");
  return {
    objective: segmentField(t("objective"), objectives, (value) => set("objective", value)),
    temperature: powerSlider(t("temperature"), scale, -1, (value) => set("scale", value)),
    bias: sliderField(t("bias"), { min: bias[0], max: bias[1], step: 0.5 }, (value) => set("bias", value)),
    rate: powerSlider(t("rate"), rate, 1, (value) => set("learning_rate", value)),
    point: selectField(t("point"), points, (value) => set("selected", Number(value))),
    angle: sliderField(t("angle"), { min: 0, max: 360, step: 1 }, (degrees) => actions.turnTo((degrees / 360) * TURN)),
    step: button(t("step"), actions.step),
    run: button(t("run"), actions.run),
    reset: button(t("reset"), () => actions.reset(Math.abs(Math.trunc(Number(seed.value))) || 0)),
    seed: { input: seed, node: labelled(t("seed"), seed) },
  };
}

function createParts(t) {
  const fact = () => ({ value: h("b"), caption: h("span", { class: "quiet" }) });
  const parts = {
    lead: h("p", { class: "headline" }),
    circle: h("canvas", { role: "application", tabindex: 0 }),
    facts: FACTS.map(fact),
    forces: Object.fromEntries(FORCES.map((key) => [key, h("dd", { "data-name": key })])),
    scale: h("p", { class: "quiet" }),
    table: h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": t("table_caption") }),
    details: h("details", {}, h("summary", {}, t("table"))),
  };
  parts.facts.forEach(({ value, caption }, k) => {
    value.dataset.name = FACTS[k];
    setText(caption, t("fact_" + FACTS[k]));
  });
  return parts;
}

function createKey(t) {
  const item = (name) => h("li", {}, h("i", { class: name }), t("key_" + name));
  return h("ul", { class: "key" }, ["image", "text", "net", "pull", "push"].map(item));
}

function assemble({ root, t }, controls, parts) {
  const { step, run, reset, seed } = controls;
  run.classList.add("run");
  parts.details.append(parts.table);
  parts.scale.classList.add("note");
  root.append(
    h("div", { class: "controls" }, controls.objective.node, controls.temperature.node, controls.bias.node),
    parts.lead,
    h("div", { class: "board" },
      h("div", {}, parts.circle, createKey(t), parts.scale),
      h("div", {},
        h("div", { class: "together" }, step, run),
        h("div", { class: "together" }, seed.node, reset),
        controls.rate.node,
        h("div", { class: "facts" }, parts.facts.map(({ value, caption }) => h("div", { class: "fact" }, value, caption))),
        h("div", { class: "controls" }, controls.point.node, controls.angle.node),
        h("p", { class: "heading" }, t("forces")),
        h("dl", {}, FORCES.map((key) => [h("dt", {}, t(key)), parts.forces[key]])))),
    parts.details,
    h("details", {}, h("summary", {}, t("about")), h("p", { class: "quiet" }, t("about_text"))),
  );
}

class LossLaboratory {
  constructor(figure) {
    this.figure = figure;
    this.B = figure.get("names").length;
    this.steps = 0;
    this.running = false;
    this.controls = createControls(figure, {
      step: () => this.step(),
      run: () => this.run(),
      reset: (seed) => this.reset(seed),
      turnTo: (angle) => this.turnTo(angle),
    });
    this.parts = createParts(figure.t);
    assemble(figure, this.controls, this.parts);
    this.redraw = scheduler(() => this.update());
    this.loop = scheduler(() => this.runOn());
    this.connectTraits();
    this.connectKeyboard();
    this.connectPointer();
  }

  connectTraits() {
    const { figure, redraw } = this;
    figure.on(["image_angles", "text_angles", "objective", "scale", "bias", "learning_rate", "selected"], redraw.schedule);
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(() => [redraw, this.loop].forEach(({ cancel }) => cancel()));
    onResize(figure, figure.root, redraw.schedule);
    this.parts.details.addEventListener("toggle", redraw.schedule);
  }

  connectKeyboard() {
    const turn = (by) => () => this.turnTo(this.angles()[this.selected()] + by);
    const next = (by) => () => this.figure.set("selected", (this.selected() + by + 2 * this.B) % (2 * this.B));
    onArrows(this.parts.circle, { ArrowLeft: turn(NUDGE), ArrowRight: turn(-NUDGE), ArrowUp: next(1), ArrowDown: next(-1) });
  }

  // A finger near a point drags it; elsewhere it scrolls the page.
  connectPointer() {
    const { circle } = this.parts;
    let held = false;
    circle.addEventListener("touchstart", (event) => {
      if (this.pointAt(pointIn(circle, event.touches[0])) >= 0) event.preventDefault();
    }, { passive: false });
    circle.addEventListener("pointerdown", (event) => {
      const k = event.button ? -1 : this.pointAt(pointIn(circle, event));
      if (k < 0) return;
      held = true;
      circle.setPointerCapture(event.pointerId);
      circle.classList.add("held");
      this.figure.set("selected", k);
    });
    circle.addEventListener("pointermove", (event) => {
      if (!held) return;
      const { x, y } = pointIn(circle, event);
      const middle = circle.clientWidth / 2;
      this.turnTo(Math.atan2(middle - y, x - middle));
    });
    for (const type of ["pointerup", "pointercancel"]) {
      circle.addEventListener(type, () => {
        held = false;
        circle.classList.remove("held");
      });
    }
  }

  // The nearest point within reach; of two in one place the chosen one, which lies on top.
  pointAt({ x, y }) {
    const { place } = circleLayout(this.parts.circle.clientWidth);
    const far = this.angles().map((angle, k) => {
      const [px, py] = place(angle, beyond(k, this.B));
      return Math.hypot(px - x, py - y) - (k === this.selected() ? 1 : 0);
    });
    const nearest = far.indexOf(Math.min(...far));
    return far[nearest] <= GRIP ? nearest : -1;
  }

  // ---- What the reader does

  selected() {
    return this.figure.get("selected");
  }

  angles() {
    return [...this.figure.get("image_angles"), ...this.figure.get("text_angles")];
  }

  place(angles) {
    const around = angles.map((angle) => ((angle % TURN) + TURN) % TURN);
    this.figure.set("image_angles", around.slice(0, this.B));
    this.figure.set("text_angles", around.slice(this.B));
  }

  turnTo(angle) {
    this.place(this.angles().map((old, k) => (k === this.selected() ? angle : old)));
  }

  // Plain gradient descent on all angles; false once nothing moves any more.
  descend() {
    const { net } = this.study();
    const rate = this.figure.get("learning_rate");
    this.place(this.angles().map((angle, k) => angle + rate * net[k]));
    this.steps += 1;
    return Math.max(...net.map(Math.abs)) > AT_REST;
  }

  step() {
    this.running = false;
    this.descend();
    this.redraw.schedule();
  }

  run() {
    if (stillnessWanted()) {
      for (let k = 0; k < STILL_STEPS; k++) this.descend();
      return this.redraw.schedule();
    }
    this.running = !this.running;
    this.redraw.schedule();
    if (this.running) this.loop.schedule();
  }

  runOn() {
    if (!this.running) return;
    this.running = this.descend();
    if (this.running) this.loop.schedule();
    this.redraw.schedule();
  }

  reset(seed) {
    this.running = false;
    this.steps = 0;
    this.figure.set("seed", seed);
    this.controls.seed.input.value = seed;
    this.place(startingAngles(2 * this.B, seed));
    this.redraw.schedule();
  }

  // ---- What is shown

  study() {
    const { get } = this.figure;
    const options = { objective: get("objective"), scale: get("scale"), bias: get("bias") };
    return study(get("image_angles"), get("text_angles"), options);
  }

  update() {
    const now = this.study();
    this.showControls();
    this.showFacts(now);
    this.drawBoard(now);
    this.showForces(now);
    if (this.parts.details.open) this.showTable(now);
  }

  showControls() {
    const { figure, controls } = this;
    const { t, get } = figure;
    const scale = get("scale");
    controls.objective.show(get("objective"));
    controls.temperature.show(scale, t("temperature_value", { temperature: significant(1 / scale), scale: significant(scale) }));
    controls.bias.show(get("bias"), fixed(get("bias"), 1));
    controls.bias.node.classList.toggle("hidden", get("objective") !== "sigmoid");
    controls.rate.show(get("learning_rate"), significant(get("learning_rate")));
    controls.point.show(this.selected());
    const degrees = Math.round((this.angles()[this.selected()] / TURN) * 360);
    controls.angle.show(degrees, t("angle_value", { angle: degrees }));
    setText(controls.run, this.running ? t("pause") : stillnessWanted() ? t("run_still", { steps: STILL_STEPS }) : t("run"));
  }

  showFacts({ loss }) {
    const { figure, parts, B } = this;
    const [images, texts] = [figure.get("image_angles"), figure.get("text_angles")];
    const objective = figure.get("objective");
    const words = { loss: figure.number(loss, 4), chance: figure.number(Math.log(B), 4), pairs: B };
    say(parts.lead, figure.get("strings")["lead_" + objective], words);
    const values = [loss, alignment(images, texts), (uniformity(images) + uniformity(texts)) / 2, this.steps];
    parts.facts.forEach(({ value }, k) => {
      setText(value, k === 3 ? String(values[k]) : fixed(values[k], 4));
      value.dataset.value = values[k];
    });
  }

  // The arrows' unit is twice the hardest pull of a partner, so that most arrows stay on the board.
  drawBoard(now) {
    const { figure, parts, B } = this;
    const unit = (2 * figure.get("scale")) / B;
    const style = getComputedStyle(figure.root);
    const tones = figure.get("names").map((_, k) => style.getPropertyValue(`--pair-${k}`).trim());
    const view = { ...now, angles: this.angles(), selected: this.selected(), unit, tones };
    drawCircle(parts.circle, Math.min(parts.circle.clientWidth, 520), view, colours(figure.root));
    const degrees = Math.round((view.angles[view.selected] / TURN) * 360);
    const words = { point: this.nameOf(this.selected()), angle: degrees };
    parts.circle.setAttribute("aria-label", figure.t("circle_label", words));
    setText(parts.scale, figure.t("scale_note", { value: significant(unit) }));
  }

  nameOf(k) {
    const words = { name: this.figure.get("names")[k % this.B], number: (k % this.B) + 1 };
    return this.figure.t(k < this.B ? "point_image" : "point_text", words);
  }

  showForces(now) {
    for (const key of FORCES) {
      const value = now[key][this.selected()];
      setText(this.parts.forces[key], fixed(value, 5));
      this.parts.forces[key].dataset.value = value;
    }
  }

  showTable(now) {
    const { figure, parts } = this;
    const head = (key) => h("th", { scope: "col" }, figure.t(key));
    const line = (angle, k) => h("tr", { "data-angle": angle, "data-net": now.net[k], "data-pull": now.pull[k], "data-push": now.push[k] },
      h("th", { scope: "row" }, this.nameOf(k)), h("td", {}, fixed((angle / TURN) * 360, 2)), h("td", {}, fixed(now.net[k], 5)));
    parts.table.replaceChildren(h("table", {},
      h("caption", {}, figure.t("table_caption")),
      h("thead", {}, h("tr", {}, ["table_point", "table_angle", "net"].map(head))),
      h("tbody", {}, this.angles().map(line))));
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "loss-laboratory");
  new LossLaboratory(figure);
  return figure.destroy;
}

export default { render };
