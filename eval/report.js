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
    const m = { points: points(n_points), triangles: deltas(3 * n_triangles), line_ends: deltas(n_lines), lines: points(n_line_points) };
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
    const lo = [Infinity, Infinity, Infinity], hi = [-Infinity, -Infinity, -Infinity];
    for (let i = 0; i < p.length; i++) {
        lo[i % 3] = Math.min(lo[i % 3], p[i]);
        hi[i % 3] = Math.max(hi[i % 3], p[i]);
    }
    m.centre = lo.map((v, k) => (v + hi[k]) / 2);
    m.radius = Math.hypot(hi[0] - lo[0], hi[1] - lo[1], hi[2] - lo[2]) / 2 || 1;
    return m;
}

// ---- drawing: triangles and lines through a depth buffer, orthographic ----

const light = (([x, y, z]) => { const l = Math.hypot(x, y, z); return [x / l, y / l, z / l]; })([-0.35, 0.5, 0.9]);
const TRUE = [126, 155, 196], GENERATED = [232, 163, 92];

// things: [{ mesh, colour, place }], place: rotation (9) and translation (3), or none.
function draw(canvas, things, turn, zoom) {
    const side = Math.max(64, Math.round(canvas.clientWidth * Math.min(devicePixelRatio || 1, 2)));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const ctx = canvas.getContext("2d"), image = ctx.createImageData(side, side);
    const pixel = new Uint32Array(image.data.buffer).fill(0xffffffff), depth = new Float32Array(side * side).fill(-Infinity);
    const lay = (r, t, x, y, z) => [r[0] * x + r[1] * y + r[2] * z + t[0], r[3] * x + r[4] * y + r[5] * z + t[1], r[6] * x + r[7] * y + r[8] * z + t[2]];
    const { mesh: { centre: c, radius }, place: at } = things[0];
    const centre = at ? lay(at, at.slice(9), ...c) : c, scale = side * 0.46 * zoom / radius;

    const transform = (from, place, normal) => {
        const out = new Float32Array(from.length), shift = place && !normal ? place.slice(9) : [0, 0, 0];
        for (let i = 0; i < from.length; i += 3) {
            let x = from[i], y = from[i + 1], z = from[i + 2];
            if (place) [x, y, z] = lay(place, shift, x, y, z);
            if (!normal) { x -= centre[0]; y -= centre[1]; z -= centre[2]; }
            const u = turn[0] * x + turn[1] * y + turn[2] * z, v = turn[3] * x + turn[4] * y + turn[5] * z, w = turn[6] * x + turn[7] * y + turn[8] * z;
            out[i] = normal ? u : side / 2 + u * scale;
            out[i + 1] = normal ? v : side / 2 - v * scale;
            out[i + 2] = normal ? w : w * scale;
        }
        return out;
    };
    for (const { mesh: m, colour, place } of things) {
        const p = transform(m.points, place, false), n = transform(m.normals, place, true), t = m.triangles;
        const shade = new Float32Array(p.length / 3);
        for (let i = 0; i < shade.length; i++) {
            const s = n[3 * i] * light[0] + n[3 * i + 1] * light[1] + n[3 * i + 2] * light[2];
            shade[i] = 0.42 + 0.62 * Math.max(0, n[3 * i + 2] < 0 ? -s : s); // a face seen from behind is lit, too
        }
        for (let i = 0; i < t.length; i += 3) {
            const [a, b, c] = [3 * t[i], 3 * t[i + 1], 3 * t[i + 2]];
            const [ax, ay, bx, by, cx, cy] = [p[a], p[a + 1], p[b], p[b + 1], p[c], p[c + 1]];
            const area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax);
            if (!area) continue;
            const x0 = Math.max(0, Math.ceil(Math.min(ax, bx, cx) - 0.5)), x1 = Math.min(side - 1, Math.floor(Math.max(ax, bx, cx) - 0.5));
            const y0 = Math.max(0, Math.ceil(Math.min(ay, by, cy) - 0.5)), y1 = Math.min(side - 1, Math.floor(Math.max(ay, by, cy) - 0.5));
            for (let y = y0; y <= y1; y++)
                for (let x = x0; x <= x1; x++) {
                    const u = ((bx - x - 0.5) * (cy - y - 0.5) - (by - y - 0.5) * (cx - x - 0.5)) / area;
                    const v = ((cx - x - 0.5) * (ay - y - 0.5) - (cy - y - 0.5) * (ax - x - 0.5)) / area, w = 1 - u - v;
                    if (u < -1e-6 || v < -1e-6 || w < -1e-6) continue;
                    const z = u * p[a + 2] + v * p[b + 2] + w * p[c + 2], at = y * side + x;
                    if (z <= depth[at]) continue;
                    depth[at] = z;
                    const s = u * shade[t[i]] + v * shade[t[i + 1]] + w * shade[t[i + 2]];
                    pixel[at] = 0xff000000 | Math.min(255, colour[2] * s) << 16 | Math.min(255, colour[1] * s) << 8 | Math.min(255, colour[0] * s);
                }
        }
    }
    const ink = new Map();
    for (const { mesh: m, colour, place } of things) {
        const p = transform(m.lines, place, false), dark = 0xff000000 | (colour[2] * 0.3) << 16 | (colour[1] * 0.3) << 8 | colour[0] * 0.3;
        let from = 0;
        for (const end of m.line_ends) {
            for (let i = from; i + 1 < end; i++) {
                const [x, y, z, x2, y2, z2] = p.slice(3 * i, 3 * i + 6), steps = Math.max(1, Math.ceil(Math.max(Math.abs(x2 - x), Math.abs(y2 - y))));
                for (let k = 0; k <= steps; k++) {
                    const f = k / steps, px = Math.floor(x + (x2 - x) * f), py = Math.floor(y + (y2 - y) * f), at = py * side + px;
                    if (px >= 0 && py >= 0 && px < side && py < side && z + (z2 - z) * f > depth[at] - 0.012 * side * zoom) ink.set(at, dark);
                }
            }
            from = end;
        }
    }
    ink.forEach((colour, at) => pixel[at] = colour);
    ctx.putImageData(image, 0, 0);
}

