# Retinue. `make help` lists the targets. Nothing is assumed installed but Go, make and git; no target needs root.
SHELL   := /bin/bash
GO      ?= go
BIN     := $(CURDIR)/bin
PLUGINS := $(sort $(dir $(wildcard examples/plugins/*/go.mod)))
MODULES := services/api libs libs/pluginsdk $(PLUGINS:/=) tests/probe proxyd configd statsd restartd services/retinue tests tools
DAEMONS := proxyd configd statsd restartd
VERSION := $(shell cat VERSION)
REVISION := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -X retinue.dev/libs/buildinfo.Version=$(VERSION) -X retinue.dev/libs/buildinfo.revision=$(REVISION)
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
FUZZTIME ?= 60s
RUN_TESTS := GOTESTSUM=$(BIN)/.gotestsum $(CURDIR)/tools/run-tests

export GOTOOLCHAIN ?= local

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## proxyd, configd, statsd, restartd and retinue into bin/
	@mkdir -p $(BIN)
	@for d in $(DAEMONS); do (cd $$d && $(BUILD) -o $(BIN)/$$d .) || exit 1; done
	@cd services/retinue && $(BUILD) -o $(BIN)/retinue .

.PHONY: deb
deb: build ## the Debian package into dist/
	@mkdir -p dist/stage/man dist/stage/completions
	@cd tools && $(GO) build -o $(BIN)/.manpage ./manpage && $(GO) build -o $(BIN)/.deb ./deb
	@for d in $(DAEMONS); do $(BIN)/$$d --help | $(BIN)/.manpage $$d 8 >dist/stage/man/$$d.8 || exit 1; done
	@$(BIN)/retinue --help | $(BIN)/.manpage retinue 1 >dist/stage/man/retinue.1
	@$(BIN)/retinue completion bash >dist/stage/completions/retinue
	@$(BIN)/retinue completion zsh >dist/stage/completions/_retinue
	@$(BIN)/retinue completion fish >dist/stage/completions/retinue.fish
	@$(BIN)/.deb $(VERSION) dist

.PHONY: plugins
plugins: ## the example plugins into bin/plugins/, where restartd finds them by name
	@mkdir -p $(BIN)/plugins
	@for p in $(PLUGINS:/=); do (cd $$p && $(BUILD) -o $(BIN)/plugins/$$(basename $$p) .) || exit 1; done
	@cd tests/probe && $(BUILD) -o $(BIN)/plugins/probe .

.PHONY: run
run: build ## the whole suite in the foreground: on the quickstart, or on CONFIG=my.hcl
	@exec $(BIN)/retinue run $(if $(CONFIG),--config $(CONFIG))

.PHONY: test
test: build unit race e2e ## everything that a fresh machine can run

$(BIN)/.gotestsum: tools/go.mod
	@mkdir -p $(BIN)
	@cd tools && $(GO) build -o $@ gotest.tools/gotestsum

.PHONY: unit
unit: $(BIN)/.gotestsum ## unit, golden and fuzz-seed tests of every module
	@for m in $(filter-out tests,$(MODULES)); do echo "== unit $$m"; (cd $$m && $(RUN_TESTS)) || exit 1; done

.PHONY: race
race: $(BIN)/.gotestsum ## the same under the race detector, where there is a C compiler
	@if ! command -v $${CC:-cc} >/dev/null; then echo "== race: skipped, no C compiler (the race detector needs one)"; exit 0; fi; \
	for m in libs proxyd configd statsd restartd services/retinue; do echo "== race $$m"; (cd $$m && CGO_ENABLED=1 $(RUN_TESTS) -race) || exit 1; done

.PHONY: e2e
e2e: deb plugins $(BIN)/.gotestsum ## end-to-end tests with the real binaries in bin/ and the package, under a systemd of its own where there can be one
	@cd tests && RETINUE_BIN=$(BIN) RETINUE_DEB=$$(ls -t $(CURDIR)/dist/retinue_$(VERSION)_*.deb | head -n 1) $(RUN_TESTS) -count=1 -timeout 20m

.PHONY: chaos
chaos: build plugins ## daemons killed and upgraded under load, with tables of what clients saw
	@cd tests && RETINUE_BIN=$(BIN) $(GO) test -count=1 -timeout 20m -v ./chaos

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (default 60s)
	@tools/fuzz-all $(FUZZTIME) $(MODULES)

.PHONY: bench
bench: build ## CPU per request beside the peers that are installed (HAProxy, nginx); prints, never fails on a figure
	@cd tests && RETINUE_BIN=$(BIN) $(GO) run ./bench

.PHONY: bench-plugins
bench-plugins: build plugins ## what a call of a plugin costs beside the same request without one
	@cd tests && RETINUE_BIN=$(BIN) $(GO) run ./bench/plugins

.PHONY: generate
generate: ## contracts' generated Go, reference documentation
	@cd tools && $(GO) run ./protogen ../services/api
	@cd configd && $(GO) test ./internal/schema -run TestReference -update >/dev/null
	@cd proxyd && $(GO) test ./internal/counters -run TestReference -update >/dev/null

.PHONY: verify
verify: verify-format verify-vet verify-static verify-generated verify-modules ## all checks that need no running code

.PHONY: verify-format
verify-format:
	@out=$$(cd tools && $(GO) tool gofumpt -l $$(git -C .. ls-files '*.go' | grep -v '\.pb\.go$$' | sed 's,^,../,')); \
	if [ -n "$$out" ]; then echo "not gofumpt'ed (make fix):"; echo "$$out"; exit 1; fi; echo "== format ok"

.PHONY: verify-vet
verify-vet:
	@for m in $(MODULES); do (cd $$m && $(GO) vet ./...) || exit 1; done; echo "== vet ok"

.PHONY: verify-static
verify-static:
	@cd tools && $(GO) build -o $(BIN)/.staticcheck honnef.co/go/tools/cmd/staticcheck
	@for m in $(MODULES); do (cd $$m && $(BIN)/.staticcheck ./...) || exit 1; done; echo "== staticcheck ok"

.PHONY: verify-generated
verify-generated:
	@tmp=$$(mktemp -d) && trap 'rm -rf $$tmp' EXIT && cp -r services/api/. $$tmp/ && (cd tools && $(GO) run ./protogen $$tmp) && \
	diff -r -q services/api $$tmp || { echo "generated code is stale: run make generate"; exit 1; }; echo "== generated code ok"

.PHONY: verify-modules
verify-modules:
	@for m in $(MODULES); do (cd $$m && GOWORK=off CGO_ENABLED=0 $(GO) build -o /dev/null ./... && GOWORK=off $(GO) mod verify >/dev/null) || { echo "$$m does not build alone"; exit 1; }; done; echo "== each module builds alone"

.PHONY: fix
fix: ## format, tidy, regenerate
	@cd tools && $(GO) tool gofumpt -w $$(git -C .. ls-files '*.go' | grep -v '\.pb\.go$$' | sed 's,^,../,')
	@for m in $(MODULES); do (cd $$m && GOWORK=off $(GO) mod tidy) || exit 1; done
	@$(MAKE) generate

.PHONY: clean
clean: ## bin/
	@rm -rf $(BIN)
