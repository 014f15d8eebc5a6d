package iscsi

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha3"
	"crypto/subtle"
	"errors"
	"hash"
	"strconv"
	"strings"

	"yester/iscsi/pdu"
)

// CHAP algorithms: RFC 7143 section 12.1.3 and IANA's "PPP Authentication
// Algorithms". Listed from the one that is liked best.
var chapAlgorithms = []struct {
	id   int
	make func() hash.Hash
}{
	{8, func() hash.Hash { return sha3.New256() }},
	{7, sha256.New},
	{6, sha1.New},
	{5, md5.New},
}

// maxChallenge is the longest challenge RFC 7143 section 12.1.3 allows.
const maxChallenge = 1024

var (
	errCHAPAlgorithm = errors.New("no CHAP algorithm in common")
	errCHAPSequence  = errors.New("CHAP keys missing or out of sequence")
	errCHAPResponse  = errors.New("CHAP response is wrong")
	errCHAPReflected = errors.New("CHAP challenge was reflected")
	errCHAPMutual    = errors.New("mutual CHAP asked for, none configured")
)

// chap is the state of one exchange, as the target sees it.
type chap struct {
	auth      *Auth
	hash      func() hash.Hash
	id        byte
	challenge []byte
	user      *User // set when the initiator has proved itself
}

// begin picks an algorithm of the list in CHAP_A and returns the target's keys.
func (c *chap) begin(list string) ([]pdu.Pair, error) {
	offered := strings.Split(list, ",")
	for _, a := range chapAlgorithms {
		for _, o := range offered {
			if n, err := pdu.ParseNumber(o); err != nil || n != uint64(a.id) {
				continue
			}
			c.hash = a.make
			b := make([]byte, 1+a.make().Size())
			rand.Read(b) // never fails
			c.id, c.challenge = b[0], b[1:]
			return []pdu.Pair{
				{Key: "CHAP_A", Value: strconv.Itoa(a.id)},
				{Key: "CHAP_I", Value: strconv.Itoa(int(c.id))},
				{Key: "CHAP_C", Value: pdu.FormatBinary(c.challenge)},
			}, nil
		}
	}
	return nil, errCHAPAlgorithm
}

func (c *chap) response(id byte, secret string, challenge []byte) []byte {
	h := c.hash()
	h.Write([]byte{id})
	h.Write([]byte(secret))
	h.Write(challenge)
	return h.Sum(nil)
}

// finish checks the initiator's answer and, when it asks for it, returns the
// target's own. Either way a login takes the same time for unknown users.
func (c *chap) finish(keys map[string]string) ([]pdu.Pair, error) {
	if c.hash == nil {
		return nil, errCHAPSequence
	}
	name, ok1 := keys["CHAP_N"]
	text, ok2 := keys["CHAP_R"]
	if !ok1 || !ok2 {
		return nil, errCHAPSequence
	}
	got, err := pdu.ParseBinary(text, c.hash().Size())
	if err != nil {
		return nil, err
	}
	var user *User
	secret := ""
	for i := range c.auth.Users {
		if u := &c.auth.Users[i]; subtle.ConstantTimeCompare([]byte(u.Name), []byte(name)) == 1 {
			user, secret = u, u.Secret
		}
	}
	want := c.response(c.id, secret, c.challenge)
	if subtle.ConstantTimeCompare(got, want) != 1 || user == nil {
		return nil, errCHAPResponse
	}
	var out []pdu.Pair
	idText, ok1 := keys["CHAP_I"]
	chText, ok2 := keys["CHAP_C"]
	if ok1 || ok2 {
		if !ok1 || !ok2 {
			return nil, errCHAPSequence
		}
		if user.MutualSecret == "" {
			return nil, errCHAPMutual
		}
		id, err := pdu.ParseNumber(idText)
		if err != nil || id > 255 {
			return nil, errCHAPSequence
		}
		ch, err := pdu.ParseBinary(chText, maxChallenge)
		if err != nil {
			return nil, err
		}
		// RFC 7143 section 9.2.1: a target that answered its own challenge would
		// give away the very response it waits for.
		if bytes.Equal(ch, c.challenge) {
			return nil, errCHAPReflected
		}
		out = []pdu.Pair{
			{Key: "CHAP_N", Value: user.MutualName},
			{Key: "CHAP_R", Value: pdu.FormatBinary(c.response(byte(id), user.MutualSecret, ch))},
		}
	}
	c.user = user
	return out, nil
}
