// Package ebs reads Amazon EBS snapshots as disks through the EBS direct APIs:
// without creating a volume, block by block, only what is asked for.
//
// A Client finds snapshots and opens them; a Disk tells which blocks have ever
// been written (the others are zeros and cost nothing), fetches one block at a
// time, verified, and says under which snapshot's key a block is to be cached, so
// that what several snapshots of a volume have in common is fetched and paid for
// once. A Disk is no block.Reader by itself: it is meant to lie under a cache.
package ebs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	awsebs "github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go/logging"
)

// Blobs keeps small values between runs, such as block maps and tokens. Values
// may vanish at any time; Get's are checked before they are believed. Keys are
// slash-separated, of [A-Za-z0-9._-]. Both methods are called in parallel.
type Blobs interface {
	Get(key string) ([]byte, bool)
	Set(key string, value []byte)
}

// Config makes a Client. The zero value takes everything from where the AWS SDK
// and its command line take it: environment, shared configuration, instance role.
type Config struct {
	Region  string // overrides AWS_REGION and the profile's
	Profile string // overrides AWS_PROFILE
	Rates   Rates  // DefaultRates when zero
	// MaxCost in dollars ends all requests of the Client once they have cost that
	// much by Rates, with ErrMaxCost; 0 for no limit.
	MaxCost float64
	Blobs   Blobs        // nil: nothing is kept
	Logger  *slog.Logger // nil: silent
	// Throttled, when not nil, is called each time AWS throttles a request for a
	// snapshot, also where the retry succeeds: the moment to ask for less.
	Throttled func(snapshot string)

	// Attempts per request (8 when 0), the delay after the first failure (100 ms;
	// doubled each time up to 5 s, with jitter; 2.5 times as long when throttled),
	// how long an attempt may go without progress (10 s) and when to give up (60 s
	// after the first attempt began).
	Attempts  int
	BaseDelay time.Duration
	Stall     time.Duration
	GiveUp    time.Duration
}

// Client reads the snapshots of one account and region. It is safe for parallel use.
type Client struct {
	cfg    Config
	ebs    *awsebs.Client
	ec2    *ec2.Client
	region string
	space  string // prefix of keys where AWS is somebody else
	log    *slog.Logger
	meter  meter
	budget budget

	lists   chan struct{} // slots of list calls
	pace    pace          // of lists in the background
	lineage lineage
	causes  causes
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc

	mu     sync.Mutex // guards closed, and with it the start of work
	closed bool
	work   sync.WaitGroup // goroutines that outlive a call
}

// New returns a Client once region and credentials are there: ErrRegion,
// ErrCredentials.
func New(ctx context.Context, cfg Config) (*Client, error) {
	setDefault(&cfg.Attempts, 8)
	setDefault(&cfg.BaseDelay, 100*time.Millisecond)
	setDefault(&cfg.Stall, 10*time.Second)
	setDefault(&cfg.GiveUp, time.Minute)
	if cfg.Rates == (Rates{}) {
		cfg.Rates = DefaultRates
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	// Idle connections are raised to what may be in flight, lists included: the
	// SDK keeps ten, and a new TLS connection costs two or three round trips. A
	// plain http.Client would fail where AWS_CA_BUNDLE is set.
	client := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConnsPerHost = BulkInFlight + InteractiveInFlight + listsInFlight
		t.MaxIdleConns = 2 * t.MaxIdleConnsPerHost
	})
	// The SDK would write to stderr by itself. What matters comes as an error.
	opts := []func(*config.LoadOptions) error{config.WithHTTPClient(client), config.WithLogger(logging.Nop{})}
	if cfg.Region != "" {
		opts = append(opts, config.WithRegion(cfg.Region))
	}
	if cfg.Profile != "" {
		opts = append(opts, config.WithSharedConfigProfile(cfg.Profile))
	}
	ac, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, configError(err)
	}
	if ac.Region == "" {
		return nil, &Error{Kind: ErrRegion, hint: "set AWS_REGION, or region= in the profile or the source's address"}
	}
	ac.Credentials = aws.NewCredentialsCache(markedCredentials{ac.Credentials})
	if _, err := ac.Credentials.Retrieve(ctx); err != nil {
		return nil, configError(err)
	}
	c := &Client{
		cfg: cfg, region: ac.Region, log: cfg.Logger,
		ec2: ec2.NewFromConfig(ac),
		// The retries are ours: the SDK's end with the headers, and a body that is cut
		// off or wrong needs another attempt as well.
		ebs:   awsebs.NewFromConfig(ac, func(o *awsebs.Options) { o.Retryer = aws.NopRetryer{} }),
		lists: make(chan struct{}, listsInFlight),
		pace:  pace{every: backgroundListEvery},
	}
	if base := c.ebs.Options().BaseEndpoint; base != nil {
		if u, err := url.Parse(*base); err == nil {
			c.space = keySafe(u.Host) + "/"
		}
	}
	c.budget.set(cfg.Rates, cfg.MaxCost)
	c.lineage.init()
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Region returns the region that the Client reads from.
func (c *Client) Region() string { return c.region }

// Close ends what still runs in the background and waits for it. Disks are closed
// before it.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.cancel()
	c.work.Wait()
	return nil
}

// goTracked runs f in the background; Close waits for it. What begins after Close
// finds c.ctx ended.
func (c *Client) goTracked(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		go f()
		return
	}
	c.work.Add(1)
	go func() {
		defer c.work.Done()
		f()
	}()
}

// Key names a snapshot among all that a cache may hold: Disk.Key and Disk.Home are
// such keys. Where the endpoint is overridden, its host is part of them.
func (c *Client) Key(snapshot string) string { return "ebs/" + c.space + snapshot }

func (c *Client) blob(key string) ([]byte, bool) {
	if c.cfg.Blobs == nil {
		return nil, false
	}
	return c.cfg.Blobs.Get(key)
}

func (c *Client) setBlob(key string, value []byte) {
	if c.cfg.Blobs != nil {
		c.cfg.Blobs.Set(key, value)
	}
}

// keySafe replaces what a key may not hold.
func keySafe(s string) string {
	b := []byte(s)
	for i, ch := range b {
		if ch != '.' && ch != '-' && (ch < '0' || ch > '9') && (ch < 'A' || ch > 'Z') && (ch < 'a' || ch > 'z') {
			b[i] = '_'
		}
	}
	return string(b)
}

func setDefault[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// markedCredentials makes the errors of a provider recognisable among those of
// the request that needed them.
type markedCredentials struct{ inner aws.CredentialsProvider }

// credentialsError is an error of the chain of credentials.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// Retrieve implements aws.CredentialsProvider.
func (m markedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if m.inner == nil {
		return aws.Credentials{}, &credentialsError{errors.New("none configured")}
	}
	cred, err := m.inner.Retrieve(ctx)
	if err != nil && ctx.Err() == nil {
		err = &credentialsError{err}
	}
	return cred, err
}

func configError(err error) error {
	var ce *credentialsError
	if errors.As(err, &ce) {
		return &Error{Kind: ErrCredentials, Detail: cause(ce.err).Error(), hint: "run `aws sts get-caller-identity`: what it says holds here too; set AWS_PROFILE or profile= where there are several"}
	}
	var missing config.SharedConfigProfileNotExistError
	if errors.As(err, &missing) {
		return &Error{Kind: ErrCredentials, Detail: missing.Error(), hint: "`aws configure list-profiles` names those there are"}
	}
	return fmt.Errorf("ebs: AWS configuration: %w", err)
}
