package ebs

import (
	"encoding/base64"
	"encoding/binary"
	"math"
	"slices"
	"sort"
	"sync"
	"time"
)

// tokens are the block tokens of a Disk, by region. A token is 60 characters and
// says nothing, so that all of a large volume's would take gigabytes: the regions
// used last are kept, the others listed again when they are needed.
type tokens struct {
	now   func() time.Time
	limit int // bytes of text kept

	mu      sync.Mutex
	regions map[int64]*tokenRegion
	refused map[int64]bool // blocks whose tokens AWS didn't take
	size    int            // bytes of text
	tick    uint64         // of the last use
}

// tokensInMemory holds some 150 regions, 600 GiB of a volume that is written to
// the last block.
const tokensInMemory = 64 << 20

// tokenRegion holds the tokens of one region. It is never changed once it is in
// the map, but for used and saved.
type tokenRegion struct {
	index  []uint16 // block within the region, ascending
	ends   []uint32 // where its text ends
	text   []byte   // packed tokens
	expiry int64    // seconds since 1970; 0 when unknown
	used   uint64
	saved  bool // is in a blob, or came from one
}

func newTokens() *tokens {
	return &tokens{now: time.Now, limit: tokensInMemory, regions: map[int64]*tokenRegion{}, refused: map[int64]bool{}}
}

// Tokens are base64 as a rule, and then packed into three quarters of their
// length; the first byte says whether they are.
const (
	tokenPlain  = 0
	tokenPacked = 1
)

func packToken(b []byte, token string) []byte {
	n := len(b)
	b = append(b, tokenPacked)
	b, err := base64.StdEncoding.Strict().AppendDecode(b, []byte(token))
	if err == nil && base64.StdEncoding.EncodedLen(len(b)-n-1) == len(token) {
		return b
	}
	return append(append(b[:n], tokenPlain), token...)
}

func unpackToken(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if b[0] == tokenPacked {
		return base64.StdEncoding.EncodeToString(b[1:])
	}
	return string(b[1:])
}

func (r *tokenRegion) add(index uint16, packed []byte) {
	r.index = append(r.index, index)
	r.text = append(r.text, packed...)
	r.ends = append(r.ends, uint32(len(r.text)))
}

func (r *tokenRegion) at(i int) []byte {
	from := uint32(0)
	if i > 0 {
		from = r.ends[i-1]
	}
	return r.text[from:r.ends[i]]
}

// learn takes in a page's tokens; they replace those of the same range.
func (t *tokens) learn(p page) {
	if p.expiry <= t.now().Unix() {
		p.expiry = 0 // the clocks disagree: AWS will say when they are too old
	}
	var packed []byte
	for i := 0; i < len(p.blocks); {
		region := p.blocks[i] / regionBlocks
		fresh := &tokenRegion{expiry: p.expiry}
		j := i
		for ; j < len(p.blocks) && p.blocks[j]/regionBlocks == region; j++ {
			packed = packToken(packed[:0], p.tokens[j])
			fresh.add(uint16(p.blocks[j]%regionBlocks), packed)
		}
		i = j
		t.merge(region, fresh)
	}
}

// merge puts fresh in the place of what covers the same range.
func (t *tokens) merge(region int64, fresh *tokenRegion) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.refused) > 0 {
		for _, i := range fresh.index {
			delete(t.refused, region*regionBlocks+int64(i))
		}
	}
	if old := t.regions[region]; old != nil {
		first, last := fresh.index[0], fresh.index[len(fresh.index)-1]
		if old.index[0] < first || old.index[len(old.index)-1] > last {
			both := &tokenRegion{expiry: minExpiry(old.expiry, fresh.expiry)}
			i := 0
			for ; i < len(old.index) && old.index[i] < first; i++ {
				both.add(old.index[i], old.at(i))
			}
			for k := range fresh.index {
				both.add(fresh.index[k], fresh.at(k))
			}
			for ; i < len(old.index); i++ {
				if old.index[i] > last {
					both.add(old.index[i], old.at(i))
				}
			}
			fresh = both
		}
	}
	t.put(region, fresh)
}

