//go:build linux

package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// A world is what lies outside the database: a folder that the worker processes and the
// test share. Its log has a line for everything that a body did; its marks are how the
// test and the bodies speak to each other.
type world string

func newWorld(t *testing.T) world { t.Helper(); return world(t.TempDir()) }

// An event is one line of the log, its fields in this order.
type event struct {
	Verb    string // started, health; began, failed, held, went_on, effect
	Type    string
	Entity  string
	Key     string // the effect key, which a provider would know repeats by
	Attempt int
	Pid     int
	Said    string
}

// An id is a job type and an entity.
type id struct{ Type, Entity string }

// write appends an event of the attempt that ctx belongs to. One write of O_APPEND is
// whole, whoever writes beside it and whatever kills us afterwards.
func (w world) write(ctx context.Context, verb, said string) error {
	a := jobs.Current(ctx)
	line, err := json.Marshal(event{Verb: verb, Type: a.JobType, Entity: a.Entity, Key: a.EffectKey(), Attempt: a.Number, Pid: os.Getpid(), Said: said})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(w.file("log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// read returns the events that pick accepts, in their order; nil accepts all.
func (w world) read(pick func(event) bool) ([]event, error) {
	raw, err := os.ReadFile(w.file("log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var es []event
	for line := range bytes.Lines(raw) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("the world's log has the line %q: %w", line, err)
		}
		if pick == nil || pick(e) {
			es = append(es, e)
		}
	}
	return es, nil
}

func (w world) events(t *testing.T, pick func(event) bool) []event {
	t.Helper()
	es, err := w.read(pick)
	if err != nil {
		t.Fatal(err)
	}
	return es
}

// effects returns the effects by job type and entity.
func (w world) effects(t *testing.T) map[id][]event {
	t.Helper()
	by := map[id][]event{}
	for _, e := range w.events(t, isEffect) {
		by[id{e.Type, e.Entity}] = append(by[id{e.Type, e.Entity}], e)
	}
	return by
}

func isEffect(e event) bool { return e.Verb == "effect" }

// happened is what a done-check asks: has the effect happened? It looks for how such a
// line begins, since reading all of them for each question would take most of the time.
func (w world) happened(ctx context.Context) (bool, error) {
	a := jobs.Current(ctx)
	raw, err := os.ReadFile(w.file("log"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return bytes.Contains(raw, fmt.Appendf(nil, `{"Verb":"effect","Type":%q,"Entity":%q,`, a.JobType, a.Entity)), err
}

// busy tells whether there have been more than n effects.
func (w world) busy(n int) bool {
	raw, err := os.ReadFile(w.file("log"))
	return err == nil && bytes.Count(raw, []byte(`{"Verb":"effect",`)) > n
}

// mark makes a mark, and tells whether this was the first time.
func (w world) mark(name string) bool {
	f, err := os.OpenFile(w.file(name), os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

func (w world) marked(name string) bool {
	_, err := os.Stat(w.file(name))
	return err == nil
}

// deafly waits for a mark, whatever becomes of the attempt.
func (w world) deafly(mark string) {
	for !w.marked(mark) {
		time.Sleep(2 * time.Millisecond)
	}
}

func (w world) file(name string) string { return filepath.Join(string(w), name) }
