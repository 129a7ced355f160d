// A league: systems against what was measured of them. The means and intervals are Python's; here
// they are sorted, filtered and drawn, and every figure is led back to its runs.

const BLIND = "◌"; // a sign for what does not beat a blind model; a word stands beside it
const LINE = 22; // height of a line of the chart, in pixels
const FOOT = 34; // for the numbers below it

// ---- The order

// Baselines first if they are pinned, rows without a value last, ties as they were given.
function orderOf({ rows, cells, sort, down, pinned, hidden }) {
  const shown = rows.map((_, i) => i).filter((i) => !hidden.includes(rows[i].family));
  const later = (i) => Number(pinned && !rows[i].baseline);
  const value = (i) => cells[i][sort]?.mean ?? null;
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    return later(a) - later(b) || (x === null) - (y === null) || (down ? y - x : x - y) || a - b;
  };
  return shown.sort(compare);
}

const bestFirst = ({ better }) => better !== "less";

// Every value between low and high, and a little more, so that nothing stands on the edge.
function rangeOf(cells, floor) {
  const values = cells.flatMap(({ mean, half, runs }) => [mean - (half ?? 0), mean + (half ?? 0), ...runs.map((run) => run[1])]);
  if (floor !== null) values.push(floor);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = 0.04 * (high - low) || 0.05 * Math.abs(high) || 1;
  return [low - margin, high + margin];
}

// ---- Drawing

function chartScale(width, [low, high]) {
  const left = Math.min(170, 0.36 * width);
  return { left, x: (value) => left + ((value - low) / (high - low)) * (width - left - 10) };
}

function shortened(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let kept = text;
  while (kept && context.measureText(kept + "…").width > width) kept = kept.slice(0, -1);
  return kept + "…";
}

function drawTicks(context, { range, scale, height, column, number }, colour) {
  const [low, high] = range.map((value) => value * column.scale);
  const step = tickStep(high - low, 5);
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) {
    const at = scale.x(tick / column.scale);
    context.fillStyle = colour.line;
    context.fillRect(at, 0, 1, height - FOOT + 4);
    const round = Math.abs(tick) < step / 2 ? 0 : tick; // never -0
    write(context, number(round, Math.max(0, -Math.floor(Math.log10(step)))), at, height - FOOT + 14, { colour: colour.muted, font: colour.font, size: 11, align: "center" });
  }
}

function drawMeasured(context, { cell, y, scale }, colour) {
  const tone = cell.blind ? colour.warm : colour.accent;
  context.fillStyle = context.strokeStyle = tone;
  for (const [, value] of cell.runs) {
    context.globalAlpha = 0.45;
    context.beginPath();
    context.arc(scale.x(value), y, 2.5, 0, 7);
    context.fill();
  }
  context.globalAlpha = 1;
  context.lineWidth = 2;
  if (cell.half !== null) {
    const [from, to] = [cell.mean - cell.half, cell.mean + cell.half].map(scale.x);
    context.strokeRect(from, y, to - from, 0);
  }
  context.beginPath();
  context.arc(scale.x(cell.mean), y, 4.5, 0, 7);
  context.fillStyle = cell.blind ? colour.surface : tone; // hollow: not by colour alone
  context.fill();
  context.stroke();
}

function drawChart(canvas, width, { lines, column, chosen, missing, floorName, number }, colour) {
  const height = lines.length * LINE + FOOT;
  const context = fitCanvas(canvas, width, height);
  const measured = lines.map(({ cell }) => cell).filter((cell) => cell?.mean != null);
  const range = measured.length ? rangeOf(measured, column.floor) : [0, 1];
  const scale = chartScale(width, range);
  drawTicks(context, { range, scale, height, column, number }, colour);
  if (column.floor !== null && measured.length) {
    const at = scale.x(column.floor);
    context.save();
    context.setLineDash([4, 3]);
    context.strokeStyle = colour.ink;
    context.lineWidth = 1.5;
    context.strokeRect(at, 0, 0, height - FOOT + 4);
    context.restore();
    const align = at > width - 60 ? "right" : at < scale.left + 60 ? "left" : "center";
    write(context, floorName, at, height - 7, { colour: colour.ink, font: colour.font, size: 11, align });
  }
  lines.forEach(({ name, cell, row }, i) => {
    const y = (i + 0.5) * LINE;
    if (row === chosen) {
      context.globalAlpha = 0.14;
      context.fillStyle = colour.accent;
      context.fillRect(0, i * LINE, width, LINE);
      context.globalAlpha = 1;
    }
    context.font = `400 12px ${colour.font}`;
    const text = shortened(context, name, scale.left - 10);
    write(context, text, scale.left - 8, y, { colour: row === chosen ? colour.ink : colour.muted, font: colour.font, align: "right", weight: row === chosen ? 600 : 400 });
    if (cell?.mean != null) drawMeasured(context, { cell, y, scale }, colour);
    else write(context, missing, scale.left + 4, y, { colour: colour.muted, font: colour.font, size: 11 });
  });
}

