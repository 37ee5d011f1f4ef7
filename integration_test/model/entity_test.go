package model_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/oncemore-jobs/oncemore/ledger"
)

// A kind is a job type: one for each effect class.
type kind struct {
	ledger.Type
	attempts int
	tx       bool // DoTx; else Do
}

const (
	timeout  = 10 * time.Minute
	settling = time.Hour
	horizon  = 24 * time.Hour
	attempts = 4
)

func kinds() []*kind {
	of := func(name string, e ledger.Effect) *kind {
		return &kind{Type: ledger.Type{Name: name, Effect: e, Timeout: timeout}, attempts: attempts}
	}
	tx, verifiable := of("tx", ledger.InTransaction), of("verifiable", ledger.Verifiable(settling))
	tx.tx, verifiable.Checked = true, true
	return []*kind{tx, of("repeatable", ledger.Repeatable), of("keyed", ledger.Keyed(horizon)), verifiable, of("once", ledger.Once)}
}

// An entity is what should be true of one entity.
type entity struct {
	*kind
	name    string
	sourced bool
	source  int64 // the version of its source now; 0: it has none

	fact *fact
	open *open
	past []fact // that were replaced, oldest first

	asked    []want // all that was enqueued
	answered []want // that some fact has satisfied
	effects  []effect
	disputed int
	since    time.Duration // of the evidence that somebody may have had the effect
	ended    time.Duration // of the last attempt that may have had it, where nobody holds the claim
}

func (e *entity) GoString() string {
	return fmt.Sprintf("%s (source %d, fact %+v, claim %v)", e.name, e.source, e.fact, e.open)
}

func (k *kind) GoString() string { return k.Name }

type fact struct{ epoch, source int64 }

// An open is a claim. Its fence is known only when the ledger has told it.
type open struct {
	fence    int64 // 0: it has changed, and has a new one
	owner    int64
	trouble  ledger.Trouble
	epoch    int64
	source   int64
	attempts int
	evidence bool // that somebody may have had the effect
	own      bool // all of that is of the last attempt
}

func (o *open) String() string {
	if o == nil {
		return "none"
	}
	return fmt.Sprintf("%+v", *o)
}

type want struct{ epoch, source int64 }

// satisfies tells whether the fact is enough for w.
func (f *fact) satisfies(w want) bool {
	return f != nil && f.epoch >= w.epoch && f.source >= w.source
}

// become makes f the fact, where it may replace what is there.
func (e *entity) become(f fact) bool {
	if e.fact != nil {
		if f.epoch <= e.fact.epoch {
			return false
		}
		e.past = append(e.past, *e.fact)
	}
	e.fact = &f
	for _, w := range e.asked {
		if f.satisfies(w) {
			e.answered = append(e.answered, w)
		}
	}
	return true
}

// An effect is something that was done to the world, outside the database.
type effect struct {
	epoch  int64 // its key
	source int64 // what it was made from
	at     time.Duration
	again  bool // the provider knew the key, and ignored it
	zombie bool // by a process that no longer had the right to: it was frozen between its last look at the clock and the effect
}

// happened tells what the world says of this epoch.
func (e *entity) happened(epoch int64) bool {
	for _, f := range e.effects {
		if f.epoch == epoch {
			return true
		}
	}
	return false
}

// shows tells what a done-check sees: it takes the world a while to show an effect.
func (e *entity) shows(epoch, source int64, now time.Duration) bool {
	return slices.ContainsFunc(e.effects, func(f effect) bool {
		return f.epoch >= epoch && f.source >= source && now-f.at >= settling
	})
}

// holds tells whether the claim still has this fence.
func (e *entity) holds(fence int64) bool { return e.open != nil && e.open.fence == fence }
