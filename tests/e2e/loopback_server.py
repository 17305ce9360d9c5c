#!/usr/bin/env python3
"""A web server on 127.0.0.1 that serves a folder and misbehaves on request.

    loopback_server.py ROOT PORT_FILE LOG_FILE

Its port is written to PORT_FILE, each request as a JSON line to LOG_FILE.  The first parts of a path, each
beginning with '!', say what goes wrong; the rest is a file below ROOT:

    /!drop=1000/a.7z       every connection is closed after 1000 bytes of body
    /!drop1=1000/a.7z      only the first one for this path
    /!norange/a            ranges are ignored: always 200
    /!wrongrange/a         a range is answered with 206 from byte 0
    /!fail=503:2/a         the first 2 requests get this status ('!fail=404' all of them)
    /!retryafter=1/...     with !fail: says when to come back
    /!redirect/a           302 to /a; /!elsewhere/a 302 to the same by another host name
    /!loop/a               redirects for ever
    /!long=10/a            declares 10 bytes more than it sends; /!short=10/a 10 fewer
    /!flip/a               the last byte is another
    /!html/a               a web page with status 200
    /!stall/a              half of the body, and then silence
    /!slow=100000/a        so many bytes a second
    /!noetag/a             neither ETag nor date
    /!chunked/a            no Content-Length

Hub paths (/api/..., .../resolve/...) and POSTs (a chat) are answered further below.
"""
import hashlib
import http.server
import json
import os
import re
import sys
import threading
import time
import urllib.parse

