#!/usr/bin/env python3
"""Writes 7-Zip archives through libarchive, among them such as nobody should unpack.

    make_7z.py OUT.7z FOLDER [SPEC...]     every file of FOLDER, then the SPECs:

    NAME=TEXT       a file of that name, whatever the name
    NAME@TARGET     a symbolic link
    NAME*N          a file of N spaces

OPTIONS in the environment are libarchive's, as in compression=deflate.
"""
import ctypes
import ctypes.util
import os
import sys

LIB = ctypes.CDLL(ctypes.util.find_library("archive") or "libarchive.so.13")
for name in ("archive_write_new", "archive_entry_new"):
    getattr(LIB, name).restype = ctypes.c_void_p
LIB.archive_error_string.restype = ctypes.c_char_p
LIB.archive_write_data.restype = ctypes.c_ssize_t
AE_IFREG, AE_IFLNK = 0o100000, 0o120000


def check(archive, code):
    if code < 0:
        sys.exit("make_7z: %s" % LIB.archive_error_string(archive))


def add(archive, name, data, link=None):
    e = ctypes.c_void_p(LIB.archive_entry_new())
    LIB.archive_entry_set_pathname(e, name.encode())
    LIB.archive_entry_set_filetype(e, AE_IFLNK if link else AE_IFREG)
    LIB.archive_entry_set_perm(e, 0o644)
    if link:
        LIB.archive_entry_set_symlink(e, link.encode())
    LIB.archive_entry_set_size(e, ctypes.c_int64(len(data)))
    check(archive, LIB.archive_write_header(archive, e))
    if data:
        check(archive, LIB.archive_write_data(archive, data, ctypes.c_size_t(len(data))))
    LIB.archive_entry_free(e)


out, folder, specs = sys.argv[1], sys.argv[2], sys.argv[3:]
a = ctypes.c_void_p(LIB.archive_write_new())
check(a, LIB.archive_write_set_format_7zip(a))
if os.environ.get("OPTIONS"):
    check(a, LIB.archive_write_set_options(a, os.environ["OPTIONS"].encode()))
check(a, LIB.archive_write_open_filename(a, out.encode()))
for where, folders, names in os.walk(folder):
    folders.sort()
    for name in sorted(names):
        full = os.path.join(where, name)
        with open(full, "rb") as f:
            add(a, os.path.relpath(full, folder), f.read())
for spec in specs:
    at = min(i for i in (spec.find("="), spec.find("@"), spec.find("*")) if i >= 0)
    name, kind, value = spec[:at], spec[at], spec[at + 1:]
    if kind == "@":
        add(a, name, b"", link=value)
    elif kind == "*":
        add(a, name, b" " * int(value))
    else:
        add(a, name, value.encode())
check(a, LIB.archive_write_close(a))
