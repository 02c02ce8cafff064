
"use strict";
// The page listens to `events`: the first message carries some minutes of points, each later one the newest second.
const KEEP = 300, NS = "http://www.w3.org/2000/svg";
const $ = id => document.getElementById(id);
let points = [];

// span is how many seconds the charts show: a minute at first, then the whole of what is remembered.
function span() {
  const seconds = points.length ? (points[points.length - 1].t - points[0].t) / 1000 : 0;
  return [60, 120, 180].find(s => seconds <= s) || KEEP;
}

const digits = (v, n) => v.toLocaleString("en-US", { maximumFractionDigits: n, minimumFractionDigits: 0 });
function num(v) {
  if (!isFinite(v)) return "–";
  if (v >= 1e9) return digits(v / 1e9, 1) + " G";
  if (v >= 1e6) return digits(v / 1e6, 1) + " M";
  if (v >= 1e5) return digits(v / 1e3, 0) + " k";
  if (v >= 100 || Number.isInteger(v)) return digits(v, 0);
  return digits(v, v >= 10 ? 1 : 2);
}
function bytes(v) {
  const u = ["B", "KB", "MB", "GB", "TB"];
  let i = 0;
  while (v >= 1000 && i < u.length - 1) { v /= 1000; i++; }
  return digits(v, v < 10 && i ? 1 : 0) + " " + u[i];
}
function time(ms) {
  if (!ms) return "–";
  if (ms < 1) return digits(ms * 1000, 0) + " µs";
  if (ms < 1000) return digits(ms, ms < 10 ? 2 : ms < 100 ? 1 : 0) + " ms";
  return digits(ms / 1000, 2) + " s";
}
function age(ms) {
  const s = Math.max(0, Math.floor(ms / 1000)), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  return d ? `${d} d ${h % 24} h` : h ? `${h} h ${m % 60} min` : m ? `${m} min ${s % 60} s` : `${s} s`;
}
function errors(p) {
  const all = p.xx.reduce((a, b) => a + b, 0);
  return all ? 100 * p.xx[4] / all : 0;
}
function make(parent, tag, attributes, text) {
  const e = document.createElementNS(NS, tag);
  for (const k in attributes) e.setAttribute(k, attributes[k]);
  if (text !== undefined) e.textContent = text;
  parent.append(e);
  return e;
}
function nice(max) {
  if (!(max > 0)) return 1;
  const p = Math.pow(10, Math.floor(Math.log10(max)));
  for (const m of [1, 2, 2.5, 5, 10]) if (m * p >= max) return m * p;
}

