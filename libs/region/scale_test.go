package region_test

import (
	"fmt"
	"testing"

	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// clusters is a declaration of the size of proxyd's clusters: 324 cells each.
func clusters(n int) ([]*statsv1.Schema, []*statsv1.Group) {
	schema := &statsv1.Schema{Name: "cluster"}
	for i := range 32 {
		schema.Fields = append(schema.Fields, &statsv1.Field{Name: fmt.Sprintf("counter_%d", i), Kind: statsv1.Kind_KIND_COUNTER, Help: "what it counts"})
	}
	schema.Fields = append(schema.Fields, &statsv1.Field{Name: "time", Kind: statsv1.Kind_KIND_HISTOGRAM, Unit: "us"})
	var groups []*statsv1.Group
	for i := range n {
		groups = append(groups, &statsv1.Group{Labels: []*statsv1.Label{{Name: "cluster", Value: fmt.Sprintf("cluster-%d", i)}}})
	}
	return []*statsv1.Schema{schema}, groups
}

// BenchmarkDeclare10000 declares 10,000 clusters with three living sheets, in batches as proxyd does.
func BenchmarkDeclare10000(b *testing.B) {
	schemas, groups := clusters(10_000)
	for b.Loop() {
		b.StopTimer()
		s := newSuite(b, region.Options{})
		s.writer(1, 0, 1, region.MainWorker)
		b.StartTimer()
		for at := 0; at < len(groups); at += 2000 {
			if _, err := s.store.DeclareAll(schemas, groups[at:at+2000]); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkFold10000 folds the three sheets of a dead generation with 10,000 clusters.
func BenchmarkFold10000(b *testing.B) {
	schemas, groups := clusters(10_000)
	for b.Loop() {
		b.StopTimer()
		s := newSuite(b, region.Options{})
		if _, err := s.store.DeclareAll(schemas, groups); err != nil {
			b.Fatal(err)
		}
		s.writer(1, 0, 1, region.MainWorker).Kill()
		b.StartTimer()
		if n := s.fold(); n != 3 {
			b.Fatal(n)
		}
	}
}