ROOT, PORT_FILE, LOG_FILE = sys.argv[1:4]
LOCK = threading.Lock()
SEEN = {}
BUSY = {"now": 0, "most": 0}


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def note(self, **more):
        with LOCK:
            with open(LOG_FILE, "a") as f:
                f.write(json.dumps({"path": self.path, "range": self.headers.get("Range"),
                                    "if_range": self.headers.get("If-Range"),
                                    "auth": self.headers.get("Authorization"),
                                    "host": self.headers.get("Host"), **more}) + "\n")

    def count(self):
        with LOCK:
            SEEN[self.path] = SEEN.get(self.path, 0) + 1
            return SEEN[self.path]

    def reply(self, status, body=b"", headers=(), cut=None, extra_length=0):
        self.send_response(status)
        sent_length = False
        for k, v in headers:
            sent_length |= k == "Transfer-Encoding"
            self.send_header(k, v)
        if not sent_length:
            self.send_header("Content-Length", str(len(body) + extra_length))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            if sent_length:
                for i in range(0, len(body), 5000):
                    part = body[i:i + 5000]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.write(b"0\r\n\r\n")
            else:
                self.wfile.write(body if cut is None else body[:cut])
            self.wfile.flush()
        except OSError:
            pass
        if (cut is not None and cut < len(body)) or extra_length > 0:
            self.close_connection = True

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        n = self.count()
        self.note(method=self.command)
        path = urllib.parse.urlsplit(self.path)
        if path.path.startswith("/api/") or "/resolve/" in path.path:
            return self.hub(path, n)
        parts = path.path.lstrip("/").split("/")
        how = {}
        while parts and parts[0].startswith("!"):
            key, _, value = parts.pop(0)[1:].partition("=")
            how[key] = value
        rest = "/".join(parts)
        if "fail" in how:
            status, _, times = how["fail"].partition(":")
            if not times or n <= int(times):
                more = [("Retry-After", how["retryafter"])] if "retryafter" in how else []
                return self.reply(int(status), b"told to fail", more)
        if "redirect" in how:
            return self.reply(302, b"", [("Location", "/" + rest)])
        if "elsewhere" in how:
            return self.reply(302, b"", [("Location", "http://localhost:%d/%s" % (self.server.server_port, rest))])
        if "loop" in how:
            return self.reply(302, b"", [("Location", self.path + "x")])
        if "html" in how:
            return self.reply(200, b"<!DOCTYPE html><html><body>Please log in</body></html>",
                              [("Content-Type", "text/html")])
        return self.file(urllib.parse.unquote(rest), how, n)

    def file(self, rest, how, n):
        full = os.path.join(ROOT, rest)
        if ".." in rest.split("/") or not os.path.isfile(full):
            return self.reply(404, b"no such file")
        with open(full, "rb") as f:
            data = f.read()
        if "flip" in how:
            data = data[:-1] + bytes([data[-1] ^ 1])
        etag = '"%s"' % hashlib.md5(data).hexdigest()
        headers = [] if "noetag" in how else [("ETag", etag), ("Last-Modified", "Sat, 01 Jan 2022 00:00:00 GMT")]
        start, status, body = 0, 200, data
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        condition = self.headers.get("If-Range")
        if wanted and "norange" not in how and (condition is None or condition == etag):
            start = int(wanted.group(1))
            if start >= len(data):
                return self.reply(416, b"", [("Content-Range", "bytes */%d" % len(data))])
            if "wrongrange" in how:
                start = 0
            status, body = 206, data[start:]
            headers.append(("Content-Range", "bytes %d-%d/%d" % (start, len(data) - 1, len(data))))
        if "chunked" in how:
            headers.append(("Transfer-Encoding", "chunked"))
        cut, extra = None, 0
        if "drop" in how:
            cut = int(how["drop"])
        if "drop1" in how and n == 1:
            cut = int(how["drop1"])
        if "long" in how:
            extra = int(how["long"])
        if "short" in how:
            body = body[:-int(how["short"])]
        if "slow" in how:
            self.send_response(status)
            for k, v in headers:
                self.send_header(k, v)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            step = int(how["slow"]) // 20
            try:
                for i in range(0, len(body), step):
                    self.wfile.write(body[i:i + step])
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                self.close_connection = True
            return None
        if "stall" in how and n == 1:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            time.sleep(20)
            self.close_connection = True
            return None
        return self.reply(status, body, headers, cut, extra)

    # A hub: repositories are folders of ROOT/hub/OWNER/NAME; a file whose name ends in .safetensors is a large
    # one, which is redirected to a store on another host name.  OWNER 'gated' needs a token.
    def hub(self, path, n):
        m = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/revision/([^/]+)", path.path)
        r = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path.path)
        repo = (m or r).group(2) if m or r else ""
        folder = os.path.join(ROOT, "hub", repo)
        token = self.headers.get("Authorization")
        if repo.startswith("gated/") and token != "Bearer good-token":
            return self.reply(401 if not token else 403, b"Access to this is restricted", [
                ("X-Error-Code", "GatedRepo"), ("X-Error-Message", "Access to model %s is restricted" % repo)])
        if not repo or not os.path.isdir(folder):
            return self.reply(401, b"", [("X-Error-Code", "RepoNotFound"), ("X-Error-Message", "Repository not found")])
        commit = hashlib.sha1(repo.encode()).hexdigest()
        revision = (m or r).group(3)
        if revision not in ("main", commit):
            return self.reply(404, b"", [("X-Error-Code", "RevisionNotFound"), ("X-Error-Message", "Invalid rev")])
        if m:
            siblings = []
            for where, _, names in sorted(os.walk(folder)):
                for name in sorted(names):
                    full = os.path.join(where, name)
                    data = open(full, "rb").read()
                    entry = {"rfilename": os.path.relpath(full, folder), "size": len(data), "blobId": git_sha1(data)}
                    if name.endswith(".safetensors"):
                        entry["blobId"] = git_sha1(b"pointer")
                        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                    siblings.append(entry)
            extra = os.path.join(ROOT, "hub-extra", repo + ".json")  # entries of a hostile hub
            if os.path.exists(extra):
                siblings += json.load(open(extra))
            body = json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
            return self.reply(200, body, [("Content-Type", "application/json")])
        name = urllib.parse.unquote(r.group(4))
        if name.endswith(".safetensors"):
            how = "!drop1=5000/" if "flaky" in repo else "!flip/" if "rotten" in repo else "!slow=1000000/" if "slow" in repo else ""
            return self.reply(302, b"", [("Location", "http://localhost:%d/%shub/%s/%s" % (
                self.server.server_port, how, repo, r.group(4)))])
        return self.file("hub/%s/%s" % (repo, name), {}, n)

    # A chat that captions what it sees.  The model's name says what goes wrong.
    def do_POST(self):
        n = self.count()
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        try:
            ask = json.loads(body)
        except ValueError:
            self.note(method="POST")
            return self.reply(400, b'{"error":{"message":"no JSON"}}')
        images = [part["image_url"]["url"] for message in ask.get("messages", [])
                  for part in (message["content"] if isinstance(message["content"], list) else [])
                  if part["type"] == "image_url"]
        self.note(method="POST", model=ask.get("model"), images=len(images),
                  png=all(u.startswith("data:image/png;base64,iVBORw0KGgo") for u in images))
        with LOCK:
            BUSY["now"] += 1
            BUSY["most"] = max(BUSY["most"], BUSY["now"])
        try:
            model = ask.get("model", "")
            if model == "flaky" and n % 3 == 1:
                return self.reply(429, b'{"error":{"message":"slow down"}}', [("Retry-After", "0")])
            if model == "locked" and self.headers.get("Authorization") != "Bearer secret-key":
                return self.reply(401, b'{"error":{"message":"bad key"}}')
            if model == "garbage":
                return self.reply(200, b"<html>hello</html>")
            if model == "refuses":
                text = '{"isDescribable": false, "description": ""}'
            elif model == "prose":
                text = "Here you are:\n```json\n{\"isDescribable\": true, \"description\": \"A plate, with \\\"two\\\" holes\"}\n```"
            else:
                text = json.dumps({"isDescribable": True,
                                   "description": "A block, seen in %d views: %s" % (
                                       len(images), hashlib.md5("".join(images).encode()).hexdigest()[:6])})
            if model == "slow":
                time.sleep(0.3)
            answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                                   "finish_reason": "stop"}], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
            return self.reply(200, json.dumps(answer).encode(), [("Content-Type", "application/json")])
        finally:
            with LOCK:
                BUSY["now"] -= 1


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that hang up are part of the tests


server = Server(("127.0.0.1", 0), Handler)
with open(PORT_FILE + ".part", "w") as f:
    f.write(str(server.server_port))
os.rename(PORT_FILE + ".part", PORT_FILE)
server.serve_forever()
