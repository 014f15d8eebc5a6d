package ebs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/ebs/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// What can stand in the way of reading a snapshot. Each comes as an *Error, which
// says what to do about it.
var (
	ErrPending     = errors.New("the snapshot is not completed yet")
	ErrFailed      = errors.New("the snapshot failed")
	ErrArchived    = errors.New("the snapshot is in the archive tier")
	ErrRecycleBin  = errors.New("the snapshot was deleted and is in the Recycle Bin")
	ErrNotFound    = errors.New("not found")
	ErrKMS         = errors.New("the KMS key may not be used")
	ErrDenied      = errors.New("not allowed")
	ErrNotOwner    = errors.New("the snapshot is another account's")
	ErrPublic      = errors.New("public snapshots can't be read by the EBS direct APIs")
	ErrOutpost     = errors.New("local snapshots on Outposts can't be read by the EBS direct APIs")
	ErrRegion      = errors.New("no AWS region is set")
	ErrCredentials = errors.New("no AWS credentials that work")
	ErrThrottled   = errors.New("AWS keeps throttling")
	ErrUnreachable = errors.New("AWS can't be reached or doesn't answer as it should")
	ErrMaxCost     = errors.New("the cost limit is reached")
)

// Error is why a snapshot, or the blocks of one, can't be had. Its text holds no
// secrets: neither tokens, nor signatures, nor addresses with them.
type Error struct {
	Snapshot string // "" when it isn't about one
	Op       string // IAM action that failed ("ebs:GetSnapshotBlock"); "" when none did
	Kind     error  // one of the above
	Detail   string // particulars; may be empty
	Err      error  // the cause, without secrets; may be nil
	hint     string
}

func (e *Error) Error() string {
	s := "ebs: "
	if e.Snapshot != "" {
		s += e.Snapshot + ": "
	}
	if e.Op != "" {
		s += e.Op + ": "
	}
	s += e.Kind.Error()
	if e.Detail != "" {
		s += " (" + e.Detail + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns Kind and Err.
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Hint says what may help; may be empty.
func (e *Error) Hint() string { return e.hint }

// verdict is what an error of a request means for the next attempt.
type verdict int

const (
	fatal     verdict = iota
	again             // may work the next time
	throttled         // may work later, with fewer requests
	badToken          // the block token has expired, or never was one
	badPage           // the same of a page token
)

// throttleCodes are the names under which AWS's services throttle.
var throttleCodes = map[string]bool{
	"RequestThrottledException": true, "ThrottlingException": true, "Throttling": true, "ThrottledException": true,
	"RequestLimitExceeded": true, "TooManyRequestsException": true, "SlowDown": true, "BandwidthLimitExceeded": true,
}

// errStalled ends an attempt that made no progress.
var errStalled = errors.New("no answer in time")

// answerError is an answer that isn't what it should be; another attempt may get
// a better one.
type answerError struct{ err error }

func (e *answerError) Error() string { return e.err.Error() }
func (e *answerError) Unwrap() error { return e.err }

// judge classifies the error of one attempt.
func judge(err error) verdict {
	var answer *answerError
	var cred *credentialsError
	var validation *types.ValidationException
	var api smithy.APIError
	var response *smithyhttp.ResponseError
	status := 0
	if errors.As(err, &response) {
		status = response.HTTPStatusCode()
	}
	switch {
	case errors.As(err, &answer), errors.Is(err, errStalled):
		return again
	case errors.As(err, &cred):
		return fatal
	case errors.As(err, &validation):
		switch validation.Reason {
		case types.ValidationExceptionReasonInvalidBlockToken:
			return badToken
		case types.ValidationExceptionReasonInvalidPageToken:
			return badPage
		}
		return fatal
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		return throttled
	case errors.As(err, &api) && throttleCodes[api.ErrorCode()]:
		return throttled
	case status >= 500, status == http.StatusRequestTimeout:
		return again
	case status == http.StatusOK: // headers or a list that can't be decoded
		return again
	case status >= 400:
		return fatal
	case errors.As(err, &api):
		return fatal
	case transport(err):
		return again
	}
	return fatal
}

// transport reports whether err comes from the network and not from a mistake in
// the request or the configuration.
func transport(err error) bool {
	var ne net.Error
	var send *smithyhttp.RequestSendError
	return errors.As(err, &send) || errors.As(err, &ne) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

// secretCodes are errors whose messages repeat what was signed.
var secretCodes = map[string]bool{"SignatureDoesNotMatch": true, "InvalidSignatureException": true, "IncompleteSignatureException": true}

// cause returns what went wrong without what must not be shown: an URL carries a
// block token, a canonical request the session token.
func cause(err error) error {
	if err == nil {
		return nil
	}
	var api smithy.APIError
	var ue *url.Error
	var answer *answerError
	switch {
	case errors.Is(err, errStalled):
		return errStalled
	case errors.As(err, &answer):
		return answer.err
	case errors.As(err, &api):
		text := api.ErrorCode()
		if reason := reasonOf(err); reason != "" {
			text += " " + reason
		}
		if m := api.ErrorMessage(); m != "" && !secretCodes[api.ErrorCode()] {
			text += ": " + m
		}
		return errors.New(text)
	case errors.As(err, &ue):
		return ue.Err
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	}
	var response *smithyhttp.ResponseError
	if errors.As(err, &response) && response.HTTPStatusCode() != 0 {
		return fmt.Errorf("HTTP status %d", response.HTTPStatusCode())
	}
	var op *smithy.OperationError
	if errors.As(err, &op) && strings.Contains(err.Error(), "://") {
		return errors.New("request failed") // of no kind we know: nothing of it is shown
	}
	return err
}

// reasonOf returns the Reason of an error of the EBS direct APIs.
func reasonOf(err error) string {
	var (
		v *types.ValidationException
		t *types.RequestThrottledException
		q *types.ServiceQuotaExceededException
		a *types.AccessDeniedException
		n *types.ResourceNotFoundException
	)
	switch {
	case errors.As(err, &v):
		return string(v.Reason)
	case errors.As(err, &t):
		return string(t.Reason)
	case errors.As(err, &q):
		return string(q.Reason)
	case errors.As(err, &a):
		return string(a.Reason)
	case errors.As(err, &n):
		return string(n.Reason)
	}
	return ""
}

func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}
