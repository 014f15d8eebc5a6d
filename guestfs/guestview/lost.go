package guestview

import (
	"context"

	"yester/guestfs"
	"yester/internal/block"
)

// lost stands for a filesystem that the guest had mounted and that can't be read:
// every look into it is the error that says why.
type lost struct{ err error }

var _ guestfs.Tree = lost{}

func (l lost) Root() guestfs.ID                                       { return guestfs.ID{} }
func (l lost) Attr(context.Context, guestfs.ID) (guestfs.Attr, error) { return guestfs.Attr{}, l.err }
func (l lost) Lookup(context.Context, guestfs.ID, string) (guestfs.ID, error) {
	return guestfs.ID{}, l.err
}
func (l lost) ReadDir(context.Context, guestfs.ID, uint64, func(guestfs.Dirent) bool) error {
	return l.err
}
func (l lost) ReadLink(context.Context, guestfs.ID) (string, error)      { return "", l.err }
func (l lost) ListXattr(context.Context, guestfs.ID) ([]string, error)   { return nil, l.err }
func (l lost) Xattr(context.Context, guestfs.ID, string) ([]byte, error) { return nil, l.err }
func (l lost) Open(context.Context, guestfs.ID) (block.Reader, error)    { return nil, l.err }
func (l lost) Info() guestfs.Info                                        { return guestfs.Info{} }
func (l lost) Close() error                                              { return nil }
