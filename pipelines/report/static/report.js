// The page's own script: unpacks what the page carries, draws the curves, and lets people search answers and follow
// each from its prompt to a checkpoint. Texts of models are only ever set as text.
"use strict";

const byId = (id) => document.getElementById(id);
const run = document.body.dataset.run;
const EXCHANGES = 1 << 20, FEEDBACK = 1 << 21; // as in schemas/identity.py
const PAGE = 30;

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

async function unpack(id) {
  const node = byId(id), text = atob(node.textContent);
  node.remove();
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function moment(ms) {
  return ms === null || ms === undefined ? "" : new Date(ms).toISOString().slice(0, 19).replace("T", " ");
}

function short(value, digits = 3) {
  return value === null || value === undefined ? "null" : String(+value.toFixed(digits));
}

// ---------------------------------------------------------------- curves

const drawn = [];

function themed(layout) {
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line") };
  return {
    ...layout,
    xaxis: { ...axis, ...layout.xaxis, title: { ...layout.xaxis.title, standoff: 4, font: { size: 11 } } }, yaxis: { ...axis, ...layout.yaxis },
    shapes: (layout.shapes || []).map((shape) => ({ ...shape, line: { ...shape.line, color: colour("--bad") } })),
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--ink"), size: 12, family: "system-ui, sans-serif" },
    colorway: ["--s0", "--s1", "--s2", "--s3", "--s4", "--s5"].map(colour),
    margin: { l: 48, r: 12, t: 8, b: 36 },
    hovermode: "closest",
  };
}

const undrawn = new Map(); // from the place of a figure to what it shows, until it comes into view

function draw(plot) {
  const each = undrawn.get(plot);
  if (!undrawn.delete(plot)) return;
  seen.unobserve(plot);
  Plotly.newPlot(plot, each.data, themed(each.layout), { responsive: true, displayModeBar: false });
  drawn.push([plot, each]);
}
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => entry.isIntersecting && draw(entry.target)), { rootMargin: "300px" });
window.addEventListener("beforeprint", () => [...undrawn.keys()].forEach(draw));

function lay(figures, into) {
  for (const each of figures) {
    const plot = make("div", "plot"), caption = make("figcaption", "", make("b", "", each.title), " ", make("span", "", each.unit));
    if (each.note) caption.append(make("span", "detail", each.note));
    if (each.data.length > 1) caption.append(make("div", "chips", ...each.data.map((trace, i) => make("span", `chip s${i % 6}`, trace.name))));
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", each.title);
    into.append(make("figure", "", caption, plot));
    undrawn.set(plot, each);
    seen.observe(plot);
  }
}

async function curves() {
  const script = make("script");
  script.textContent = await unpack("plotly-data");
  document.head.append(script);
  lay(JSON.parse(byId("figure-data").textContent), byId("figures"));
  byId("more").addEventListener("toggle", () => lay(JSON.parse(byId("other-data").textContent), byId("others")), { once: true });
  document.body.dataset.curves = "ready";
}

// ---------------------------------------------------------------- answers

let data, groupOf, firstOf, advantages, shown = [], listed = 0, lower = null;

function prepare() {
  const sizes = data.groups.size, number = data.samples.reward.length;
  groupOf = new Int32Array(number);
  firstOf = new Int32Array(sizes.length);
  advantages = new Array(number).fill(null);
  let next = 0;
  sizes.forEach((size, group) => {
    firstOf[group] = next;
    const rewards = data.samples.reward.slice(next, next + size), known = rewards.filter((reward) => reward !== null);
    const mean = known.reduce((sum, reward) => sum + reward, 0) / known.length;
    rewards.forEach((reward, index) => {
      groupOf[next + index] = group;
      if (reward !== null) advantages[next + index] = reward - mean;
    });
    next += size;
  });
}

const group = (i, name) => data.groups[name][groupOf[i]];
const word = (i, name) => data.words[group(i, name)];
const stepOf = (i) => (group(i, "step") === null ? null : data.steps.step[group(i, "step")]);
const place = (i) => `${group(i, "partition")}/${group(i, "offset")}/${i - firstOf[groupOf[i]]}`;
const promptOf = (i) => data.prompts[group(i, "prompt")];