// ---- the dialog ----

// Rows: right, up, towards the viewer, as the pictures look at a part.
function oblique() {
    const unit = v => { const l = Math.hypot(...v); return v.map(x => x / l); };
    const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
    const w = unit([0.9, -1.2, 0.85]), u = unit(cross([0, 0, 1], w));
    return [...u, ...cross(w, u), ...w];
}

const times = (a, b) => [0, 3, 6].flatMap(r => [0, 1, 2].map(c => a[r] * b[c] + a[r + 1] * b[c + 3] + a[r + 2] * b[c + 6]));
let turn = oblique(), zoom = 1, views = [], pending = false, current = null;

function redraw() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
        pending = false;
        for (const v of views) draw(v.canvas, v.things, turn, zoom);
    });
}

function view(caption, things) {
    const f = make("figure"), canvas = make("canvas"), label = make("figcaption", "", caption);
    f.append(canvas, label);
    by("views").append(f);
    views.push({ canvas, things });
    canvas.onpointerdown = e => canvas.setPointerCapture(e.pointerId);
    canvas.onpointermove = e => {
        if (!e.buttons) return;
        const a = e.movementX * 0.01, b = e.movementY * 0.01;
        const about_up = [Math.cos(a), 0, Math.sin(a), 0, 1, 0, -Math.sin(a), 0, Math.cos(a)];
        const about_right = [1, 0, 0, 0, Math.cos(b), -Math.sin(b), 0, Math.sin(b), Math.cos(b)];
        turn = times(times(about_right, about_up), turn);
        redraw();
    };
    canvas.addEventListener("wheel", e => {
        e.preventDefault();
        zoom = Math.min(20, Math.max(0.2, zoom * Math.exp(-e.deltaY * 0.001)));
        redraw();
    }, { passive: false });
    canvas.ondblclick = () => { turn = oblique(); zoom = 1; redraw(); };
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
        turn = oblique();
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
