package ledger_test

import (
	"fmt"
	"testing"

	"github.com/anishathalye/porcupine"
)

// A call is what somebody asked of the ledger about one entity.
type call struct {
	entity string
	do     string
	worker int   // who claims, or dies
	epoch  int64 // wanted, or of the claim that is ended
	fence  int64 // that was seen, or is held; 0: none
}

// A reply is what the ledger said.
type reply struct {
	unknown      bool // nothing: the answer was lost
	yes          bool // it was done; no: it changed nothing
	done         bool // look: a fact satisfies the epoch
	fence, epoch int64
}

func (r reply) kind() string {
	switch {
	case r.unknown:
		return "unknown"
	case r.done:
		return "done"
	case r.yes:
		return "yes"
	case r.fence != 0:
		return "open"
	}
	return "no"
}

// A place is all that there is to know of one entity.
type place struct {
	fact  int64  // the epoch of its fact; noFact: there is none
	fence int64  // of its claim; 0: there is none; unseen: there is one, with a new fence that nobody has been told
	epoch int64  // of its claim
	owner int    // of its claim; 0: nobody
	last  int64  // the fence that was seen last: no other change has it
	dead  uint64 // a bit for each worker that was declared dead
}

const (
	noFact = -1
	unseen = -1
)

// spec is the ledger as it would be if it did one thing at a time. It knows nothing of how.
var spec = (&porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		index := map[string]int{}
		for _, op := range history {
			entity := op.Input.(call).entity
			i, ok := index[entity]
			if !ok {
				i = len(parts)
				index[entity], parts = i, append(parts, nil)
			}
			parts[i] = append(parts[i], op)
		}
		return parts
	},
	Init: func() []any { return []any{place{fact: noFact}} },
	Step: func(state, input, output any) (next []any) {
		for _, p := range state.(place).after(input.(call), output.(reply)) {
			next = append(next, p)
		}
		return next
	},
	DescribeOperation: func(input, output any) string {
		c, r := input.(call), output.(reply)
		return fmt.Sprintf("%s(epoch %d, fence %d, worker %d): %s, fence %d, epoch %d", c.do, c.epoch, c.fence, c.worker, r.kind(), r.fence, r.epoch)
	},
	DescribeState: func(state any) string { return fmt.Sprintf("%+v", state) },
}).ToModel()

// after is what may be after the call, where that was answered so; nothing, if it could
// not have been.
func (p place) after(c call, r reply) []place {
	no := []place(nil)
	only := func(next place, is bool) []place {
		if !is {
			return no
		}
		return []place{next}
	}
	current := p.fence == c.fence && c.fence != 0
	// Without an answer it happened, or it did not.
	if r.unknown {
		next := []place{p}
		if c.do == "claim" || c.do == "take over" {
			if p.free(c) {
				took := p.taken(c, unseen, max(c.epoch, r.epoch))
				next = append(next, took)
			}
			return next
		}
		r.unknown, r.yes = false, true
		return append(next, p.after(c, r)...)
	}
	switch c.do {
	case "die":
		p.dead |= 1 << c.worker
		return only(p, true)

	case "look":
		if r.done || p.fact >= c.epoch {
			return only(p, r.done == (p.fact >= c.epoch))
		}
		var next []place
		if r.fence == p.fence && (r.fence == 0 || r.epoch == p.epoch) {
			next = append(next, p)
		}
		if p.fence == unseen && r.fence != p.last && r.epoch == p.epoch {
			seen := p
			seen.fence, seen.last = r.fence, r.fence
			next = append(next, seen)
		}
		if r.fence != 0 && r.fence != p.last && r.epoch <= p.fact {
			next = append(next, p) // one that was just made, and found to be of done work, and goes
		}
		return next

	case "claim", "take over":
		if !r.yes {
			next := []place{p} // outrun: somebody was about to do something, and perhaps did not
			if current && p.free(c) && p.fact >= max(c.epoch, p.epoch) {
				next = append(next, p.without()) // or it was found to be done, and the claim swept away
			}
			return next
		}
		return only(p.taken(c, r.fence, r.epoch), p.free(c) && r.fence != p.last && r.epoch >= c.epoch)

	// A claim looks at the facts before it commits, and others see it after that. Who records a first
	// fact asks for no claim, so he may come between; then somebody may see that fact, and not yet the
	// claim. What is promised is that the work was not done at some moment of the call.
	case "claim looks":
		return only(p, p.fact < r.epoch)

	case "complete", "resolve":
		done := p.without()
		done.fact = max(p.fact, c.epoch)
		return only(choose(r.yes, done, p), r.yes == current)

	case "hold": // completes if the fact becomes its own
		done := p.without()
		done.fact = c.epoch
		return only(choose(r.yes, done, p), r.yes == (current && p.fact < c.epoch))

	case "keep open", "deny":
		free := p
		free.fence, free.owner = unseen, 0
		return only(choose(r.yes, free, p), r.yes == current)

	case "first fact":
		next := p
		next.fact = max(p.fact, 0)
		return only(next, r.yes == (p.fact == noFact))

	case "first failure": // leaves a claim where there is none
		var next []place
		if p.fence == 0 {
			opened := p
			opened.fence, opened.epoch, opened.owner = unseen, 0, 0
			next = append(next, opened)
		}
		if p.fence != 0 || p.fact != noFact { // then there may have been one that was about to go
			next = append(next, p)
		}
		return next

	case "sweep":
		next := []place{p.without()}
		if !current {
			next = []place{p}
			if p.fence == unseen && c.fence != p.last {
				next = append(next, p.without()) // it was that one
			}
		}
		return next
	}
	panic(c.do)
}

