package ebsfake

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"time"
)

// Settings say how the server behaves. The zero value is a service without
// latency, limits or faults. Rates and chances apply to the EBS direct APIs,
// latency to EC2 as well. As JSON, durations are strings ("25ms").
type Settings struct {
	Latency Duration `json:"latency"` // before the first byte of each answer
	// Bandwidth in bytes/s of block data, per connection and of all together; 0: no limit.
	ConnBandwidth int64 `json:"conn_bandwidth"`
	AllBandwidth  int64 `json:"all_bandwidth"`

	// PageSize caps the blocks of a page below what was asked for; 0: as asked.
	PageSize int `json:"page_size"`
	// EmptyPages is the chance that a page has no blocks and a NextToken; a page
	// after an empty one is never empty.
	EmptyPages float64 `json:"empty_pages"`

	BlockTokenLife Duration `json:"block_token_life"` // 7 days when 0
	PageTokenLife  Duration `json:"page_token_life"`  // 60 minutes when 0

	// Requests per second, with a burst of a quarter of that; 0: no limit. AWS has
	// 1,000, 1,000 and 50.
	AccountRate  float64 `json:"account_rate"`
	SnapshotRate float64 `json:"snapshot_rate"`
	ListRate     float64 `json:"list_rate"`

	Faults Faults `json:"faults"`
	// Gone: every connection is dropped unanswered.
	Gone bool `json:"gone"`
	// Deny names actions that the caller's policies don't allow
	// ("ebs:GetSnapshotBlock", "ec2:DescribeSnapshots", "kms:Decrypt").
	Deny []string `json:"deny"`
}

// Faults are chances, between 0 and 1, for each request to the EBS direct APIs.
type Faults struct {
	Seed          uint64  `json:"seed"`
	InternalError float64 `json:"internal_error"` // 500 InternalServerException
	Throttle      float64 `json:"throttle"`       // 400 RequestThrottledException
	Reset         float64 `json:"reset"`          // connection reset, before or amid the body
	Hang          float64 `json:"hang"`           // no answer until the client gives up
	ExpiredToken  float64 `json:"expired_token"`  // INVALID_BLOCK_TOKEN or INVALID_PAGE_TOKEN
	Truncate      float64 `json:"truncate"`       // the block's body ends early
	BadChecksum   float64 `json:"bad_checksum"`   // x-amz-Checksum of something else
	BadData       float64 `json:"bad_data"`       // a flipped bit under the right checksum
	// MaxRow ends a run of faults of one block or one page: after so many in a row
	// there is none. 0: no end.
	MaxRow int `json:"max_row"`
}

// Names of faults, as counted ("Fault:" and the name) and injected.
const (
	faultInternal  = "InternalError"
	faultThrottle  = "Throttle"
	faultReset     = "Reset"
	faultHang      = "Hang"
	faultToken     = "ExpiredToken"
	faultTruncate  = "Truncate"
	faultChecksum  = "BadChecksum"
	faultData      = "BadData"
	faultResetLate = "ResetAmid" // counted as Reset
)

// Duration is a time.Duration that is a string in JSON.
type Duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d Duration) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Duration(d).String())
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *Duration) UnmarshalJSON(p []byte) error {
	var s string
	if err := json.Unmarshal(p, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}

// Settings returns how the server behaves now.
func (s *Server) Settings() Settings { return *s.settings.Load() }

// SetSettings changes how the server behaves, for requests from now on. Faults
// begin anew from their seed.
func (s *Server) SetSettings(set Settings) {
	if set.BlockTokenLife == 0 {
		set.BlockTokenLife = Duration(7 * 24 * time.Hour)
	}
	if set.PageTokenLife == 0 {
		set.PageTokenLife = Duration(time.Hour)
	}
	s.dice.reset(set.Faults.Seed)
	s.settings.Store(&set)
}

// serveAdmin lets a demo change settings and see counts:
//
//	curl -X PATCH -d '{"latency":"25ms"}' http://…/_fake/settings   changes what it names
//	curl http://…/_fake/counts
func (s *Server) serveAdmin(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	switch r.Method + " " + r.URL.Path {
	case "PATCH /_fake/settings", "PUT /_fake/settings":
		set := Settings{}
		if r.Method == http.MethodPatch {
			set = s.Settings()
			set.Deny = slices.Clone(set.Deny)
		}
		dec := json.NewDecoder(io.LimitReader(r.Body, maxBody))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&set); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.SetSettings(set)
		_ = enc.Encode(s.Settings())
	case "GET /_fake/settings":
		_ = enc.Encode(s.Settings())
	case "GET /_fake/counts":
		_ = enc.Encode(s.Counts())
	case "DELETE /_fake/counts":
		s.ResetCounts()
		w.WriteHeader(http.StatusNoContent)
	default:
		http.NotFound(w, r)
	}
}
