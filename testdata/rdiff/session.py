"""Runs sessions of the real rdiff-backup at controlled times, each in a process
of its own that was forked with the program already loaded, which saves most of
what a short session takes. crash_after ends a session in the middle of its work."""

import os
import sys

from rdiffbackup import run as program

# What changes the file system, by the names of Python's audit events.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod",
           "os.chown", "os.utime", "os.truncate", "os.setxattr")


def _watch(crash_after):
    """Ends this process, without flushing anything, at the given change of the
    file system. What is returned holds how many are left."""
    left = [crash_after]

    def hook(event, args):
        if event == "open":
            mode, flags = args[1], args[2]
            change = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or \
                isinstance(mode, str) and any(c in mode for c in "wax+")
        else:
            change = event in CHANGES
        if change:
            left[0] -= 1
            if left[0] < 0:
                os._exit(99)

    sys.addaudithook(hook)
    return left


def changes(*args):
    """Runs rdiff-backup with args and returns how many changes it made."""
    read, write = os.pipe()
    run(*args, report=write)
    os.close(write)
    with os.fdopen(read) as f:
        return int(f.read())


def run(*args, zone="UTC", crash_after=None, check=True, report=None):
    """Runs rdiff-backup with args and returns its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            os.environ["TZ"] = zone
            import time
            time.tzset()
            log = os.open(os.devnull, os.O_WRONLY)
            if not os.environ.get("VERBOSE"):
                os.dup2(log, 1)
                os.dup2(log, 2)
            os.fsync = lambda fd: None  # costs most of the time, and the host doesn't crash
            enough = 1 << 30
            if crash_after is not None or report is not None:
                left = _watch(enough if crash_after is None else crash_after)
            code = program.main_run(["-v1", "--no-fsync", *args])
            if report is not None:
                os.write(report, str(enough - left[0]).encode())
            os._exit(code)
        except SystemExit as e:
            os._exit(e.code if isinstance(e.code, int) else 98)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(97)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # 2 and more are warnings about single files.
    if check and code & 1 or check and code >= 90:
        raise SystemExit(f"rdiff-backup {args}: exit code {code}")
    return code
