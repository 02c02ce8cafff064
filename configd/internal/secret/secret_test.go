package secret

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

func TestKeeper(t *testing.T) {
	dir, start := t.TempDir(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	k := OpenKeeper(dir, start)
	first := k.Kept().GetTicketKeys()
	if len(first) != 1 || len(first[0]) != keySize {
		t.Fatalf("%d ticket keys at first", len(first))
	}
	if k.Rotate(start.Add(rotateEvery - time.Second)) {
		t.Error("the key is rotated early")
	}
	kept := k.Complete(&configv1.Secrets{Certificates: []*configv1.CertificateSecret{{Name: "a", KeyPem: []byte("key")}}})
	if err := k.Keep(kept); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "secrets.pb"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is of mode %v: %v", info.Mode(), err)
	}

	// Another configd goes on: with the same key, and with its age.
	k = OpenKeeper(dir, start.Add(time.Hour))
	if k.Lost != nil || !bytes.Equal(k.Kept().GetTicketKeys()[0], first[0]) || string(k.Kept().GetCertificates()[0].GetKeyPem()) != "key" {
		t.Fatalf("what was kept is lost: %v", k.Lost)
	}
	at := start
	for range 5 {
		at = at.Add(rotateEvery)
		if !k.Rotate(at) {
			t.Error("the key is not rotated")
		}
	}
	keys := k.Kept().GetTicketKeys()
	if len(keys) != keysKept || bytes.Equal(keys[0], keys[1]) || bytes.Equal(keys[0], first[0]) {
		t.Errorf("%d keys after five rotations", len(keys))
	}

	if err := os.WriteFile(filepath.Join(dir, "secrets.pb"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k = OpenKeeper(dir, at); k.Lost == nil || len(k.Kept().GetTicketKeys()) != 1 {
		t.Errorf("a damaged file: %v", k.Lost)
	}
}

func TestPatch(t *testing.T) {
	s := &configv1.Secrets{Certificates: []*configv1.CertificateSecret{{Name: "a", KeyPem: []byte("new")}}}
	Patch(s, &configv1.Secrets{
		Certificates: []*configv1.CertificateSecret{{Name: "a", KeyPem: []byte("old")}, {Name: "b", KeyPem: []byte("old")}},
		Files:        []*configv1.FileSecret{{Name: "/ca.pem", Content: []byte("ca")}},
	})
	if len(s.GetCertificates()) != 2 || string(s.GetCertificates()[0].GetKeyPem()) != "new" || string(s.GetCertificates()[1].GetKeyPem()) != "old" || len(s.GetFiles()) != 1 {
		t.Errorf("%v", s)
	}
}
