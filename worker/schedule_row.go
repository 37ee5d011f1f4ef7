package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/oncemore-jobs/oncemore/jobs"
	"github.com/oncemore-jobs/oncemore/jobs/cron"
	"github.com/oncemore-jobs/oncemore/queue"
)

// A storedSchedule is a row of oncemore.schedule, or what is to become one.
type storedSchedule struct {
	Name, Spec, Zone, JobType string
	Entity, Args, Rerun       *string
	CatchUp                   CatchUp
	CatchUpMost               int
	MaxAge, Jitter            float64 // seconds
	Overlap                   Overlap
	FromCode, Orphan          bool
	Paused, Error             *string
	Cursor                    time.Time
	LastStarted               *time.Time
}

// A storedRerun is an [Order] in the column rerun.
type storedRerun struct {
	Selection   json.RawMessage `json:"selection"`
	Reason      string          `json:"reason,omitempty"`
	Rate        float64         `json:"rate,omitempty"`
	Canary      int64           `json:"canary,omitempty"`
	CanaryShare float64         `json:"canary_share,omitempty"`
}

// row makes the row of s, before it is checked.
func (s Schedule) row() (*storedSchedule, error) {
	if err := queue.CheckName("name of a schedule", s.Name); err != nil {
		return nil, err
	}
	r := &storedSchedule{Name: s.Name, Spec: s.Spec, Zone: s.Zone, CatchUp: s.CatchUp, CatchUpMost: s.CatchUpMost, Overlap: s.Overlap,
		MaxAge: s.MaxAge.Seconds(), Jitter: s.Jitter.Seconds()}
	if r.Zone == "" {
		r.Zone = "UTC"
	}
	if r.CatchUp == "" {
		r.CatchUp = CatchUpLatest
	}
	if r.CatchUpMost == 0 {
		r.CatchUpMost = defaultCatchUpMost
	}
	if r.Overlap == "" {
		r.Overlap = OverlapSkip
		if r.CatchUp == CatchUpAll {
			r.Overlap = OverlapQueue
		}
	}
	switch {
	case (s.Args == nil) == (s.Rerun == nil):
		return nil, errors.New("set one of Args and Rerun: what is it that a tick starts?")
	case s.Args != nil:
		it, err := jobs.NewItem(s.Args)
		if err != nil {
			return nil, err
		}
		args := string(it.Args)
		r.JobType, r.Entity, r.Args = s.Args.JobType(), &it.Entity, &args
	default:
		o := s.Rerun
		selection, err := json.Marshal(o.Selection)
		if err != nil {
			return nil, fmt.Errorf("encode the selection: %w", err)
		}
		raw, err := json.Marshal(storedRerun{selection, o.Reason, o.Rate, o.Canary, o.CanaryShare})
		if err != nil {
			return nil, fmt.Errorf("encode the re-run: %w", err)
		}
		text := string(raw)
		r.JobType, r.Rerun = o.Type, &text
	}
	return r, nil
}

// A plannedSchedule is a row that was found to be right.
type plannedSchedule struct {
	*storedSchedule
	cron   cron.Schedule
	job    *jobs.Erased // nil: not known here
	order  *Order       // nil: it enqueues
	maxAge time.Duration
	jitter time.Duration
}

// plan checks a row, whoever wrote it.
func (r *storedSchedule) plan(lookup func(string) (*jobs.Erased, bool)) (*plannedSchedule, error) {
	p := &plannedSchedule{storedSchedule: r, maxAge: seconds(r.MaxAge), jitter: seconds(r.Jitter)}
	var err error
	if p.cron, err = cron.Parse(r.Spec, r.Zone); err != nil {
		return nil, err
	}
	var known bool
	if p.job, known = lookup(r.JobType); !known {
		return nil, fmt.Errorf("no job %q is registered", r.JobType)
	}
	switch {
	case !slices.Contains([]CatchUp{CatchUpNone, CatchUpLatest, CatchUpAll}, r.CatchUp):
		return nil, fmt.Errorf("catch-up %q: want none, latest or all", r.CatchUp)
	case !slices.Contains([]Overlap{OverlapSkip, OverlapQueue}, r.Overlap):
		return nil, fmt.Errorf("overlap %q: want skip or queue", r.Overlap)
	case r.CatchUp == CatchUpAll && r.Overlap == OverlapSkip:
		return nil, errors.New("catch-up all starts what was missed one after the other, so its overlap must be queue: with skip the first of them would have the others skipped")
	case r.CatchUpMost < 1 || r.CatchUpMost > maxCatchUpMost:
		return nil, fmt.Errorf("catch-up of %d ticks: want 1 to %d", r.CatchUpMost, maxCatchUpMost)
	case p.maxAge < 0 || p.jitter < 0:
		return nil, errors.New("the maximum age and the jitter must not be negative")
	case (r.Entity == nil) != (r.Args == nil) || (r.Args == nil) == (r.Rerun == nil):
		return nil, errors.New("a row has either entity and args, or rerun")
	}
	if r.Rerun != nil {
		p.order, err = r.readRerun(p.job)
		return p, err
	}
	// Tried with some tick, so that what is wrong is said now and not at night.
	m := p.message(time.Date(2026, 3, 29, 1, 0, 0, 0, time.UTC))
	if err := m.Check(); err != nil {
		return nil, err
	}
	if p.job != nil {
		if _, err := p.job.Decode(m.Items[0].Entity, m.Items[0].Args); err != nil {
			return nil, fmt.Errorf("what a tick of it would enqueue as %s cannot be worked: %w", r.JobType, err)
		}
	}
	return p, nil
}

func (r *storedSchedule) readRerun(job *jobs.Erased) (*Order, error) {
	if job != nil && job.FanOut != nil {
		return nil, fmt.Errorf("%s fans out, and cannot be re-run: set Args, which call it again", r.JobType)
	}
	var in storedRerun
	o := &Order{Type: r.JobType}
	if err := json.Unmarshal([]byte(*r.Rerun), &in); err != nil {
		return nil, fmt.Errorf("decode the re-run: %w", err)
	}
	if err := json.Unmarshal(in.Selection, &o.Selection); err != nil {
		return nil, fmt.Errorf("decode the selection of the re-run: %w", err)
	}
	o.Reason, o.Rate, o.Canary, o.CanaryShare = in.Reason, in.Rate, in.Canary, in.CanaryShare
	return o, o.check()
}

// messageOf is what a tick sends, but for its epoch and delay; nil where it asks for a re-run.
func (p *plannedSchedule) messageOf(tick time.Time) *queue.Message {
	if p.order != nil {
		return nil
	}
	m := p.message(tick)
	return &m
}

func (p *plannedSchedule) message(tick time.Time) queue.Message {
	r := strings.NewReplacer("{tick}", tick.UTC().Format(time.RFC3339), "{date}", tick.In(p.cron.Zone()).Format(time.DateOnly))
	m := queue.Message{Type: p.JobType, Items: []queue.Item{{Entity: r.Replace(*p.Entity), Args: json.RawMessage(r.Replace(*p.Args))}}}
	if p.job != nil {
		m.Type, m.Priority = p.job.Type, p.job.Priority
	}
	return m
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