// Pairs of weight version and first character; the last version alone is what the dots are coloured by.
function spansOf(i) {
  const told = data.samples.spans[i];
  if (!Array.isArray(told)) return [[told, 0]];
  return told.flatMap((version, at) => (at % 2 ? [] : [[version, told[at + 1]]]));
}
const newest = (i) => spansOf(i).at(-1)[0];

const NUMBERS = {
  reward: (i) => data.samples.reward[i], advantage: (i) => advantages[i], tokens: (i) => data.samples.tokens[i],
  step: stepOf, version: newest,
};
const WORDS = {
  task: (i) => word(i, "task"), fate: (i) => word(i, "fate"), worker: (i) => word(i, "worker"), id: (i) => `${run}/${place(i)}`,
  purpose: (i) => word(i, "purpose"), finish: (i) => data.words[data.samples.finish[i]], attempt: (i) => group(i, "attempt"),
  error: (i) => (data.samples.error[i] === null ? "" : data.words[data.samples.error[i]]),
};

// One test a part of the query: reward<0.5, step:12, version:3, fate:stale, reward:null, "a phrase", word.
function test(part) {
  const [, name, sign, wanted] = part.match(/^([a-z]+)([:<>])(.+)$/) || [];
  if (sign === ":" && name === "version") return (i) => spansOf(i).some(([version]) => String(version) === wanted);
  if (sign === ":" && NUMBERS[name]) return (i) => String(NUMBERS[name](i)) === wanted;
  if (sign === ":" && WORDS[name]) return (i) => WORDS[name](i).toLowerCase().includes(wanted);
  if (NUMBERS[name] && sign === "<") return (i) => NUMBERS[name](i) !== null && NUMBERS[name](i) < +wanted;
  if (NUMBERS[name] && sign === ">") return (i) => NUMBERS[name](i) !== null && NUMBERS[name](i) > +wanted;
  lower = lower || { prompts: data.prompts.map((text) => text.toLowerCase()), answers: data.samples.answer.map((text) => text.toLowerCase()) };
  return (i) => lower.answers[i].includes(part) || lower.prompts[group(i, "prompt")].includes(part) ||
    (group(i, "promptId") || "").toLowerCase().includes(part) || `${run}/${place(i)}`.toLowerCase().includes(part);
}

const ORDERS = {
  new: (a, b) => group(b, "generatedAt") - group(a, "generatedAt") || b - a,
  old: (a, b) => group(a, "generatedAt") - group(b, "generatedAt") || a - b,
  high: (a, b) => (data.samples.reward[b] ?? -Infinity) - (data.samples.reward[a] ?? -Infinity) || a - b,
  low: (a, b) => (data.samples.reward[a] ?? Infinity) - (data.samples.reward[b] ?? Infinity) || a - b,
  long: (a, b) => data.samples.tokens[b] - data.samples.tokens[a] || a - b,
};

function search() {
  const parts = [...byId("query").value.toLowerCase().matchAll(/"([^"]+)"|(\S+)/g)].map((found) => found[1] || found[2]);
  const tests = parts.map(test), number = data.samples.reward.length;
  shown = [];
  for (let i = 0; i < number; i++) if (tests.every((passes) => passes(i))) shown.push(i);
  shown.sort(ORDERS[byId("order").value]);
  const total = number.toLocaleString("en"), every = data.stride > 1 ? `, every ${data.stride}th group of ${data.seen.toLocaleString("en")} answers` : "";
  byId("count").textContent = `${shown.length.toLocaleString("en")} of ${total} answers${every}`;
  byId("count").dataset.query = byId("query").value;
  byId("list").replaceChildren();
  listed = 0;
  further();
  dots();
}

function further() {
  byId("list").append(...shown.slice(listed, listed + PAGE).map(card));
  listed = Math.min(shown.length, listed + PAGE);
  byId("further").hidden = listed >= shown.length;
}

