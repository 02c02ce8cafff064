package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// misdeeds are what plugins do while requests of another route are timed. Each has a plugin and a route of its own, to which some requests go
// meanwhile; "calm" has too, and is what the others are compared with.
var misdeeds = []string{"calm", "killed", "hung", "flooding", "lying", "leaking"}

// choose leaves the misdeeds that -misdeeds names, and calm.
func choose() error {
	if *chosen == "" {
		return nil
	}
	list := []string{"calm"}
	for name := range strings.SplitSeq(*chosen, ",") {
		if !slices.Contains(misdeeds[1:], name) {
			return fmt.Errorf("-misdeeds: there is no %q in %s", name, strings.Join(misdeeds[1:], ","))
		}
		list = append(list, name)
	}
	misdeeds = list
	return nil
}

// crashes is for how many rounds a plugin is used: after more crashes in a row restartd would not start it for a while.
const crashes = 5

// wrongdoer is the plugin of a misdeed in a round.
func wrongdoer(misdeed string, round int) string { return fmt.Sprintf("%s%d", misdeed, round/crashes) }

func badPlugins(bin string) (plugins, routes string) {
	for _, misdeed := range misdeeds {
		args := ""
		if misdeed == "flooding" {
			args = "args = [\"hostile\", \"answers\"]\n"
		}
		for round := 0; round < *rounds; round += crashes {
			name := wrongdoer(misdeed, round)
			plugins += fmt.Sprintf("plugin %q {\n  command = %q\n  timeout = \"100ms\"\n  memory = \"256MiB\"\n  %s}\n", name, filepath.Join(bin, "plugins/probe"), args)
			routes += fmt.Sprintf("route \"/%[1]s\" {\n  cluster = cluster.app\n  filters = [plugin.%[1]s]\n}\n", name)
		}
	}
	return plugins, routes
}

// bystanders measures requests of a route without a plugin while plugins of other routes behave and misbehave.
func bystanders(address, bin, dir string) error {
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	for round := range *rounds {
		for _, i := range rand.Perm(len(misdeeds)) {
			name := misdeeds[i]
			pid, err := servingPID(bin, dir, wrongdoer(name, round))
			if err != nil {
				return err
			}
			times, err := beside(address, name, wrongdoer(name, round), pid)
			if err != nil {
				return fmt.Errorf("beside a plugin that is %s: %w", name, err)
			}
			// What a restart costs belongs to who needs it, not to the next slice.
			if _, err := servingPID(bin, dir, wrongdoer(name, round)); err != nil {
				return err
			}
			p50[name] = append(p50[name], quantile(times, 0.5))
			p99[name] = append(p99[name], quantile(times, 0.99))
		}
	}
	fmt.Printf("another route, %d requests/s, while a plugin is …, %d rounds of %v, none failed%s\n", *rate, *rounds, *slice, urgency())
	for _, name := range misdeeds {
		m, ml, mh := interval(ratios(p50[name], p50["calm"]))
		t, tl, th := interval(ratios(p99[name], p99["calm"]))
		fmt.Printf("  %-8s p50 %5.0f µs %.2f [%.2f, %.2f] of calm   p99 %5.0f µs %.2f [%.2f, %.2f] of calm\n", name,
			median(p50[name]), m, ml, mh, median(p99[name]), t, tl, th)
	}
	return nil
}

// beside times requests without a plugin while another one does what its name says.
func beside(address, misdeed, name string, pid int) ([]float64, error) {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	ask := func(do string) {
		r, err := http.NewRequest("GET", "http://"+address+"/"+name, nil)
		if err != nil {
			return
		}
		r.Header.Set("x-do", do)
		if response, err := client.Do(r); err == nil { // or not: what these get is not the question
			_ = response.Body.Close()
		}
	}
	do := ""
	switch misdeed {
	case "killed":
		_ = syscall.Kill(pid, syscall.SIGKILL)
	case "hung":
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	case "lying":
		do = "status"
	case "leaking":
		ask("leak")
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				ask(do)
			}
		}
	}()
	times, err := paced(address, "/plain")
	close(stop)
	<-stopped
	return times, err
}

// servingPID waits until a plugin serves.
func servingPID(bin, dir, name string) (int, error) {
	for range 400 {
		out, _ := exec.Command(filepath.Join(bin, "retinue"), "plugin", "list", "--json", "--dir", dir).Output()
		var table struct {
			Plugins []struct {
				Name        string
				Generations []struct{ State, PID string }
			}
		}
		if err := json.Unmarshal(out, &table); err == nil {
			for _, p := range table.Plugins {
				for _, g := range p.Generations {
					if p.Name == name && strings.HasSuffix(g.State, "_SERVING") {
						return strconv.Atoi(g.PID)
					}
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return 0, errors.New("plugin " + name + " does not serve")
}
