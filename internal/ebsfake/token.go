package ebsfake

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// Tokens look like AWS's: 60 characters of base64, which are 45 bytes that begin
// alike and then say nothing to anyone but the server. Block tokens of one list
// differ from those of the next one.
const (
	tokenBytes = 45
	tokenChars = 60
)

// tokenPrefix is what the tokens in AWS's examples begin with ("AAUBA").
var tokenPrefix = [4]byte{0x00, 0x05, 0x01, 0x01}

// Kinds of tokens.
const (
	blockToken = iota + 1
	pageToken
	changedPageToken
)

// tokenText is what a token means. It is kept in the token, so that millions of
// them cost the server nothing.
type tokenText struct {
	kind    byte
	salt    [3]byte // of the list call that gave it out
	snap    uint32  // number of the snapshot
	first   uint32  // number of the first snapshot of a changedPageToken
	index   uint32  // block, or where the next page begins
	expires uint32  // seconds since 1970
}

// tokenBox seals and opens tokens. Two AES blocks, the second of which depends
// on the first, are no authenticated encryption; they do for a fake.
type tokenBox struct{ block cipher.Block }

func newTokenBox() *tokenBox {
	var key [16]byte
	_, _ = rand.Read(key[:]) // never fails
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // the key's length is right
	}
	return &tokenBox{block}
}

func (b *tokenBox) seal(t tokenText) string {
	var raw [tokenBytes]byte
	copy(raw[:4], tokenPrefix[:])
	p := raw[4:36]
	p[0] = t.kind
	copy(p[1:4], t.salt[:])
	binary.LittleEndian.PutUint32(p[4:], t.snap)
	binary.LittleEndian.PutUint32(p[8:], t.index)
	binary.LittleEndian.PutUint32(p[12:], t.expires)
	b.block.Encrypt(p[:16], p[:16])
	binary.LittleEndian.PutUint32(p[16:], t.first)
	for i := range 12 {
		p[20+i] = p[i]
	}
	b.block.Encrypt(p[16:], p[16:])
	copy(raw[36:], p[5:14])
	return base64.StdEncoding.EncodeToString(raw[:])
}

// open returns what a token means, and whether it is one of this server's that
// is still good.
func (b *tokenBox) open(s string, kind byte, now time.Time) (tokenText, bool) {
	var t tokenText
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != tokenBytes || [4]byte(raw[:4]) != tokenPrefix || string(raw[36:]) != string(raw[9:18]) {
		return t, false
	}
	var p [32]byte
	b.block.Decrypt(p[16:], raw[20:36])
	if string(p[20:32]) != string(raw[4:16]) {
		return t, false
	}
	b.block.Decrypt(p[:16], raw[4:20])
	t.kind = p[0]
	copy(t.salt[:], p[1:4])
	t.snap = binary.LittleEndian.Uint32(p[4:])
	t.index = binary.LittleEndian.Uint32(p[8:])
	t.expires = binary.LittleEndian.Uint32(p[12:])
	t.first = binary.LittleEndian.Uint32(p[16:])
	return t, t.kind == kind && now.Unix() < int64(t.expires)
}
