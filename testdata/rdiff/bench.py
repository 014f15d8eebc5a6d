#!/usr/bin/python3
"""Makes the repositories that the benchmarks read, with the real rdiff-backup:
DIR/many holds 20,000 files in 40 points, of which a hundredth changes each time;
DIR/large one file of 200 MiB in 31 points, of which a few hundred KiB change; DIR/points
a handful of files in 1,000 points. What is there already is kept. It takes a few
minutes.

Usage: bench.py DIR [FILES POINTS MIB INCREMENTS]"""

import os
import random
import shutil
import sys

import session

EPOCH = 1_700_000_000
DAY = 86_400


def backup(src, repo, i):
    session.run("--current-time", str(EPOCH + i * DAY), "--api-version", "201", "backup", "--no-file-statistics", src, repo)


def many(top, files, points):
    rnd = random.Random(1)
    src = os.path.join(top, "src")

    def path(n):
        return os.path.join(src, f"department-{n % 7}", f"project-{n // 50:04d}", f"file-{n:06d}.txt")

    def write(n, i):
        p = path(n)
        os.makedirs(os.path.dirname(p), exist_ok=True)
        with open(p, "wb") as f:
            f.write(rnd.randbytes(rnd.randrange(200, 16_000)))
        os.utime(p, (EPOCH + i * DAY - 3600 - n % 3000,) * 2)

    for n in range(files):
        write(n, 0)
    for i in range(points):
        for n in rnd.sample(range(files), files // 100) if i else ():
            p = path(n)
            if not os.path.exists(p) or rnd.random() < 0.2:
                write(n, i)
            elif rnd.random() < 0.1:
                os.remove(p)
            else:
                with open(p, "r+b") as f:
                    f.seek(rnd.randrange(os.path.getsize(p) + 1))
                    f.write(rnd.randbytes(100))
                os.utime(p, (EPOCH + i * DAY - 60 - n % 60,) * 2)
        backup(src, os.path.join(top, "repo"), i)
    shutil.rmtree(src)


def large(top, mib, increments):
    rnd = random.Random(2)
    src = os.path.join(top, "src")
    os.makedirs(src)
    p = os.path.join(src, "database.img")
    with open(p, "wb") as f:
        for _ in range(mib):
            f.write(rnd.randbytes(1 << 20))
    for i in range(increments + 1):
        if i:
            with open(p, "r+b") as f:
                for _ in range(40):
                    f.seek(rnd.randrange(mib << 20))
                    f.write(rnd.randbytes(rnd.randrange(100, 8_000)))
        os.utime(p, (EPOCH + i * DAY - 60,) * 2)
        backup(src, os.path.join(top, "repo"), i)
    shutil.rmtree(src)


def small(top, points):
    src = os.path.join(top, "src")
    os.makedirs(src)
    for i in range(points):
        for name in ("a", "b", "c") if not i else ("a",):
            p = os.path.join(src, name)
            with open(p, "w") as f:
                f.write(f"{name} at {i}\n" * 20)
            os.utime(p, (EPOCH + i * DAY - 60,) * 2)
        backup(src, os.path.join(top, "repo"), i)
    shutil.rmtree(src)


def main():
    top = sys.argv[1]
    files, points, mib, increments = [int(a) for a in sys.argv[2:]] or (20_000, 40, 200, 30)
    for name, make in (("many", lambda d: many(d, files, points)), ("large", lambda d: large(d, mib, increments)),
                       ("points", lambda d: small(d, 1_000))):
        done = os.path.join(top, name)
        if os.path.isdir(done):
            continue
        unfinished = done + ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        os.makedirs(unfinished)
        make(unfinished)
        os.rename(unfinished, done)


main()
