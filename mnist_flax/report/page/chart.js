// Draws curves as SVG, and shows their values at the pointer or by the arrow keys.
//
// A chart is {title, unit, scale, decimals, x, series}; `scale` is 'linear' or 'log', and `x` names the axis, for
// example 'epoch'.
// A series is {name, color, isFaint, x, y}, with `x` ascending. The arrow keys skip faint series.

const CHART_HEIGHT = 276;
const MARGIN = { left: 46, right: 14, top: 10, bottom: 46 };

function createChart(container, chart) {
  const legend = createElement("ul", { className: "legend" });
  const plot = createElement("div", { className: "plot", tabIndex: 0 });
  const tip = createElement("div", { className: "tip", hidden: true });
  const stops = createStops(chart);
  const main = stops.filter((stop) => stop.isMain);
  // List the faint series last, where a narrow page wraps the line.
  for (const series of [...chart.series].sort((a, b) => a.isFaint - b.isFaint)) {
    const last = series.isFaint ? "" : formatValue(chart, series.y.at(-1));
    const parts = [createSwatch(series), series.name, " ", createElement("b", {}, last)];
    legend.append(createElement("li", {}, ...parts));
  }
  container.append(legend, plot);

  let scales;
  let cursor;
  let shown = main.at(-1);
  function draw() {
    scales = createScales(chart, plot.clientWidth || 600);
    cursor = createSvg("g", { class: "cursor" });
    plot.replaceChildren(drawChart(chart, scales, cursor), tip);
  }
  function show(stop) {
    shown = stop;
    const x = scales.x(stop.x);
    cursor.replaceChildren(createSvg("path", { d: `M${x} ${MARGIN.top}V${scales.bottom}` }));
    for (const { series, value } of stop.values) {
      const place = { cx: x, cy: scales.y(value), r: 5 };
      cursor.append(createSvg("circle", { ...place, class: series.color }));
    }
    tip.replaceChildren(createElement("p", {}, stop.title));
    for (const { series, value } of stop.values) {
      const text = createElement("b", {}, formatValue(chart, value));
      tip.append(createElement("p", {}, createSwatch(series), series.name, " ", text));
    }
    tip.hidden = false;
    const isLeft = x > plot.clientWidth / 2;
    tip.style.left = isLeft ? "" : `${x + 12}px`;
    tip.style.right = isLeft ? `${plot.clientWidth - x + 12}px` : "";
    describe(stop);
  }
  function describe(stop) {
    const values = stop.values.map(({ series, value }) => `${series.name} ${formatValue(chart, value)}`);
    plot.setAttribute("aria-valuenow", main.indexOf(stop) + 1 || 1);
    plot.setAttribute("aria-valuetext", `${stop.title}: ${values.join(", ")}`);
  }
  function hide() {
    tip.hidden = true;
    cursor.replaceChildren();
  }

  plot.setAttribute("role", "slider");
  plot.setAttribute("aria-label", `${chart.title}, by ${chart.x}`);
  plot.setAttribute("aria-valuemin", 1);
  plot.setAttribute("aria-valuemax", main.length);
  describe(shown);
  plot.addEventListener("pointermove", (event) => {
    show(findStop(stops, scales, event.clientX - plot.getBoundingClientRect().left));
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("focus", () => plot.matches(":focus-visible") && show(shown));
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const at = Math.max(main.indexOf(shown), 0);
    const targets = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1 };
    const target = { ...targets, Home: 0, End: main.length - 1 }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    show(main[Math.min(Math.max(target, 0), main.length - 1)]);
  });
  new ResizeObserver(draw).observe(plot);
  draw();
}

// Returns every position on the x axis that has values, together with these values.
function createStops({ series: all, x: axis }) {
  const places = new Map();
  for (const series of all) {
    series.x.forEach((x, i) => {
      const stop = places.get(x) ?? { x, isMain: false, values: [] };
      stop.isMain ||= !series.isFaint;
      stop.values.push({ series, value: series.y[i] });
      places.set(x, stop);
    });
  }
  const stops = [...places.values()].sort((a, b) => a.x - b.x);
  for (const stop of stops) stop.title = `${axis} ${stop.isMain ? stop.x : stop.x.toFixed(2)}`;
  return stops;
}

// Returns the stop nearest to the pointer; main stops attract it from 8 pixels farther away.
function findStop(stops, scales, pointer) {
  const distance = (stop) => Math.max(Math.abs(scales.x(stop.x) - pointer) - (stop.isMain ? 8 : 0), 0);
  return stops.reduce((best, stop) => (distance(stop) < distance(best) ? stop : best));
}