// A chart: lines, or areas stacked upon each other. Its legend shows the newest values, or those under the pointer.
class Chart {
  constructor(id, series, format, options = {}) {
    this.box = $(id); this.plot = this.box.querySelector(".plot"); this.series = series; this.format = format; this.options = options;
    this.title = this.box.querySelector("h2").textContent;
    this.at = null;
    this.values = series.map(s => {
      const li = document.createElement("li"), dot = document.createElement("i"), b = document.createElement("b");
      dot.style.background = `var(${s.color})`;
      li.append(dot, s.name + " ", b);
      this.box.querySelector(".legend").append(li);
      return b;
    });
    const move = x => { const r = this.plot.getBoundingClientRect(); this.at = Math.min(1, Math.max(0, (x - r.left - 44) / (r.width - 44))); this.draw(); };
    this.plot.addEventListener("pointermove", e => move(e.clientX));
    this.plot.addEventListener("pointerleave", () => { this.at = null; this.draw(); });
    this.plot.addEventListener("keydown", e => {
      if (e.key !== "ArrowLeft" && e.key !== "ArrowRight") return;
      e.preventDefault();
      this.at = Math.min(1, Math.max(0, (this.at ?? 1) + (e.key === "ArrowLeft" ? -1 : 1) / span()));
      this.draw();
    });
    this.plot.addEventListener("blur", () => { this.at = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }
  draw() {
    const w = this.plot.clientWidth, h = this.plot.clientHeight, left = 44, bottom = 20, top = 6;
    if (!w) return;
    const svg = document.createElementNS(NS, "svg");
    svg.setAttribute("aria-hidden", "true");
    const n = points.length, last = n ? points[n - 1].t : Date.now(), seconds = span();
    const x = t => w - (last - t) / (seconds * 1000) * (w - left);
    const stacked = this.options.stacked;
    const rows = this.series.map(s => points.map(s.value));
    let max = 0;
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (const r of rows) { sum = stacked ? sum + r[i] : Math.max(sum, r[i]); }
      max = Math.max(max, sum);
    }
    const high = nice(max), y = v => h - bottom - v / high * (h - bottom - top);
    for (let i = 0; i <= 2; i++) {
      const v = high * i / 2;
      make(svg, "line", { class: i ? "grid" : "base grid", x1: left, x2: w, y1: y(v), y2: y(v) });
      if (i || max) make(svg, "text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, v ? this.format(v) : "0");
    }
    const step = seconds <= 60 ? 15 : seconds <= 120 ? 30 : 60;
    for (let back = 0; back < seconds; back += step) {
      make(svg, "text", { x: w - back / seconds * (w - left), y: h - 4, "text-anchor": back ? "middle" : "end" },
        !back ? "now" : step < 60 ? `−${back} s` : `−${back / 60} min`);
    }
    const below = new Array(n).fill(0);
    this.series.forEach((s, k) => {
      if (n < 2) return;
      const line = points.map((p, i) => `${x(p.t).toFixed(1)},${y(below[i] + rows[k][i]).toFixed(1)}`);
      if (stacked) {
        if (rows[k].some(v => v > 0)) {
          const back = points.map((p, i) => `${x(p.t).toFixed(1)},${y(below[i]).toFixed(1)}`).reverse();
          make(svg, "polygon", { points: line.concat(back).join(" ") }).style.cssText = `fill:var(${s.color});opacity:.72`;
        }
        rows[k].forEach((v, i) => { below[i] += v; });
      } else {
        make(svg, "polyline", { points: line.join(" "), fill: "none", "stroke-width": 1.75, "stroke-linejoin": "round", "stroke-linecap": "round" }).style.stroke = `var(${s.color})`;
      }
    });
    if (!max) make(svg, "text", { class: "empty", x: left + (w - left) / 2, y: h / 2 }, "nothing yet");
    let shown = n - 1;
    if (this.at !== null && n) {
      const t = last - (1 - this.at) * seconds * 1000;
      shown = points.reduce((best, p, i) => Math.abs(p.t - t) < Math.abs(points[best].t - t) ? i : best, n - 1);
      make(svg, "line", { class: "cross", x1: x(points[shown].t), x2: x(points[shown].t), y1: top, y2: h - bottom });
    }
    this.values.forEach((b, k) => { b.textContent = n ? this.format(rows[k][shown]) : "–"; });
    this.plot.replaceChildren(svg);
    this.plot.setAttribute("aria-label", this.title + ": " + this.series.map((s, k) => `${s.name} ${n ? this.format(rows[k][shown]) : "unknown"}`).join(", "));
  }
}

const charts = [
  new Chart("c-classes", [2, 3, 4, 5, 1].map(c => ({ name: c + "xx", color: "--c" + c, value: p => p.xx[c - 1] })), num, { stacked: true }),
  new Chart("c-latency", ["p50", "p90", "p99"].map(k => ({ name: k, color: "--" + k, value: p => p[k] })), time),
  new Chart("c-conns", [{ name: "open", color: "--c2", value: p => p.cx }, { name: "requests under way", color: "--p99", value: p => p.rq }, { name: "new a second", color: "--c3", value: p => p.cps }], num),
  new Chart("c-bytes", [{ name: "received", color: "--c3", value: p => p.rx }, { name: "sent", color: "--c2", value: p => p.tx }], bytes),
];

function spark(id, value, color) {
  const svg = $(id), w = svg.clientWidth, h = svg.clientHeight, list = points.slice(-120), seconds = Math.min(120, span()), max = Math.max(...list.map(value), 1e-9);
  svg.replaceChildren();
  if (list.length < 2 || !w) return;
  const last = list[list.length - 1].t;
  const line = list.map(p => `${(w - (last - p.t) / (seconds * 1000) * w).toFixed(1)},${(h - 2 - value(p) / max * (h - 5)).toFixed(1)}`);
  const first = line[0].split(",")[0];
  make(svg, "polygon", { points: `${first},${h} ${line.join(" ")} ${w},${h}` }).style.cssText = `fill:var(${color});opacity:.13`;
  make(svg, "polyline", { points: line.join(" "), fill: "none", "stroke-width": 1.75, "stroke-linejoin": "round" }).style.stroke = `var(${color})`;
}

// pluginTimes are the p99 of each plugin since the page was opened, for at most two minutes.
const pluginTimes = new Map();
function line(parent, list) {
  const w = 120, h = 18, svg = document.createElementNS(NS, "svg"), max = Math.max(...list, 1e-9);
  svg.setAttribute("aria-hidden", "true"); svg.setAttribute("width", w); svg.setAttribute("height", h);
  const at = list.map((v, i) => `${w - (list.length - 1 - i)},${(h - 2 - v / max * (h - 4)).toFixed(1)}`);
  make(svg, "polyline", { points: at.join(" "), fill: "none", "stroke-width": 1.5 }).style.stroke = "var(--p99)";
  parent.append(svg);
}

function cell(row, text, kind) {
  const td = row.insertCell();
  td.textContent = text;
  if (kind) td.className = kind;
  return td;
}
function table(id, list, none, fill) {
  const body = document.createElement("tbody");
  body.id = id;
  for (const item of list) fill(body.insertRow(), item);
  if (!list.length) {
    const td = cell(body.insertRow(), none, "none");
    td.colSpan = 8;
  }
  $(id).replaceWith(body);
}

function show(message) {
  const { now, suite, about } = message, p = points[points.length - 1];
  if (!p) return;
  $("t-rps").textContent = num(p.rps);
  $("u-rps").textContent = num(now.totals.requests) + " in all · " + num(p.rq) + " under way";
  const [v, unit] = time(p.p99).split(" ");
  $("t-p99").textContent = v; $("t-p99u").textContent = unit || "";
  $("u-p99").textContent = "p50 " + time(p.p50) + " · p90 " + time(p.p90);
  $("t-err").textContent = digits(errors(p), 2);
  $("t-err").className = errors(p) > 0 ? "hot" : "";
  $("u-err").textContent = num(p.xx[4]) + " 5xx a second · " + num(p.xx[3]) + " 4xx";
  $("t-cx").textContent = num(p.cx);
  $("u-cx").textContent = num(p.cps) + " new a second";
  spark("s-rps", q => q.rps, "--c2"); spark("s-p99", q => q.p99, "--p99"); spark("s-err", errors, "--c5"); spark("s-cx", q => q.cx, "--c3");
  for (const c of charts) c.draw();

  const daemons = suite.daemons || [], away = daemons.filter(d => !d.ready);
  state(now.live ? (away.length ? "warn" : "good") : "bad", now.live ? (away.length ? "serving, degraded" : "serving") : "not serving");
  const said = away.map(d => `${d.name}: ${d.status}.`);
  if (!now.live) said.unshift("No generation of proxyd accepts connections.");
  if (suite.reload_error) said.push("The last reload was refused: " + suite.reload_error);
  if (suite.upgrade) said.push("Upgrade: " + suite.upgrade);
  $("notice").hidden = !said.length;
  if ($("notice").textContent !== said.join(" ")) $("notice").textContent = said.join(" ");
  $("facts").textContent = suite.snapshot ? "configuration " + suite.snapshot.slice(0, 12) : "";

  if (now.clusters) table("clusters", now.clusters, "no clusters", (row, c) => {
    cell(row, c.name).title = c.name;
    const hosts = cell(row, "", c.healthy >= c.members && c.members ? "up" : c.healthy ? "part" : "down");
    const meter = document.createElement("span"), bar = document.createElement("i");
    meter.className = "meter"; bar.style.width = (c.members ? 100 * c.healthy / c.members : 0) + "%";
    meter.append(bar);
    hosts.append(meter, `${c.healthy} of ${c.members}`);
    cell(row, num(c.rps), "n"); cell(row, num(c.errors), c.errors > 0 ? "n hot" : "n");
    cell(row, time(c.p50), "n"); cell(row, time(c.p99), "n"); cell(row, num(c.rq), "n"); cell(row, num(c.cx), "n");
  });
  $("h-clusters").textContent = now.more_clusters ? `Clusters, the busiest of ${now.clusters.length + now.more_clusters}` : "Clusters";
  if (now.listeners) table("listeners", now.listeners, "no listeners", (row, l) => {
    cell(row, l.name).title = l.name;
    cell(row, num(l.cx), "n"); cell(row, num(l.cps), "n"); cell(row, num(l.total), "n"); cell(row, num(l.refused), l.refused ? "n hot" : "n");
  });
  if (now.plugins) {
    $("s-plugins").hidden = !now.plugins.length;
    table("plugins", now.plugins, "no plugins", (row, g) => {
      cell(row, g.name).title = g.name;
      cell(row, num(g.cps), "n"); cell(row, num(g.cached), "n"); cell(row, num(g.failed), g.failed > 0 ? "n hot" : "n");
      cell(row, time(g.p50), "n"); cell(row, time(g.p99), "n"); cell(row, time(g.queue), "n"); cell(row, num(g.rq), "n");
      line(cell(row, ""), pluginTimes.get(g.name) || []);
    });
  }
  const kind = { serving: "up", draining: "part", failed: "down", gone: "none" };
  table("generations", (suite.generations || []).slice().sort((a, b) => b.number - a.number), "restartd does not say", (row, g) => {
    cell(row, g.number); cell(row, g.state, kind[g.state]).title = g.message;
    cell(row, g.version); cell(row, g.started ? age(p.t - g.started) : "–", "n"); cell(row, num(g.connections), "n");
  });
  $("daemons").replaceChildren(...[{ name: "statsd", ready: true, status: "ready" }, ...daemons].map(d => {
    const li = document.createElement("li");
    li.className = "pill " + (d.ready ? "good" : "bad");
    li.textContent = d.name; li.title = d.status;
    const words = document.createElement("span");
    words.textContent = d.ready ? "ready" : "away";
    li.append(" ", words);
    return li;
  }));
  $("about").textContent = `Retinue ${about.version} · ${num(about.series)} series in ${bytes(about.bytes)} · up ${age(p.t - about.started)}`;
}

function state(kind, text) {
  $("state").className = "pill " + kind;
  if ($("state").textContent !== text) $("state").textContent = text;
}

let stream, lastHeard = 0, latest;
function connect() {
  stream = new EventSource("events");
  stream.onmessage = e => {
    const message = JSON.parse(e.data);
    lastHeard = Date.now(); latest = message;
    for (const g of message.now.plugins || []) {
      const list = pluginTimes.get(g.name) || [];
      list.push(g.p99);
      pluginTimes.set(g.name, list.slice(-120));
    }
    if (message.points) points = message.points;
    else points.push(message.now.point);
    if (points.length > KEEP) points = points.slice(-KEEP);
    if (!document.hidden) show(message);
  };
  stream.onerror = () => {
    state("wait", "reconnecting");
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 3000); // refused, as when too many are open
  };
}
document.addEventListener("visibilitychange", () => { if (!document.hidden && latest) show(latest); });
setInterval(() => { // a stream that is silently dead: the other side sends every second
  if (lastHeard && Date.now() - lastHeard > 40000) { lastHeard = Date.now(); stream.close(); state("wait", "reconnecting"); connect(); }
}, 5000);
connect();
