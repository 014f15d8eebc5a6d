#!/usr/bin/python3
"""Makes rdiff-backup repositories with the real rdiff-backup 2.2 at controlled
times, and the truth of what each must show: DIR/CASE/repo and DIR/CASE/truth.json.
Truth is taken from the source tree before every session, so nothing of it has
gone through a repository. Needs root, python3-pyxattr and python3-pylibacl: without
them rdiff-backup records neither attributes nor ACLs.

Usage: make.py DIR [CASE...]"""

import json
import os
import random
import shutil
import sys

import posix1e  # noqa: F401  (rdiff-backup does without, and records no ACLs)

import session
import source
import truth

EPOCH = 1_700_000_000
DAY = 86_400


class Case:
    """One repository in the making."""

    def __init__(self, top, name):
        self.dir = os.path.join(top, name)
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        self.src = os.path.join(self.dir, "src")
        self.repo = os.path.join(self.dir, "repo")
        os.mkdir(self.src)
        self.points = []
        self.time = EPOCH

    def backup(self, *options, api=201, step=DAY, zone="UTC", general=(), **kw):
        self.time += step
        before = truth.tree(os.fsencode(self.src))
        code = session.run("--current-time", str(self.time), "--api-version", str(api), *general, "backup",
                           *options, self.src, self.repo, zone=zone, **kw)
        self.points.append({"time": self.time, "tree": before})
        return code

    def done(self, **more):
        shutil.rmtree(self.src)
        with open(os.path.join(self.dir, "truth.json"), "w") as f:
            json.dump({"points": self.points, **more}, f)


def evolving(top, name, sessions, *options, api=201, general=(), names=True, zones=("UTC",), hardlinks=True):
    c = Case(top, name)
    t = source.Tree(c.src, seed=name, names=names)
    for i in range(sessions):
        t.step(i)
        c.backup(*options, api=api, general=general, zone=zones[i % len(zones)])
    c.done(hardlinks=hardlinks)


def everything(top):
    evolving(top, "everything", 13)


def api200(top):
    evolving(top, "api200", 5, api=200)


def plain(top):
    evolving(top, "plain", 5, "--no-compression")


def plain200(top):
    evolving(top, "plain200", 4, "--no-compression", api=200)


def nolinks(top):
    evolving(top, "nolinks", 4, "--no-hard-links", hardlinks=False)


def zones(top):
    evolving(top, "zones", 6, zones=("America/St_Johns", "Asia/Kolkata", "UTC", "Pacific/Marquesas", "Pacific/Chatham"))


def colon(top):
    evolving(top, "colon", 4, general=("--chars-to-quote", ":"), zones=("America/St_Johns", "UTC"))


def upper(top):
    evolving(top, "upper", 4, general=("--chars-to-quote", "A-Z\\x00-\\x1f\\200-\\377\"*/:<>?\\\\|\\177;"))


def lower(top):
    # rdiff-backup finds none of its own files in a second session.
    evolving(top, "lower", 1, general=("--chars-to-quote", "a-z"))


def negated(top):
    evolving(top, "negated", 3, general=("--chars-to-quote", "^a-z0-9._\\-"))


def special(top):
    """Trailing dots and spaces and the names of DOS devices are escaped too, as on
    a FAT file system: the first session, of an empty tree, can't be told so."""
    c = Case(top, "special")
    general = ("--chars-to-quote", "\"*/:<>?\\\\|\\177;")
    c.backup("--no-compression", general=general)
    with open(os.path.join(c.repo, "rdiff-backup-data", "special_escapes"), "w") as f:
        f.write("escape_dos_devices\nescape_trailing_spaces")
    t = source.Tree(c.src, seed="special")
    for i in range(4):
        t.step(i)
        c.backup("--no-compression", general=general)
    c.done(hardlinks=True)


