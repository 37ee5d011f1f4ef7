package sqsfake

import (
	"math/rand/v2"
	"time"
)

// Faults are what SQS and its network do now and then. The zero Faults are none. Each
// number is a share, from 0 to 1.
type Faults struct {
	PartialFailures float64 // of the entries of batches: refused by SQS's fault. Every other one took effect all the same
	Throttled       float64 // of the requests: refused as too many
	LostAnswers     float64 // of the requests but receives: they took effect, and the answer is an error of the server
	LostReceives    float64 // of the receives that bring something: their messages are in flight, and the answer is an error
	Duplicates      float64 // of the messages handed out: they stay visible for others
	LostAcks        float64 // of the deletes: they succeed, and the message comes again
	ExpiredHandles  float64 // of the messages handed out: their handle is good for nothing

	DelayedRedelivery time.Duration // what lapses or is released comes up to so much later
	Slow              time.Duration // answers take up to so long

	Seed uint64 // of the choices: the same calls in the same order meet the same faults
}

// SetFaults switches faults on, or with the zero Faults off.
func (f *Fake) SetFaults(fs Faults) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = faults{Faults: fs, random: rand.New(rand.NewPCG(fs.Seed, 1)), tally: &f.tally}
}

// A Tally says how often faults have happened, beside how often some of them could have.
type Tally struct {
	HandedOut  int // messages, each as often as it was
	Duplicates int // of them
	Entries    int // of batches
	Refused    int // of them, by [Faults.PartialFailures]
}

// Tally is of all that has happened since New.
func (f *Fake) Tally() Tally {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tally
}

// faults are owned by the mutex of their Fake.
type faults struct {
	Faults
	random *rand.Rand
	turn   int
	tally  *Tally
}

func (f *faults) happens(share float64) bool { return share > 0 && f.random.Float64() < share }

func (f *faults) upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(f.random.Int64N(int64(d) + 1))
}

func (f *faults) slow() time.Duration { return f.upTo(f.Slow) }

func (f *faults) throttle(action string) *failed {
	if !f.happens(f.Throttled) || action == "CreateQueue" {
		return nil
	}
	return refuse("RequestThrottled", "the rate is exceeded")
}

func (f *faults) loseAnswer(action string) *failed {
	if !f.happens(f.LostAnswers) || action == "CreateQueue" {
		return nil
	}
	return serverError()
}

func serverError() *failed {
	return &failed{"InternalError", "we encountered an internal error, please try again", 500, ""}
}

// partial tells whether an entry of a batch is to be refused, and whether it takes effect
// all the same.
func (f *faults) partial() (refused, acts bool) {
	if !f.happens(f.PartialFailures) {
		return false, true
	}
	f.turn++
	f.tally.Refused++
	return true, f.turn%2 == 0
}
