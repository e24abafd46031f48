"use strict";
// Draws the learning curves of #data, and makes tables sort. Nothing is loaded from elsewhere.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const WIDTH = 380, HEIGHT = 250, LEFT = 50, RIGHT = 362, TOP = 8, BOTTOM = 212, NEAR = 40;
  const hidden = new Set();
  const chosen = { x: "env_steps", logX: false, logY: false };
  const tip = document.getElementById("tip");

  function add(parent, name, attributes = {}, text = "") {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.textContent = text;
    parent.append(node);
    return node;
  }

  function short(value) {
    return Math.abs(value) >= 1000 ? `${+(value / 1000).toPrecision(4)}k` : String(+value.toPrecision(4));
  }

  function ticksOf(low, high, log) {
    if (log) {
      const powers = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) powers.push(10 ** power);
      const inside = (factors) => powers.flatMap((p) => factors.map((f) => f * p)).filter((v) => v >= low && v <= high);
      return inside([1]).length > 1 ? inside([1]) : inside([1, 2, 5]);
    }
    const unit = 10 ** Math.floor(Math.log10((high - low) / 5));
    const step = [1, 2, 5, 10].map((f) => f * unit).find((each) => each >= (high - low) / 5);
    const first = Math.ceil(low / step);
    return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
  }

  // From values to pixels; null for what is missing, or not above 0 on a logarithmic axis.
  function scaleOf(values, log, from, to) {
    const usable = values.filter((value) => value !== null && (!log || value > 0));
    if (!usable.length) return null;
    const low = usable.reduce((a, b) => Math.min(a, b));
    const most = usable.reduce((a, b) => Math.max(a, b));
    const high = most > low ? most : low + (Math.abs(low) || 1);
    const on = log ? Math.log10 : (value) => value;
    const place = (value) => {
      if (value === null || (log && value <= 0)) return null;
      return from + ((on(value) - on(low)) / (on(high) - on(low))) * (to - from);
    };
    return { place, ticks: ticksOf(low, high, log) };
  }

  function pathOf(xs, ys) {
    let open = false;
    return xs.map((x, i) => {
      const there = x !== null && ys[i] !== null;
      const piece = there ? `${open ? "L" : "M"}${x.toFixed(1)} ${ys[i].toFixed(1)}` : "";
      open = there;
      return piece;
    }).join("");
  }

  function drawAxes(svg, x, y) {
    for (const tick of y.ticks) {
      add(svg, "line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y.place(tick), y2: y.place(tick) });
      add(svg, "text", { x: LEFT - 5, y: y.place(tick) + 4, "text-anchor": "end" }, short(tick));
    }
    for (const tick of x.ticks) {
      add(svg, "line", { class: "grid", x1: x.place(tick), x2: x.place(tick), y1: TOP, y2: BOTTOM });
      add(svg, "text", { x: x.place(tick), y: BOTTOM + 15, "text-anchor": "middle" }, short(tick));
    }
    add(svg, "text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, data.axes[chosen.x]);
  }

  // Draws an algorithm's band, seeds and mean, and returns the points that the pointer finds.
  function drawCurves(svg, algo, curve, x, y) {
    const color = data.colors[algo], positions = curve.positions[chosen.x];
    const middle = positions[0].map((_, i) => positions.reduce((sum, each) => sum + each[i], 0) / positions.length);
    const at = (values) => values.map(y.place);
    if (curve.seeds.length > 1) {
      const there = [...middle.keys()].filter((i) => x.place(middle[i]) !== null && y.place(curve.low[i]) !== null);
      const corner = (bound) => (i) => `${x.place(middle[i]).toFixed(1)},${y.place(bound[i]).toFixed(1)}`;
      const corners = [...there.map(corner(curve.high)), ...there.reverse().map(corner(curve.low))];
      add(svg, "polygon", { class: "band", points: corners.join(" "), fill: color });
      add(svg, "path", { class: "mean", d: pathOf(middle.map(x.place), at(curve.mean)), stroke: color });
    }
    return curve.seeds.flatMap((seed, s) => {
      const xs = positions[s].map(x.place), ys = at(curve.returns[s]);
      const line = add(svg, "path", { class: curve.seeds.length > 1 ? "seed" : "seed alone", d: pathOf(xs, ys), stroke: color });
      const whole = (value) => Number(value.toPrecision(5)).toLocaleString("en");
    const text = (i) => `${whole(curve.returns[s][i])} after ${whole(positions[s][i])} ${data.axes[chosen.x]}`;
      const points = xs.map((px, i) => ({ px, py: ys[i], line, text: () => `${algo}, seed ${seed}: ${text(i)}` }));
      return points.filter((point) => point.px !== null && point.py !== null);
    });
  }

  function draw(panel, figure) {
    const svg = figure.querySelector("svg");
    svg.replaceChildren();
    figure.points = [];
    const note = (text) => add(svg, "text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, text);
    if (!panel.axes.includes(chosen.x)) return note("left out: not one device and processor");
    const shown = Object.entries(panel.curves).filter(([algo]) => !hidden.has(algo));
    const x = scaleOf([0, ...shown.flatMap(([, curve]) => curve.positions[chosen.x].flat())], chosen.logX, LEFT, RIGHT);
    const y = scaleOf([...shown.flatMap(([, curve]) => curve.returns.flat()), panel.random], chosen.logY, BOTTOM, TOP);
    if (!shown.length || !x || !y) return note("nothing to show");
    drawAxes(svg, x, y);
    const random = y.place(panel.random);
    if (random !== null) add(svg, "line", { class: "random", x1: LEFT, x2: RIGHT, y1: random, y2: random });
    figure.points = shown.flatMap(([algo, curve]) => drawCurves(svg, algo, curve, x, y));
  }

  function point(figure, event) {
    const box = figure.querySelector("svg").getBoundingClientRect(), scale = WIDTH / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    const distance = (each) => Math.hypot(each.px - x, each.py - y);
    const nearest = figure.points.reduce((a, b) => (a && distance(a) <= distance(b) ? a : b), null);
    leave(figure);
    if (!nearest || distance(nearest) > NEAR) return;
    nearest.line.classList.add("hot");
    tip.textContent = nearest.text();
    tip.hidden = false;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${event.clientY + 16}px`;
  }

  function leave(figure) {
    figure.querySelectorAll(".hot").forEach((line) => line.classList.remove("hot"));
    tip.hidden = true;
  }

  function update() {
    data.panels.forEach((panel, i) => draw(panel, figures[i]));
    document.querySelectorAll("tr[data-algo]").forEach((row) => { row.hidden = hidden.has(row.dataset.algo); });
  }

  function sortBy(table, column, header) {
    const body = table.tBodies[0], falling = header.getAttribute("aria-sort") !== "descending";
    const value = (row) => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      return text === "" || text === "-" ? null : isNaN(text) ? text : Number(text);
    };
    const compare = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a < typeof b ? -1 : 1);
    const rows = [...body.rows].map((row) => [value(row), row]);
    const known = rows.filter(([key]) => key !== null).sort(([a], [b]) => (falling ? compare(b, a) : compare(a, b)));
    body.append(...[...known, ...rows.filter(([key]) => key === null)].map(([, row]) => row));
    table.querySelectorAll("th").forEach((each) => each.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  }

  const figures = [...document.querySelectorAll("#charts figure")];
  for (const figure of figures) {
    figure.addEventListener("pointermove", (event) => point(figure, event));
    figure.addEventListener("pointerdown", (event) => point(figure, event));
    figure.addEventListener("pointerleave", () => leave(figure));
  }
  for (const button of document.querySelectorAll("#legend button")) {
    button.addEventListener("click", () => {
      const algo = button.dataset.algo;
      if (!hidden.delete(algo)) hidden.add(algo);
      button.setAttribute("aria-pressed", String(!hidden.has(algo)));
      update();
    });
  }
  const bind = (id, name, property) => document.getElementById(id)?.addEventListener("change", (event) => {
    chosen[name] = event.target[property];
    update();
  });
  bind("x", "x", "value");
  bind("log-x", "logX", "checked");
  bind("log-y", "logY", "checked");
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.append(...header.childNodes);
      button.addEventListener("click", () => sortBy(table, column, header));
      header.append(button);
    });
  }
  document.getElementById("interactive").hidden = false;
  update();
})();
