/*
NAME

statsd - owns the shared-memory stats region of Retinue, serves metrics and the dashboard

SYNOPSIS

	statsd [--dir DIR] [-t] [--log-level LEVEL]

# DESCRIPTION

statsd (no relation to the StatsD protocol) makes the stats region on tmpfs and hands sheets of it to the workers of
proxyd, which count by plain stores into them: statsd is on no request's path, and when it is away nothing is lost. It
names series, grows the region, folds what dead processes left into a ledger, and answers

	/                     the dashboard: live, one page, nothing loaded from elsewhere
	/metrics              Prometheus text, OpenMetrics or protobuf (with native histograms), as the scraper asks; ?match=WORD,
	                      repeated: names that contain it
	/stats/prometheus     the same, for those who come from Envoy
	/healthz              200: statsd is alive
	/ready, /readyz       200 when some generation of proxyd serves; 503 with the reason as JSON otherwise
	/version              JSON
	/events               what the dashboard listens to (server-sent events)

on the address that the stats block of the configuration says; 127.0.0.1:9902 until configd has said something, and from
the last good answer while configd is away. "off" serves nothing; `retinue stats` works all the same.

What the push blocks of the configuration name gets values, too: StatsD, DogStatsD and OTLP, tried again within bounds. Of
one name at most max_series series are told apart; the rest are counted together as __other__.

Spans that proxyd records for distributed traces come here, too, and go to the collector of the tracing block by OTLP. A
collector that is away costs bounded memory and spans, and no request waits for it.

Counters never go back: not when a worker, a generation, or statsd itself is killed. Gauges are the sum of what living
processes say.

# SECURITY

statsd needs no privilege. It writes its region and its state directory only. Its sockets accept root, its own user and
the users of the suite (SO_PEERCRED); each gets a descriptor of its own sheet and no other. What writers put into sheets
and spills is data that statsd does not trust: a file that is cut off, torn or full of nonsense costs its writer's
numbers and nobody else's. The HTTP side reads only (GET and HEAD), has no authentication, and is meant for the loopback
or a network of yours: it shows names of listeners and clusters.

SIGNALS

	TERM INT QUIT   ends; the region stays for the next statsd, and its writers go on writing
	HUP USR1 USR2   nothing to do

FILES

	DIR/statsd.sock             gRPC, contract stats/v1
	DIR/statsd.fd.sock          descriptors of sheets
	DIR/statsd.spans.sock       spans of proxyd's generations
	DIR/region/                 the region, where DIR is on tmpfs; else /dev/shm/retinue-HASH/
	DIR/spill/                  what generations counted while statsd was away
	STATE/last-good.pb          what configd said last (STATE is DIR/state/statsd or $STATE_DIRECTORY)

# EXIT STATUS

0 ended as told, 1 failed (the log says why), 2 usage.

# SEE ALSO

docs/region.md, retinue stats, retinue status
*/
package main
