#!/usr/bin/env python3
"""Writes the files of tests/weights/hostile/: each one is wrong in one way, and must be refused (hostile.c).

Needs only Python. The names say what is wrong."""
import io
import json
import os
import pickle
import struct
import zipfile

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hostile")


def write(name, data):
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)


# ---- safetensors ----


def st(name, header, data=b"", length=None):
    if isinstance(header, dict):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode()
    write(name + ".safetensors", struct.pack("<Q", len(header) if length is None else length) + header + data)


def one(begin=0, end=8, dtype="F32", shape=(2,), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


def safetensors():
    data, good = bytes(8), {"a": one()}
    write("no-header.safetensors", b"\1\0\0")
    st("header-too-long", good, data, 1 << 40)
    st("header-2-63", good, data, 1 << 63)
    st("header-beyond-end", good, data, 500)
    st("header-empty", "", data)
    st("header-array", "[]", b"")
    st("header-leading-space", " " + json.dumps(good), data)
    st("header-cut", json.dumps(good)[:-1], data)
    st("header-trailing", json.dumps(good) + "x", data)
    st("header-zero-byte", json.dumps(good) + "\0", data)
    st("header-not-utf8", json.dumps(good).encode().replace(b'"a"', b'"\xff"'), data)
    st("header-overlong-utf8", json.dumps(good).encode().replace(b'"a"', b'"\xc0\xaf"'), data)
    st("header-deep", '{"a":' + "[" * 1500, data)
    st("name-zero-escape", json.dumps(good).replace('"a"', '"a\\u0000b"'), data)
    st("name-twice", '{"a":%s,"a":%s}' % (json.dumps(one(0, 4, shape=[1])), json.dumps(one(4, 8, shape=[1]))), data)
    st("meta-number", {"__metadata__": {"x": 1}, **good}, data)
    st("meta-string", {"__metadata__": "x", **good}, data)
    st("entry-number", {"a": 1}, data)
    st("entry-more-keys", {"a": one(more=1)}, data)
    st("no-dtype", {"a": {"shape": [2], "data_offsets": [0, 8], "x": 1}}, data)
    st("dtype-unknown", {"a": one(dtype="F8_E4M3", shape=[8])}, data)
    st("dtype-number", {"a": one(dtype=4)}, data)
    st("shape-negative", {"a": one(shape=[-2])}, data)
    st("shape-fraction", {"a": one(shape=[0.5, 4])}, data)
    st("shape-huge", {"a": one(shape=[1 << 40, 1 << 40])}, data)
    st("shape-wraps", {"a": one(0, 0, shape=[1 << 32, 1 << 32])}, b"")
    st("shape-wraps-zero", {"a": one(0, 0, shape=[1 << 50, 1 << 50, 0])}, b"")
    st("shape-nan", json.dumps({"a": one()}).replace("[2]", "[1e999]"), data)
    st("shape-9-dims", {"a": one(shape=[1] * 8 + [2])}, data)
    st("shape-string", {"a": one(shape=["2"])}, data)
    st("offsets-beyond", {"a": one(0, 16, shape=[4])}, data)
    st("offsets-backwards", {"a": one(8, 0)}, data)
    st("offsets-wrong-size", {"a": one(0, 8, shape=[1])}, data)
    st("offsets-three", {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 8]}}, data)
    st("offsets-negative", {"a": one(-8, 0)}, data)
    st("hole-before", {"a": one(4, 8, shape=[1])}, data)
    st("hole-between", {"a": one(0, 2, "F16", [1]), "b": one(4, 8, shape=[1])}, data)
    st("hole-behind", {"a": one(0, 4, shape=[1])}, data)
    st("overlap", {"a": one(), "b": one(4, 8, shape=[1])}, data)
    st("overlap-same", {"a": one(), "b": one()}, data)
    st("shard", {"a": one(0, 4, shape=[1]), "b": one(4, 8, shape=[1])}, data, 1 << 50)


