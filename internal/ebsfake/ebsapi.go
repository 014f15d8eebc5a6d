package ebsfake

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// apiError is an error of the EBS direct APIs (restJson1).
type apiError struct {
	status                int
	kind, message, reason string
}

func validation(reason, message string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, "ValidationException", fmt.Sprintf(message, args...), reason}
}

func throttled(reason string) *apiError {
	return &apiError{http.StatusBadRequest, "RequestThrottledException", "Rate exceeded", reason}
}

func denied(reason, message string, args ...any) *apiError {
	return &apiError{http.StatusForbidden, "AccessDeniedException", fmt.Sprintf(message, args...), reason}
}

// errInternal is answered for faults of this server as for injected ones.
var errInternal = &apiError{http.StatusInternalServerError, "InternalServerException", "An internal error has occurred", ""}

func (c *call) fail(e *apiError) {
	c.s.counts.add("Error:" + e.kind)
	c.s.log.Debug("error", "path", c.r.URL.Path, "type", e.kind, "reason", e.reason, "message", e.message)
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Amzn-Errortype", e.kind)
	body := map[string]string{"Message": e.message}
	if e.reason != "" {
		body["Reason"] = e.reason
	}
	c.w.WriteHeader(e.status)
	_ = json.NewEncoder(c.w).Encode(body)
}

// ebsAuthErrors are the answers of AWS's front end for JSON services.
var ebsAuthErrors = map[authFailure]*apiError{
	authMissing:    {http.StatusForbidden, "MissingAuthenticationTokenException", "Missing Authentication Token", ""},
	authIncomplete: {http.StatusForbidden, "IncompleteSignatureException", "Authorization header is incomplete", ""},
	authUnknownKey: {http.StatusForbidden, "UnrecognizedClientException", "The security token included in the request is invalid.", ""},
	authMismatch: {http.StatusForbidden, "InvalidSignatureException",
		"The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method.", ""},
	authSkew:  {http.StatusForbidden, "InvalidSignatureException", "Signature expired", ""},
	authScope: {http.StatusForbidden, "InvalidSignatureException", "Credential should be scoped to a valid region and service", ""},
}

// serveEBS answers one request to the EBS direct APIs.
func (c *call) serveEBS(fail authFailure) {
	parts := strings.Split(strings.Trim(c.r.URL.Path, "/"), "/")
	var action string
	switch {
	case c.r.Method != http.MethodGet || len(parts) < 3 || len(parts) > 4 || parts[0] != "snapshots":
	case len(parts) == 4 && parts[2] == "blocks":
		action = "GetSnapshotBlock"
	case len(parts) == 3 && parts[2] == "blocks":
		action = "ListSnapshotBlocks"
	case len(parts) == 3 && parts[2] == "changedblocks":
		action = "ListChangedBlocks"
	}
	if action == "" {
		c.fail(&apiError{http.StatusNotFound, "UnknownOperationException", "", ""})
		return
	}
	c.s.counts.add(action)
	if fail != authOK {
		c.fail(ebsAuthErrors[fail])
		return
	}
	c.sleep(time.Duration(c.set.Latency))
	id := parts[1]
	if e := c.throttle(action, id); e != nil {
		c.fail(e)
		return
	}
	if c.inject(action) {
		return
	}
	if slices.Contains(c.set.Deny, "ebs:"+action) {
		c.fail(denied("", "User: arn:aws:iam::%s:user/test is not authorized to perform: ebs:%s on resource: arn:aws:ec2:%s::snapshot/%s", c.who, action, c.s.region, id))
		return
	}
	snap, e := c.readable(id)
	if e == nil {
		switch action {
		case "GetSnapshotBlock":
			e = c.getBlock(snap, parts[3])
		case "ListSnapshotBlocks":
			e = c.listBlocks(snap)
		default:
			e = c.listChanged(snap)
		}
	}
	if e != nil {
		c.fail(e)
	}
}

// throttle takes from the buckets that a request needs.
func (c *call) throttle(action, id string) *apiError {
	l := &c.s.limits
	if action != "GetSnapshotBlock" {
		if !l.take(&l.lists, c.who, c.set.ListRate) {
			return throttled("ACCOUNT_THROTTLED")
		}
		return nil
	}
	if !l.take(&l.snapshot, id, c.set.SnapshotRate) {
		return throttled("RESOURCE_LEVEL_THROTTLE")
	}
	if !l.take(&l.account, c.who, c.set.AccountRate) {
		return throttled("ACCOUNT_THROTTLED")
	}
	return nil
}

