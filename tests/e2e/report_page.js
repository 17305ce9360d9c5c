// Put ahead of a report page's own scripts by t70-report.sh: looks for errors, sorts, filters, opens the 3D view,
// looks at its pixels and turns it; says what it found in <pre id="test">.
(() => {
const errors = [], result = { checks: [] };
addEventListener("error", e => errors.push(e.message || "resource failed"), true);
addEventListener("unhandledrejection", e => errors.push(String(e.reason)));
addEventListener("securitypolicyviolation", e => errors.push("policy: " + e.blockedURI));
const by = id => document.getElementById(id);
const check = (ok, what) => result.checks.push((ok ? "ok " : "FAIL ") + what);
const names = () => [...document.querySelectorAll(".card .id span:first-child")].map(e => e.textContent);
function set(id, value) {
    by(id).value = value;
    by(id).dispatchEvent(new Event("input"));
}
const until = async f => { for (let i = 0; i < 200 && !f(); i++) await new Promise(r => setTimeout(r, 20)); return f(); };
function pixels(canvas) {
    const d = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let drawn = 0, hash = 0;
    for (let i = 0; i < d.length; i += 4) {
        drawn += d[i] !== 255 || d[i + 1] !== 255 || d[i + 2] !== 255;
        hash = (hash * 31 + d[i] + 3 * d[i + 1]) | 0;
    }
    return { share: drawn / (d.length / 4), hash };
}
async function run() {
    const data = JSON.parse(by("data").textContent), n = data.parts.length;
    check(document.querySelectorAll(".card").length === n, `a card for each of ${n} parts`);
    check([...document.querySelectorAll(".card img")].every(i => i.complete && i.naturalWidth > 0), "pictures load");
    for (const key of ["scd", "entities"]) {
        set("sort", key === "scd" ? "distance, best first" : "entities, most first");
        const value = p => p[key] ?? (key === "scd" ? Infinity : -Infinity), sign = key === "scd" ? 1 : -1;
        const due = data.parts.slice().sort((a, b) => value(a) === value(b) ? (a.name < b.name ? -1 : 1) : sign * (value(a) - value(b))).map(p => p.name);
        check(names().join() === due.join(), `sorted by ${key}: ${names()}`);
    }
    set("filter", "failed");
    check(names().length === data.parts.filter(p => p.complete === false || p.renderable === false || p.why_distance).length && names().length > 0,
        `failed parts: ${names()}`);
    check(document.querySelectorAll(".card .why").length >= names().length, "failed parts say why");
    set("filter", "all parts");
    set("search", "no such words");
    check(names().length === 0, "search that finds nothing");
    set("search", "");
    const card = [...document.querySelectorAll(".card.turns")].find(c => c.querySelectorAll("img").length === 2);
    card.click();
    check(await until(() => by("turner").open && document.querySelectorAll("canvas").length === 3), "three views open");
    const canvases = [...document.querySelectorAll("canvas")];
    const drawn = await until(() => canvases.every(c => pixels(c).share > 0.05 && pixels(c).share < 0.9));
    check(drawn, "3D views drawn: " + canvases.map(c => pixels(c).share.toFixed(3)));
    const before = canvases.map(c => pixels(c).hash).join();
    canvases[0].dispatchEvent(new PointerEvent("pointermove", { buttons: 1, movementX: 60, movementY: 25 }));
    check(await until(() => canvases.every((c, i) => pixels(c).hash !== +before.split(",")[i])), "all views turn with the mouse");
    check(errors.length === 0, "no errors " + errors.join("; "));
}
addEventListener("load", () => run().catch(e => check(false, String(e))).then(() => {
    const pre = document.createElement("pre");
    pre.id = "test";
    pre.textContent = result.checks.join("\n") + "\ntest ended";
    document.body.prepend(pre);
}));
})();