// ---- The page

function checkboxes(label, names, onInput) {
  const boxes = names.map((name) => h("input", { type: "checkbox", value: name, oninput: () => onInput(names.filter((_, i) => !boxes[i].checked)) }));
  const fields = names.map((name, i) => h("label", { class: "check" }, boxes[i], h("span", {}, name)));
  const node = h("fieldset", { class: "field" }, h("legend", {}, label), h("div", { class: "together" }, fields));
  return { node, show: (hidden) => boxes.forEach((box, i) => (box.checked = !hidden.includes(names[i]))) };
}

const unique = (list) => [...new Set(list)];

function createControls(figure, league) {
  const { t, set, get } = figure;
  const groups = unique(get("columns").map(({ group }) => group));
  const options = groups.map((name) => ({ value: name, text: name }));
  const families = unique(get("rows").map(({ family }) => family));
  return {
    group: segmentField(t("group"), options, (name) => league.chooseGroup(name)),
    sort: selectField(t("sort"), [], (value) => league.sortBy(Number(value))),
    turn: button(t("turn"), () => set("down", !get("down"))),
    families: checkboxes(t("families"), families, (hidden) => set("hidden", hidden)),
    pinned: switchField(t("pinned"), (on) => set("pinned", on)),
  };
}

function createParts(t) {
  const parts = {
    lead: h("p", { class: "headline", "aria-live": "polite" }),
    about: h("p", { class: "quiet about" }),
    head: h("tr"),
    body: h("tbody"),
    caption: h("caption"),
    readout: h("div", { class: "readout", "aria-live": "polite" }),
    chartTitle: h("p", { class: "heading" }),
    chart: h("canvas", { role: "application", tabindex: 0 }),
  };
  parts.table = h("table", { role: "grid" }, parts.caption, h("thead", {}, parts.head), parts.body);
  parts.scroll = h("div", { class: "scroll", role: "region", "aria-label": t("table") }, parts.table);
  return parts;
}

function assemble(figure, controls, parts) {
  const { t } = figure;
  const item = (sign, text) => h("li", {}, sign, text);
  const dot = (name) => h("i", { class: name, "aria-hidden": "true" });
  figure.root.append(
    h("div", { class: "controls" }, controls.group.node),
    h("div", { class: "controls" }, controls.sort.node, controls.turn, controls.pinned.node),
    h("div", { class: "controls" }, controls.families.node),
    parts.lead, parts.about, h("p", { class: "quiet hint" }, t("hint")), parts.scroll, parts.readout,
    parts.chartTitle, parts.chart,
    h("ul", { class: "key" },
      item(dot("dot"), t("key_mean")), item(dot("dot hollow"), t("key_blind")),
      item(dot("seed"), t("key_seed")), item(dot("dash"), t("key_floor"))),
    h("details", {}, h("summary", {}, t("how")), h("p", { class: "quiet" }, t("how_text"))),
  );
}

class LeagueTable {
  constructor(figure) {
    this.figure = figure;
    this.controls = createControls(figure, this);
    this.parts = createParts(figure.t);
    assemble(figure, this.controls, this.parts);
    const redraw = scheduler(() => this.update());
    figure.on(["sort", "down", "pinned", "hidden", "row", "column"], redraw.schedule);
    figure.cleanup(onThemeChange(redraw.schedule));
    figure.cleanup(redraw.cancel);
    onResize(figure, figure.root, redraw.schedule);
    this.connectCells();
    this.connectChart();
  }

  connectCells() {
    const { table, body } = this.parts;
    body.addEventListener("click", (event) => this.chooseCell(event.target.closest("td")));
    body.addEventListener("focusin", (event) => this.chooseCell(event.target.closest("td")));
    const step = (rows, columns) => () => this.step(rows, columns);
    onArrows(body, { ArrowUp: step(-1, 0), ArrowDown: step(1, 0), ArrowLeft: step(0, -1), ArrowRight: step(0, 1), Home: step(0, -Infinity), End: step(0, Infinity) });
    table.addEventListener("click", (event) => event.target.closest("td")?.focus({ preventScroll: true }));
  }

  connectChart() {
    const { chart } = this.parts;
    const by = (lines) => () => this.pickLine(this.now().order.indexOf(this.now().row) + lines);
    onArrows(chart, { ArrowUp: by(-1), ArrowDown: by(1), Home: () => this.pickLine(0), End: () => this.pickLine(this.now().order.length - 1) });
    onPoint(chart, ({ y }) => this.pickLine(Math.floor(y / LINE)));
  }

