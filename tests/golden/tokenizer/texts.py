"""Texts that try a tokenizer hard: every code point, mixed scripts, marks, spaces, added tokens.

All made here, from a fixed seed."""
import random
import unicodedata

SENTENCES = [
    "A rectangular plate, 120 mm x 80 mm x 6.5 mm, with four \u00d88.5 through-holes (\u00b10.05).",
    "Eine Grundplatte mit vier L\u00f6chern \u2013 \u00fcber Eck verschraubt; Ma\u00dfe: 12,5 \u00d7 7\u00bd Zoll.",
    "Une bride circulaire \u00e0 six trous, d'un diam\u00e8tre de 45\u00a0mm\u202f; l\u2019\u00e9paisseur est constante.",
    "\u041f\u043b\u0430\u0441\u0442\u0438\u043d\u0430 \u0441 \u0447\u0435\u0442\u044b\u0440\u044c\u043c\u044f \u043e\u0442\u0432\u0435\u0440\u0441\u0442\u0438\u044f\u043c\u0438, \u0442\u043e\u043b\u0449\u0438\u043d\u043e\u0439 5 \u043c\u043c.",
    "\u0395\u03af\u03bd\u03b1\u03b9 \u03bc\u03b9\u03b1 \u03c6\u03bb\u03ac\u03bd\u03c4\u03b6\u03b1 \u03bc\u03b5 \u03ad\u03be\u03b9 \u03bf\u03c0\u03ad\u03c2.",
    "\u56db\u3064\u306e\u7a74\u304c\u3042\u308b\u9577\u65b9\u5f62\u306e\u677f\u3002\u539a\u3055\uff15\u30df\u30ea\u3001\u5e45\uff18\uff10\uff4d\uff4d\u3002",
    "\u5e26\u6709\u516d\u4e2a\u87ba\u6813\u5b54\u7684\u5706\u5f62\u6cd5\u5170\uff0c\u539a\u5ea6\u4e3a\u5341\u6beb\u7c73\u3002",
    "\ub124 \uac1c\uc758 \uad6c\uba4d\uc774 \uc788\ub294 \uc9c1\uc0ac\uac01\ud615 \ud310, \ub450\uaed8 6mm.",
    "\u0644\u0648\u062d\u0629 \u0645\u0633\u062a\u0637\u064a\u0644\u0629 \u0628\u0623\u0631\u0628\u0639\u0629 \u062b\u0642\u0648\u0628 \u0661\u0662\u0663.",
    "\u05dc\u05d5\u05d7 \u05e2\u05dd \u05d0\u05e8\u05d1\u05e2\u05d4 \u05d7\u05d5\u05e8\u05d9\u05dd, \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd.",
    "\u091a\u093e\u0930 \u091b\u0947\u0926\u094b\u0902 \u0935\u093e\u0932\u0940 \u092a\u094d\u0932\u0947\u091f, \u092e\u094b\u091f\u093e\u0908 \u096b \u092e\u093f\u092e\u0940\u0964",
    "\u0e41\u0e1c\u0e48\u0e19\u0e2a\u0e35\u0e48\u0e40\u0e2b\u0e25\u0e35\u0e48\u0e22\u0e21\u0e17\u0e35\u0e48\u0e21\u0e35\u0e2a\u0e35\u0e48\u0e23\u0e39",
    "T\u1ea5m h\u00ecnh ch\u1eef nh\u1eadt c\u00f3 b\u1ed1n l\u1ed7, \u0111\u1ed9 d\u00e0y n\u0103m mi-li-m\u00e9t.",
    "\U0001f527\U0001f529 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f44d\U0001f3fd 3\ufe0f\u20e3 \U0001fae8",
    "#10=CARTESIAN_POINT('',(1.5,-0.25,3.E-05));\n#11=DIRECTION('',(0.,0.,1.));\r\n#12=AXIS2_PLACEMENT_3D('',#10,#11,$);",
    "ISO-10303-21;\nHEADER;\nFILE_DESCRIPTION(('a''b \\X2\\00E9\\X0\\'),'2;1');\nENDSEC;\nDATA;\n",
    "it's IT'S we'll WE'LL I'd I'D they've don't'll 'tis \u2019s '\u017f \u212a 'rE'VE",
    "def f(x):\n\treturn x**2  # \u03c0\u22483.14159\n\n\n    if a != b: pass\n",
    "1234567890 12 345 6789 \u00bd \u2167 \u0967\u0968\u0969 \U0001d7d8\U0001d7d9 1e-05 0x7F",
]