func minExpiry(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// put keeps r, and drops what was used longest ago beyond the limit. The lock is held.
func (t *tokens) put(region int64, r *tokenRegion) {
	if old := t.regions[region]; old != nil {
		t.size -= len(old.text)
	}
	t.tick++
	r.used = t.tick
	t.regions[region] = r
	t.size += len(r.text)
	for t.size > t.limit && len(t.regions) > 1 {
		oldest, least := int64(-1), uint64(math.MaxUint64)
		for k, o := range t.regions {
			if o.used < least {
				oldest, least = k, o.used
			}
		}
		t.size -= len(t.regions[oldest].text)
		delete(t.regions, oldest)
	}
}

// expiryMargin is how many seconds a region from a blob must still be good for.
const expiryMargin = 300

// get returns block n's token, "" when it isn't held or has expired. save is true
// once for a region that no blob holds.
func (t *tokens) get(n int64) (token string, save bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	region := n / regionBlocks
	r := t.regions[region]
	if r == nil || t.refused[n] {
		return "", false
	}
	if r.expiry != 0 && t.now().Unix() >= r.expiry {
		t.size -= len(r.text)
		delete(t.regions, region)
		return "", false
	}
	i, ok := slices.BinarySearch(r.index, uint16(n%regionBlocks))
	if !ok {
		return "", false
	}
	t.tick++
	r.used = t.tick
	save, r.saved = !r.saved, true
	return unpackToken(r.at(i)), save
}

// refuse notes that token was refused for block n, if it is still the one held.
// Its neighbours' may be good: each is tried, until the region is listed again.
func (t *tokens) refuse(n int64, token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.regions[n/regionBlocks]; r != nil {
		if i, ok := slices.BinarySearch(r.index, uint16(n%regionBlocks)); ok && unpackToken(r.at(i)) == token {
			t.refused[n] = true
		}
	}
}

// A region's blob: magic, expiry, number of tokens, then of each its index and
// length and the packed text, all uvarints, and a CRC32C.
const tokensMagic = "EBT1"

func (t *tokens) encode(region int64) ([]byte, bool) {
	t.mu.Lock()
	r := t.regions[region]
	t.mu.Unlock()
	if r == nil {
		return nil, false
	}
	b := make([]byte, 0, len(r.text)+3*len(r.index)+32)
	b = append(b, tokensMagic...)
	b = binary.AppendUvarint(b, uint64(r.expiry))
	b = binary.AppendUvarint(b, uint64(len(r.index)))
	for i, n := range r.index {
		text := r.at(i)
		b = binary.AppendUvarint(b, uint64(n))
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	return sealBlob(b), true
}

// decode takes in what encode wrote, unless it has expired.
func (t *tokens) decode(region int64, p []byte) error {
	p, err := checkBlob(p, tokensMagic)
	if err != nil {
		return err
	}
	uvarint := func(limit uint64) uint64 {
		v, n := binary.Uvarint(p)
		if n <= 0 || v > limit {
			err, p = errBlob, nil
			return 0
		}
		p = p[n:]
		return v
	}
	r := &tokenRegion{saved: true, expiry: int64(uvarint(math.MaxInt64))}
	count := uvarint(regionBlocks)
	for ; count > 0 && err == nil; count-- {
		index := uint16(uvarint(regionBlocks - 1))
		length := uvarint(maxToken + 1)
		if err != nil || length > uint64(len(p)) {
			return errBlob
		}
		r.add(index, p[:length])
		p = p[length:]
	}
	if err != nil || len(r.index) == 0 || !sort.SliceIsSorted(r.index, func(i, j int) bool { return r.index[i] < r.index[j] }) {
		return errBlob
	}
	if r.expiry != 0 && t.now().Unix() >= r.expiry-expiryMargin {
		return errBlob
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.put(region, r)
	return nil
}
