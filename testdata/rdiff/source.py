"""A source tree that changes from session to session in every way that a
repository must be able to follow."""

import os
import random
import shutil
import socket
import stat

import posix1e
import xattr


def copy_node(src, dst, **_):
    """copytree's way of copying a file, for fifos, sockets and devices too."""
    st = os.lstat(src)
    if stat.S_ISREG(st.st_mode):
        shutil.copy2(src, dst, follow_symlinks=False)
        os.chown(dst, st.st_uid, st.st_gid)
        os.chmod(dst, stat.S_IMODE(st.st_mode))
    elif stat.S_ISLNK(st.st_mode):
        os.symlink(os.readlink(src), dst)
    else:
        os.mknod(dst, st.st_mode, st.st_rdev)
    return dst


class Tree:
    def __init__(self, top, seed, names=True):
        self.top = os.fsencode(top)
        self.rnd = random.Random(seed)
        self.names = names
        self.clock = 1_400_000_000

    def path(self, name):
        return self.top + b"/" + (name if isinstance(name, bytes) else os.fsencode(name))

    def touch(self, name, when=None):
        self.clock += 7
        when = self.clock if when is None else when
        os.utime(self.path(name), ns=(when * 10**9, when * 10**9 + 123_456_789), follow_symlinks=False)

    def write(self, name, data, when=None):
        with open(self.path(name), "wb") as f:
            f.write(data)
        self.touch(name, when)

    def data(self, n):
        return self.rnd.randbytes(n)

    def edit(self, name):
        """Changes a file here and there, so that a delta is worth while."""
        with open(self.path(name), "r+b") as f:
            size = os.fstat(f.fileno()).st_size
            for _ in range(3):
                f.seek(self.rnd.randrange(size + 1))
                f.write(self.data(self.rnd.randrange(200)))
        self.touch(name)

    def move_parts(self, name):
        """Swaps the halves of a file and puts something between them."""
        with open(self.path(name), "rb") as f:
            b = f.read()
        self.write(name, b[len(b) // 2:] + self.data(99) + b[:len(b) // 2])

    def remove(self, name):
        p = self.path(name)
        if os.path.isdir(p) and not os.path.islink(p):
            shutil.rmtree(p)
        elif os.path.lexists(p):
            os.remove(p)

    def step(self, i):
        {0: self.create, 1: self.change, 2: self.retype, 3: self.restore}.get(i, self.drift)(*(() if i < 4 else (i,)))
        for d in (b"d", b"types", b"."):
            if os.path.isdir(self.path(d)):
                self.touch(d)

    def create(self):
        os.mkdir(self.path("d"))
        os.mkdir(self.path("types"))
        os.makedirs(self.path("deep/er/est"))
        self.write("empty", b"")
        self.write("small", b"first version\n")
        self.write("medium", self.data(9_000))
        self.write("large", self.data(300_000))
        self.write("deep/er/est/file", self.data(5_000))
        self.write("photo.jpg", self.data(4_000))
        self.write("archive.tar.gz", self.data(4_000))
        self.write("zeros", bytes(200_000))
        with open(self.path("sparse"), "wb") as f:
            f.seek(400_000)
            f.write(b"end")
        self.touch("sparse")
        self.write("unchanged", self.data(3_000))
        self.write("d/goes", self.data(3_000))
        self.write("d/stays", self.data(100))
        for name, when in (("before", -1_000_000), ("epoch", 0), ("y2038", 2**31 + 5), ("y2106", 2**32 + 77),
                           ("far", 10_000_000_000)):
            self.write("time-" + name, b"t", when)
        self.write("setuid", b"#!")
        os.chmod(self.path("setuid"), 0o6755)
        self.write("secret", b"s")
        os.chmod(self.path("secret"), 0)
        self.write("owned", b"o")
        os.chown(self.path("owned"), 4_000_000_000, 70_000)
        self.write("daemon", b"o")
        os.chown(self.path("daemon"), 1, 1)
        os.chmod(self.path("d"), 0o1777)

        self.write("hard1", self.data(2_500))
        os.link(self.path("hard1"), self.path("d/hard2"))
        os.link(self.path("hard1"), self.path("hard3"))
        self.write("outside", b"the other link is outside of the source")
        self.remove("../outside")
        os.link(self.path("outside"), self.path("../outside"))

        os.symlink("small", self.path("types/link"))
        os.symlink(b"\xff\xfe/\nback\\slash", self.path("types/odd"))
        os.symlink("/etc/passwd", self.path("types/absolute"))
        os.mkfifo(self.path("types/fifo"), 0o640)
        os.mknod(self.path("types/null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(self.path("types/disk"), stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
        with socket.socket(socket.AF_UNIX) as s:
            here = os.getcwd()
            os.chdir(self.path("types"))
            s.bind("sock")
            os.chdir(here)
        self.touch("types/sock", 1_300_000_000)
        self.touch("types/fifo", 1_300_000_001)
        self.write("types/file-dir", b"a file, soon a directory")
        os.mkdir(self.path("types/dir-file"))
        self.write("types/dir-file/below", self.data(700))
        self.write("types/file-link", b"a file, soon a link")
        os.symlink("x", self.path("types/link-file"))
        self.write("types/file-fifo", b"a file, soon a fifo")

        self.write("attrs", b"a")
        xattr.set(self.path("attrs"), b"user.plain", b"value")
        xattr.set(self.path("attrs"), b"user.binary", bytes(range(256)))
        xattr.set(self.path("attrs"), b"user.empty", b"")
        xattr.set(self.path("attrs"), b"user.o d=d\\n\n\xff", b"name")
        xattr.set(self.path("attrs"), b"trusted.t", b"t")
        xattr.set(self.path("attrs"), b"user.large", self.data(3_000))
        xattr.set(self.path("types/link"), b"trusted.l", b"of the link", 0, True)
        self.write("capable", b"c")
        xattr.set(self.path("capable"), b"security.capability", bytes.fromhex("0100000200044000000000000000000000000000"))
        self.write("acl", b"a")
        self.acl("acl", "u::rw-,u:daemon:r--,u:4242:rwx,g::r--,g:bin:r-x,g:99999:---,m::rwx,o::---")
        self.acl("d", "u::rwx,u:daemon:rwx,g::r-x,m::rwx,o::r-x")
        self.acl("d", "u::rwx,g::r-x,g:bin:rwx,m::rwx,o::---", default=True)
        os.mkdir(self.path("defaults"))
        self.acl("defaults", "u::rwx,g::r-x,o::---", default=True)

        if self.names:
            os.mkdir(self.path("names"))
            for i, n in enumerate((b"new\nline", b"back\\slash", b"\xff\xfenot utf-8", "Ünïcödé".encode(), b"UPPER", b"upper",
                                   b"semi;colon", b"semi;058colon", b"a:b", b"tab\t", b" lead", b"trail ", b"dots..", b"aux", b"AUX",
                                   b"con.txt", b"lpt1", b"com0.a.b", b"quote\"*?<>|", b"%41", b"-dash", b"\x01\x7f", b"File x",
                                   b"a-b", b"a", b"a.b", b"\\n", b"x.2023-06-01T00:00:00Z.snapshot.gz", b"x", b"[a]", b"increments",
                                   b"rdiff-backup-data", b"rdiff-backup.tmp.7")):
                self.write(b"names/" + n, b"%d\n" % i + self.data(50))
            os.mkdir(self.path(b"names/a!"))  # sorts between a and a/b by its bytes
            os.mkdir(self.path(b"names/dir"))
            self.write(b"names/a!/sub", b"s")
            self.write(b"names/dir/sub", b"s")
            os.mkdir(self.path("names/dd.2023-06-01T00:00:00Z.dir"))
            self.write("names/dd.2023-06-01T00:00:00Z.dir/file", self.data(300))
            os.mkdir(self.path("names/dots."))
            self.write("names/dots./in", self.data(300))

    def acl(self, name, text, default=False):
        a = posix1e.ACL(text=text.replace(",", "\n"))
        a.applyto(self.path(name), posix1e.ACL_TYPE_DEFAULT if default else posix1e.ACL_TYPE_ACCESS)

    def change(self):
        self.write("small", b"second version, longer\n")
        self.edit("medium")
        self.edit("large")
        self.edit("deep/er/est/file")
        self.edit("photo.jpg")
        self.edit("archive.tar.gz")
        self.edit("sparse")
        self.write("empty", b"no more")
        self.remove("d/goes")
        self.write("d/comes", self.data(800))
        self.touch("unchanged")  # its time alone
        os.chmod(self.path("daemon"), 0o600)
        os.chown(self.path("owned"), 1, 70_001)
        self.edit("hard1")  # the content of three names
        xattr.remove(self.path("attrs"), b"user.plain")
        xattr.set(self.path("attrs"), b"user.new", b"n")
        self.acl("acl", "u::rw-,g::r--,o::---")
        if self.names:
            for n in sorted(os.listdir(self.path("names"))):
                if os.path.isfile(self.path(b"names/" + n)):
                    self.write(b"names/" + n, b"changed\n" + self.data(60))
            self.edit("names/dd.2023-06-01T00:00:00Z.dir/file")
            self.edit("names/dots./in")

    def retype(self):
        self.remove("types/file-dir")
        os.mkdir(self.path("types/file-dir"))
        self.write("types/file-dir/new", self.data(600))
        self.remove("types/dir-file")
        self.write("types/dir-file", b"now a file")
        self.remove("types/file-link")
        os.symlink("elsewhere", self.path("types/file-link"))
        self.remove("types/link-file")
        self.write("types/link-file", b"now a file")
        self.remove("types/file-fifo")
        os.mkfifo(self.path("types/file-fifo"))
        self.touch("types/file-fifo")
        self.remove("types/null")
        os.mknod(self.path("types/null"), stat.S_IFCHR | 0o600, os.makedev(1, 5))
        self.remove("d/hard2")
        os.link(self.path("medium"), self.path("medium-link"))
        self.touch("medium")
        self.move_parts("large")
        self.edit("deep/er/est/file")
        shutil.rmtree(self.path("deep"))
        os.symlink("d", self.path("deep"))
        os.makedirs(self.path("d/er/est"))
        self.write("d/er/est/file", b"reached through a link, by whoever follows it")
        self.remove("empty")

    def restore(self):
        self.remove("types/file-dir")
        self.write("types/file-dir", b"a file again")
        self.remove("types/dir-file")
        os.mkdir(self.path("types/dir-file"))
        self.write("types/dir-file/below", self.data(500))
        self.remove("types/file-link")
        self.write("types/file-link", b"a file again")
        self.remove("types/file-fifo")
        self.write("types/file-fifo", b"a file again")
        self.write("empty", b"")
        self.remove("deep")
        os.makedirs(self.path("deep/er/est"))
        self.write("deep/er/est/file", self.data(4_000))
        self.write("d/goes", self.data(2_000))
        self.edit("medium")
        self.edit("large")
        os.rename(self.path("hard3"), self.path("hard4"))
        self.touch("hard4")
        if self.names:
            for n in (b"new\nline", b"aux", b"trail ", b"UPPER", b"x"):
                self.remove(b"names/" + n)

    def drift(self, i):
        """A few random changes."""
        self.edit("large")
        self.edit("medium")
        for _ in range(4):
            n = "d/f%d" % self.rnd.randrange(6)
            match self.rnd.randrange(4):
                case 0:
                    self.remove(n)
                case 1 if os.path.isfile(self.path(n)):
                    self.edit(n)
                case 2 if os.path.isfile(self.path(n)):
                    os.chmod(self.path(n), self.rnd.choice((0o600, 0o640, 0o755)))
                    self.touch(n)
                case _:
                    self.remove(n)
                    self.write(n, self.data(self.rnd.randrange(30_000)))
        if i % 3 == 0:
            self.write("photo.jpg", self.data(4_000))
        if self.names and i % 2:
            self.write(b"names/new\nline", self.data(90))
            self.edit("names/dd.2023-06-01T00:00:00Z.dir/file")