function said(i) {
  const text = [...data.samples.answer[i]], spans = spansOf(i), node = make("div", "said"); // places count whole characters
  spans.forEach(([version, start], index) => {
    const end = index + 1 < spans.length ? spans[index + 1][1] : text.length;
    if (start > text.length) return;
    const label = make("sup", "", `v${version}`), part = make("span", `span v${spans.length > 1 ? version % 6 : "none"}`, label, text.slice(start, end).join(""));
    part.title = `written by weight version ${version}`;
    node.append(part);
  });
  const missing = data.samples.characters[i] - text.length;
  if (missing > 0) node.append(make("span", "prompt", ` … ${missing.toLocaleString("en")} more characters`));
  return node;
}

function card(i) {
  const step = stepOf(i), error = data.samples.error[i], name = make("button", "name", `${run}/${place(i)}`);
  name.type = "button";
  const reward = error === null ? short(data.samples.reward[i]) : `null, ${data.words[error]}`;
  const meta = make("div", "meta", name, make("span", "", "reward ", make("b", "", reward)),
    make("span", "", "advantage ", make("b", "", advantages[i] === null ? "–" : short(advantages[i]))),
    make("span", "", step === null ? word(i, "fate") : `${word(i, "fate")} in step ${step}`), make("span", "", `${data.samples.tokens[i]} tokens`));
  const node = make("li", "answer", meta, make("div", "prompt", promptOf(i)), said(i));
  node.style.borderLeftColor = paint(i);
  node.addEventListener("click", () => open(i));
  return node;
}

// ---------------------------------------------------------------- dots

const FATES = ["trained", "waiting", "zero_variance", "stale"];
let scale = { most: 1, low: 0, high: 1, oldest: 0, newest: 1 };

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
  return low > high ? [0, 1] : [low, high];
}

function measure() {
  const [low, high] = extent(data.samples.reward), [least, most] = extent(advantages);
  const versions = extent(data.samples.reward.map((_, i) => newest(i)));
  scale = { low, high, most: Math.max(-least, most) || 1, oldest: versions[0], newest: versions[1] };
}

function mix(from, to, share) {
  const [a, b] = [from, to].map((name) => colour(name).slice(1).match(/../g).map((two) => parseInt(two, 16)));
  return `rgb(${a.map((part, i) => Math.round(part + share * (b[i] - part))).join(",")})`;
}

// Which of some few colours an answer has, as a key of `paints`.
function shade(i) {
  const by = byId("colour").value, ninth = (value) => Math.round(8 * Math.min(1, Math.max(0, value)));
  if (by === "fate") return `f${Math.min(4, (FATES.indexOf(word(i, "fate")) + 5) % 5)}`;
  if (by === "version") return `r${ninth((newest(i) - scale.oldest) / (scale.newest - scale.oldest || 1))}`;
  if (data.samples.reward[i] === null) return "n";
  if (by === "reward") return `r${ninth((data.samples.reward[i] - scale.low) / (scale.high - scale.low || 1))}`;
  return `a${ninth(0.5 + advantages[i] / scale.most / 2)}`;
}

function paintOf(key) {
  const kind = key[0], number = +key.slice(1);
  if (kind === "f") return colour(["--s2", "--s0", "--mid", "--s1", "--bad"][number]);
  if (kind === "n") return colour("--bad");
  if (kind === "r") return mix("--low", "--high", number / 8);
  return number < 4 ? mix("--low", "--mid", number / 4) : mix("--mid", "--high", (number - 4) / 4);
}
const paints = new Map();
function paint(i) {
  const key = shade(i);
  if (!paints.has(key)) paints.set(key, paintOf(key));
  return paints.get(key);
}

const LEFT = 44, TOP = 12, BOTTOM = 24, RIGHT = 10;

function projection(canvas) {
  const height = NUMBERS[byId("height").value], [low, high] = extent(data.samples.reward.map((_, i) => height(i)));
  const [first, last] = extent(data.groups.generatedAt), width = canvas.clientWidth - LEFT - RIGHT, tall = canvas.clientHeight - TOP - BOTTOM;
  const spread = (i) => (((i * 2654435761) >>> 8) % 1000) / 1000 - 0.5; // so that equal rewards do not hide each other
  return {
    low, high, first, last,
    x: (i) => LEFT + (width * (group(i, "generatedAt") - first)) / (last - first || 1),
    y: (i) => TOP + tall * (1 - ((height(i) ?? low) - low) / (high - low || 1)) + 8 * spread(i),
  };
}