SPACES = " \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
MARKS = "\u0300\u0301\u0302\u0303\u0308\u030a\u0323\u0327\u0328\u0338\u0345\u0591\u05b0\u064b\u093c\u094d\u0e38\u1dce\u20dd\u3099\u309a\u302a\U0001d165\U0001d16d"
HARD = ("e\u0301 a\u0323\u0302 o\u0302\u0323 \u1100\u1161\u11a8 \uac00\u11a8 \u212b \u2126 \u0344 \u0958 \u2adc \ufb1d "
        "\U0001d15e \u0f73 \u0f75 \u1e9b\u0323 q\u0307\u0323 \u0b47\u0b3e \U00011099\U000110ba \uf900 \ufa0e \U0002f800")


def assigned():
    """Every code point but surrogates; unassigned ones are texts too."""
    for c in range(0x110000):
        if not 0xD800 <= c < 0xE000:
            yield chr(c)


def every_code_point():
    block = []
    for c in assigned():
        block.append(f"{c} a{c}b {c}{c}1{c}\n")
        if len(block) == 4096:
            yield "".join(block)
            block = []
    yield "".join(block)


def mixed(n, seed=1, added=()):
    r = random.Random(seed)
    planes = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x600, 0xE00), (0x1100, 0x1200),
              (0x1E00, 0x2000), (0x2000, 0x2100), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4),
              (0xF900, 0x10000), (0x1F300, 0x1FAFF), (0x1D100, 0x1D800), (0x10000, 0x12000)]
    for _ in range(n):
        out = []
        for _ in range(r.randint(1, 60)):
            k = r.random()
            if k < 0.3:
                s = r.choice(SENTENCES)
                a = r.randrange(len(s))
                out.append(s[a:a + r.randint(1, 30)])
            elif k < 0.45:
                out.append("".join(r.choice(SPACES) for _ in range(r.randint(1, 4))))
            elif k < 0.6:
                lo, hi = r.choice(planes)
                out.append("".join(chr(r.randrange(lo, hi)) for _ in range(r.randint(1, 8))))
            elif k < 0.75:
                out.append(r.choice("aeiouAEIOUnc\u1100\uac00\u03b1\u0438") +
                           "".join(r.choice(MARKS) for _ in range(r.randint(1, 5))))
            elif k < 0.8:
                out.append(HARD[r.randrange(len(HARD)):][:r.randint(1, 12)])
            elif k < 0.85 and added:
                s = r.choice(added)
                out.append(s if r.random() < 0.7 else s[:r.randint(1, len(s))])
            elif k < 0.9:
                out.append(" " * r.randint(1, 40) + r.choice(["", "\n", "x"]))
            elif k < 0.95:
                out.append(str(r.random() * 10 ** r.randint(-9, 9)))
            else:
                out.append(r.choice("abcxyz\u00e9#=(),.;-") * r.randint(1, 70))
        yield "".join(out)


def edges():
    yield from ["", " ", "\n", "  ", "\r\n", "\t\t\t", "a", "\u0301", "'", "'s", "\x00", "\x00\x01\x7f"]
    yield from SENTENCES
    yield HARD
    yield "a" * 5000
    yield " " * 5000 + "x"
    yield "\n" * 3000
    yield "ab" * 4000 + "!" * 3000 + "-=" * 3000
    yield "\u00e9\u0301\u0323" * 500
    yield "e" + "\u0301\u0323\u0327" * 700
    yield "\u4e2d" * 2000


def normal_forms():
    for s in SENTENCES + [HARD]:
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            yield unicodedata.normalize(form, s)
