"use strict";
// Draws the charts of report.html from the JSON beside it. Nothing is fetched; a task's name is only ever text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const live = document.getElementById("live");
  const xs = [...data.x, data.end]; // a round lasts until the next: one more edge than there are points
  const last = data.x.length - 1;
  const sync = uPlot.sync("rounds");
  const plots = new Map();
  const whole = [1, 10, 100, 1e3, 1e4, 1e5, 1e6].flatMap((m) => [m, 2 * m, 5 * m]); // steps of the axis of rounds
  const dashes = { wanted: [4, 3], lowest: [1.5, 2.5], line1: [7, 2], line2: [3, 2], line3: [9, 2, 2, 2], line4: [1.5, 2],
    line5: [12, 3], line6: [5, 2, 1, 2, 1, 2], line7: [4, 4] };

  const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  const hue = (role) => ink({ gap: "line0", lowest: "experience" }[role] || role);
  const short = (v) => {
    if (v === null || v === undefined) return "–";
    const size = Math.abs(v);
    if (size >= 1e5) return (v / 1e3).toFixed(0) + "k";
    return size >= 100 ? v.toFixed(0) : String(+v.toPrecision(3));
  };
  const write = (chart, v) => {
    if (v === null || v === undefined) return "–";
    return { percent: short(v * 100) + " %", experience: v.toFixed(3) }[chart.kind] || short(v); // as in the tables
  };
  const rounds = (k) => {
    const end = (k < last ? data.x[k + 1] : data.end) - 1;
    return end > data.x[k] ? `rounds ${data.x[k]}–${end}` : `round ${data.x[k]}`;
  };
  const holding = (x) => { // the point whose step holds x
    let a = 0, b = last;
    while (a < b) {
      const m = Math.ceil((a + b) / 2);
      if (data.x[m] <= x) a = m;
      else b = m - 1;
    }
    return a;
  };
  const under = (u) => (u.cursor.left >= 0 ? holding(u.posToVal(u.cursor.left, "x")) : null);
  const point = (k) => { // the cursor of every chart, in the middle of that step
    const middle = k === null ? null : (xs[k] + xs[k + 1]) / 2;
    for (const u of plots.values()) u.setCursor(k === null ? { left: -10, top: -10 } : { left: u.valToPos(middle, "x"), top: 0 });
  };

  // the line of numbers above a chart: means, or the round under the cursor
  const read = (id, k) => {
    const chart = data.charts[id], out = document.querySelector(`[data-read="${id}"]`);
    const when = document.createElement("span");
    when.textContent = (k === null ? "mean" : rounds(k)) + " ";
    out.replaceChildren(when, ...chart.lines.map((line) => {
      const b = document.createElement("b");
      b.className = line.role;
      b.textContent = (chart.tall && chart.lines.length > 1 ? line.label + " " : "") + write(chart, k === null ? line.mean : line.y[k]);
      return b;
    }));
  };

  const shade = (chart) => (u) => {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    for (const [from, to, label] of chart.events) {
      const a = u.valToPos(from, "x", true), b = u.valToPos(to + 1, "x", true);
      ctx.fillStyle = ink(label ? "surge" : "stopped");
      ctx.fillRect(a, bbox.top, Math.max(b - a, 1), bbox.height);
    }
    if (chart.target !== null) {
      const y = Math.round(u.valToPos(chart.target, "y", true)) + 0.5;
      ctx.strokeStyle = ink("soft");
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([1.5 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
    }
    ctx.restore();
  };

  // what happened is said above the picture, where no line runs
  const label = (chart) => (u) => {
    const { ctx, bbox } = u, px = devicePixelRatio;
    ctx.save();
    ctx.font = `${11 * px}px system-ui, sans-serif`;
    ctx.fillStyle = ink("soft");
    ctx.textBaseline = "bottom";
    ctx.textAlign = "left";
    let free = bbox.left;
    for (const [from, to, text] of chart.events) {
      const a = Math.max(bbox.left, u.valToPos(from, "x", true)), b = u.valToPos(to + 1, "x", true);
      const width = ctx.measureText(text).width, at = Math.min(a, bbox.left + bbox.width - width);
      if (text && at >= free && b > bbox.left && a < bbox.left + bbox.width) {
        ctx.fillText(text, at, bbox.top - 2 * px);
        free = at + width + 6 * px;
      }
    }
    ctx.restore();
  };

  const draw = (box) => {
    const id = Number(box.dataset.chart), chart = data.charts[id];
    if (plots.has(id) || !box.clientWidth) return;
    const axis = { stroke: ink("soft"), font: "11px system-ui, sans-serif", ticks: { show: false } };
    const most = Math.max(0, ...chart.lines.flatMap((line) => line.y.filter((v) => v !== null)));
    const top = chart.top ? chart.top * 1.03 : most > 0 ? most * 1.08 : 1; // a line at 1 stays whole
    const stepped = uPlot.paths.stepped({ align: 1 });
    const u = new uPlot({
      width: box.clientWidth, height: box.clientHeight,
      legend: { show: false },
      padding: [18, 6, 0, 0],
      cursor: {
        y: false, sync: { key: "rounds", setSeries: false }, drag: { x: last > 0, y: false },
        points: { size: 6 }, dataIdx: (_, __, ___, x) => holding(x),
      },
      select: { show: last > 0 },
      scales: { x: { time: false }, y: { range: () => [0, top] } },
      axes: [
        { ...axis, size: 22, gap: 3, space: 44, grid: { show: false }, incrs: whole, filter: (_, at) => at.map((v) => (v < data.end ? v : null)) },
        { ...axis, size: (_, said) => Math.max(40, 10 + 6.5 * Math.max(0, ...(said || []).map((text) => text.length))),
          gap: 4, space: 26, grid: { stroke: ink("hair"), width: 1 }, values: (_, vs) => vs.map((v) => (chart.kind === "percent" ? write(chart, v) : short(v))) },
      ],
      series: [{}, ...chart.lines.map((line) => ({
        label: line.label, stroke: hue(line.role), width: line.role === "wanted" ? 1.25 : 1.6, dash: dashes[line.role], paths: stepped,
        fill: line.role === "granted" || line.role === "experience" ? ink(line.role + "-fill") : undefined,
        points: { show: false },
      }))],
      hooks: {
        drawClear: [shade(chart)],
        draw: [label(chart)],
        setCursor: [(v) => read(id, under(v))],
      },
    }, [xs, ...chart.lines.map((line) => [...line.y, line.y[last]])], box);
    plots.set(id, u);
    box.dataset.drawn = "";
    read(id, null);
  };

  const visible = () => [...document.querySelectorAll("[data-chart]")].filter((box) => box.clientWidth);
  const drawAll = () => {
    const waiting = visible().filter((box) => !plots.has(Number(box.dataset.chart)));
    waiting.splice(0, 24).forEach(draw);
    if (waiting.length) requestAnimationFrame(drawAll);
    else document.documentElement.dataset.ready = "";
  };
  const redraw = () => {
    for (const u of plots.values()) u.destroy();
    plots.clear();
    visible().forEach(draw);
  };

  // arrow keys: one round at a time, in all charts, and spoken
  document.addEventListener("keydown", (event) => {
    const box = event.target.closest && event.target.closest("[data-chart]");
    const u = box && plots.get(Number(box.dataset.chart));
    if (!u) return;
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") {
      for (const v of plots.values()) v.setScale("x", { min: xs[0], max: xs[xs.length - 1] });
      point(null);
    } else if (step !== undefined) {
      event.preventDefault();
      const now = under(u);
      const k = Math.min(last, Math.max(0, (now === null ? (step < 0 ? last + 1 : -1) : now) + step));
      const chart = data.charts[Number(box.dataset.chart)];
      point(k);
      live.textContent = `${rounds(k)}: ` + chart.lines.map((line) => `${line.label} ${write(chart, line.y[k])}`).join(", ");
    }
  });

  // the numbers behind charts, made when asked for
  const tabulate = (details) => {
    if (details.querySelector("table")) return;
    const charts = details.dataset.table.split(",").map((id) => data.charts[Number(id)]);
    const several = charts.length > 1;
    const box = document.createElement("div"), table = document.createElement("table");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", details.dataset.caption);
    table.createCaption().textContent = details.dataset.caption + (data.per > 1 ? `, ${data.per} rounds to a row` : "");
    const cell = (row, tag, text, scope) => {
      const c = document.createElement(tag);
      if (scope) c.scope = scope;
      if (scope !== "row") c.className = "n";
      c.textContent = text;
      row.append(c);
    };
    const head = table.createTHead().insertRow();
    cell(head, "th", data.per > 1 ? "rounds" : "round", "col");
    for (const chart of charts) {
      for (const line of chart.lines) {
        const name = several && chart.title !== line.label ? `${chart.title} ${line.label}` : line.label;
        cell(head, "th", chart.unit && chart.kind !== "percent" ? `${name}, ${chart.unit}` : name, "col");
      }
    }
    const body = table.createTBody();
    data.x.forEach((_, k) => {
      const row = body.insertRow();
      cell(row, "th", rounds(k).replace(/^rounds? /, ""), "row");
      for (const chart of charts) for (const line of chart.lines) cell(row, "td", write(chart, line.y[k]));
    });
    box.append(table);
    details.append(box);
  };
  for (const details of document.querySelectorAll("details")) {
    details.addEventListener("toggle", () => {
      if (!details.open) return;
      if (details.dataset.table) tabulate(details);
      else drawAll();
    });
  }

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    for (const [id, u] of plots) {
      const box = document.querySelector(`[data-chart="${id}"]`);
      if (box.clientWidth) u.setSize({ width: box.clientWidth, height: box.clientHeight });
    }
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => { document.documentElement.classList.add("print"); redraw(); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("print"); redraw(); });
  drawAll();
})();