function dots() {
  const canvas = byId("dots"), ratio = window.devicePixelRatio || 1, pen = canvas.getContext("2d"), at = projection(canvas);
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  pen.scale(ratio, ratio);
  const size = shown.length > 20000 ? 2 : shown.length > 2000 ? 3 : 5, layers = new Map();
  for (const i of shown) {
    const key = paint(i);
    if (!layers.has(key)) layers.set(key, []);
    layers.get(key).push(i);
  }
  pen.globalAlpha = shown.length > 2000 ? 0.7 : 0.9;
  for (const [fill, members] of layers) {
    pen.fillStyle = fill;
    for (const i of members) pen.fillRect(at.x(i) - size / 2, at.y(i) - size / 2, size, size);
  }
  pen.globalAlpha = 1;
  pen.fillStyle = colour("--faint");
  pen.font = "11px system-ui, sans-serif";
  pen.fillText(short(at.high, 2), 4, TOP + 8);
  pen.fillText(short(at.low, 2), 4, canvas.clientHeight - BOTTOM);
  pen.fillText(moment(at.first).slice(5), LEFT, canvas.clientHeight - 6);
  pen.textAlign = "right";
  pen.fillText(`${moment(at.last).slice(5)} UTC`, canvas.clientWidth - RIGHT, canvas.clientHeight - 6);
  pen.textAlign = "left";
  legend();
}

function legend() {
  const by = byId("colour").value, chip = (key, text) => {
    const mark = make("i");
    mark.style.background = paintOf(key);
    return [mark, text];
  };
  const told = {
    fate: [["f0", "trained"], ["f1", "waiting"], ["f2", "zero variance"], ["f3", "stale"], ["f4", "dropped otherwise"]],
    version: [["r0", `version ${scale.oldest}`], ["r8", `version ${scale.newest}`]],
    reward: [["r0", `reward ${short(scale.low)}`], ["r8", `reward ${short(scale.high)}`], ["n", "no reward"]],
    advantage: [["a0", `advantage ${short(-scale.most)}`], ["a4", "0"], ["a8", short(scale.most)], ["n", "no reward"]],
  };
  byId("legend").replaceChildren(...told[by].flatMap(([key, text]) => chip(key, text)));
}

function nearest(event) {
  const canvas = byId("dots"), box = canvas.getBoundingClientRect(), at = projection(canvas);
  let best = null, least = 15 ** 2;
  for (const i of shown) {
    const away = (at.x(i) - event.clientX + box.left) ** 2 + (at.y(i) - event.clientY + box.top) ** 2;
    if (away < least) [best, least] = [i, away];
  }
  return best;
}

// ---------------------------------------------------------------- lineage

function node(what, text, ...details) {
  const item = make("li", "", make("span", "what", what), text);
  for (const detail of details) if (detail) item.append(typeof detail === "string" ? make("p", "", detail) : detail);
  return item;
}

function finder(text, query) {
  const button = make("button", "name", text);
  button.type = "button";
  button.addEventListener("click", () => {
    byId("lineage").close();
    byId("query").value = query;
    search();
    byId("answers").scrollIntoView();
  });
  return button;
}

function promptNode(i) {
  const partition = group(i, "partition"), offset = group(i, "offset");
  const [topic, number] = partition >= FEEDBACK ? ["feedback", partition - FEEDBACK] : partition >= EXCHANGES ? ["exchanges", partition - EXCHANGES] : ["prompts", partition];
  const id = group(i, "promptId");
  return node("Prompt", `${run}.${topic}, partition ${number}, offset ${offset}`,
    `${id === null ? "" : `id ${id}, `}task ${word(i, "task")}, written ${moment(group(i, "promptAt"))} UTC`, make("div", "prompt", promptOf(i)));
}

function groupNode(i) {
  const number = groupOf[i], first = firstOf[number], size = data.groups.size[number], siblings = make("div", "siblings");
  for (let other = first; other < first + size; other++) {
    const button = make("button", "", `${other - first}: ${short(data.samples.reward[other])}`);
    button.type = "button";
    if (other === i) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => open(other));
    siblings.append(button);
  }
  return node("Group", `${group(i, "partition")}/${group(i, "offset")}, ${size} answers, purpose ${word(i, "purpose")}`, "its rewards, this answer's marked:", siblings);
}

