package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"yester/iscsi"
)

// iscsiConfig is what the flags of `yester iscsi` mean.
type iscsiConfig struct {
	listen  string
	server  iscsi.Options
	overlay *iscsi.Overlay // nil: read-only
}

// config checks the flags; every error of it is one of usage.
func (f *iscsiFlags) config() (*iscsiConfig, error) {
	c := &iscsiConfig{}
	c.server.Insecure = f.insecure
	if f.expire < 0 || f.idle < 0 {
		return nil, usageError("--expire and --idle-timeout can't be negative", "")
	}
	if err := f.auth(&c.server); err != nil {
		return nil, err
	}
	for _, n := range f.initiators {
		if !iscsi.ValidName(n) {
			return nil, usageError(fmt.Sprintf("--allow-initiator %q is no iSCSI name", n),
				"on Linux it is in /etc/iscsi/initiatorname.iscsi; on Windows, `(Get-InitiatorPort).NodeAddress` shows it")
		}
		c.server.ACL.Initiators = append(c.server.ACL.Initiators, n)
	}
	for _, n := range f.nets {
		p, err := netip.ParsePrefix(n)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(n); err == nil {
				p, err = a.Unmap().Prefix(a.Unmap().BitLen())
			}
		}
		if err != nil {
			return nil, usageError(fmt.Sprintf("--allow-net %q is no network", n), "examples: 192.0.2.0/24, 2001:db8::/64, 192.0.2.7")
		}
		c.server.ACL.Nets = append(c.server.ACL.Nets, p)
	}
	if f.overlay != "" {
		size, err := parseSize(f.overlay)
		if err != nil {
			return nil, usageError("--overlay "+err.Error(), "examples: 512M, 10G")
		}
		c.overlay = &iscsi.Overlay{Dir: os.TempDir(), Size: size}
	}
	return c, f.address(c)
}

// iscsiPort is the port that IANA has registered for iSCSI targets.
const iscsiPort = "3260"

// address checks where to listen.
func (f *iscsiFlags) address(c *iscsiConfig) error {
	host, port, err := net.SplitHostPort(f.listen)
	if err != nil { // no port
		host, port = strings.TrimSuffix(strings.TrimPrefix(f.listen, "["), "]"), iscsiPort
	}
	if port == "" {
		port = iscsiPort
	}
	c.listen = net.JoinHostPort(host, port)
	addr, err := net.ResolveTCPAddr("tcp", c.listen)
	if err != nil {
		return usageError(fmt.Sprintf("--listen %q: %v", f.listen, err), "examples: 127.0.0.1:3260, [2001:db8::7]:3260, 192.0.2.7")
	}
	if err := iscsi.CheckListen(addr, c.server); err != nil {
		return usageError(fmt.Sprintf("--listen %s: %v", f.listen, iscsi.ErrNotLoopback),
			"--chap-user and --chap-secret-file let initiators prove who they are; --insecure goes without")
	}
	return nil
}

// auth takes CHAP's users.
func (f *iscsiFlags) auth(o *iscsi.Options) error {
	if (f.chapUser == "") != (f.chapFile == "") {
		return usageError("CHAP needs both --chap-user and --chap-secret-file", "")
	}
	if (f.mutualUser == "") != (f.mutualFile == "") {
		return usageError("mutual CHAP needs both --mutual-user and --mutual-secret-file", "")
	}
	if f.mutualUser != "" && f.chapUser == "" {
		return usageError("mutual CHAP needs --chap-user and --chap-secret-file too", "the target proves itself only to initiators that prove themselves")
	}
	if f.chapUser == "" {
		return nil
	}
	u := iscsi.User{Name: f.chapUser, MutualName: f.mutualUser}
	var err error
	if u.Secret, err = readSecret("--chap-secret-file", f.chapFile); err != nil {
		return err
	}
	if f.mutualFile != "" {
		if u.MutualSecret, err = readSecret("--mutual-secret-file", f.mutualFile); err != nil {
			return err
		}
	}
	o.Auth.Users = []iscsi.User{u}
	if err := o.Validate(); err != nil { // which doesn't quote secrets
		return usageError(strings.TrimPrefix(err.Error(), "iscsi: "), "")
	}
	return nil
}

// maxSecretFile bounds what is read of a secret's file; secrets have at most 255
// bytes.
const maxSecretFile = 4096

// readSecret reads a secret: the content of a file without the end of its line.
// Files that others may read are refused, since what is in them is no secret.
func readSecret(flag, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", usageError(flag+": "+err.Error(), "")
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", usageError(flag+": "+err.Error(), "")
	}
	if perm := fi.Mode().Perm(); perm&0o077 != 0 {
		return "", usageError(fmt.Sprintf("%s: %s can be read or changed by others (mode %04o)", flag, path, perm),
			"`chmod 600 "+shellQuote(path)+"`, and choose a new secret if others have seen this one")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return "", usageError(flag+": "+err.Error(), "")
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if strings.ContainsAny(s, "\r\n\x00") {
		return "", usageError(fmt.Sprintf("%s: %s has several lines or NUL bytes, not one secret", flag, path), "")
	}
	return s, nil
}

// parseSize reads a number of bytes with an optional suffix K, M, G or T, in
// powers of 1024; "10GiB" and "10GB" are taken for 10G.
func parseSize(s string) (int64, error) {
	num, shift := strings.ToUpper(strings.TrimSpace(s)), 0
	num = strings.TrimSuffix(strings.TrimSuffix(num, "B"), "I")
	if n := len(num); n > 0 {
		if i := strings.IndexByte("KMGT", num[n-1]); i >= 0 {
			num, shift = num[:n-1], 10*(i+1)
		}
	}
	v, err := strconv.ParseInt(num, 10, 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return 0, fmt.Errorf("%q is no size", s)
	case err != nil || v > math.MaxInt64>>shift:
		return 0, fmt.Errorf("%q is too large", s)
	case v<<shift < 1<<20:
		return 0, fmt.Errorf("%q is less than 1M", s)
	}
	return v << shift, nil
}
