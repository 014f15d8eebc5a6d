package ebs

import (
	"fmt"
	"math"
	"strconv"
	"sync/atomic"
)

// Rates are what AWS charges, in dollars.
type Rates struct {
	Per1000Blocks float64 `json:"per_1000_blocks"` // GetSnapshotBlock
	Per1000Lists  float64 `json:"per_1000_lists"`  // ListSnapshotBlocks, ListChangedBlocks
}

// DefaultRates are those of the examples on AWS's page of EBS prices (US East).
var DefaultRates = Rates{Per1000Blocks: 0.003, Per1000Lists: 0.0006}

// Cost is what has been, or could be, asked of AWS.
type Cost struct {
	Blocks int64 `json:"blocks"` // fetched and right
	Lists  int64 `json:"lists"`  // pages listed
	// Attempts that came to nothing, and were made again or given up.
	RetriedBlocks int64 `json:"retried_blocks"`
	RetriedLists  int64 `json:"retried_lists"`
	// Discarded are those of RetriedBlocks that AWS has answered, and hence
	// charges: bodies that were cut off or didn't fit their checksum.
	Discarded int64 `json:"discarded"`
	Rates     Rates `json:"rates"`
}

// Dollars returns the cost in dollars, by Rates.
func (c Cost) Dollars() float64 {
	return float64(c.Blocks+c.Discarded)*c.Rates.Per1000Blocks/1000 + float64(c.Lists)*c.Rates.Per1000Lists/1000
}

// Bytes returns the size of the blocks that were fetched.
func (c Cost) Bytes() int64 { return c.Blocks * BlockSize }

// String returns "1,234 blocks (617 MiB), 3 lists ≈ $0.0037".
func (c Cost) String() string {
	s := fmt.Sprintf("%s (%s), %s", counted(c.Blocks, "block", "blocks"), mib(c.Bytes()), counted(c.Lists, "list", "lists"))
	if n := c.RetriedBlocks + c.RetriedLists; n > 0 {
		s += ", " + counted(n, "retry", "retries")
	}
	return s + " ≈ " + dollars(c.Dollars())
}

func counted(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return thousands(n) + " " + many
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// mib writes bytes that are multiples of half a MiB.
func mib(n int64) string {
	switch {
	case n >= 10<<30:
		return strconv.FormatFloat(float64(n)/(1<<30), 'f', 1, 64) + " GiB"
	case n%(1<<20) != 0:
		return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) + " MiB"
	}
	return thousands(n>>20) + " MiB"
}

func dollars(d float64) string {
	switch {
	case d >= 1:
		return fmt.Sprintf("$%.2f", d)
	case d > 0 && d < 0.0001:
		return fmt.Sprintf("$%.6f", d)
	}
	return fmt.Sprintf("$%.4f", d)
}

// meter counts requests.
type meter struct {
	blocks, lists, retriedBlocks, retriedLists, discarded atomic.Int64
}

func (m *meter) cost(r Rates) Cost {
	return Cost{
		Blocks: m.blocks.Load(), Lists: m.lists.Load(),
		RetriedBlocks: m.retriedBlocks.Load(), RetriedLists: m.retriedLists.Load(),
		Discarded: m.discarded.Load(), Rates: r,
	}
}

// Cost returns what the Client has asked of AWS so far.
func (c *Client) Cost() Cost { return c.meter.cost(c.cfg.Rates) }

// budget is the money that may still be spent, in billionths of a dollar. What a
// request may cost is taken before it is made, so that requests in parallel
// can't exceed the limit together.
type budget struct {
	limit, block, list int64
	spent              atomic.Int64
}

const nano = 1e9

func (b *budget) set(r Rates, maxCost float64) {
	b.block = int64(math.Round(r.Per1000Blocks / 1000 * nano))
	b.list = int64(math.Round(r.Per1000Lists / 1000 * nano))
	b.limit = math.MaxInt64
	if maxCost > 0 && maxCost < math.MaxInt64/nano {
		b.limit = int64(math.Round(maxCost * nano))
	}
}

// take books n; false when that is more than there is.
func (b *budget) take(n int64) bool {
	if b.spent.Add(n) > b.limit {
		b.spent.Add(-n)
		return false
	}
	return true
}

func (b *budget) giveBack(n int64) { b.spent.Add(-n) }

func (c *Client) maxCostError(snapshot string) error {
	return &Error{Snapshot: snapshot, Kind: ErrMaxCost,
		Detail: fmt.Sprintf("%s spent of %s", dollars(float64(c.budget.spent.Load())/nano), dollars(c.cfg.MaxCost)),
		hint:   "what has been fetched stays readable; raise --max-cost to fetch more"}
}