def long(top):
    """Names that leave no room for an increment's suffix, or for quoting."""
    c = Case(top, "long")
    rnd = random.Random(1)
    deep = os.path.join(c.src, "d" * 200, "e" * 200)
    os.makedirs(deep)
    names = ["n" * 255, "m" * 230, "k" * 200, "w" + ";" * 100, "w" + ":" * 60]
    for i in range(6):
        for j, n in enumerate(names):
            for d in (c.src, deep):
                path = os.path.join(d, n)
                if (i + j) % 4 == 3:
                    if os.path.exists(path):
                        os.remove(path)
                    continue
                with open(path, "ab") as f:
                    f.write(rnd.randbytes(2000))
                os.utime(path, (1e9 + 100 * i, 1e9 + 100 * i + j))
        c.backup(general=("--chars-to-quote", ":"))
    c.done(hardlinks=True)


def removed(top):
    c = Case(top, "removed")
    t = source.Tree(c.src, seed="removed")
    for i in range(7):
        t.step(i)
        c.backup()
    session.run("--current-time", str(c.time + 10), "--api-version", "201", "--force", "remove", "increments",
                "--older-than", str(c.points[3]["time"]), c.repo)
    c.points = c.points[3:]
    c.done(hardlinks=True)


def lost(top):
    """Repositories whose metadata is lost: all of it, and one date's."""
    for name, gone in (("lost", lambda n: n.startswith("mirror_metadata")),
                       ("lost-one", lambda n: n.startswith("mirror_metadata.2023-11-18"))):
        c = Case(top, name)
        t = source.Tree(c.src, seed=name)
        for i in range(5):
            t.step(i)
            c.backup("--no-compression" if name == "lost-one" else "--compression")
        data = os.path.join(c.repo, "rdiff-backup-data")
        for n in os.listdir(data):
            if gone(n):
                os.remove(os.path.join(data, n))
        c.done(hardlinks=True, lost=[p["time"] for p in c.points])


