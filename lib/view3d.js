// Parts in 3D on a canvas, without WebGL, so that they look the same everywhere: triangles and lines through a depth buffer, orthographic.
// Part of the report's page and of serve's.
//
// A mesh: { points, normals: Float32Array of 3 each, triangles: three indices each, lines: Float32Array, pairs: two indices
// into lines each, centre, radius }; measure() adds the last two.  A turn is a rotation, by rows: right, up, towards the viewer.
const view3d = (() => {
"use strict";
const unit = v => { const l = Math.hypot(...v); return v.map(x => x / l); };
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const times = (a, b) => [0, 3, 6].flatMap(r => [0, 1, 2].map(c => a[r] * b[c] + a[r + 1] * b[c + 3] + a[r + 2] * b[c + 6]));
const light = unit([-0.35, 0.5, 0.9]);

function oblique() { // as the pictures look at a part
    const w = unit([0.9, -1.2, 0.85]), u = unit(cross([0, 0, 1], w));
    return [...u, ...cross(w, u), ...w];
}

// About the upright axis of the screen, then about the level one.
function rotated(turn, a, b) {
    return times(times([1, 0, 0, 0, Math.cos(b), -Math.sin(b), 0, Math.sin(b), Math.cos(b)], [Math.cos(a), 0, Math.sin(a), 0, 1, 0, -Math.sin(a), 0, Math.cos(a)]), turn);
}

function measure(m) {
    const lo = [Infinity, Infinity, Infinity], hi = [-Infinity, -Infinity, -Infinity];
    m.points.forEach((v, i) => { lo[i % 3] = Math.min(lo[i % 3], v); hi[i % 3] = Math.max(hi[i % 3], v); });
    m.centre = lo.map((v, k) => (v + hi[k]) / 2);
    m.size = lo.map((v, k) => hi[k] - v);
    m.radius = Math.hypot(...m.size) / 2 || 1;
    return m;
}

// things: [{ mesh, colour, place }], place: rotation (9) and translation (3), or none; the first is in the middle.
function draw(canvas, things, turn, zoom) {
    const side = Math.max(64, Math.round(canvas.clientWidth * Math.min(devicePixelRatio || 1, 2)));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const ctx = canvas.getContext("2d"), image = ctx.createImageData(side, side);
    const pixel = new Uint32Array(image.data.buffer).fill(0xffffffff), depth = new Float32Array(side * side).fill(-Infinity);
    const lay = (r, t, x, y, z) => [r[0] * x + r[1] * y + r[2] * z + t[0], r[3] * x + r[4] * y + r[5] * z + t[1], r[6] * x + r[7] * y + r[8] * z + t[2]];
    const { mesh: { centre: c, radius }, place: at } = things[0] || { mesh: { centre: [0, 0, 0], radius: 1 } };
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
        for (let i = 0; i < m.pairs.length; i += 2) {
            const a = 3 * m.pairs[i], b = 3 * m.pairs[i + 1], [x, y, z, x2, y2, z2] = [p[a], p[a + 1], p[a + 2], p[b], p[b + 1], p[b + 2]];
            const steps = Math.max(1, Math.ceil(Math.max(Math.abs(x2 - x), Math.abs(y2 - y))));
            for (let k = 0; k <= steps; k++) {
                const f = k / steps, px = Math.floor(x + (x2 - x) * f), py = Math.floor(y + (y2 - y) * f), at = py * side + px;
                if (px >= 0 && py >= 0 && px < side && py < side && z + (z2 - z) * f > depth[at] - 0.012 * side * zoom) ink.set(at, dark);
            }
        }
    }
    ink.forEach((colour, at) => pixel[at] = colour);
    ctx.putImageData(image, 0, 0);
}

// Lets a canvas be turned: turned(a, b), zoomed(factor), reset(), and taken() when it is taken hold of.
function handle(canvas, { turned, zoomed, reset, taken }) {
    canvas.onpointerdown = e => { if (taken) taken(); canvas.setPointerCapture(e.pointerId); };
    canvas.onpointermove = e => { if (e.buttons) turned(e.movementX * 0.01, e.movementY * 0.01); };
    canvas.addEventListener("wheel", e => { e.preventDefault(); zoomed(Math.exp(-e.deltaY * 0.001)); }, { passive: false });
    canvas.ondblclick = reset;
}
const zoom_within = (zoom, factor) => Math.min(20, Math.max(0.2, zoom * factor));

return { oblique, rotated, measure, draw, handle, zoom_within };
})();