// inject makes a fault happen, by chance. It returns true when that was the answer.
func (c *call) inject(action string) bool {
	block := action == "GetSnapshotBlock"
	row := c.r.URL.Path
	if !block { // lists from several places run side by side
		row = c.r.URL.RequestURI()
	}
	fault := c.s.dice.roll(&c.set.Faults, row, block)
	if fault == "" {
		return false
	}
	c.s.counts.add("Fault")
	c.s.counts.add("Fault:" + strings.TrimSuffix(fault, "Amid"))
	switch fault {
	case faultInternal:
		c.fail(errInternal)
	case faultThrottle:
		c.fail(throttled("ACCOUNT_THROTTLED"))
	case faultReset:
		c.drop()
	case faultHang:
		c.hang()
	case faultToken:
		switch {
		case block:
			c.fail(validation("INVALID_BLOCK_TOKEN", "The provided block token is invalid or has expired"))
		case c.r.URL.Query().Has("pageToken"):
			c.fail(validation("INVALID_PAGE_TOKEN", "The provided page token is invalid or has expired"))
		default: // there is no token that could be bad
			c.fail(errInternal)
		}
	case faultResetLate:
		if !block {
			c.drop()
			return true
		}
		c.bad = fault
		return false
	default:
		c.bad = fault
		return false
	}
	return true
}

// readable returns the snapshot, or why it can't be read through these APIs.
func (c *call) readable(id string) (*Snapshot, *apiError) {
	if !snapshotID.MatchString(id) || len(id) > 64 {
		return nil, validation("INVALID_SNAPSHOT_ID", "The snapshot ID %q is invalid", id)
	}
	snap := c.s.snapshot(id)
	if snap == nil || snap.InRecycle {
		return nil, &apiError{http.StatusNotFound, "ResourceNotFoundException", "The snapshot '" + id + "' does not exist.", "SNAPSHOT_NOT_FOUND"}
	}
	if snap.Owner != c.who && !slices.Contains(snap.SharedWith, c.who) {
		return nil, denied("UNAUTHORIZED_ACCOUNT", "The account is not authorized to access the snapshot %s", id)
	}
	// The user guide says that these can't be read, but not what is answered.
	switch {
	case snap.State != "completed":
		return nil, validation("INVALID_SNAPSHOT_ID", "The snapshot %s is not in the completed state", id)
	case snap.Tier == "archive":
		return nil, validation("INVALID_SNAPSHOT_ID", "The snapshot %s is archived", id)
	case snap.OutpostARN != "":
		return nil, validation("INVALID_SNAPSHOT_ID", "The snapshot %s is a local snapshot on an Outpost", id)
	case snap.KMSKey != "" && slices.Contains(c.set.Deny, "kms:Decrypt"):
		return nil, denied("DEPENDENCY_ACCESS_DENIED", "The caller is not allowed to use the KMS key of the snapshot")
	case snap.Image == nil:
		return nil, errInternal
	}
	return snap, nil
}

func (c *call) getBlock(snap *Snapshot, index string) *apiError {
	n, err := strconv.ParseInt(index, 10, 32)
	if err != nil || n < 0 {
		return validation("INVALID_PARAMETER_VALUE", "The block index %q is invalid", index)
	}
	t, ok := c.s.tokens.open(c.r.URL.Query().Get("blockToken"), blockToken, time.Now())
	if !ok || t.snap != snap.number || int64(t.index) != n || !snap.isWritten(n) {
		return validation("INVALID_BLOCK_TOKEN", "The provided block token is invalid or has expired")
	}
	if file, sum, ok := snap.file(n); ok && c.bad == "" {
		fd, err := file.at(n * BlockSize)
		if err != nil {
			c.s.log.Error("open image", "snapshot", snap.ID, "err", err)
			return errInternal
		}
		defer file.done(fd)
		c.beginBlock(sum, BlockSize)
		if c.send(BlockSize, func(n int) error { _, err := io.CopyN(c.w, fd, int64(n)); return err }) {
			c.s.counts.add("Blocks")
		}
		return nil
	}
	buf := blockPool.Get().(*[BlockSize]byte)
	defer blockPool.Put(buf)
	p := buf[:]
	if err := snap.read(n, p); err != nil {
		c.s.log.Error("read image", "snapshot", snap.ID, "err", err)
		return errInternal
	}
	sum := snap.sum(n, p)
	send := len(p)
	switch c.bad {
	case faultChecksum:
		sum = sha256.Sum256([]byte(index))
	case faultData:
		p[c.s.dice.intN(len(p))] ^= 1 << c.s.dice.intN(8)
	case faultTruncate, faultResetLate:
		send = c.s.dice.intN(len(p))
	}
	// A body that is cut off cleanly is one that says so: the length in the header
	// is what comes. Half of them end before the length that was promised.
	if c.bad == faultTruncate && send%2 == 0 {
		c.beginBlock(sum, send)
	} else {
		c.beginBlock(sum, len(p))
	}
	if !c.write(p[:send]) {
		return nil
	}
	switch c.bad {
	case faultResetLate:
		c.drop()
	case faultTruncate:
		// net/http closes the connection when fewer bytes than promised were written.
	default:
		c.s.counts.add("Blocks")
	}
	return nil
}

