package main

import (
	"math/rand/v2"

	"github.com/oncemore-jobs/oncemore/jobs"
)

// A class is an effect class, as far as the count at the end cares.
type class string

const (
	repeatable class = "Repeatable"
	keyed      class = "Keyed"
	verifiable class = "Verifiable"
	once       class = "Once"
	inTx       class = "InTransaction"
)

// A jobType is what the count must know of a job type. Its entities are numbers from 1.
type jobType struct {
	name    string
	class   class
	sourced bool   // made of something that changes meanwhile
	parent  string // the fan-out that asks for it; empty: it is enqueued itself
	weight  int    // of 100 batches that the producer sends
	forced  bool   // now and then asked for under an epoch of its own
}

var jobTypes = []jobType{
	{name: "repeatable", class: repeatable, weight: 17, forced: true},
	{name: "keyed", class: keyed, weight: 14, forced: true},
	{name: "verifiable", class: verifiable, weight: 12, forced: true},
	{name: "once", class: once, weight: 14, forced: true},
	{name: "tx", class: inTx, weight: 14, forced: true},
	{name: "many", class: inTx, weight: 12},
	{name: "page", class: repeatable, sourced: true, weight: 6},
	{name: "page_tx", class: inTx, sourced: true, weight: 6},
	{name: "child", class: repeatable, parent: "fan", weight: 3},
	{name: "child_tx", class: inTx, parent: "fan_tx", weight: 2},
}

// A kind gives arguments their job type.
type kind interface{ jobType() string }

type (
	ofRepeatable struct{}
	ofKeyed      struct{}
	ofVerifiable struct{}
	ofOnce       struct{}
	ofTx         struct{}
	ofMany       struct{}
	ofPage       struct{}
	ofPageTx     struct{}
	ofChild      struct{}
	ofChildTx    struct{}
	ofFan        struct{}
	ofFanTx      struct{}
)

func (ofRepeatable) jobType() string { return "repeatable" }
func (ofKeyed) jobType() string      { return "keyed" }
func (ofVerifiable) jobType() string { return "verifiable" }
func (ofOnce) jobType() string       { return "once" }
func (ofTx) jobType() string         { return "tx" }
func (ofMany) jobType() string       { return "many" }
func (ofPage) jobType() string       { return "page" }
func (ofPageTx) jobType() string     { return "page_tx" }
func (ofChild) jobType() string      { return "child" }
func (ofChildTx) jobType() string    { return "child_tx" }
func (ofFan) jobType() string        { return "fan" }
func (ofFanTx) jobType() string      { return "fan_tx" }

// A thing is the arguments of work that has nothing but an identity.
type thing[K kind] struct {
	ID int64 `json:"id"`
}

func (thing[K]) JobType() string  { var k K; return k.jobType() }
func (t thing[K]) Entity() string { return jobs.Key(t.ID) }

// A revision is the arguments of work on something that changes.
type revision[K kind] struct {
	ID      int64 `json:"id"`
	Version int64 `json:"source_version"`
}

func (revision[K]) JobType() string        { var k K; return k.jobType() }
func (r revision[K]) Entity() string       { return jobs.Key(r.ID) }
func (r revision[K]) SourceVersion() int64 { return r.Version }

// A trouble is how an attempt goes wrong.
type trouble string

const (
	none        trouble = ""
	fails       trouble = "fails"        // an error, and no effect
	failsAfter  trouble = "fails_after"  // the effect, then an error
	refused     trouble = "refused"      // jobs.NotApplied
	panics      trouble = "panics"       // and no effect
	panicsAfter trouble = "panics_after" // the effect, then a panic
	slow        trouble = "slow"         // some time, then the effect, unless its context has ended
	hangs       trouble = "hangs"        // until its timeout
	ignores     trouble = "ignores"      // its context: it goes on past its timeout, then has its effect
	kills       trouble = "kills"        // its process, with no effect
	killsAfter  trouble = "kills_after"  // the effect, then its process
	hopeless    trouble = "hopeless"     // jobs.Permanent, each time
)

// A fate is the trouble that an entity makes for its first attempts.
type fate struct {
	trouble trouble
	times   int // attempts
}

// fates are how often each trouble comes, in 100,000.
var fates = []struct {
	trouble trouble
	share   int
	never   class // has no such entities
}{
	{fails, 2500, once}, // of class Once each would be in doubt
	{failsAfter, 1200, ""},
	{refused, 3000, ""},
	{panics, 600, once},
	{panicsAfter, 300, ""},
	{slow, 1500, ""},
	{hangs, 40, ""},
	{ignores, 15, verifiable}, // an effect so late, after a done-check has said no, no class can answer for
	{kills, 3, ""},
	{killsAfter, 3, ""},
	{hopeless, 300, ""},
}

// fateOf is the same in every process: it follows from the seed.
func fateOf(seed uint64, t *jobType, id int64) fate {
	r := rand.New(rand.NewPCG(seed, fnv(t.name)^uint64(id)*0x9e3779b97f4a7c15))
	n := r.IntN(100_000)
	for _, f := range fates {
		if n -= f.share; n >= 0 {
			continue
		}
		switch {
		case f.never == t.class, f.trouble == ignores && t.sourced: // nor for the order of two versions
			return fate{}
		case f.trouble == hopeless:
			return fate{hopeless, 1 << 30}
		}
		return fate{f.trouble, 1 + r.IntN(2)}
	}
	return fate{}
}

func fnv(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

func typeNamed(name string) *jobType {
	for i := range jobTypes {
		if jobTypes[i].name == name {
			return &jobTypes[i]
		}
	}
	return nil
}