def indices():
    def index(name, text):
        write(name + ".safetensors.index.json", (text if isinstance(text, str) else json.dumps(text)).encode())

    index("index-no-map", {"metadata": {}})
    index("index-not-string", {"weight_map": {"a": 1}})
    index("index-slash", {"weight_map": {"a": "../hostile/x.safetensors"}})
    index("index-dots", {"weight_map": {"a": ".."}})
    index("index-empty-name", {"weight_map": {"a": ""}})
    index("index-absent-file", {"weight_map": {"a": "absent.safetensors"}})
    index("index-array", "[]")
    index("index-itself", {"weight_map": {"a": "index-itself.safetensors.index.json"}})


# ---- pickles ----

STORAGE = b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def long1(n):
    data = n.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def ints(*n):
    return b"(" + b"".join(long1(i) for i in n) + b"t"


def storage(count=2, kind=STORAGE, key="0"):
    return b"(" + text("storage") + kind + text(key) + text("cpu") + long1(count) + b"tQ"


def tensor(offset=0, size=(2,), stride=(1,), st_=None, call=REBUILD):
    return call + b"(" + (st_ or storage()) + long1(offset) + ints(*size) + ints(*stride) + b"\x89}tR"


def state(value, key="a"):
    return b"\x80\x02}" + text(key) + value + b"s."


def archive(name, program, data=bytes(8), compress=zipfile.ZIP_STORED, more=()):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compress) as z:
        for n, d in [("x/data.pkl", program), ("x/data/0", data), *more]:
            z.writestr(zipfile.ZipInfo(n), d, compress)
    if name:
        write(name + ".pth", out.getvalue())
    return out.getvalue()


def pickles():
    p = lambda name, program, **k: archive("pkl-" + name, program, **k)
    p("empty", b"")
    p("no-stop", b"\x80\x02}")
    p("stop-only", b"\x80\x02.")
    p("not-a-dict", b"\x80\x02]."), p("empty-dict", b"\x80\x02}.")
    p("system-call", b"\x80\x02cos\nsystem\n" + text("touch hostile-ran") + b"\x85R.")
    p("tensor-by-eval", state(b"cbuiltins\neval\n" + storage() + b"\x85R"))
    p("load-from-bytes", state(b"ctorch.storage\n_load_from_bytes\n" + text("x") + b"\x85R"))
    p("sparse", state(b"ctorch._utils\n_rebuild_sparse_tensor\n" + storage() + b"\x85R"))
    p("complex", state(tensor(st_=storage(kind=b"ctorch\nComplexFloatStorage\n"))))
    p("pop-empty", b"\x80\x020.")
    p("tuple-without-mark", b"\x80\x02t.")
    p("pop-below-mark", b"\x80\x02}(0.")
    p("odd-items", b"\x80\x02}(" + text("a") + b"u.")
    p("items-for-int", b"\x80\x02K\1" + text("a") + text("b") + b"s.")
    p("get-unknown", b"\x80\x02h\5.")
    p("memo-index", b"\x80\x02}r\xff\xff\xff\xff.")
    p("text-length", b"\x80\x02X\xff\xff\xff\xffab.")
    p("text8-length", b"\x80\x04\x8d" + b"\xff" * 8 + b"ab.")
    p("long4-length", b"\x80\x02\x8b\xff\xff\xff\xff.")
    p("global-no-line", b"\x80\x02ctorch.")
    p("call-without-tuple", b"\x80\x02ca\nb\nK\1R.")
    p("opcode-unknown", b"\x80\x02\xfe.")
    p("deep", b"\x80\x02" + b"(" * 300 + b"t" * 299 + b".")
    p("itself", b"\x80\x02}q\0" + text("model") + b"h\0s.")
    p("bounds", state(tensor(size=(3,))))
    p("bounds-offset", state(tensor(offset=1)))
    p("bounds-stride", state(tensor(stride=(2,))))
    p("bounds-wrap", state(tensor(size=(3,), stride=(1 << 62,))))
    p("offset-negative", state(tensor(offset=-1)))
    p("offset-huge-empty", state(tensor(offset=1 << 62, size=(0,))))
    p("size-negative", state(tensor(size=(-1,))))
    p("size-wraps", state(tensor(size=(1 << 62, 8), stride=(0, 0))))
    p("stride-negative", state(tensor(offset=1, stride=(-1,))))
    p("stride-repeats", state(tensor(size=(1000000,), stride=(0,))))
    p("stride-missing", state(tensor(stride=())))
    p("size-text", state(tensor(size=()).replace(ints(), b"(" + text("2") + b"t", 1)))
    p("9-dims", state(tensor(size=[1] * 9, stride=[1] * 9)))
    p("storage-count", state(tensor(st_=storage(1 << 61))))
    p("storage-short", state(tensor()), data=bytes(4))
    p("storage-missing", state(tensor(st_=storage(key="1"))))
    p("storage-negative", state(tensor(st_=storage(-2))))
    p("name-not-text", b"\x80\x02}K\1" + tensor() + b"s.")
    p("name-zero", state(tensor(), "a\0b"))
    p("name-twice", b"\x80\x02}(" + (text("a") + tensor()) * 2 + b"u.")
    p("big-endian", state(tensor()), more=[("x/byteorder", b"big")])
    p("two-programs", state(tensor()), more=[("y/data.pkl", b"\x80\x02}.")])
    p("deflated", state(tensor()), compress=zipfile.ZIP_DEFLATED)


