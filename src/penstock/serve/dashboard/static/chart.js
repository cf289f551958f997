// A line chart over the last minutes: one SVG, real axes, a cursor that reads values. No library.

const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [420, 176, 52, 12, 10, 22];

function svg(name, attributes, parent, text) {
  const node = document.createElementNS(NS, name);
  for (const [attribute, value] of Object.entries(attributes)) node.setAttribute(attribute, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

/** Ticks at 1, 2 or 5 times a power of ten, from 0 to at least `largest`. */
export function ticks(largest, count = 4) {
  const rough = largest / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((digit) => digit * power >= rough) * power;
  return Array.from({ length: Math.ceil(largest / step - 1e-9) + 1 }, (_, index) => index * step);
}

export class Chart {
  /** series: [{ name, value(sample) -> number or null }]; format: number -> text; floor: smallest top of the y axis. */
  constructor(parent, { title, unit, series, format, floor, windows, top = null, empty = "Waiting for the first request" }) {
    Object.assign(this, { series, format, floor, windows, top, empty, samples: [], at: null });
    const card = document.createElement("figure");
    card.className = "card chart";
    const head = document.createElement("div");
    head.className = "card-head";
    const heading = document.createElement("h2");
    heading.textContent = title;
    const label = document.createElement("span");
    label.className = "unit";
    label.textContent = unit;
    head.append(heading, label);
    this.svg = document.createElementNS(NS, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", `${title}, ${unit}`);
    this.legend = document.createElement("figcaption");
    this.legend.className = "legend";
    this.values = series.map(({ name }, index) => {
      const entry = document.createElement("span");
      const swatch = document.createElement("i");
      swatch.className = `swatch s${index + 1}`;
      const value = document.createElement("b");
      entry.append(swatch, `${name} `, value);
      this.legend.append(entry);
      return value;
    });
    card.append(head, this.svg, this.legend);
    parent.append(card);
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      this.at = (event.clientX - box.left) * (this.width() / box.width);
      this.draw();
    });
    this.svg.addEventListener("pointerleave", () => {
      this.at = null;
      this.draw();
    });
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  width() {
    return Math.max(this.svg.clientWidth || WIDTH, 200);
  }

  show(samples) {
    this.samples = samples;
    this.draw();
  }

  draw() {
    const width = this.width();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren();
    const rows = this.samples.map((sample) => [sample.time, this.series.map(({ value }) => value(sample))]);
    const known = rows.flatMap(([, values]) => values).filter((value) => value !== null);
    const levels = ticks(this.top ?? Math.max(this.floor, ...known), 4);
    const largest = levels.at(-1);
    const now = rows.length ? rows.at(-1)[0] : 0;
    const span = rows.length ? now - rows[0][0] : 0;
    const window = this.windows.find((one) => one >= span) ?? this.windows.at(-1);
    const mark = window / 4 >= 60 ? 60 : window / 4;
    const x = (time) => LEFT + (1 - (now - time) / window) * (width - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - (value / largest) * (HEIGHT - TOP - BOTTOM);
    for (const level of levels) {
      svg("line", { class: level ? "grid" : "axis", x1: LEFT, x2: width - RIGHT, y1: y(level), y2: y(level) }, this.svg);
      svg("text", { x: LEFT - 7, y: y(level) + 4, "text-anchor": "end" }, this.svg, this.format(level));
    }
    for (let back = 0; back < window; back += mark) {
      const place = { x: x(now - back), y: HEIGHT - 6, "text-anchor": back === 0 ? "end" : "middle" };
      const text = back % 60 === 0 ? `−${back / 60} min` : `−${back} s`;
      svg("text", place, this.svg, back === 0 ? "now" : text);
    }
    if (!known.length) {
      svg("text", { class: "waiting", x: (width + LEFT) / 2, y: HEIGHT / 2 }, this.svg, this.empty);
    }
    this.series.forEach((_, index) => this.#line(rows, index, x, y));
    this.#read(rows, x);
  }

  #line(rows, index, x, y) {
    let run = [];
    const finish = () => {
      if (run.length > 1) {
        const points = run.map(([left, top]) => `${left.toFixed(1)},${top.toFixed(1)}`).join(" L");
        if (index === 0) {
          const close = `L${run.at(-1)[0].toFixed(1)},${y(0)} L${run[0][0].toFixed(1)},${y(0)}Z`;
          svg("path", { class: "area s1", d: `M${points} ${close}` }, this.svg);
        }
        svg("path", { class: `line s${index + 1}`, d: `M${points}` }, this.svg).style.fill = "none";
      } else if (run.length === 1) {
        svg("circle", { class: `s${index + 1}`, cx: run[0][0], cy: run[0][1], r: 1.6 }, this.svg);
      }
      run = [];
    };
    for (const [time, values] of rows) {
      if (values[index] === null) finish();
      else run.push([x(time), y(values[index])]);
    }
    finish();
  }

  #read(rows, x) {
    let row = rows.at(-1);
    if (this.at !== null && rows.length) {
      row = rows.reduce((best, one) => (Math.abs(x(one[0]) - this.at) < Math.abs(x(best[0]) - this.at) ? one : best));
      svg("line", { class: "cursor", x1: x(row[0]), x2: x(row[0]), y1: TOP, y2: HEIGHT - BOTTOM }, this.svg);
    }
    this.values.forEach((node, index) => {
      const value = row?.[1][index] ?? null;
      node.textContent = value === null ? "–" : this.format(value);
    });
  }
}
