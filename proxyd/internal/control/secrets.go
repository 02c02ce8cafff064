package control

import (
	"context"
	"maps"
	"slices"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/tlstransport"
	configv1 "retinue.dev/services/api/config/v1"
)

// readSecrets takes the secrets that came with a snapshot, for building it. A configd that knows of none sends none.
func (w *watcher) readSecrets(secrets *configv1.Secrets) error {
	read, err := tlstransport.ParseSecrets(secrets)
	if err != nil {
		return err
	}
	w.secrets, w.server.builder.Secrets = secrets, read
	return nil
}

// takeSecrets puts secrets in force that changed without a snapshot: a certificate was renewed, ticket keys rotate. Handshakes
// that begin from now on use them; no connection is touched.
func (w *watcher) takeSecrets(secrets *configv1.Secrets) {
	log := w.server.env.Log
	if err := w.readSecrets(secrets); err != nil {
		log.Error("new secrets are not taken; the ones before stay", "error", err)
		return
	}
	if w.applied == nil {
		return
	}
	w.renew()
	log.Info("secrets applied", "certificates", len(secrets.GetCertificates()), "files", len(secrets.GetFiles()), "ticket_keys", len(secrets.GetTicketKeys()))
	w.keep()
}

// renew gives the secrets to all that the running snapshot has.
func (w *watcher) renew() {
	if err := w.applied.Update(w.server.builder.Secrets); err != nil {
		w.server.env.Log.Error("new secrets are not taken everywhere; what was there before stays", "error", err)
	}
	w.server.showExpiries(w.server.builder.Secrets)
}

// expiry is a certificate's gauge and its value. A generation shows it while it accepts: a gauge is the sum of what the living say.
type expiry struct {
	cell *counters.Certificate
	at   uint64 // s since 1970
}

// showExpiries replaces what the gauges of certificates show.
func (s *Server) showExpiries(secrets *tlstransport.Secrets) {
	ends := secrets.Expiries()
	names := slices.Sorted(maps.Keys(ends))
	cells := s.stats.Certificates(context.Background(), names)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.expiries {
		e.cell[counters.CertificateExpiration] = 0
	}
	s.expiries = nil
	for i, name := range names {
		s.expiries = append(s.expiries, expiry{cells[i], uint64(max(ends[name].Unix(), 0))})
	}
	s.gauges()
}

// keep writes what is in force for a start without configd.
func (w *watcher) keep() {
	err := writeLastGood(w.server.env.StateDir, &configv1.Prepare{SnapshotId: w.applied.ID, Changed: w.applied.Objects, Secrets: w.secrets, Endpoints: w.keptEndpoints(), Drained: w.drained})
	if err != nil {
		w.server.env.Log.Warn("the last-good snapshot was not written: a start without configd would find an older one", "error", err)
	}
}
