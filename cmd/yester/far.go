package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"yester/imageformats/ebs"
	"yester/restorepoint"
)

// farFlags are the flags about sources that don't lie on this host.
type farFlags struct {
	ssh     string
	maxCost float64
	rates   string

	parsed ebs.Rates
	opened []*restorepoint.Source // whose costs are told at the end
}

func (f *farFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.ssh, "ssh", "ssh", "the `COMMAND` that makes SFTP connections, with options")
	fl.Float64Var(&f.maxCost, "max-cost", 0, "stop fetching EBS blocks once it has cost this many `DOLLARS` (default no limit)")
	fl.StringVar(&f.rates, "ebs-rates", "", "what AWS asks for 1,000 blocks and 1,000 lists, in `DOLLARS,DOLLARS` (default 0.003,0.0006)")
}

// check reads what the flags say.
func (f *farFlags) check() error {
	if f.maxCost < 0 {
		return fmt.Errorf("--max-cost is %v, and money is never less than nothing", f.maxCost)
	}
	if f.rates == "" {
		return nil
	}
	blocks, lists, ok := strings.Cut(f.rates, ",")
	var err1, err2 error
	f.parsed.Per1000Blocks, err1 = strconv.ParseFloat(blocks, 64)
	f.parsed.Per1000Lists, err2 = strconv.ParseFloat(lists, 64)
	if !ok || err1 != nil || err2 != nil || f.parsed.Per1000Blocks < 0 || f.parsed.Per1000Lists < 0 {
		return fmt.Errorf("--ebs-rates is %q, not two prices like 0.003,0.0006", f.rates)
	}
	return nil
}

// args returns the flags as a command line has them.
func (f *farFlags) args() []string {
	return []string{"--ssh=" + f.ssh, fmt.Sprintf("--max-cost=%v", f.maxCost), "--ebs-rates=" + f.rates}
}

// options fills in what the flags say.
func (f *farFlags) options(opt *restorepoint.Options) {
	opt.SSH = strings.Fields(f.ssh)
	opt.EBS = restorepoint.EBSOptions{Rates: f.parsed, MaxCost: f.maxCost}
}

// costs returns what the sources have cost; nil when they are of no kind that
// costs money.
func (f *farFlags) costs() (all []*restorepoint.Cost) {
	for _, src := range f.opened {
		if c := src.Cost(); c != nil {
			all = append(all, c)
		}
	}
	return all
}

// tellCosts says at the end of a command what it has cost, if anything.
func (g *globalFlags) tellCosts() {
	for _, c := range g.far.costs() {
		if c.Dollars > 0 {
			g.talk.say(talkLine{Cost: c})
		}
	}
}
