#!/usr/bin/env python3
"""serve_page.py URL CHROMIUM FOLDER [SECONDS]: a person's visit: types a caption, watches the text, turns the part, downloads it, asks for
another and stops it.  Prints 'ok WHAT' or fails."""
import os, sys, urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Browser

url, program, folder = sys.argv[1:4]
patience = float(sys.argv[4]) if len(sys.argv) > 4 else 240
PIXELS = """(() => { const c = document.getElementById("view"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
    let n = 0, hash = 0; const colours = new Set();
    for (let i = 0; i < d.length; i += 4) { if (d[i] !== 255 || d[i + 1] !== 255 || d[i + 2] !== 255) n++;
        hash = (hash * 31 + d[i] + 3 * d[i + 1]) | 0; colours.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); }
    return { share: n / (d.length / 4), hash, colours: colours.size }; })()"""


def check(good, what):
    assert good, "FAIL: " + what
    print("ok", what)


with Browser(program, folder) as b:
    b.open(url)
    check(b.wait("document.getElementById('model').textContent !== '…' && document.getElementById('model').textContent"), "the model's name is shown")
    check(b.js("document.activeElement.id") == "caption", "the caption has the focus")
    b.key("Enter")
    check("Type what" in b.js("document.getElementById('says').textContent"), "an empty caption is not sent")
    b.type("A round disc with a square hole.")
    b.key("Enter")
    b.wait("document.getElementById('text').textContent.length > 200", patience)
    seen = b.js("document.getElementById('text').textContent")
    check(seen.startswith("DATA;\n") and not b.js("document.getElementById('ask').dataset.done"), "text streams while it is made")
    b.shot(os.path.join(folder, "writing.png"))
    b.wait("document.getElementById('ask').dataset.done === '1'", patience)
    says = b.js("document.getElementById('says').textContent")
    check("instances, valid Part 21, no reference dangles" in says, "the checks are told: " + says)
    text = b.js("document.getElementById('text').textContent")
    check(text.startswith(seen) and text.rstrip().endswith("END-ISO-10303-21;"), "the whole text is there")
    if b.js("document.getElementById('none').textContent"):
        check(False, "no picture: " + b.js("document.getElementById('none').textContent"))
    b.wait(PIXELS + ".share > 0.05", 30)  # drawn with the next frame
    p = b.js(PIXELS)
    check(0.05 < p["share"] < 0.9 and p["colours"] > 20, f"the part is drawn: {p}")
    box = b.js("(r => [r.x + r.width / 2, r.y + r.height / 2])(document.getElementById('view').getBoundingClientRect())")
    b.drag(*box, 80, 30)
    turned = b.js("new Promise(r => setTimeout(() => r(1), 200))") and b.js(PIXELS)
    still = b.js("new Promise(r => setTimeout(() => r(1), 400))") and b.js(PIXELS)
    check(turned["hash"] != p["hash"] and turned["share"] > 0.05, "it turns with the mouse")
    check(still["hash"] == turned["hash"], "and stays as it was left")
    b.shot(os.path.join(folder, "part.png"))
    link = b.js("document.getElementById('step').href")
    step = urllib.request.urlopen(link).read().decode()
    check(step.startswith("ISO-10303-21;") and step.rstrip().endswith("END-ISO-10303-21;") and "/*" not in step, "STEP to download")
    check(urllib.request.urlopen(b.js("document.getElementById('png').href")).read()[:4] == b"\x89PNG", "picture to download")
    check(b.wait("document.querySelectorAll('#earlier img').length === 1 && document.querySelector('#earlier img').naturalWidth"), "it is kept in the list")
    b.js("document.getElementById('caption').value = 'A plate with holes.'; document.getElementById('ask').requestSubmit()")
    b.wait("document.getElementById('text').textContent.length > 50", patience)
    b.js("document.getElementById('stop').click()")
    b.wait("document.getElementById('ask').dataset.done === '2'", 20)
    check(b.js("document.getElementById('says').textContent") == "Stopped.", "Stop stops it")
    check(not b.errors, f"no errors: {b.errors}")
print("visit ended")
