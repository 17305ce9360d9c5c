// The gallery of report.html: cards of true and generated parts that can be filtered and sorted, and a
// view of both in 3D.  Everything comes from the JSON in #data; nothing is fetched.
"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const by = id => document.getElementById(id);

function make(tag, css, text) {
    const e = document.createElement(tag);
    if (css) e.className = css;
    if (text !== undefined) e.textContent = text;
    return e;
}

// ---- cards ----

const sorts = {
    "name": p => p.name,
    "distance, best first": p => p.scd ?? Infinity,
    "distance, worst first": p => -(p.scd ?? Infinity),
    "two-sided distance, best first": p => p.scd2 ?? Infinity,
    "two-sided distance, worst first": p => -(p.scd2 ?? Infinity),
    "entities, fewest first": p => p.entities ?? Infinity,
    "entities, most first": p => -(p.entities ?? -Infinity),
};
const failed = p => p.complete === false || p.renderable === false || !!p.why_distance;
const filters = { "all parts": () => true, "without failure": p => !failed(p), "failed": failed };

const number = v => v >= 1000 ? v.toFixed(0) : v === 0 ? "0" : v.toPrecision(3);

function picture(caption, file, missing) {
    const f = make("figure"), entry = data.files[file];
    if (entry && entry.png) {
        const img = make("img");
        img.loading = "lazy";
        img.alt = caption;
        img.src = "data:image/png;base64," + entry.png;
        f.append(img);
    } else {
        f.append(make("div", "none", entry ? entry.why || "left out to keep this page small" : missing));
    }
    f.append(make("figcaption", "", caption));
    return f;
}

function badge(to, text, css) {
    to.append(make("span", "badge " + (css || ""), text));
}

const mesh_of = file => data.files[file] && data.files[file].mesh;

function card(p) {
    const c = make("article", "card"), pair = make("div", "pair"), text = make("div", "text"), badges = make("div", "badges");
    const id = make("div", "id");
    pair.append(picture("true", p.truth, "no true part is known"), picture("generated", p.file, p.generated ? "not drawn: see --parts" : "not generated"));
    id.append(make("span", "", p.name), make("span", "", data.labels[p.label]));
    text.append(id);
    if (p.caption) text.append(make("p", "", p.caption));
    for (const [what, why] of [["not complete", p.why_complete], ["not renderable", p.why_renderable], ["no distance", p.why_distance]])
        if (why) text.append(make("div", "why", what + ": " + why));
    if (p.complete !== undefined) badge(badges, p.complete ? "complete" : "not complete", p.complete ? "good" : "bad");
    if (p.renderable !== undefined) badge(badges, p.renderable ? "renderable" : "not renderable", p.renderable ? "good" : "bad");
    if (p.scd !== undefined) badge(badges, "SCD " + number(p.scd));
    if (p.scd2 !== undefined) badge(badges, "two-sided " + number(p.scd2));
    if (p.f !== undefined) badge(badges, "F " + p.f.toFixed(2));
    if (p.volume !== undefined) badge(badges, "volume × " + number(p.volume));
    if (p.entities !== undefined) badge(badges, p.entities + " entities");
    if (p.tokens !== undefined) badge(badges, p.tokens + " tokens");
    text.append(badges);
    c.append(pair, text);
    if (mesh_of(p.truth) || mesh_of(p.file)) {
        c.classList.add("turns");
        c.tabIndex = 0;
        c.title = "turn it in 3D";
        c.onclick = () => open(p);
        c.onkeydown = e => { if (e.key === "Enter") open(p); };
    }
    return c;
}

const page = 60;
let shown = [], until = page;

function fill(from) {
    const cards = by("cards");
    if (!from) cards.replaceChildren();
    cards.append(...shown.slice(from, until).map(card));
    by("more").hidden = until >= shown.length;
    by("count").textContent = `${shown.length} of ${data.parts.length} parts`;
}

function choose() {
    const label = by("label").value, only = filters[by("filter").value], key = sorts[by("sort").value];
    const words = by("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = data.parts.filter(p => (label === "" || p.label === +label) && only(p) &&
        words.every(w => (p.name + " " + (p.caption || "")).toLowerCase().includes(w)));
    const keys = new Map(shown.map(p => [p, key(p)]));
    shown.sort((a, b) => keys.get(a) < keys.get(b) ? -1 : keys.get(a) > keys.get(b) ? 1 : a.name < b.name ? -1 : a.name > b.name ? 1 : a.label - b.label);
    until = page;
    fill(0);
}

function option(select, value, text) {
    const o = make("option", "", text);
    o.value = value;
    by(select).append(o);
}

// ---- meshes: zlib of a little-endian layout that eval/report.c documents ----

const decoded = new Map();

async function mesh(file) {
    if (!mesh_of(file)) return null;
    if (!decoded.has(file)) decoded.set(file, decode(data.files[file].mesh));
    return decoded.get(file);
}

