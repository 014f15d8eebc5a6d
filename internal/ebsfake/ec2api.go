package ebsfake

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const ec2Namespace = "http://ec2.amazonaws.com/doc/2016-11-15/"

// ec2Error is an error of the EC2 Query protocol ("Error codes for the Amazon
// EC2 API" in the EC2 developer guide).
type ec2Error struct {
	status        int
	code, message string
}

var ec2AuthErrors = map[authFailure]*ec2Error{
	authMissing:    {http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token"},
	authIncomplete: {http.StatusBadRequest, "IncompleteSignature", "The request signature does not conform to AWS standards."},
	authUnknownKey: {http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials"},
	authMismatch: {http.StatusForbidden, "SignatureDoesNotMatch",
		"The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details."},
	authSkew:  {http.StatusBadRequest, "RequestExpired", "Request has expired."},
	authScope: {http.StatusForbidden, "SignatureDoesNotMatch", "Credential should be scoped to a valid region."},
}

type ec2Tag struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

// ec2Snapshot has the element names of ec2-2016-11-15's Snapshot.
type ec2Snapshot struct {
	SnapshotID  string   `xml:"snapshotId"`
	VolumeID    string   `xml:"volumeId"`
	Status      string   `xml:"status"`
	StartTime   string   `xml:"startTime"`
	Progress    string   `xml:"progress"`
	OwnerID     string   `xml:"ownerId"`
	VolumeSize  int32    `xml:"volumeSize"`
	Description string   `xml:"description"`
	Tags        []ec2Tag `xml:"tagSet>item,omitempty"`
	Encrypted   bool     `xml:"encrypted"`
	KMSKeyID    string   `xml:"kmsKeyId,omitempty"`
	Outpost     string   `xml:"outpostArn,omitempty"`
	Tier        string   `xml:"storageTier"`
	FullSize    int64    `xml:"fullSnapshotSizeInBytes,omitempty"`
}

type ec2Recycled struct {
	SnapshotID  string `xml:"snapshotId"`
	VolumeID    string `xml:"volumeId"`
	Description string `xml:"description"`
	Enter       string `xml:"recycleBinEnterTime"`
	Exit        string `xml:"recycleBinExitTime"`
}

type ec2Device struct {
	Name   string `xml:"deviceName"`
	Volume string `xml:"ebs>volumeId"`
	Status string `xml:"ebs>status"`
}

type ec2Instance struct {
	InstanceID string      `xml:"instanceId"`
	Root       string      `xml:"rootDeviceName"`
	Devices    []ec2Device `xml:"blockDeviceMapping>item"`
}

type ec2Reservation struct {
	OwnerID   string        `xml:"ownerId"`
	Instances []ec2Instance `xml:"instancesSet>item"`
}

// ec2Answer is every answer; what isn't set isn't sent.
type ec2Answer struct {
	XMLName      xml.Name
	RequestID    string            `xml:"requestId"`
	Snapshots    *[]ec2Snapshot    `xml:"snapshotSet>item,omitempty"`
	Recycled     *[]ec2Recycled    `xml:"snapshotSet>recycled,omitempty"` // renamed on the way out
	Reservations *[]ec2Reservation `xml:"reservationSet>item,omitempty"`
	NextToken    string            `xml:"nextToken,omitempty"`
}

func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// serveEC2 answers one request of the EC2 Query protocol.
func (c *call) serveEC2(body []byte, fail authFailure) {
	form, err := url.ParseQuery(string(body))
	if err != nil || c.r.Method == http.MethodGet {
		form = c.r.URL.Query()
	}
	action := form.Get("Action")
	actions := map[string]func(url.Values) (*ec2Answer, *ec2Error){
		"DescribeSnapshots":         c.describeSnapshots,
		"DescribeInstances":         c.describeInstances,
		"ListSnapshotsInRecycleBin": c.listRecycled,
	}
	do := actions[action]
	var answer *ec2Answer
	e := ec2AuthErrors[fail]
	switch {
	case do == nil:
		c.s.counts.add("EC2:unknown")
		e = &ec2Error{http.StatusBadRequest, "InvalidAction", "The action " + action + " is not valid for this web service."}
	case e == nil:
		c.s.counts.add(action)
		c.sleep(time.Duration(c.set.Latency))
		if slices.Contains(c.set.Deny, "ec2:"+action) {
			e = &ec2Error{http.StatusForbidden, "UnauthorizedOperation", "You are not authorized to perform this operation. User: arn:aws:iam::" + c.who + ":user/test is not authorized to perform: ec2:" + action}
			break
		}
		answer, e = do(form)
	}
	c.w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	if e != nil {
		c.s.counts.add("Error:" + e.code)
		c.w.WriteHeader(e.status)
		out, _ := xml.Marshal(struct {
			XMLName xml.Name `xml:"Response"`
			Code    string   `xml:"Errors>Error>Code"`
			Message string   `xml:"Errors>Error>Message"`
			ID      string   `xml:"RequestID"`
		}{Code: e.code, Message: e.message, ID: requestID()})
		_, _ = c.w.Write(append([]byte(xml.Header), out...))
		return
	}
	answer.XMLName = xml.Name{Space: ec2Namespace, Local: action + "Response"}
	answer.RequestID = requestID()
	out, err := xml.Marshal(answer)
	if err != nil {
		c.w.WriteHeader(http.StatusInternalServerError)
		return
	}
	text := strings.NewReplacer("<recycled>", "<item>", "</recycled>", "</item>").Replace(string(out))
	_, _ = c.w.Write([]byte(xml.Header + text))
}

// list returns form's name.1, name.2, ….
func list(form url.Values, name string) []string {
	var l []string
	for i := 1; form.Has(name + "." + strconv.Itoa(i)); i++ {
		l = append(l, form.Get(name+"."+strconv.Itoa(i)))
	}
	return l
}

// ec2Time is how EC2 writes times.
func ec2Time(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

func (c *call) describeSnapshots(form url.Values) (*ec2Answer, *ec2Error) {
	ids, owners, restorable := list(form, "SnapshotId"), list(form, "Owner"), list(form, "RestorableBy")
	limit := 1000
	if v := form.Get("MaxResults"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 5 {
			return nil, &ec2Error{http.StatusBadRequest, "InvalidParameterValue", "Value ( " + v + " ) for parameter maxResults is invalid. Expecting a value greater than 5."}
		}
		limit = min(n, 1000)
	}
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	for _, id := range ids {
		if !snapshotID.MatchString(id) {
			return nil, &ec2Error{http.StatusBadRequest, "InvalidSnapshotID.Malformed", "The snapshot ID '" + id + "' is not valid"}
		}
		if s := c.s.snapshots[id]; s == nil || s.InRecycle {
			return nil, &ec2Error{http.StatusBadRequest, "InvalidSnapshot.NotFound", "The snapshot '" + id + "' does not exist."}
		}
	}
	filters, e := parseFilters(form)
	if e != nil {
		return nil, e
	}
	var found []*Snapshot
	for _, s := range c.s.snapshots {
		visible := s.Owner == c.who || s.Public || slices.Contains(s.SharedWith, c.who)
		if s.InRecycle || !visible || len(ids) > 0 && !slices.Contains(ids, s.ID) {
			continue
		}
		if len(owners) > 0 && !slices.ContainsFunc(owners, func(o string) bool { return o == s.Owner || o == "self" && s.Owner == c.who }) {
			continue
		}
		if len(restorable) > 0 && !slices.ContainsFunc(restorable, func(r string) bool {
			return r == "all" && s.Public || r == "self" && (s.Owner == c.who || slices.Contains(s.SharedWith, c.who)) || slices.Contains(s.SharedWith, r)
		}) {
			continue
		}
		if slices.ContainsFunc(filters, func(f filter) bool { return !f.match(s, c.who) }) {
			continue
		}
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b *Snapshot) int { return strings.Compare(a.ID, b.ID) })
	if after := form.Get("NextToken"); after != "" {
		raw, err := hex.DecodeString(after)
		if err != nil {
			return nil, &ec2Error{http.StatusBadRequest, "InvalidNextToken", "The token is not valid"}
		}
		i, _ := slices.BinarySearchFunc(found, string(raw), func(s *Snapshot, id string) int { return strings.Compare(s.ID, id) })
		found = found[i:]
	}
	a := &ec2Answer{}
	if len(found) > limit {
		a.NextToken = hex.EncodeToString([]byte(found[limit].ID))
		found = found[:limit]
	}
	out := make([]ec2Snapshot, len(found))
	for i, s := range found {
		out[i] = ec2Snapshot{
			SnapshotID: s.ID, VolumeID: s.VolumeID, Status: s.State, StartTime: ec2Time(s.StartTime), Progress: s.Progress, OwnerID: s.Owner,
			VolumeSize: s.VolumeSize, Description: s.Description, Encrypted: s.KMSKey != "", KMSKeyID: s.KMSKey, Outpost: s.OutpostARN,
			Tier: s.Tier, FullSize: s.fullSize(),
		}
		if s.Owner == c.who { // tags are seen by the owner only
			for k, v := range s.Tags {
				out[i].Tags = append(out[i].Tags, ec2Tag{k, v})
			}
		}
	}
	a.Snapshots = &out
	return a, nil
}

func (sn *Snapshot) fullSize() int64 {
	var n int64
	for b := sn.next(0); b < sn.blocks; b = sn.next(b + 1) {
		n++
	}
	return n * BlockSize
}

// filter is one Filter.N of a request: name, and values of which one must match.
type filter struct {
	name   string
	values []string
}

func parseFilters(form url.Values) ([]filter, *ec2Error) {
	var filters []filter
	for i := 1; form.Has(fmt.Sprintf("Filter.%d.Name", i)); i++ {
		f := filter{form.Get(fmt.Sprintf("Filter.%d.Name", i)), list(form, fmt.Sprintf("Filter.%d.Value", i))}
		switch {
		case strings.HasPrefix(f.name, "tag:"):
		case slices.Contains([]string{"tag-key", "volume-id", "status", "description", "owner-id", "snapshot-id", "storage-tier", "encrypted",
			"progress", "volume-size", "start-time"}, f.name):
		default:
			return nil, &ec2Error{http.StatusBadRequest, "InvalidParameterValue", "The filter '" + f.name + "' is invalid"}
		}
		filters = append(filters, f)
	}
	return filters, nil
}

func (f filter) match(s *Snapshot, who string) bool {
	var have []string
	tags := s.Tags
	if s.Owner != who {
		tags = nil
	}
	if key, ok := strings.CutPrefix(f.name, "tag:"); ok {
		v, ok := tags[key]
		if !ok {
			return false
		}
		have = []string{v}
	} else {
		switch f.name {
		case "tag-key":
			for k := range tags {
				have = append(have, k)
			}
		case "volume-id":
			have = []string{s.VolumeID}
		case "status":
			have = []string{s.State}
		case "description":
			have = []string{s.Description}
		case "owner-id":
			have = []string{s.Owner}
		case "snapshot-id":
			have = []string{s.ID}
		case "storage-tier":
			have = []string{s.Tier}
		case "encrypted":
			have = []string{strconv.FormatBool(s.KMSKey != "")}
		case "progress":
			have = []string{s.Progress}
		case "volume-size":
			have = []string{strconv.Itoa(int(s.VolumeSize))}
		case "start-time":
			have = []string{ec2Time(s.StartTime)}
		}
	}
	return slices.ContainsFunc(f.values, func(pattern string) bool {
		return slices.ContainsFunc(have, func(v string) bool { return wildcard(pattern, v) })
	})
}

// wildcard matches EC2's filter patterns: * is any run, ? any one character.
func wildcard(pattern, s string) bool {
	for {
		if pattern == "" {
			return s == ""
		}
		switch {
		case pattern[0] == '*':
			pattern = strings.TrimLeft(pattern, "*")
			for i := 0; i <= len(s); i++ {
				if wildcard(pattern, s[i:]) {
					return true
				}
			}
			return false
		case s == "" || pattern[0] != '?' && pattern[0] != s[0]:
			return false
		}
		pattern, s = pattern[1:], s[1:]
	}
}

func (c *call) listRecycled(form url.Values) (*ec2Answer, *ec2Error) {
	ids := list(form, "SnapshotId")
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	out := []ec2Recycled{}
	for _, s := range c.s.snapshots {
		if !s.InRecycle || s.Owner != c.who || len(ids) > 0 && !slices.Contains(ids, s.ID) {
			continue
		}
		out = append(out, ec2Recycled{s.ID, s.VolumeID, s.Description, ec2Time(s.StartTime.Add(time.Hour)), ec2Time(s.StartTime.Add(7 * 24 * time.Hour))})
	}
	return &ec2Answer{Recycled: &out}, nil
}

func (c *call) describeInstances(form url.Values) (*ec2Answer, *ec2Error) {
	ids := list(form, "InstanceId")
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	out := []ec2Reservation{}
	for _, id := range ids {
		i := c.s.instances[id]
		if i == nil || i.Owner != c.who {
			return nil, &ec2Error{http.StatusBadRequest, "InvalidInstanceID.NotFound", "The instance ID '" + id + "' does not exist"}
		}
		m := ec2Instance{InstanceID: i.ID, Root: i.Root}
		for name, vol := range i.Devices {
			m.Devices = append(m.Devices, ec2Device{name, vol, "attached"})
		}
		slices.SortFunc(m.Devices, func(a, b ec2Device) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, ec2Reservation{i.Owner, []ec2Instance{m}})
	}
	return &ec2Answer{Reservations: &out}, nil
}