function createScales({ unit, scale, series: all }, width) {
  const isLogarithmic = scale === "log";
  const bottom = CHART_HEIGHT - MARGIN.bottom;
  const map = isLogarithmic ? (v) => Math.log10(Math.max(v, 1e-9)) : (v) => v;
  const ys = all.filter((series) => !series.isFaint).flatMap((series) => series.y);
  // Faint curves start far from the others and would flatten them.
  const faint = all.filter((series) => series.isFaint).flatMap((series) => series.y);
  let [low, high] = [Math.min(...ys), Math.max(...ys)].map(map);
  if (isLogarithmic) [low, high] = [low, Math.max(high, ...faint.map(map))];
  const room = (high - low || 1) * 0.08;
  [low, high] = [low - room, unit === "%" ? Math.min(high + room, 100) : high + room];
  const [start, end] = limits(all.flatMap((series) => series.x));
  const x = (v) => MARGIN.left + ((v - start) / (end - start)) * (width - MARGIN.left - MARGIN.right);
  const y = (v) => bottom - ((map(v) - low) / (high - low)) * (bottom - MARGIN.top);
  return { width, bottom, start, end, low, high, x, y };
}

// Returns the ends of the x axis. It starts at 0 unless that would leave more than half of it
// empty, as in a study that uses the test set only in the last epochs.
function limits(xs) {
  const [first, last] = [Math.min(...xs), Math.max(...xs)];
  const room = 0.02 * (first > last / 2 ? last - first || 1 : last);
  return [first > last / 2 ? first - room : 0, last + room];
}

function drawChart(chart, scales, cursor) {
  const { width, bottom, x, y } = scales;
  const svg = createSvg("svg", { width, height: CHART_HEIGHT, "aria-hidden": true });
  for (const value of chart.scale === "log" ? logTicks(scales) : linearTicks(scales.low, scales.high, 5)) {
    const line = createSvg("path", { class: "grid", d: `M${MARGIN.left} ${y(value)}H${width - MARGIN.right}` });
    const text = String(Number(value.toPrecision(6)));
    svg.append(line, createSvg("text", { class: "y", x: MARGIN.left - 8, y: y(value) + 4 }, text));
  }
  for (const value of linearTicks(scales.start, scales.end, 6).filter(Number.isInteger)) {
    svg.append(createSvg("text", { class: "x", x: x(value), y: bottom + 20 }, String(value)));
  }
  const middle = (MARGIN.left + width - MARGIN.right) / 2;
  svg.append(createSvg("text", { class: "x", x: middle, y: CHART_HEIGHT - 4 }, chart.x));
  // The inner SVG clips whatever lies outside the axes.
  const box = { x: 0, y: MARGIN.top, width, height: bottom - MARGIN.top };
  const inner = createSvg("svg", { ...box, viewBox: `0 ${box.y} ${width} ${box.height}` });
  svg.append(inner);
  for (const series of chart.series) {
    const points = series.x.map((v, i) => `${x(v).toFixed(1)} ${y(series.y[i]).toFixed(1)}`);
    const kind = `${series.color}${series.isFaint ? " faint" : ""}`;
    inner.append(createSvg("path", { class: `line ${kind}`, d: `M${points.join("L")}` }));
    if (series.isFaint || series.x.length > 50) continue;
    series.x.forEach((v, i) => {
      svg.append(createSvg("circle", { class: kind, cx: x(v), cy: y(series.y[i]), r: 3 }));
    });
  }
  svg.append(cursor);
  return svg;
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const first = Math.ceil(low / step);
  const length = Math.floor(high / step) - first + 1;
  return Array.from({ length }, (_, i) => (first + i) * step);
}

// Returns 1, 2 and 5 times powers of ten, or only powers of ten if the range is wide.
function logTicks({ low, high }) {
  const powers = Array.from({ length: Math.ceil(high) - Math.floor(low) + 1 }, (_, i) => Math.floor(low) + i);
  const factors = high - low > 2.5 ? [1] : [1, 2, 5];
  const ticks = powers.flatMap((power) => factors.map((factor) => factor * 10 ** power));
  return ticks.filter((tick) => Math.log10(tick) >= low && Math.log10(tick) <= high);
}

function createSwatch({ color, isFaint }) {
  return createElement("i", { className: `swatch ${color}${isFaint ? " faint" : ""}` });
}

function formatValue({ unit, decimals }, value) {
  return value.toFixed(decimals) + (unit === "%" ? " %" : "");
}