var blockPool = sync.Pool{New: func() any { return new([BlockSize]byte) }}

// beginBlock sends the head of an answer with a block of that checksum, whose body
// is said to have length bytes.
func (c *call) beginBlock(sum [sha256.Size]byte, length int) {
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("x-amz-Data-Length", strconv.Itoa(BlockSize))
	h.Set("x-amz-Checksum", base64.StdEncoding.EncodeToString(sum[:]))
	h.Set("x-amz-Checksum-Algorithm", "SHA256")
	h.Set("Content-Length", strconv.Itoa(length))
	c.w.WriteHeader(http.StatusOK)
}

// write sends p at the bandwidth that is set. It returns false when the client
// has gone.
func (c *call) write(p []byte) bool {
	return c.send(len(p), func(n int) error {
		_, err := c.w.Write(p[:n])
		p = p[n:]
		return err
	})
}

// Data whose bandwidth is limited is sent in pieces of what passes in pieceTime, and
// of no less than leastPiece bytes: smaller ones are but work.
const (
	pieceTime  = 2 * time.Millisecond
	leastPiece = 64 << 10
)

// send sends n bytes, piece by piece, at the bandwidth that is set. It returns
// false when the client has gone.
func (c *call) send(n int, next func(n int) error) bool {
	conn, _ := c.r.Context().Value(connKey{}).(*pacer)
	if (c.set.ConnBandwidth <= 0 || conn == nil) && c.set.AllBandwidth <= 0 {
		return next(n) == nil
	}
	rate := c.set.AllBandwidth
	if conn != nil && c.set.ConnBandwidth > 0 {
		rate = c.set.ConnBandwidth
	}
	most := max(int(min(float64(n), float64(rate)*pieceTime.Seconds())), leastPiece)
	for n > 0 {
		piece := min(n, most)
		var wait time.Duration
		if conn != nil {
			wait = conn.book(piece, c.set.ConnBandwidth)
		}
		c.sleep(max(wait, c.s.limits.all.book(piece, c.set.AllBandwidth)))
		if err := next(piece); err != nil {
			return false
		}
		n -= piece
	}
	return true
}

// page is what both lists read from their requests.
type page struct {
	limit int
	from  int64
	after bool // it was asked for by a token that an empty page gave out
	salt  [3]byte
}

// The bounds of maxResults (ebs-2019-11-02, MaxResults).
const (
	minResults = 100
	maxResults = 10000
)

func (c *call) page(q url.Values, kind byte, first, snap uint32) (page, *apiError) {
	p := page{limit: maxResults}
	if v := q.Get("maxResults"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n > maxResults || n < 1 {
			return p, validation("INVALID_PARAMETER_VALUE", "MaxResults %q is invalid", v)
		}
		p.limit = max(n, minResults) // the user guide: at least 100 come
	}
	if v := q.Get("startingBlockIndex"); v != "" {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil || n < 0 {
			return p, validation("INVALID_PARAMETER_VALUE", "StartingBlockIndex %q is invalid", v)
		}
		p.from = n
	}
	if v := q.Get("pageToken"); v != "" { // overrides the index
		t, ok := c.s.tokens.open(v, kind, time.Now())
		if !ok || t.snap != snap || t.first != first {
			return p, validation("INVALID_PAGE_TOKEN", "The provided page token is invalid or has expired")
		}
		p.from, p.after = int64(t.index), t.salt[0] == 1
	}
	if n := c.set.PageSize; n > 0 && n < p.limit {
		p.limit = n
	}
	if !p.after && c.s.dice.chance(c.set.EmptyPages) {
		p.limit = 0
	}
	for i := range p.salt {
		p.salt[i] = byte(c.s.dice.intN(256))
	}
	return p, nil
}

