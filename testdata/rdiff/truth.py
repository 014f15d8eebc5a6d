"""What a source tree holds, before a session: every path with its type, mode,
owner, time, size, SHA-256, link target, device number, link count, ACLs and
extended attributes. Byte strings are written as one code point per byte."""

import hashlib
import os
import stat
import xattr


def text(b):
    return b.decode("latin-1")


def entry(path):
    st = os.lstat(path)
    e = {"mode": st.st_mode, "uid": st.st_uid, "gid": st.st_gid, "mtime": int(st.st_mtime_ns // 10**9),
         "nlink": st.st_nlink}
    if stat.S_ISREG(st.st_mode):
        with open(path, "rb") as f:
            e["sha256"] = hashlib.sha256(f.read()).hexdigest()
        e["size"] = st.st_size
    elif stat.S_ISLNK(st.st_mode):
        e["target"] = text(os.readlink(path))
    elif stat.S_ISCHR(st.st_mode) or stat.S_ISBLK(st.st_mode):
        e["major"], e["minor"] = os.major(st.st_rdev), os.minor(st.st_rdev)
    names = []
    if not stat.S_ISSOCK(st.st_mode) and not stat.S_ISFIFO(st.st_mode):
        names = [n for n in xattr.list(path, True) if n != b"security.selinux"]
    e["xattrs"] = {text(n): text(xattr.get(path, n, True)) for n in names}
    return e


def tree(top):
    """top is a bytes path."""
    found = {"/": entry(top)}

    def walk(path, rel):
        for name in sorted(os.listdir(path)):
            sub = path + b"/" + name
            key = rel + b"/" + name
            e = entry(sub)
            found[text(key)] = e
            if stat.S_ISDIR(e["mode"]):
                walk(sub, key)

    walk(top, b"")
    return found