async function decode(base64) {
    const packed = Uint8Array.from(atob(base64), c => c.charCodeAt(0));
    const bytes = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
    const head = new DataView(bytes), min = [0, 4, 8].map(o => head.getFloat32(o, true)), step = head.getFloat32(12, true);
    const [n_points, n_triangles, n_lines, n_line_points] = [16, 20, 24, 28].map(o => head.getUint32(o, true));
    let at = 32;
    const deltas = n => { // differences modulo 2^16
        const v = new Uint16Array(n);
        for (let i = 0, x = 0; i < n; i++, at += 2) v[i] = x = (x + head.getUint16(at, true)) & 0xffff;
        return v;
    };
    const points = n => {
        const out = new Float32Array(3 * n);
        for (let k = 0; k < 3; k++) deltas(n).forEach((q, i) => out[3 * i + k] = min[k] + q * step);
        return out;
    };
    const m = { points: points(n_points), triangles: deltas(3 * n_triangles) }, ends = deltas(n_lines);
    m.lines = points(n_line_points);
    m.pairs = [];
    ends.forEach((end, k) => { for (let i = k ? ends[k - 1] : 0; i + 1 < end; i++) m.pairs.push(i, i + 1); });
    // Faces share no points, so a point's normal is its face's: smooth within, sharp between.
    const normals = m.normals = new Float32Array(3 * n_points), p = m.points, t = m.triangles;
    for (let i = 0; i < t.length; i += 3) {
        const [a, b, c] = [3 * t[i], 3 * t[i + 1], 3 * t[i + 2]];
        const u = [0, 1, 2].map(k => p[b + k] - p[a + k]), v = [0, 1, 2].map(k => p[c + k] - p[a + k]);
        const n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
        for (const at of [a, b, c]) for (let k = 0; k < 3; k++) normals[at + k] += n[k];
    }
    for (let i = 0; i < normals.length; i += 3) {
        const l = Math.hypot(normals[i], normals[i + 1], normals[i + 2]) || 1;
        for (let k = 0; k < 3; k++) normals[i + k] /= l;
    }
    return view3d.measure(m);
}

// ---- the dialog ----

const TRUE = [126, 155, 196], GENERATED = [232, 163, 92];
let turn = view3d.oblique(), zoom = 1, views = [], pending = false, current = null;

function redraw() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
        pending = false;
        for (const v of views) view3d.draw(v.canvas, v.things, turn, zoom);
    });
}

function view(caption, things) {
    const f = make("figure"), canvas = make("canvas"), label = make("figcaption", "", caption);
    f.append(canvas, label);
    by("views").append(f);
    views.push({ canvas, things });
    view3d.handle(canvas, {
        turned: (a, b) => { turn = view3d.rotated(turn, a, b); redraw(); },
        zoomed: factor => { zoom = view3d.zoom_within(zoom, factor); redraw(); },
        reset: () => { turn = view3d.oblique(); zoom = 1; redraw(); },
    });
    return label;
}

function swatch(to, colour, text) {
    const s = make("span", "swatch");
    s.style.background = `rgb(${colour})`;
    to.append(s, text);
}

async function open(p) {
    current = p;
    const [truth, made] = await Promise.all([mesh(p.truth), mesh(p.file)]);
    if (current !== p) return;
    by("views").replaceChildren();
    views = [];
    if (truth) view("true", [{ mesh: truth, colour: TRUE }]);
    if (made) view("generated", [{ mesh: made, colour: GENERATED, place: p.place }]);
    if (truth && made && p.place) {
        const label = view("laid on each other:", [{ mesh: truth, colour: TRUE }, { mesh: made, colour: GENERATED, place: p.place }]);
        swatch(label, TRUE, "true");
        swatch(label, GENERATED, "generated");
    }
    by("which").textContent = `${p.name} (${data.labels[p.label]})`;
    by("asked").textContent = p.caption || "";
    if (!by("turner").open) {
        turn = view3d.oblique();
        zoom = 1;
        by("turner").showModal();
    }
    redraw();
}

function step(by_) {
    const turning = shown.filter(p => mesh_of(p.truth) || mesh_of(p.file)), i = turning.indexOf(current) + by_;
    if (turning[i]) open(turning[i]);
}

if (!data.parts.length) {
    by("gallery").hidden = true; // nothing was scored yet
    return;
}
data.labels.forEach((l, i) => { if (data.parts.some(p => p.label === i)) option("label", i, l); });
Object.keys(filters).forEach(k => option("filter", k, k));
Object.keys(sorts).forEach(k => option("sort", k, k));
for (const id of ["label", "filter", "sort", "search"]) by(id).oninput = choose;
by("more").onclick = () => { const from = until; until += page; fill(from); };
by("close").onclick = () => by("turner").close();
by("before").onclick = () => step(-1);
by("after").onclick = () => step(1);
by("turner").onkeydown = e => { if (e.key === "ArrowLeft") step(-1); else if (e.key === "ArrowRight") step(1); };
onresize = redraw;
choose();
})();