// free tells whether the claim that was seen, or that there was none, is still so, and may
// be taken over.
func (p place) free(c call) bool {
	if c.fence == 0 {
		return p.fence == 0
	}
	return p.fence == c.fence && (p.owner == 0 || p.dead&(1<<p.owner) != 0)
}

func (p place) taken(c call, fence, epoch int64) place {
	p.fence, p.epoch, p.owner = fence, epoch, c.worker
	if fence != unseen {
		p.last = fence
	}
	return p
}

func (p place) without() place {
	p.fence, p.epoch, p.owner = 0, 0, 0
	return p
}

func choose(is bool, a, b place) place {
	if is {
		return a
	}
	return b
}

// in order, one after the other.
func sequence(ops ...porcupine.Operation) []porcupine.Operation {
	for i := range ops {
		ops[i].Call, ops[i].Return = int64(2*i), int64(2*i+1)
	}
	return ops
}

func does(c call, r reply) porcupine.Operation {
	c.entity = "e"
	return porcupine.Operation{Input: c, Output: r}
}

// A check that accepts everything says nothing: these are the lies that a broken ledger
// would tell, beside the truths that are next to them.
func TestAHistoryThatCannotBeIsRejected(t *testing.T) {
	var (
		missing   = does(call{do: "look"}, reply{})
		claimed   = does(call{do: "claim", worker: 1}, reply{yes: true, fence: 5})
		again     = does(call{do: "claim", worker: 2}, reply{yes: true, fence: 6})
		open      = does(call{do: "look"}, reply{fence: 5})
		open3     = does(call{do: "look", epoch: 3}, reply{fence: 5})
		open7     = does(call{do: "look"}, reply{fence: 7})
		dies      = does(call{do: "die", worker: 1}, reply{yes: true})
		takenOver = does(call{do: "take over", worker: 2, fence: 5}, reply{yes: true, fence: 7})
		outrun    = does(call{do: "take over", worker: 2, fence: 5}, reply{})
		complete  = does(call{do: "complete", fence: 5}, reply{yes: true})
		complete7 = does(call{do: "complete", fence: 7}, reply{yes: true})
		refused   = does(call{do: "complete", fence: 5}, reply{})
		failed    = does(call{do: "keep open", fence: 5}, reply{yes: true})
		done      = does(call{do: "look"}, reply{done: true})
		fresh     = does(call{do: "first fact"}, reply{yes: true})
		stale     = does(call{do: "first fact"}, reply{})
		force     = does(call{do: "claim", worker: 1, epoch: 3}, reply{yes: true, fence: 8, epoch: 3})
		forced3   = does(call{do: "complete", fence: 8, epoch: 3}, reply{yes: true})
		done3     = does(call{do: "look", epoch: 3}, reply{done: true})
		lost      = does(call{do: "complete", fence: 5}, reply{unknown: true})
		looks     = does(call{do: "claim looks"}, reply{yes: true})
	)
	type ops = []porcupine.Operation
	for name, c := range map[string]struct{ truth, lie ops }{
		"two claims of one entity":           {ops{missing, claimed, open}, ops{missing, claimed, again}},
		"a takeover from the living":         {ops{claimed, dies, takenOver}, ops{claimed, takenOver}},
		"a takeover of what has changed":     {ops{claimed, failed, outrun}, ops{claimed, failed, takenOver}},
		"a completion by who lost the fence": {ops{claimed, dies, takenOver, refused, complete7}, ops{claimed, dies, takenOver, complete}},
		"a refusal for no reason":            {ops{claimed, complete, refused}, ops{claimed, refused}},
		"two completions under one fence":    {ops{claimed, complete, refused}, ops{claimed, complete, complete}},
		"a fact that is gone":                {ops{claimed, complete, done}, ops{claimed, complete, missing}},
		"a claim that is gone":               {ops{claimed, open}, ops{claimed, missing}},
		"a claim of what is done":            {ops{looks, fresh, claimed, open3}, ops{fresh, looks, claimed}},
		"two first facts":                    {ops{fresh, stale}, ops{fresh, fresh}},
		"a change without a new fence":       {ops{claimed, failed, open7}, ops{claimed, failed, open}},
		"done before it is done":             {ops{fresh, force, forced3, done3}, ops{fresh, force, done3}},
		"an unknown answer that was two":     {ops{claimed, lost, done}, ops{claimed, lost, complete, done, looks, again}},
	} {
		t.Run(name, func(t *testing.T) {
			if !porcupine.CheckOperations(spec, sequence(c.truth...)) {
				t.Error("the truth is rejected")
			}
			if porcupine.CheckOperations(spec, sequence(c.lie...)) {
				t.Error("the lie is accepted")
			}
		})
	}
}