func (c *call) expiry(life Duration) uint32 {
	at := time.Now().Add(time.Duration(life)).Unix()
	return uint32(min(max(at, 0), math.MaxUint32))
}

func (c *call) nextToken(kind byte, p page, first, snap uint32, at int64) string {
	var salt [3]byte
	if p.limit == 0 {
		salt[0] = 1
	}
	return c.s.tokens.seal(tokenText{kind: kind, salt: salt, snap: snap, first: first, index: uint32(at), expires: c.expiry(c.set.PageTokenLife)})
}

func (c *call) listBlocks(snap *Snapshot) *apiError {
	p, e := c.page(c.r.URL.Query(), pageToken, 0, snap.number)
	if e != nil {
		return e
	}
	expires := c.expiry(c.set.BlockTokenLife)
	var b bytes.Buffer
	b.WriteString(`{"Blocks":[`)
	n := snap.next(p.from)
	for i := 0; i < p.limit && n < snap.blocks; i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		token := c.s.tokens.seal(tokenText{kind: blockToken, salt: p.salt, snap: snap.number, index: uint32(n), expires: expires})
		fmt.Fprintf(&b, `{"BlockIndex":%d,"BlockToken":%q}`, n, token)
		n = snap.next(n + 1)
	}
	b.WriteByte(']')
	if n < snap.blocks {
		fmt.Fprintf(&b, `,"NextToken":%q`, c.nextToken(pageToken, p, 0, snap.number, n))
	}
	c.endList(&b, expires, snap.VolumeSize)
	return nil
}

func (c *call) listChanged(second *Snapshot) *apiError {
	q := c.r.URL.Query()
	id := q.Get("firstSnapshotId")
	if id == "" {
		return validation("INVALID_SNAPSHOT_ID", "FirstSnapshotId must be specified")
	}
	first, e := c.readable(id)
	if e != nil {
		return e
	}
	if first.Lineage != second.Lineage {
		return validation("UNRELATED_SNAPSHOTS", "The snapshots %s and %s are not related", first.ID, second.ID)
	}
	p, e := c.page(q, changedPageToken, first.number, second.number)
	if e != nil {
		return e
	}
	d := c.s.diff(first, second)
	expires := c.expiry(c.set.BlockTokenLife)
	var b bytes.Buffer
	b.WriteString(`{"ChangedBlocks":[`)
	n, err := d.next(p.from)
	for i := 0; err == nil && i < p.limit && n < d.blocks; i++ {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"BlockIndex":%d`, n)
		for _, s := range []struct {
			name string
			snap *Snapshot
		}{{"FirstBlockToken", first}, {"SecondBlockToken", second}} {
			if s.snap.isWritten(n) {
				token := c.s.tokens.seal(tokenText{kind: blockToken, salt: p.salt, snap: s.snap.number, index: uint32(n), expires: expires})
				fmt.Fprintf(&b, `,%q:%q`, s.name, token)
			}
		}
		b.WriteByte('}')
		n, err = d.next(n + 1)
	}
	if err != nil {
		c.s.log.Error("compare", "first", first.ID, "second", second.ID, "err", err)
		return errInternal
	}
	b.WriteByte(']')
	if n < d.blocks {
		fmt.Fprintf(&b, `,"NextToken":%q`, c.nextToken(changedPageToken, p, first.number, second.number, n))
	}
	c.endList(&b, expires, second.VolumeSize)
	return nil
}

func (c *call) endList(b *bytes.Buffer, expires uint32, size int32) {
	// Times are epoch seconds with a fraction, and may be written with an exponent:
	// botocore and the SDKs take both.
	fmt.Fprintf(b, `,"ExpiryTime":%d.0,"VolumeSize":%d,"BlockSize":%d}`, expires, size, BlockSize)
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	_, _ = c.w.Write(b.Bytes())
}