def zips():
    good = archive(None, state(tensor()))
    write("zip-no-end.pth", good[:-22])
    end, first = len(good) - 22, good.index(b"PK\1\2")

    def patch(name, at, data):
        write("zip-" + name + ".pth", good[:at] + data + good[at + len(data):])

    patch("count", end + 10, b"\xfe\xff")
    patch("directory-size", end + 12, b"\xfe\xff\xff\xff")
    patch("directory-offset", end + 16, b"\xfe\xff\xff\xff")
    patch("zip64-without", end + 16, b"\xff\xff\xff\xff")
    patch("record-offset", first + 42, b"\xf0\xff\xff\x7f")
    patch("record-size", first + 20, b"\xf0\xff\xff\x7f" * 2)
    patch("record-zip64-without", first + 20, b"\xff\xff\xff\xff" * 2)
    patch("record-name", first + 46, b"y")
    patch("record-name-length", first + 28, b"\xff\xff")
    patch("encrypted", first + 8, b"\1")
    patch("local-length", 26, b"\xff\xff")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("readme", b"no weights")
    write("zip-other.pth", out.getvalue())
    twice = good.replace(b"x/data/0", b"x/data.p")
    write("zip-cut-name.pth", twice)


def old(name, system=None, program=None, keys=("0",), data=struct.pack("<q", 2) + bytes(8), version=1001):
    dump = lambda x: pickle.dumps(x, 2)
    system = {"little_endian": True} if system is None else system
    write("old-" + name + ".pth", dump(0x1950A86A20F9469CFC6C) + dump(version) + dump(system) +
          (program or state(tensor())) + dump(list(keys)) + data)


def olds():
    old("version", version=1002)
    old("big-endian", system={"little_endian": False})
    old("no-system", system=[1])
    old("keys-none", keys=())
    old("keys-unknown", keys=("7",))
    old("keys-numbers", keys=(0,))
    old("keys-twice", keys=("0", "0"), data=(struct.pack("<q", 2) + bytes(8)) * 2)
    old("count", data=struct.pack("<q", 3) + bytes(12))
    old("count-negative", data=struct.pack("<q", -1) + bytes(8))
    old("count-huge", program=state(tensor(st_=storage(1 << 61))), data=struct.pack("<q", 1 << 61) + bytes(8))
    old("cut", data=struct.pack("<q", 2) + bytes(7))
    old("more-behind", data=struct.pack("<q", 2) + bytes(9))
    old("view", program=state(tensor(st_=storage()[:-2] + b"(" + text("1") + b"K\0K\1ttQ")))


def others():
    write("empty.pth", b"")
    write("text.pth", b"<!DOCTYPE html><html>404: not found</html>\n")
    write("lfs-pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    write("plain-pickle.pth", pickle.dumps({"a": 1}, 2))


os.makedirs(OUT, exist_ok=True)
for make in safetensors, indices, pickles, zips, olds, others:
    make()
