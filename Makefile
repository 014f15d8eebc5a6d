# yester's commands for people and for CI. What a target needs beyond Go it
# installs by apt (testdata/deps.sh says what).

GO      ?= go
BIN     := bin/yester
LINT    := .cache/golangci-lint
LINTVER := v2.5.0

.PHONY: build demo test race lint bench fuzz corpus docs install clean

build: ## static binary in bin/
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -trimpath -ldflags=-s -o $(BIN) ./cmd/yester

demo: build ## a dated VHD chain of a real disk, mounted, a deleted file copied back
	@testdata/deps.sh demo
	@PATH="$(CURDIR)/bin:$$PATH" GO="$(GO)" testdata/demo.sh

# Repositories by the real rdiff-backup, with many crashes: half a minute's work,
# done once for all the tests that read them.
RDIFF := $(CURDIR)/.cache/rdiff
$(RDIFF): $(wildcard testdata/rdiff/*.py)
	rm -rf $@ $@.new && /usr/bin/python3 -B testdata/rdiff/make.py $@.new && mv $@.new $@ && touch $@

# -count=1: the go command can't see that a tool or the kernel has changed.
test: ## all tests, with the field's own tools and the kernel as judges
	@testdata/deps.sh test
	@$(MAKE) --no-print-directory $(RDIFF)
	YESTER_RDIFF=$(RDIFF) $(GO) test -count=1 -timeout 20m ./...

race: ## the same under the race detector, with fewer repetitions of one thing
	@testdata/deps.sh test
	@$(MAKE) --no-print-directory $(RDIFF)
	YESTER_RDIFF=$(RDIFF) $(GO) test -count=1 -short -race -timeout 40m ./...

lint: $(LINT)/golangci-lint ## formatting, vet, static analysis, import rules
	$(LINT)/golangci-lint run ./...

$(LINT)/golangci-lint:
	GOFLAGS= GOBIN="$(CURDIR)/$(LINT)" $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINTVER)

bench: build ## compare with the peers in one run; prints ratios
	@testdata/deps.sh bench
	$(GO) run ./testdata/bench -yester $(CURDIR)/$(BIN)
	$(GO) run ./testdata/iscsi-bench -rounds 3
	$(GO) run ./testdata/formats-bench -yester $(CURDIR)/$(BIN)
	$(GO) run ./testdata/rdiff-bench -yester $(CURDIR)/$(BIN)
	$(GO) run ./testdata/ebs-bench -yester $(CURDIR)/$(BIN)

FUZZTIME ?= 30s
fuzz: ## every fuzz target for FUZZTIME (30s)
	@GO="$(GO)" FUZZTIME="$(FUZZTIME)" testdata/fuzz.sh

CORPUS ?= ../shared/corpus
corpus: ## the readers against a folder of foreign images, where there is one
	CORPUS="$(CORPUS)" GO="$(GO)" testdata/corpus.sh

docs: build ## man pages and shell completions in dist/
	$(BIN) gen-docs dist

PREFIX ?= /usr/local
install: build ## binary, mount helper, man pages, completions, systemd units
	install -D -m 755 $(BIN) $(DESTDIR)$(PREFIX)/bin/yester
	install -d $(DESTDIR)/sbin && ln -sf $(PREFIX)/bin/yester $(DESTDIR)/sbin/mount.yester
	$(BIN) gen-docs dist
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 && install -m 644 dist/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -D -m 644 dist/completions/yester.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/yester
	install -D -m 644 dist/completions/_yester $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_yester
	install -D -m 644 dist/completions/yester.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/yester.fish
	install -D -m 644 docs/systemd/yester@.service $(DESTDIR)/etc/systemd/system/yester@.service
	install -D -m 644 docs/systemd/yester-iscsi@.service $(DESTDIR)/etc/systemd/system/yester-iscsi@.service

clean:
	rm -rf bin dist .cache
