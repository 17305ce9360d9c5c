"""A headless Chromium, spoken to through its DevTools protocol, with nothing but the standard library.

    with Browser("/usr/bin/chromium", folder) as b:
        b.open("http://127.0.0.1:8080/")
        b.js("document.title")                 # values, promises awaited
        b.wait("document.querySelector('x')")  # until it is true
        b.type("text"); b.key("Enter"); b.drag(x, y, dx, dy); b.shot("page.png")
"""
import base64, json, os, re, socket, struct, subprocess, time


class Browser:
    def __init__(self, program, folder, size=(1280, 900)):
        self.process = subprocess.Popen(
            [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}",
             f"--window-size={size[0]},{size[1]}", "about:blank"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        port = None
        for line in self.process.stderr:
            m = re.search(r"DevTools listening on ws://127\.0\.0\.1:(\d+)(/\S+)", line)
            if m:
                port, path = int(m[1]), m[2]
                break
        assert port, "Chromium does not start"
        self.errors, self.n, self.session = [], 0, None
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.settimeout(120)
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self.buffer += self.socket.recv(4096)
        self.buffer = self.buffer.split(b"\r\n\r\n", 1)[1]
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(domain + ".enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()
        self.process.terminate()
        self.process.wait()

    def take(self, n):
        while len(self.buffer) < n:
            more = self.socket.recv(65536)
            assert more, "Chromium went away"
            self.buffer += more
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out

    def message(self):
        text = b""
        while True:
            a, b = self.take(2)
            n = b & 127
            if n == 126:
                n, = struct.unpack(">H", self.take(2))
            elif n == 127:
                n, = struct.unpack(">Q", self.take(8))
            text += self.take(n)
            if a & 128:
                return json.loads(text)

    def call(self, method, **params):
        self.n += 1
        m = {"id": self.n, "method": method, "params": params}
        if self.session:
            m["sessionId"] = self.session
        data, mask = json.dumps(m).encode(), os.urandom(4)
        size = struct.pack(">B", 128 | len(data)) if len(data) < 126 else struct.pack(">BH", 128 | 126, len(data)) \
            if len(data) < 65536 else struct.pack(">BQ", 128 | 127, len(data))
        self.socket.sendall(b"\x81" + size + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(data)))
        while True:
            r = self.message()
            if r.get("id") == self.n:
                assert "error" not in r, r
                return r["result"]
            if r.get("method") == "Runtime.exceptionThrown":
                self.errors.append(r["params"]["exceptionDetails"].get("exception", {}).get("description") or str(r["params"]))
            if r.get("method") == "Log.entryAdded" and r["params"]["entry"]["level"] == "error":
                self.errors.append(r["params"]["entry"]["text"] + " " + r["params"]["entry"].get("url", ""))

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def js(self, text):
        r = self.call("Runtime.evaluate", expression=text, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in r, (text, r["exceptionDetails"])
        return r["result"].get("value")

    def wait(self, text, seconds=60):
        until = time.time() + seconds
        while time.time() < until:
            v = self.js(text)
            if v:
                return v
            time.sleep(0.1)
        raise AssertionError(f"not within {seconds} s: {text}")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode={"Enter": 13}.get(key, 0),
                      **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}))

    def drag(self, x, y, dx, dy):
        at = lambda kind, x, y, buttons: self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=buttons, clickCount=1)
        at("mousePressed", x, y, 1)
        for i in range(1, 6):
            at("mouseMoved", x + dx * i / 5, y + dy * i / 5, 1)
        at("mouseReleased", x + dx, y + dy, 0)

    def shot(self, path):
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
