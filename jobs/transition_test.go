package jobs_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/ledger"
)

// The fact of a transition is that of the job whose arguments make the same key.
func TestTheKeyOfATransitionIsThatOfAJob(t *testing.T) {
	tr := ledger.Transition{Entity: "a/b%", From: "in cart", To: "ordered"}
	if got, want := tr.Key(), jobs.Key(tr.Entity, tr.From, tr.To); got != want || strings.Count(got, "/") != 2 {
		t.Errorf("got %q, jobs.Key makes %q", got, want)
	}
}

// The row has moved on: no attempt will find it as it was.
func TestAConflictIsPermanent(t *testing.T) {
	err := fmt.Errorf("order: %w", &ledger.ConflictError{Entity: "7", From: "cart", To: "ordered", ExpectedVersion: 3, FoundState: "cart", FoundVersion: 4})
	if m := jobs.Meant(err); !m.Permanent || m.NotApplied {
		t.Errorf("it means %+v", m)
	}
}
