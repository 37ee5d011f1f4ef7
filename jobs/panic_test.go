package jobs_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/queue"
)

// Arguments whose code panics, each where its name says.
type (
	panicsInEntity  struct{ P *string }
	panicsInDecode  struct{ bare }
	panicsInEncode  struct{ bare }
	panicsInVersion struct {
		bare
		Version int64 `json:"source_version"`
	}
	bare struct{ ID string }
)

func (bare) JobType() string                        { return "bare" }
func (bare) Entity() string                         { return "1" }
func (panicsInEntity) JobType() string              { return "bare" }
func (p panicsInEntity) Entity() string             { return *p.P }
func (*panicsInDecode) UnmarshalJSON([]byte) error  { panic("cannot read it") }
func (panicsInEncode) MarshalJSON() ([]byte, error) { panic("cannot write it") }
func (panicsInVersion) SourceVersion() int64        { panic("no version") }

func TestAPanicOfTheArgumentsOwnCodeIsAnError(t *testing.T) {
	for name, d := range map[string]jobs.Definition{
		"Entity":        jobs.Job[panicsInEntity]{Effect: jobs.Once, Do: func(context.Context, panicsInEntity) error { return nil }},
		"UnmarshalJSON": jobs.Job[panicsInDecode]{Effect: jobs.Once, Do: func(context.Context, panicsInDecode) error { return nil }},
		"MarshalJSON":   jobs.Job[panicsInEncode]{Effect: jobs.Once, Do: func(context.Context, panicsInEncode) error { return nil }},
		"SourceVersion": jobs.Job[panicsInVersion]{Effect: jobs.Once, Do: func(context.Context, panicsInVersion) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := jobs.NewSet(d)
			if err != nil {
				t.Fatal(err)
			}
			job, _ := set.Lookup("bare")
			if _, err := job.Decode("1", []byte(`{}`)); err == nil || !strings.Contains(err.Error(), "panic") {
				t.Errorf("decoding: %v", err)
			}
			if _, err := job.Parse([]byte(`{}`)); (err != nil) != (name == "UnmarshalJSON") {
				t.Errorf("parsing: %v", err)
			}
		})
	}
	for name, a := range map[string]jobs.Args{"Entity": panicsInEntity{}, "MarshalJSON": panicsInEncode{}, "nothing at all": nil} {
		t.Run("a producer: "+name, func(t *testing.T) {
			if err := jobs.Enqueue(t.Context(), unused{}, a); !errors.Is(err, queue.ErrInvalid) {
				t.Errorf("enqueueing: %v", err)
			}
			if _, err := jobs.NewItem(a); !errors.Is(err, queue.ErrInvalid) {
				t.Errorf("encoding: %v", err)
			}
		})
	}
}

// An unused queue is one that nothing may be sent to.
type unused struct{ queue.Sender }

func TestABackoffThatPanicsIsTheDefaultOne(t *testing.T) {
	j := jobs.Job[letter]{DoTx: doTx}
	j.Backoff = func(int) time.Duration { panic("no table for this attempt") }
	set, err := jobs.NewSet(j)
	if err != nil {
		t.Fatal(err)
	}
	job, _ := set.Lookup("letter")
	if d := job.Backoff(1); d < 800*time.Millisecond || d > 1200*time.Millisecond {
		t.Errorf("it waits %s after the first attempt", d)
	}
}