function stepNodes(i) {
  const index = group(i, "step"), fate = word(i, "fate"), before = (group(i, "before") || []).map((each) =>
    `step ${data.steps.step[each]} of generation ${data.steps.generation[each]} had it too, and left the surviving line`).join("; ");
  if (index === null) {
    const open = node("Step", "none yet: no step of the surviving line has consumed the group", before);
    open.classList.add("open");
    return [open];
  }
  const steps = data.steps, step = steps.step[index], version = steps.version[index];
  const where = make("span", "", fate === "trained" ? "trained in " : `dropped as ${fate} in `, finder(`step ${step}`, `step:${step}`), ` of generation ${steps.generation[index]}`);
  const nodes = [node("Step", where, `committed ${moment(steps.at[index])} UTC, mean reward of the step ${short(steps.reward[index])}`, before)];
  if (fate !== "trained") return nodes;
  const at = data.versions.version.indexOf(version), sha = at < 0 ? "" : `announced ${moment(data.versions.at[at])} UTC, manifest sha256 ${data.versions.sha[at]}…`;
  nodes.push(node("Version", make("span", "", "the step made ", finder(`weight version ${version}`, `version:${version}`)), sha));
  const saved = steps.checkpointStep[index];
  const last = saved === null ? node("Checkpoint", "none holds it yet") : node("Checkpoint", `first held by that of step ${saved}`, `manifest sha256 ${steps.checkpointSha[index]}…`);
  if (saved === null) last.classList.add("open");
  return [...nodes, last];
}

function open(i) {
  const seconds = (group(i, "generatedAt") - group(i, "promptAt")) / 1000, error = data.samples.error[i];
  const versions = [...new Set(spansOf(i).map(([version]) => version))].join(", ");
  const answer = node("Answer", `${data.samples.tokens[i]} tokens by weight version ${versions}, ended by ${data.words[data.samples.finish[i]]}`,
    error === null ? `reward ${short(data.samples.reward[i], 5)}, advantage ${advantages[i] === null ? "–" : short(advantages[i], 5)}` : `no reward: ${data.words[error]}`, said(i));
  byId("lineage-name").textContent = `${run}/${place(i)}`;
  byId("chain").replaceChildren(make("ol", "chain", promptNode(i), groupNode(i),
    node("Attempt", group(i, "attempt"), `by ${word(i, "worker")}, finished ${moment(group(i, "generatedAt"))} UTC, ${short(seconds, 1)} s after the prompt was written`), answer,
    node("Trajectory record", `${run}.trajectories, partition ${group(i, "atPartition")}, offset ${group(i, "atOffset")}`), ...stepNodes(i)));
  history.replaceState(null, "", `#answer=${place(i)}`);
  if (!byId("lineage").open) byId("lineage").showModal();
  byId("lineage").scrollTop = 0;
}

function openNamed() {
  const [, name] = location.hash.match(/^#answer=(\d+\/\d+\/\d+)$/) || [];
  if (!name) return;
  for (let i = 0; i < data.samples.reward.length; i++) if (place(i) === name) return open(i);
}

async function answers() {
  data = JSON.parse(await unpack("sample-data"));
  prepare();
  measure();
  search();
  let waiting = 0;
  byId("query").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 150); });
  byId("find").addEventListener("submit", (event) => { event.preventDefault(); search(); });
  byId("order").addEventListener("change", search);
  byId("height").addEventListener("change", dots);
  byId("colour").addEventListener("change", search);
  byId("further").addEventListener("click", further);
  byId("dots").addEventListener("click", (event) => { const i = nearest(event); if (i !== null) open(i); });
  byId("lineage").addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  byId("lineage").addEventListener("click", (event) => { if (event.target === byId("lineage")) byId("lineage").close(); });
  window.addEventListener("hashchange", openNamed);
  window.addEventListener("resize", dots);
  document.body.dataset.answers = "ready";
  openNamed();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  paints.clear();
  for (const [plot, each] of drawn) Plotly.relayout(plot, themed(each.layout));
  search();
});

function tell(fault) {
  byId("count").textContent = `This browser cannot show the answers: ${fault}`;
  console.error(fault);
}

answers().catch(tell).then(curves).catch(tell);