  // ---- What the reader does

  chooseGroup(name) {
    this.sortBy(this.figure.get("columns").findIndex(({ group }) => group === name));
  }

  // The same column again turns the order; another one begins with its best.
  sortBy(index, turns = false) {
    const { get, set } = this.figure;
    const same = turns && index === get("sort");
    set("sort", index);
    set("column", index);
    set("down", same ? !get("down") : bestFirst(get("columns")[index]));
  }

  chooseCell(cell) {
    if (!cell) return;
    this.figure.set("row", Number(cell.dataset.row));
    this.figure.set("column", Number(cell.dataset.column));
  }

  step(rows, columns) {
    const { order, shown, row, column } = this.now();
    const move = (list, at, by) => list[Math.max(0, Math.min(list.length - 1, list.indexOf(at) + by))];
    this.chooseCell(this.cellAt(move(order, row, rows), move(shown, column, columns)));
    this.cellAt(this.figure.get("row"), this.figure.get("column"))?.focus();
  }

  // The runs that are listed are those of the column that is drawn.
  pickLine(line) {
    const { order, sort } = this.now();
    if (line < 0 || line >= order.length) return;
    this.figure.set("row", order[line]);
    this.figure.set("column", sort);
  }

  cellAt(row, column) {
    return this.cells?.get(`${row} ${column}`);
  }

  // ---- What is shown

  // The chosen cell is one that can be seen.
  now() {
    const names = ["rows", "columns", "cells", "sort", "down", "pinned", "hidden", "row", "column"];
    const now = Object.fromEntries(names.map((name) => [name, this.figure.get(name)]));
    now.order = orderOf(now);
    now.sorted = now.columns[now.sort];
    now.shown = now.columns.map((_, i) => i).filter((i) => now.columns[i].group === now.sorted.group);
    if (!now.order.includes(now.row)) now.row = now.order[0];
    if (!now.shown.includes(now.column)) now.column = now.sort;
    return now;
  }

  update() {
    const now = this.now();
    // Read before anything is changed: asked for later, the browser would lay the page out twice.
    const stage = { width: this.parts.chart.clientWidth, colour: colours(this.figure.root) };
    this.showControls(now);
    this.fillTable(now);
    this.sortTable(now);
    this.showLead(now);
    this.showReadout(now);
    this.showChart(now, stage);
  }

  showControls({ shown, columns, sorted, sort, hidden, pinned }) {
    const { controls } = this;
    controls.group.show(sorted.group);
    if (this.groupOf !== sorted.group) controls.sort.fill(shown.map((i) => ({ value: i, text: columns[i].name })));
    controls.sort.show(sort);
    controls.families.show(hidden);
    controls.pinned.show(pinned);
  }

  // Made anew only for another group: the focus must stay where it is.
  fillTable({ rows, columns, shown, sorted }) {
    if (this.groupOf === sorted.group) return;
    this.groupOf = sorted.group;
    const { parts, figure } = this;
    setText(parts.caption, figure.t("caption", { group: sorted.group }));
    this.cells = new Map();
    this.heads = new Map(shown.map((i) => [i, this.createHead(columns[i], i)]));
    parts.head.replaceChildren(h("th", { scope: "col" }, figure.t("system")), ...this.heads.values());
    this.lines = rows.map((row, i) => this.createLine(row, i, shown));
  }

  createHead(column, index) {
    const sign = h("span", { class: "sign", "aria-hidden": "true" });
    const unit = column.unit && h("span", { class: "unit" }, column.unit);
    const control = h("button", { type: "button", onclick: () => this.sortBy(index, true) }, h("span", {}, column.name), unit || null, sign);
    return h("th", { scope: "col" }, control);
  }

  createLine(row, index, shown) {
    const cells = shown.map((column) => this.createCell(index, column));
    const kind = row.baseline ? this.figure.t("baseline") : row.family;
    const name = h("th", { scope: "row" }, h("span", { class: "name" }, row.name), h("span", { class: "kind" }, kind));
    return h("tr", { class: row.baseline ? "baseline" : null }, name, cells);
  }

  createCell(row, column) {
    const { t } = this.figure;
    const cell = this.figure.get("cells")[row][column];
    const node = h("td", { "data-row": row, "data-column": column, tabindex: -1 });
    if (cell?.mean == null) node.append(h("span", { class: "none" }, t(cell ? "failed" : "missing")));
    else {
      const count = cell.runs.length;
      const few = t(count === 1 ? "seeds_one" : "seeds", { count });
      node.dataset.value = cell.mean;
      node.append(h("span", { class: "value" }, this.measured(column, cell)), h("span", { class: "few" }, few));
      if (cell.blind) node.append(h("span", { class: "blind" }, h("span", { "aria-hidden": "true" }, BLIND + " "), t("blind")));
    }
    this.cells.set(`${row} ${column}`, node);
    return node;
  }

