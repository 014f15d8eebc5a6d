package ebsfake

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// maxBody caps a request's body: a form of EC2's, whose lists of ids stay far below.
const maxBody = 4 << 20

// maxSkew is how far a request's time may be from the server's: AWS says five
// minutes for most services.
const maxSkew = 5 * time.Minute

func readBody(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("body longer than %d bytes", maxBody)
	}
	return body, err
}

// authFailure is why a request isn't believed.
type authFailure int

const (
	authOK authFailure = iota
	authMissing
	authIncomplete
	authUnknownKey
	authMismatch
	authSkew
	authScope
)

// authenticate verifies a request's Signature Version 4 (AWS General Reference,
// "Signature Version 4 signing process") from the Authorization header.
func (s *Server) authenticate(r *http.Request, body []byte) (Credentials, authFailure) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return Credentials{}, authMissing
	}
	fields, ok := strings.CutPrefix(header, "AWS4-HMAC-SHA256 ")
	if !ok {
		return Credentials{}, authIncomplete
	}
	var credential, signedHeaders, signature string
	for f := range strings.SplitSeq(fields, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(f), "=")
		switch k {
		case "Credential":
			credential = v
		case "SignedHeaders":
			signedHeaders = v
		case "Signature":
			signature = v
		}
	}
	scope := strings.Split(credential, "/") // key/date/region/service/aws4_request
	if len(scope) != 5 || signedHeaders == "" || signature == "" {
		return Credentials{}, authIncomplete
	}
	cred, ok := s.creds[scope[0]]
	if !ok || cred.SessionToken != r.Header.Get("X-Amz-Security-Token") {
		return Credentials{}, authUnknownKey
	}
	service := "ebs"
	if r.URL.Path == "/" || r.URL.Path == "" {
		service = "ec2"
	}
	if scope[2] != s.region || scope[3] != service || scope[4] != "aws4_request" {
		return Credentials{}, authScope
	}
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", date)
	if err != nil || !strings.HasPrefix(date, scope[1]) {
		return Credentials{}, authIncomplete
	}
	if d := time.Since(at); d > maxSkew || d < -maxSkew {
		return Credentials{}, authSkew
	}
	names := strings.Split(signedHeaders, ";")
	if !slices.Contains(names, "host") || !slices.Contains(names, "x-amz-date") || !slices.IsSorted(names) {
		return Credentials{}, authIncomplete
	}
	canonical := canonicalRequest(r, names, body)
	sum := sha256.Sum256(canonical)
	toSign := "AWS4-HMAC-SHA256\n" + date + "\n" + strings.Join(scope[1:], "/") + "\n" + hex.EncodeToString(sum[:])
	key := []byte("AWS4" + cred.Secret)
	for _, part := range scope[1:] {
		key = mac(key, part)
	}
	want := hex.EncodeToString(mac(key, toSign))
	if !hmac.Equal([]byte(want), []byte(signature)) {
		return Credentials{}, authMismatch
	}
	return cred, authOK
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

// canonicalRequest is the text whose hash is signed.
func canonicalRequest(r *http.Request, names []string, body []byte) []byte {
	var b bytes.Buffer
	b.WriteString(r.Method + "\n")
	// Every service but S3 escapes the path that is sent once more.
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	segments := strings.Split(path, "/")
	for i, seg := range segments {
		segments[i] = awsEscape(seg)
	}
	b.WriteString(strings.Join(segments, "/") + "\n")
	query, _ := url.ParseQuery(r.URL.RawQuery)
	var pairs []string
	for k, vs := range query {
		for _, v := range vs {
			pairs = append(pairs, awsEscape(k)+"="+awsEscape(v))
		}
	}
	slices.Sort(pairs)
	b.WriteString(strings.Join(pairs, "&") + "\n")
	for _, name := range names {
		var value string
		switch name {
		case "host":
			value = r.Host
		case "content-length":
			value = fmt.Sprint(r.ContentLength)
		default:
			values := slices.Clone(r.Header.Values(http.CanonicalHeaderKey(name)))
			for i, v := range values {
				values[i] = strings.Join(strings.Fields(v), " ")
			}
			value = strings.Join(values, ",")
		}
		b.WriteString(name + ":" + value + "\n")
	}
	b.WriteString("\n" + strings.Join(names, ";") + "\n")
	sum := sha256.Sum256(body)
	b.WriteString(hex.EncodeToString(sum[:]))
	return b.Bytes()
}

// awsEscape is URI encoding with RFC 3986's unreserved characters left alone.
func awsEscape(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}
