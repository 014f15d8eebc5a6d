// Package erofs writes the metadata of a directory tree as an image that Linux's
// EROFS mounts (uncompressed, blocks of 4 KiB, as in fs/erofs/erofs_fs.h and the
// kernel's Documentation/filesystems/erofs.rst). The files' contents lie on other
// devices: the image only says where.
//
// An image may consist of several trees, each in a region of its own and made only
// when somebody looks at it.
package erofs
