#!/usr/bin/env python3
"""hostile.py BIN [MB]: texts that one would write to keep a reader busy, each of MB megabytes, through the text tools.

Each must end soon (a pass over the text that starts anew at every byte takes minutes), with exit code 0 or 1 and one
line at most; what is no STEP file is named by line and column.
"""
import re, subprocess, sys, time

bin_, n = sys.argv[1], int(float(sys.argv[2] if len(sys.argv) > 2 else 2) * 1e6)
H = "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION((''),'2;1');\nFILE_NAME('','',(''),(''),'','','');\nFILE_SCHEMA(('AUTOMOTIVE_DESIGN'));\nENDSEC;\nDATA;\n"
E = "ENDSEC;\nEND-ISO-10303-21;\n"
R = lambda s: s * (n // len(s))
cases = {
 "x2 open": H + "#1=A('" + R("\\X2\\") + "');\n" + E,
 "x2 open in header": H.replace("FILE_NAME(''", "FILE_NAME('" + R("\\X2\\0041") + "'") + "#1=A('');\n" + E,
 "s apostrophes": H + "#1=A('" + R("\\S\\'") + "');\n" + E,
 "s apostrophes space": H + "#1=A('" + R("\\S\\'   x") + "');\n" + E,
 "backslashes": H + "#1=A('" + R("\\\\") + "');\n" + E,
 "doubled quotes": H + "#1=A('" + R("''") + "');\n" + E,
 "deep": H + "#1=A(" + "(" * (n // 2) + ")" * (n // 2) + ");\n" + E,
 "deep typed": H + "#1=A(" + "A(" * (n // 3) + ")" * (n // 3) + ");\n" + E,
 "open parens, restarts": H + R("#1=A((((\n"),
 "comments everywhere": H + "".join(f"/*c*/#{i}/*;*/=/*'*/A/**/(/***/1./*)*/,/* */#{i}/**/)/**/;\n" for i in range(1, n // 60)) + E,
 "open comments": H + "#1=A(1.);\n" + R("/* "),
 "open strings": H + R("#1=A(';\n"),
 "slashes": H + "#1=A(" + R("/"),
 "stars": H + "#1=A(/" + R("*") + "1.);\n" + E,
 "half comments": H + "#1=A(/*" + R("*/ /*") + "*/1.);\n" + E,
 "crlf": H.replace("\n", "\r\n") + "".join(f"#{i}=CARTESIAN_POINT('',({i}.5,1.E-3,-.0));\r\n" for i in range(1, n // 45)) + E.replace("\n", "\r\n"),
 "cr": H.replace("\n", "\r") + "".join(f"#{i}=CARTESIAN_POINT('',({i}.5,1.E-3,-.0));\r" for i in range(1, n // 45)) + E.replace("\n", "\r"),
 "chain": H + "".join(f"#{i}=A(#{i+1});\n" for i in range(1, n // 18)) + f"#{n//18}=A($);\n" + E,
 "cycle": H + "".join(f"#{i}=A(#{i % (n//18) + 1});\n" for i in range(1, n // 18 + 1)) + E,
 "reversed": H + "".join(f"#{i}=A(#{i-1});\n" for i in range(n // 18, 1, -1)) + "#1=A($);\n" + E,
 "fan": H + "#1=A($);\n#2=B((" + ",".join(["#1"] * (n // 3)) + "));\n" + E,
 "fan cycle": H + "#1=B((" + ",".join(["#1"] * (n // 3)) + "));\n" + E,
 "dangling": H + "#1=B((" + ",".join(f"#{i}" for i in range(2, n // 8)) + "));\n" + E,
 "same id": H + R("#1=A(1.);\n") + E,
 "many types": H + "".join(f"#{i}=T{i}(1.);\n" for i in range(1, n // 18)) + E,
 "colliding types": H + "".join(f"#{i}=ABCDEFGH{i:09d}ABCDEFGH(1.);\n" for i in range(1, n // 40)) + E,
 "complex": H + "#1=(" + "".join(f"A{i}(#1)" for i in range(n // 12)) + ");\n" + E,
 "complex many": H + "".join(f"#{i}=(A()B(#{i})C('x'));\n" for i in range(1, n // 30)) + E,
 "sections": H + "ENDSEC;\n" + R("DATA('a',('S'));\nENDSEC;\n") + "END-ISO-10303-21;\n",
 "long number": H + "#1=A(" + "1" * n + ".5);\n" + E,
 "long digits": H + "#1=A(0." + "1" * n + ");\n" + E,
 "long exponent": H + "#1=A(1.E" + "1" * n + ");\n" + E,
 "long enum": H + "#1=A(." + "T" * n + ".);\n" + E,
 "long keyword": H + "#1=" + "A" * n + "(1.);\n" + E,
 "long binary": H + '#1=A("0' + "F" * n + '");\n' + E,
 "long id": H + "#" + "1" * n + "=A(1.);\n" + E,
 "ids apart": H + "".join(f"#{i * 1000003}=A(#{(i+1) * 1000003});\n" for i in range(1, n // 36)) + E,
 "ids hash": H + "".join(f"#{i << 42}=A(#{i << 42});\n" for i in range(1, n // 50)) + E,
 "spaces": H + "#1=A(" + " " * n + "1.);\n" + E,
 "newlines": H + "#1=A(" + "\n" * n + "1.;\n" + E,
 "n directives": H + "#1=A(" + R("\\N\\") + "1.);\n" + E,
 "empty data words": R("DATA "),
 "data words open": R("DATA'"),
 "header long": H.replace("ENDSEC;\nDATA;", R("A('x',(1.,$));\n") + "ENDSEC;\nDATA;") + "#1=A(1.);\n" + E,
 "anchors": H.replace("DATA;", "ANCHOR;\n" + R("<a'b>=#1;\n") + "ENDSEC;\nDATA;") + "#1=A(1.);\n" + E,
 "references": H.replace("DATA;", "REFERENCE;\n" + R("#9=<http://x/*y>;\n") + "ENDSEC;\nDATA;") + "#1=A(1.);\n" + E,
 "open anchors": H.replace("DATA;", "ANCHOR;\n" + R("<a")),
 "signature": H + "#1=A(1.);\n" + E + "SIGNATURE;\n" + R("MIIB'/*") + "\nENDSEC;\n",
 "utf-8": H + "#1=A('" + R("ü\U0001f600") + "');\n" + E,
}
tools = [("step-round", "--out", "o.step"), ("step-round", "--mode", "reference", "--out", "o.step"), ("step-restructure", "--out", "o.step"),
         ("step-restructure", "--out", "o.step", "--compact", "--no-annotations"), ("step-restructure", "--mode", "reference", "--out", "o.step"),
         ("step-restore", "--out", "o.step"), ("step-restore", "--mode", "reference", "--out", "o.step"), ("complete-ratio",),
         ("complete-ratio", "--mode", "reference"), ("entity-stats",), ("entity-stats", "--mode", "reference")]
failed = slowest = 0
for name, text in cases.items():
    with open("h.step", "w", encoding="utf-8", newline="") as f:
        f.write(text)
    for tool, *more in tools:
        start = time.time()
        try:
            p = subprocess.run([f"{bin_}/{tool}", "h.step", *more, "--db", "none", "-q", "-j1"], capture_output=True, timeout=20)
        except subprocess.TimeoutExpired:
            failed += 1
            print("FAIL:", name, tool, *more, "does not end")
            continue
        slowest = max(slowest, time.time() - start)
        said = p.stderr.decode(errors="replace").splitlines()
        bad = p.returncode not in (0, 1) or len(said) > 1 or p.returncode and len(said) != 1
        if tool == "step-round" and p.returncode and not re.match(r"step-round: warning: h.step:\d+:\d+: .", said[0]):
            bad = True
        if bad:
            failed += 1
            print("FAIL:", name, tool, *more, "exit", p.returncode, *said[:3])
print(f"{len(cases)} texts of {n / 1e6:g} MB through {len(tools)} commands, the slowest {slowest:.2f} s; {failed} failed")
sys.exit(failed > 0)