def crashed(top):
    """Sessions that ended in the middle, at stages spread over the whole of them,
    compressed and not; and regresses of such that ended in the middle."""
    c = Case(top, "crashed")
    t = source.Tree(c.src, seed="crashed")
    for i in range(3):
        t.step(i)
        c.backup()
    t.step(3)

    def attempt(crash_after, n):
        repo = os.path.join(c.dir, f"repo{n}")
        shutil.copytree(c.repo, repo, symlinks=True, copy_function=source.copy_node)
        args = ("--current-time", str(c.time + DAY), "--api-version", "201", "backup", c.src, repo)
        if crash_after is None:
            return repo, session.changes(*args)
        return repo, session.run(*args, crash_after=crash_after, check=False)

    repo, total = attempt(None, 9999)
    shutil.rmtree(repo)
    count = int(os.environ.get("CRASHES", "18"))
    # Spread evenly, and each of the last changes, when metadata is put in place.
    stages = sorted({n * total // count for n in range(count)} | set(range(total - 12, total)))
    crashes = 0
    for n, stage in enumerate(stages):
        repo, code = attempt(stage, n)
        if code == 99:
            crashes += 1
        if code == 99 and n % 6 == 5:
            # A regress that doesn't come to its end either.
            session.run("--current-time", str(c.time + 2 * DAY), "--api-version", "201", "regress", repo,
                        crash_after=40 * n, check=False)
    assert crashes == len(stages), (crashes, stages)
    after = {"time": c.time + DAY, "tree": truth.tree(os.fsencode(c.src))}
    c.done(hardlinks=True, repos=[f"repo{n}" for n in range(len(stages))], after=after)


def first(top):
    """The very first session was interrupted."""
    c = Case(top, "first")
    t = source.Tree(c.src, seed="first")
    t.step(0)
    c.backup(crash_after=60, check=False)
    c.points = []
    c.done(hardlinks=True)


def cli(top):
    """A small home directory with names and texts that people can read, backed up
    before and after the night in which Europe's clocks went back; the same with an
    interrupted session after it; and the same with a damaged increment."""
    c = Case(top, "cli")
    c.time = 1_698_370_200 - DAY  # the first session is of 2023-10-27T01:30:00Z
    clock = [1_690_000_000]

    def touch(path):
        clock[0] += 60
        os.utime(path, (clock[0], clock[0]), follow_symlinks=False)

    def path(name):
        return os.path.join(c.src, name)

    def write(name, data, mode=0o644, owner=0):
        os.makedirs(os.path.dirname(path(name)), exist_ok=True)
        with open(path(name), "wb") as f:
            f.write(data if isinstance(data, bytes) else data.encode())
        os.chmod(path(name), mode)
        os.chown(path(name), owner, owner)
        touch(path(name))

    def directories():
        for d, _, _ in os.walk(c.src):
            os.utime(d, (1_690_000_000, 1_690_000_000))

    write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nada:x:4711:4711::/home/ada:/bin/sh\n")
    write("etc/group", "root:x:0:\nstaff:x:4711:\n")
    write("etc/app.conf", "listen 80\nworkers 2\nlog /var/log/app\n")
    write("home/ada/report.txt", "draft 1\n", 0o640, 4711)
    write("home/ada/photos/one.jpg", b"\xff\xd8\x00one")
    write("home/ada/old/a.txt", "a\n")
    write("home/ada/old/b.txt", "b\n")
    write("home/ada/notes.txt", "notes\n", 0o600, 4711)
    write("home/ada/linked", "two names\n")
    os.link(path("home/ada/linked"), path("home/ada/other name"))
    os.symlink("report.txt", path("home/ada/latest"))
    os.symlink("home/ada", path("ada"))
    write("home/ada/comment", "c\n")
    os.setxattr(path("home/ada/comment"), "user.comment", b"a comment")
    posix1e.ACL(text="u::rw-,u:4242:rw-,g::r--,m::rw-,o::---").applyto(path("home/ada/comment"))
    os.makedirs(path("dev"))
    os.mknod(path("dev/null"), 0o020666, os.makedev(1, 3))
    os.chmod(path("dev/null"), 0o666)
    os.mkfifo(path("dev/fifo"), 0o640)
    touch(path("dev/fifo"))
    with open(path("sparse"), "wb") as f:
        f.seek(1 << 20)
        f.write(b"end\n")
    touch(path("sparse"))
    directories()
    c.backup(zone="Europe/Berlin")

    write("etc/app.conf", "listen 8080\nworkers 2\nlog /var/log/app\n")
    write("home/ada/report.txt", "draft 2, longer\n", 0o640, 4711)
    write("home/ada/photos/one.jpg", b"\xff\xd8\x00one, edited")
    os.remove(path("home/ada/notes.txt"))
    directories()
    c.backup(zone="Europe/Berlin")

    os.remove(path("home/ada/report.txt"))
    shutil.rmtree(path("home/ada/old"))
    os.chmod(path("etc/app.conf"), 0o600)
    directories()
    c.backup(zone="America/St_Johns")

    write("home/ada/notes.txt", "notes again\n", 0o600, 4711)
    write("etc/app.conf", "listen 8080\nworkers 4\nlog /var/log/app\n", 0o600)
    write("home/ada/new.txt", "new\n")
    directories()
    c.backup(zone="Europe/Berlin")

    def copy(name):
        shutil.copytree(c.repo, os.path.join(c.dir, name), symlinks=True, copy_function=source.copy_node)
        return os.path.join(c.dir, name)

    write("etc/app.conf", "listen 9090\n")
    session.run("--current-time", str(c.time + DAY), "--api-version", "201", "backup", c.src, copy("interrupted"),
                crash_after=80, check=False)
    damaged = os.path.join(copy("damaged"), "rdiff-backup-data", "increments", "home", "ada")
    for n in os.listdir(damaged):
        if n.startswith("report.txt.2023-10-27") and n.endswith(".diff.gz"):
            with open(os.path.join(damaged, n), "r+b") as f:
                f.truncate(os.path.getsize(f.name) - 9)
    c.done(hardlinks=True)


CASES = [everything, api200, plain, plain200, nolinks, zones, colon, upper, lower, negated, special, long, removed, lost,
         crashed, first, cli]


def main():
    top, only = sys.argv[1], sys.argv[2:]
    os.umask(0o022)
    os.makedirs(top, exist_ok=True)
    todo = [f for f in CASES if not only or f.__name__ in only]
    todo.sort(key=lambda f: f is not crashed)  # the longest first
    running = set()
    failed = []

    def reap():
        pid, status = os.wait()
        running.discard(pid)
        if status:
            failed.append(status)

    for f in todo:
        if len(running) >= (os.cpu_count() or 1):
            reap()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                f(top)
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        running.add(pid)
    while running:
        reap()
    sys.exit(1 if failed else 0)


main()
