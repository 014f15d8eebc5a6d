package ebs

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// Query says which snapshots are meant: exactly one of Snapshot, Volume, Instance
// and Tags is set.
type Query struct {
	Snapshot string              // "snap-0…"
	Volume   string              // "vol-0…": all of its snapshots
	Instance string              // "i-0…": those of every volume attached to it
	Tags     map[string][]string // key to the values of which one must match; * and ? as in EC2's filters
	// Owners are account ids whose snapshots count, beside "self", which alone does
	// when there are none. A snapshot that is asked for by its id may be anyone's.
	Owners  []string
	Region  string // for Config; may be empty
	Profile string // for Config; may be empty
}

// Scheme is what the location of such a source begins with, before "://".
const Scheme = "ebs"

var idForm = regexp.MustCompile(`^(snap|vol|i)-[0-9a-f]+$`)

// ParseQuery reads a source's address:
//
//	ebs://snap-0123456789abcdef0
//	ebs://vol-0123456789abcdef0?region=eu-central-1
//	ebs://i-0123456789abcdef0?profile=backup
//	ebs://?tag:Name=web01&tag:Stage=prod&owner=111122223333
func ParseQuery(address string) (Query, error) {
	var q Query
	u, err := url.Parse(address)
	if err != nil || u.Scheme != Scheme {
		return q, fmt.Errorf("%q is not an address like ebs://vol-0123456789abcdef0", address)
	}
	if u.User != nil || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return q, fmt.Errorf("%q: ebs:// takes an id or ?tag:KEY=VALUE, and nothing behind it", u.Redacted())
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return q, fmt.Errorf("%q: %w", address, err)
	}
	for k, vs := range values {
		switch key, isTag := strings.CutPrefix(k, "tag:"); {
		case isTag && key != "":
			if q.Tags == nil {
				q.Tags = map[string][]string{}
			}
			q.Tags[key] = vs
		case k == "owner":
			q.Owners = vs
		case k == "region" && len(vs) == 1:
			q.Region = vs[0]
		case k == "profile" && len(vs) == 1:
			q.Profile = vs[0]
		default:
			return q, fmt.Errorf("%q: %q is none of tag:KEY, owner, region and profile", address, k)
		}
	}
	m := idForm.FindStringSubmatch(u.Host)
	switch {
	case u.Host == "" && q.Tags != nil:
	case u.Host == "":
		return q, fmt.Errorf("%q names neither an id nor a tag", address)
	case m == nil || len(u.Host) > 64:
		return q, fmt.Errorf("%q: %q is no id of a snapshot, a volume or an instance", address, u.Host)
	case q.Tags != nil:
		return q, fmt.Errorf("%q names both an id and tags", address)
	case m[1] == "snap":
		q.Snapshot = u.Host
	case m[1] == "vol":
		q.Volume = u.Host
	default:
		q.Instance = u.Host
	}
	return q, nil
}
