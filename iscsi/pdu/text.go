package pdu

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Limits of text keys. RFC 7143 section 6.1.
const (
	maxKeyLen = 63
	// maxPairs is far above the thirty-odd keys that exist; it bounds what a
	// hostile initiator makes a target answer with NotUnderstood.
	maxPairs = 128
)

// ErrText is the error of text that isn't key=value pairs.
var ErrText = errors.New("malformed text")

// Pair is one key and its value.
type Pair struct{ Key, Value string }

// ParseText splits the data of a Login or Text PDU into its pairs, in order.
// Keys are not compared with those that exist; a pair without '=', a key of bad
// length or characters, and too many pairs are errors matching ErrText.
func ParseText(data []byte) ([]Pair, error) {
	var out []Pair
	for len(data) > 0 {
		item, rest, _ := bytes.Cut(data, []byte{0})
		data = rest
		if len(item) == 0 {
			continue // some initiators pad the text itself with NULs
		}
		k, v, ok := bytes.Cut(item, []byte{'='})
		if !ok || !validKey(k) {
			return nil, fmt.Errorf("%.80q: %w", item, ErrText)
		}
		if len(out) == maxPairs {
			return nil, fmt.Errorf("more than %d keys: %w", maxPairs, ErrText)
		}
		out = append(out, Pair{string(k), string(v)})
	}
	return out, nil
}

// validKey: standard-label of RFC 7143 section 6.1, with '#' and what X- keys use.
func validKey(k []byte) bool {
	if len(k) == 0 || len(k) > maxKeyLen {
		return false
	}
	for _, c := range k {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9',
			c == '.', c == '-', c == '+', c == '@', c == '_', c == '/', c == '#':
		default:
			return false
		}
	}
	return true
}

// AppendPair appends key=value and its NUL.
func AppendPair(dst []byte, key, value string) []byte {
	dst = append(dst, key...)
	dst = append(dst, '=')
	dst = append(dst, value...)
	return append(dst, 0)
}

// ParseNumber reads a numerical value: decimal, or hexadecimal after 0x, of at
// most 64 bits. RFC 7143 section 6.1.
func ParseNumber(s string) (uint64, error) {
	if h, ok := cutPrefixFold(s, "0x"); ok {
		return parseUint(h, 16)
	}
	return parseUint(s, 10)
}

func parseUint(s string, base int) (uint64, error) {
	if s == "" || s[0] == '+' || strings.ContainsRune(s, '_') {
		return 0, fmt.Errorf("number %.40q: %w", s, ErrText)
	}
	n, err := strconv.ParseUint(s, base, 64)
	if err != nil {
		return 0, fmt.Errorf("number %.40q: %w", s, ErrText)
	}
	return n, nil
}

// ParseBinary reads a binary value: hexadecimal after 0x or base64 after 0b, of
// at most max bytes. RFC 7143 section 6.1.
func ParseBinary(s string, max int) ([]byte, error) {
	if len(s) > 2+2*max+4 {
		return nil, fmt.Errorf("binary value of %d characters: %w", len(s), ErrText)
	}
	var b []byte
	var err error
	if h, ok := cutPrefixFold(s, "0x"); ok {
		if len(h)%2 == 1 {
			h = "0" + h
		}
		b, err = hex.DecodeString(h)
	} else if h, ok := cutPrefixFold(s, "0b"); ok {
		b, err = base64.StdEncoding.DecodeString(h)
	} else {
		err = ErrText
	}
	if err != nil || len(b) == 0 || len(b) > max {
		return nil, fmt.Errorf("binary value %.40q: %w", s, ErrText)
	}
	return b, nil
}

// FormatBinary returns b as a hexadecimal text value.
func FormatBinary(b []byte) string { return "0x" + hex.EncodeToString(b) }

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix) {
		return s[len(prefix):], true
	}
	return s, false
}
