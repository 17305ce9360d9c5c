#!/usr/bin/env python3
"""serve_load.py URL WHAT: many clients at once.

  all N          N requests at once: every one gets a whole, valid answer
  some N         N requests at once: each gets an answer or 429 with Retry-After; prints how many of each
  gone           clients that go away while they wait, while text streams, and while they send: all is given back
  slow           a client that reads nothing for a while gets everything in the end
  bytes          a request that comes byte by byte; rubbish instead of a request
"""
import asyncio, json, socket, sys, time, urllib.request

url, what = sys.argv[1:3]
host, port = url.split("//")[1].strip("/").split(":")
port = int(port)


def health():
    return json.load(urllib.request.urlopen(url + "health"))


def request(**body):
    body = json.dumps(body)
    return (f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}").encode()


def idle(seconds=15):
    until = time.time() + seconds
    while time.time() < until:
        h = health()
        if h["requests"] == 0:
            return h
        time.sleep(0.1)
    raise AssertionError(f"requests are left: {h}")


async def one(i):
    stream = i % 2 == 0
    for attempt in range(5):
        try:
            r, w = await asyncio.open_connection(host, port)
            break
        except OSError:
            await asyncio.sleep(0.2)
    w.write(request(caption=f"Part number {i}.", max_tokens=70, stream=stream, seed=i, temperature=1))
    await w.drain()
    head = (await r.readuntil(b"\r\n\r\n")).decode()
    body = await r.read()
    w.close()
    status = int(head.split()[1])
    if status == 429:
        assert "Retry-After" in head and "too many requests" in body.decode(), (head, body)
        return 429
    assert status == 200, (head, body[:300])
    if stream:
        assert "text/event-stream" in head and b"data: [DONE]" in body, body[-300:]
        chunks = [json.loads(l[6:]) for l in body.decode().splitlines() if l.startswith("data: {")]
        text, last = "".join(c["choices"][0]["text"] for c in chunks), chunks[-1]
    else:
        last = json.loads(body)
        text = last["choices"][0]["text"]
    assert text.startswith("DATA;\n") and text.rstrip().endswith("END-ISO-10303-21;"), text
    assert last["part"]["valid"] and last["part"]["dangling"] == 0 and last["usage"]["completion_tokens"] <= 70, last
    return 200


async def many(n):
    t0 = time.time()
    got = await asyncio.gather(*(one(i) for i in range(n)))
    print(f"{got.count(200)} served, {got.count(429)} turned away, {time.time() - t0:.1f} s")
    return got


if what in ("all", "some"):
    n = int(sys.argv[3])
    got = asyncio.run(many(n))
    assert len(got) == n
    assert what == "some" or got.count(200) == n, got.count(429)
    assert what == "all" or (got.count(429) > 0 and got.count(200) > 0)
    idle()
elif what == "gone":
    before = idle()
    clients = []
    for i in range(40):
        s = socket.create_connection((host, port))
        s.sendall(request(prompt=f"Gone {i}.", max_tokens=900, stream=i % 2 == 0, temperature=1, seed=i)[:None if i % 4 else -5])
        clients.append(s)
    # Not before the server has taken all 30 that are whole: of a connection reset before it is read, nothing is ever seen.
    until = time.time() + 15
    while time.time() < until:
        h = health()
        if h["requests"] + sum(h[k] - before[k] for k in ("cancelled", "served", "refused")) >= 30:
            break
    for s in clients:
        s.close()
    after = idle()
    # Those that were not through by then; a random model ends some of its texts early.
    cancelled, served, refused = (after[k] - before[k] for k in ("cancelled", "served", "refused"))
    assert cancelled >= 1 and cancelled + served + refused == 30, (before, after)
    print(f"{after['cancelled'] - before['cancelled']} cancelled")
elif what == "slow":
    s = socket.create_connection((host, port))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    s.sendall(request(caption="Slow.", max_tokens=600, stream=True, temperature=1, seed=5))
    time.sleep(3)
    got = b""
    while part := s.recv(65536):
        got += part
    assert b"data: [DONE]" in got, got[-200:]
    idle()
elif what == "bytes":
    s = socket.create_connection((host, port))
    for c in request(caption="Byte by byte.", max_tokens=70):
        s.sendall(bytes([c]))
    got = b""
    while part := s.recv(65536):
        got += part
    assert got.startswith(b"HTTP/1.1 200") and b"END-ISO-10303-21" in got, got
    for rubbish in (b"\0" * 1000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100000, b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                    b"\x16\x03\x01\x02\x00\x01\x00", b"GET " + b"/" * 100000 + b" HTTP/1.1\r\n\r\n"):
        s = socket.create_connection((host, port))
        try:
            s.sendall(rubbish)
            s.shutdown(socket.SHUT_WR)
            s.settimeout(1)
            while s.recv(65536):
                pass
        except OSError: # half a request is waited for, for 30 s
            pass
        s.close()
    idle()
