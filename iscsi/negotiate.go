package iscsi

import (
	"slices"
	"strconv"
	"strings"

	"yester/iscsi/pdu"
)

// What the target offers. RFC 7143 section 13 has the defaults and ranges.
const (
	loginSegment    = 8192      // MaxRecvDataSegmentLength before it is negotiated, 13.12
	ownSegment      = 256 << 10 // what the target takes in one PDU
	ownMaxBurst     = 1 << 20
	ownFirstBurst   = 64 << 10
	minSegment      = 512
	maxSegment      = pdu.MaxDataLen
	portalGroup     = "1"
	protocolLevel   = 1 // RFC 7143; RFC 7144 section 7.1.1
	defaultMaxBurst = 262144
	defaultFirst    = 65536
	maxSend         = 1 << 20 // longest Data-In segment, whatever the peer takes
)

// params is what a login has negotiated.
type params struct {
	headerDigest, dataDigest bool
	sendSegment              int // the initiator's MaxRecvDataSegmentLength
	maxBurst, firstBurst     int
	immediateData            bool
}

func defaultParams() params {
	return params{sendSegment: loginSegment, maxBurst: defaultMaxBurst, firstBurst: defaultFirst, immediateData: true}
}

// negotiator answers operational keys. seen guards against negotiating twice.
type negotiator struct {
	params
	discovery bool
	seen      map[string]bool
	declared  bool // the target's own segment length has been told
}

// answer kinds: the value to send, or none (a declaration of the initiator).
const noAnswer = ""

// key answers one operational key. ok is false for a key given twice.
func (n *negotiator) key(k, v string) (answer string, ok bool) {
	if n.seen[k] {
		return "", false
	}
	n.seen[k] = true
	switch k {
	case "HeaderDigest":
		a := pickDigest(v)
		n.headerDigest = a == "CRC32C"
		return a, true
	case "DataDigest":
		a := pickDigest(v)
		n.dataDigest = a == "CRC32C"
		return a, true
	case "MaxRecvDataSegmentLength":
		x, err := pdu.ParseNumber(v)
		if err != nil || x < minSegment || x > maxSegment {
			return "Reject", true
		}
		n.sendSegment = int(x)
		return noAnswer, true
	case "MaxConnections", "MaxOutstandingR2T":
		return numeric(v, 1, 65535, 1, nil), true
	case "ErrorRecoveryLevel":
		return numeric(v, 0, 2, 0, nil), true
	case "DefaultTime2Retain":
		return numeric(v, 0, 3600, 0, nil), true
	case "DefaultTime2Wait":
		// The result is the larger value: two seconds keep an initiator from
		// hammering a target that restarts.
		x, err := pdu.ParseNumber(v)
		if err != nil || x > 3600 {
			return "Reject", true
		}
		return strconv.Itoa(int(max(x, 2))), true
	case "MaxBurstLength":
		return n.unlessDiscovery(numeric(v, minSegment, maxSegment, ownMaxBurst, &n.maxBurst)), true
	case "FirstBurstLength":
		return n.unlessDiscovery(numeric(v, minSegment, maxSegment, ownFirstBurst, &n.firstBurst)), true
	case "InitialR2T", "DataPDUInOrder", "DataSequenceInOrder":
		// OR functions, and the target says Yes.
		if v != "Yes" && v != "No" {
			return "Reject", true
		}
		return n.unlessDiscovery("Yes"), true
	case "ImmediateData":
		if v != "Yes" && v != "No" {
			return "Reject", true
		}
		n.immediateData = v == "Yes"
		return n.unlessDiscovery(v), true
	case "IFMarker", "OFMarker":
		return "No", true // obsolete (13.25): markers are never used
	case "IFMarkInt", "OFMarkInt":
		return "Reject", true
	case "iSCSIProtocolLevel":
		return numeric(v, 0, 31, protocolLevel, nil), true
	case "TaskReporting":
		if slices.Contains(strings.Split(v, ","), "RFC3720") {
			return "RFC3720", true
		}
		return "Reject", true
	case "InitiatorAlias", "InitiatorName", "TargetName", "SessionType":
		return noAnswer, true // declarations
	}
	return "NotUnderstood", true
}

// unlessDiscovery: keys without a meaning in a discovery session. Section 13.
func (n *negotiator) unlessDiscovery(v string) string {
	if n.discovery && v != "Reject" {
		return "Irrelevant"
	}
	return v
}

// numeric is the minimum function: the smaller of what both sides say. Results
// go into to.
func numeric(v string, lo, hi, own int, to *int) string {
	x, err := pdu.ParseNumber(v)
	if err != nil || x < uint64(lo) || x > uint64(hi) {
		return "Reject"
	}
	r := min(int(x), own)
	if to != nil {
		*to = r
	}
	return strconv.Itoa(r)
}

// pickDigest takes the first digest of the initiator's list that exists here.
func pickDigest(list string) string {
	for _, d := range strings.Split(list, ",") {
		if d == "None" || d == "CRC32C" {
			return d
		}
	}
	return "Reject"
}