  written(column, value) {
    const { scale, digits } = this.figure.get("columns")[column];
    const text = this.figure.number(Math.abs(scale * value), digits);
    return value < 0 && /[1-9]/.test(text) ? "\u2212" + text : text;
  }

  measured(column, { mean, half }) {
    const value = this.written(column, mean);
    return half === null ? value : this.figure.t("measured", { value, half: this.written(column, half) });
  }

  sortTable({ order, sort, down, row, column }) {
    const { parts, lines } = this;
    const wanted = order.map((i) => lines[i]);
    if (wanted.some((line, i) => parts.body.children[i] !== line) || parts.body.children.length !== wanted.length) {
      parts.body.replaceChildren(...wanted);
    }
    for (const [i, head] of this.heads) {
      head.classList.toggle("on", i === sort);
      head.setAttribute("aria-sort", i === sort ? (down ? "descending" : "ascending") : "none");
      setText(head.querySelector(".sign"), i === sort ? (down ? "▼" : "▲") : "↕");
    }
    for (const [key, cell] of this.cells) {
      const on = key === `${row} ${column}`;
      cell.tabIndex = on ? 0 : -1;
      cell.setAttribute("aria-selected", String(on));
    }
  }

  showLead({ order, rows, cells, sort, sorted, down }) {
    const { figure, parts } = this;
    const key = sorted.better && down !== bestFirst(sorted) ? "worst" : sorted.better ? "best" : down ? "largest" : "smallest";
    const rivals = order.filter((i) => cells[i][sort]?.mean != null && !rows[i].baseline);
    const words = { column: sorted.name, order: figure.t(key), count: order.length };
    if (rivals.length) {
      words.system = rows[rivals[0]].name;
      words.value = this.withUnit(sort, cells[rivals[0]][sort].mean);
    }
    say(parts.lead, figure.get("strings")[rivals.length ? "lead" : "lead_none"], words);
    setText(parts.about, sorted.about || "\u00a0");
  }

  withUnit(column, value) {
    const { unit } = this.figure.get("columns")[column];
    return unit ? `${this.written(column, value)}\u00a0${unit}` : this.written(column, value);
  }

  showReadout({ rows, columns, cells, row, column, order }) {
    const { figure, parts } = this;
    const cell = order.length ? cells[row][column] : null;
    const spoken = JSON.stringify([row, column, order.length > 0]);
    if (this.spoken === spoken) return; // a live region speaks on true changes only
    this.spoken = spoken;
    const line = h("p");
    const words = order.length ? { system: rows[row].name, column: columns[column].name } : {};
    parts.readout.replaceChildren(line);
    if (!order.length) return say(line, figure.t("nobody"), words);
    if (cell?.mean == null) {
      say(line, figure.get("strings")[cell ? "readout_failed" : "readout_missing"], { ...words, note: cell?.note });
      return;
    }
    const [low, high] = [cell.mean - cell.half, cell.mean + cell.half].map((value) => this.written(column, value));
    const value = this.withUnit(column, cell.mean);
    say(line, figure.get("strings")[cell.half === null ? "readout_one" : "readout"], { ...words, value, low, high });
    if (cell.blind) line.append(" ", figure.t("readout_blind"));
    if (cell.note) line.append(" ", cell.note);
    parts.readout.append(h("ul", { class: "runs" }, cell.runs.map((run) => this.createRun(column, run))));
  }

  createRun(column, [seed, value, run]) {
    return h("li", {}, this.figure.t("run", { seed, value: this.withUnit(column, value) }), " ", h("code", {}, run));
  }

  showChart({ order, rows, cells, sort, sorted, row }, { width, colour }) {
    const { figure, parts } = this;
    const lines = order.map((i) => ({ name: rows[i].name, cell: cells[i][sort], row: i }));
    const unit = sorted.unit ? figure.t("with_unit", { column: sorted.name, unit: sorted.unit }) : sorted.name;
    const names = { missing: figure.t("missing"), floorName: figure.t("floor"), number: figure.number };
    drawChart(parts.chart, width, { lines, column: sorted, chosen: row, ...names }, colour);
    setText(parts.chartTitle, figure.t("chart", { column: unit }));
    const chosen = order.length ? rows[row].name : figure.t("missing");
    parts.chart.setAttribute("aria-label", figure.t("chart_label", { column: unit, system: chosen }));
  }
}

function render({ model, el }) {
  const figure = createFigure({ model, el }, "league-table");
  new LeagueTable(figure);
  return figure.destroy;
}

export default { render };
